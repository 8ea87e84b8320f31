use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{broadcast, watch};
use tokio_util_token::CancellationFlag;

use crate::{Failure, New, Record, State};

/// A flag that can be waited for.
pub(crate) mod tokio_util_token {
    use tokio::sync::watch;

    /// Set once, never unset.
    #[derive(Debug, Clone)]
    pub(crate) struct CancellationFlag(watch::Sender<bool>);

    impl CancellationFlag {
        pub(crate) fn new() -> Self {
            Self(watch::Sender::new(false))
        }

        pub(crate) fn set(&self) {
            self.0.send_replace(true);
        }

        pub(crate) fn is_set(&self) -> bool {
            *self.0.borrow()
        }

        pub(crate) async fn wait(&self) {
            let mut receiver = self.0.subscribe();
            // The sender lives in self, so this can't fail.
            let _ = receiver.wait_for(|on| *on).await;
        }
    }
}

struct Inner {
    record: Mutex<Record>,
    changes: watch::Sender<u64>,
    events: broadcast::Sender<Record>,
    cancelled: CancellationFlag,
}

/// A live operation. Cheap to clone.
#[derive(Clone)]
pub struct Operation {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let record = self.lock();
        write!(
            f,
            "Operation({} {} {:?})",
            record.id, record.verb, record.state
        )
    }
}

impl Operation {
    pub(crate) fn new(id: String, new: New, events: broadcast::Sender<Record>) -> Self {
        let now = berth_store::now();
        Self::from_record(
            Record {
                id,
                class: new.class,
                verb: new.verb,
                description: new.description,
                project: new.project,
                state: State::Pending,
                step: String::new(),
                resources: new.resources,
                metadata: new.metadata,
                may_cancel: new.may_cancel,
                created_at: now.clone(),
                updated_at: now,
                failure: None,
                traceparent: berth_rpc::trace::current_traceparent().unwrap_or_default(),
            },
            events,
        )
    }

    pub(crate) fn from_record(record: Record, events: broadcast::Sender<Record>) -> Self {
        Self {
            inner: Arc::new(Inner {
                record: Mutex::new(record),
                changes: watch::Sender::new(0),
                events,
                cancelled: CancellationFlag::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.inner
            .record
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record and tells everybody, in the order of changes.
    pub(crate) fn change(&self, how: impl FnOnce(&mut Record)) {
        let mut record = self.lock();
        how(&mut record);
        record.updated_at = berth_store::now();
        // Sent under the lock: the last thing anybody hears is the last thing that happened.
        let _ = self.inner.events.send(record.clone());
        self.inner.changes.send_modify(|n| *n += 1);
    }

    /// Tells everybody how it stands without changing it.
    pub(crate) fn announce(&self) {
        let record = self.lock();
        let _ = self.inner.events.send(record.clone());
    }

    /// UUID.
    pub fn id(&self) -> String {
        self.lock().id.clone()
    }

    /// As it stands.
    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    /// Sets one key of what clients see.
    pub fn set_metadata(&self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        self.change(|r| {
            r.metadata.insert(key, value);
        });
    }

    /// Sets several keys at once, with one event.
    pub fn merge_metadata(&self, more: Map<String, Value>) {
        self.change(|r| r.metadata.extend(more));
    }

    /// Adds a resource it works on.
    pub fn add_resource(&self, kind: &str, name: impl Into<String>) {
        let name = name.into();
        self.change(|r| {
            let names = r.resources.entry(kind.to_owned()).or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        });
    }

    /// Ends it well. For operations made by [`Operations::spawn`](crate::Operations::spawn) the
    /// return of their work does this.
    pub(crate) fn finish(&self, state: State, failure: Option<Failure>) {
        self.change(|r| {
            if !r.state.is_final() {
                r.state = state;
                r.failure = failure;
                r.may_cancel = false;
                r.step.clear();
            }
        });
    }

    /// Asks it to stop. Takes effect between steps.
    pub(crate) fn cancel(&self) {
        self.inner.cancelled.set();
    }

    /// Whether somebody asked it to stop.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.is_set()
    }

    /// Returns when somebody asks it to stop.
    pub async fn cancelled(&self) {
        self.inner.cancelled.wait().await;
    }

    /// Changes as they come; the value only counts them.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Waits until it is final or the time is over; gives it as it then stands.
    pub async fn wait(&self, timeout: Option<Duration>) -> Record {
        let mut changes = self.watch();
        let done = async {
            while !self.lock().state.is_final() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        match timeout {
            None => done.await,
            Some(limit) => {
                let _ = tokio::time::timeout(limit, done).await;
            }
        }
        self.record()
    }
}
