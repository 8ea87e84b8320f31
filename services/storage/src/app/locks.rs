//! Locks by name. All that one change needs are taken together and in order, so that no two
//! changes ever wait for each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// How a lock is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Together with other readers.
    Read,
    /// Alone.
    Write,
}

enum Guard {
    Read(#[expect(dead_code, reason = "held, not looked at")] OwnedRwLockReadGuard<()>),
    Write(#[expect(dead_code, reason = "held, not looked at")] OwnedRwLockWriteGuard<()>),
}

/// Locks that are held until this is dropped.
pub struct Held(#[expect(dead_code, reason = "held, not looked at")] Vec<Guard>);

/// All locks there are.
#[derive(Default)]
pub struct Locks {
    by_name: Mutex<HashMap<String, Weak<RwLock<()>>>>,
}

impl Locks {
    fn get(&self, name: &str) -> Arc<RwLock<()>> {
        let mut all = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = all.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        // Forgotten ones go when the table would grow anyway.
        if all.len() == all.capacity() {
            all.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::new(RwLock::new(()));
        all.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Takes several locks. A name that is given twice is taken once, the stronger way.
    pub async fn take(&self, wanted: impl IntoIterator<Item = (String, Want)>) -> Held {
        let mut ordered = BTreeMap::new();
        for (name, want) in wanted {
            let slot = ordered.entry(name).or_insert(want);
            *slot = (*slot).max(want);
        }
        let mut held = Vec::with_capacity(ordered.len());
        for (name, want) in ordered {
            let lock = self.get(&name);
            held.push(match want {
                Want::Read => Guard::Read(lock.read_owned().await),
                Want::Write => Guard::Write(lock.write_owned().await),
            });
        }
        Held(held)
    }
}

/// Lock of a pool: read by whatever works in it, written by what makes or removes it.
pub fn pool(name: &str) -> String {
    format!("pool/{name}")
}

/// Lock of a volume and its snapshots.
pub fn volume(pool_uid: &str, key: &crate::store::VolumeKey) -> String {
    format!(
        "volume/{pool_uid}/{}/{}/{}",
        key.project, key.collection, key.name
    )
}

/// Turn of those who send an image's bytes to a pool: the others have no need to.
pub fn upload(pool_uid: &str, fingerprint: &str) -> String {
    format!("upload/{pool_uid}/{fingerprint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn writers_are_alone_and_opposite_orders_do_not_block() {
        let locks = Arc::new(Locks::default());
        let both = |a: &str, b: &str| [(a.to_owned(), Want::Write), (b.to_owned(), Want::Write)];
        let first = locks.take(both("a", "b")).await;
        let waiting = tokio::time::timeout(Duration::from_millis(20), locks.take(both("b", "a")));
        assert!(waiting.await.is_err());
        drop(first);
        let mut tasks = Vec::new();
        for i in 0..50 {
            let locks = locks.clone();
            let wanted = if i % 2 == 0 {
                both("a", "b")
            } else {
                both("b", "a")
            };
            tasks.push(tokio::spawn(async move {
                let _held = locks.take(wanted).await;
                tokio::task::yield_now().await;
            }));
        }
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(5), task)
                .await
                .unwrap()
                .unwrap();
        }
    }

    #[tokio::test]
    async fn locks_nobody_holds_are_forgotten() {
        let locks = Locks::default();
        for i in 0..10_000 {
            drop(locks.take([(format!("n{i}"), Want::Read)]).await);
        }
        assert!(locks.by_name.lock().unwrap().len() < 1000);
    }
}
