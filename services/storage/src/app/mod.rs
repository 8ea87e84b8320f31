//! The use cases, one module each. They know nothing of gRPC; the kernel's side is behind
//! [`crate::driver::Driver`], the database's behind [`crate::store`].
//!
//! Every change goes the same way: take the locks of what it touches, make the effect under a
//! staging name, commit one transaction (row, event, answer), publish by a rename. What a crash
//! leaves between two of these steps is told apart and finished or removed by [`reconcile`].

pub mod create_pool;
pub mod create_volume;
pub mod delete_pool;
pub mod delete_volume;
pub mod holds;
pub mod image_cache;
pub mod locks;
pub mod purge;
pub mod read;
pub mod reconcile;
pub mod restore_volume;
pub mod snapshots;
pub mod update_pool;
pub mod update_volume;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use berth_rpc::Error;
use berth_store::{Event, Store, Tx};

use crate::config::Config;
use crate::driver::{Driver, Place};
use crate::model::QUOTA_BASE;
use crate::source::{BlobRoots, Limits};
use crate::store::{Hold, PoolRow, SnapshotRow, VolumeKey, VolumeRow, failed};
use locks::Locks;

/// A pool as this process has it.
pub struct OpenPool {
    /// Its row.
    pub row: PoolRow,
    /// Its backend, or why it can't be used.
    pub driver: Result<Arc<dyn Driver>, String>,
}

impl OpenPool {
    /// The backend, or UNAVAILABLE with the reason.
    pub fn driver(&self) -> Result<Arc<dyn Driver>, Error> {
        self.driver.clone().map_err(|why| {
            Error::unavailable(format!(
                "Storage pool {:?} is unavailable: {why}",
                self.row.name
            ))
        })
    }

    /// LXD's word for the pool's state, and a sentence where there is something to say.
    pub fn status(&self) -> (&'static str, String) {
        match &self.driver {
            Ok(driver) if !driver.has_quota() => (
                "Created",
                "size limits are not enforced: the filesystem has no project quotas".to_owned(),
            ),
            Ok(_) => ("Created", String::new()),
            Err(why) => ("Unavailable", why.clone()),
        }
    }
}

/// A pool with what hangs on it.
pub struct PoolView {
    /// The pool.
    pub pool: Arc<OpenPool>,
    /// Resource names of what uses it.
    pub used_by: Vec<String>,
}

/// A volume with what hangs on it.
pub struct VolumeView {
    /// Its row.
    pub row: VolumeRow,
    /// Its pool.
    pub pool: Arc<OpenPool>,
    /// Who uses it.
    pub holds: Vec<Hold>,
}

/// A snapshot with what it belongs to.
pub struct SnapshotView {
    /// Its row.
    pub row: SnapshotRow,
    /// Its volume.
    pub volume: VolumeRow,
    /// Its pool.
    pub pool: Arc<OpenPool>,
}

/// A mutating request's id, and how its answer is written down beside the effect.
pub struct Ask<V: ?Sized> {
    /// Caller's id; empty = not repeatable.
    pub request_id: String,
    /// The answer's bytes.
    pub render: fn(&V) -> Vec<u8>,
}

/// Everything the use cases share.
pub struct App {
    /// Database.
    pub store: Store,
    /// This host among those that share the database.
    pub node: String,
    state_dir: PathBuf,
    blob_roots: BlobRoots,
    limits: RwLock<Limits>,
    pools: RwLock<BTreeMap<String, Arc<OpenPool>>>,
    locks: Locks,
    /// How many times each uid is being worked on: reconcile leaves those alone.
    building: Mutex<HashMap<String, usize>>,
    last_quota_id: AtomicU32,
    /// Something was deleted, or failed: the next look round has something to find.
    untidy: AtomicBool,
}

impl App {
    /// Opens all pools and repairs what a crash left. Pools that can't be opened don't keep the
    /// service from starting.
    pub async fn start(store: Store, config: &Config) -> Result<Arc<Self>, Error> {
        std::fs::create_dir_all(&config.server.state_dir).map_err(Error::internal)?;
        let last = VolumeRow::last_quota_id(&mut store.read())
            .await
            .map_err(failed)?;
        let app = Self::closed(store, config);
        let last = u32::try_from(last).unwrap_or(0).max(QUOTA_BASE);
        app.last_quota_id.store(last, Ordering::Relaxed);
        reconcile::at_start(&app).await?;
        Ok(app)
    }

    /// Without any pool opened.
    fn closed(store: Store, config: &Config) -> Arc<Self> {
        Arc::new(Self {
            store,
            node: config.node.clone(),
            state_dir: config.server.state_dir.clone(),
            blob_roots: BlobRoots::new(config.blob_roots.clone()),
            limits: RwLock::new(config.unpack),
            pools: RwLock::default(),
            locks: Locks::default(),
            building: Mutex::default(),
            last_quota_id: AtomicU32::new(QUOTA_BASE),
            untidy: AtomicBool::new(false),
        })
    }

    /// Takes up what reloads of the configuration say of limits.
    pub fn follow(self: &Arc<Self>, mut configs: tokio::sync::watch::Receiver<Config>) {
        let app = Arc::downgrade(self);
        tokio::spawn(async move {
            while configs.changed().await.is_ok() {
                let Some(app) = app.upgrade() else { return };
                let limits = configs.borrow_and_update().unpack;
                *app.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
            }
        });
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what is received is kept until it is unpacked, in files that have no names.
    ///
    /// # Errors
    /// When so much can't be the bytes of an image that may be unpacked.
    pub fn incoming(&self, sizes: &[u64]) -> Result<&Path, Error> {
        let sum = sizes
            .iter()
            .fold(0_u64, |sum, size| sum.saturating_add(*size));
        if sum > self.limits().max_bytes {
            return Err(Error::invalid(
                "header.image.blobs.size_bytes",
                format!("{sum} bytes are more than unpack.max_bytes"),
            ));
        }
        Ok(&self.state_dir)
    }

    /// A pool by name.
    pub fn pool(&self, name: &str) -> Result<Arc<OpenPool>, Error> {
        self.pools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found("Storage pool", name))
    }

    /// All pools by name.
    pub fn pools(&self) -> Vec<Arc<OpenPool>> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.values().cloned().collect()
    }

    fn put_pool(&self, pool: OpenPool) -> Arc<OpenPool> {
        let pool = Arc::new(pool);
        self.pools
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pool.row.name.clone(), pool.clone());
        pool
    }

    fn drop_pool(&self, name: &str) {
        self.pools
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    fn next_quota_id(&self) -> u32 {
        self.last_quota_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn mark_untidy(&self) {
        self.untidy.store(true, Ordering::Release);
    }

    /// Keeps reconcile's hands off a uid until the guard is dropped.
    fn building(self: &Arc<Self>, uid: &str) -> Building {
        let mut all = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(uid.to_owned()).or_default() += 1;
        Building {
            app: self.clone(),
            uid: uid.to_owned(),
        }
    }

    fn is_building(&self, uid: &str) -> bool {
        self.building
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(uid)
    }

    /// A volume by name.
    async fn volume(&self, pool: &OpenPool, key: &VolumeKey) -> Result<VolumeRow, Error> {
        VolumeRow::find(&mut self.store.read(), &pool.row.uid, key)
            .await
            .map_err(failed)?
            .ok_or_else(|| Error::not_found("Storage volume", &key.name))
    }

    /// A volume with its holds.
    async fn view(&self, pool: Arc<OpenPool>, row: VolumeRow) -> Result<VolumeView, Error> {
        let holds = Hold::of(&mut self.store.read(), &row.uid, &berth_store::now())
            .await
            .map_err(failed)?;
        Ok(VolumeView { row, pool, holds })
    }

    async fn begin(&self) -> Result<Tx, Error> {
        self.store.begin().await.map_err(failed)
    }
}

/// See [`App::building`].
struct Building {
    app: Arc<App>,
    uid: String,
}

impl Drop for Building {
    fn drop(&mut self) {
        let mut all = self
            .app
            .building
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = all.get_mut(&self.uid) {
            *n -= 1;
            if *n == 0 {
                all.remove(&self.uid);
            }
        }
    }
}

/// Runs what blocks away from the reactor.
async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> crate::error::Result<T> + Send + 'static,
{
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(Error::internal)?
        .map_err(Error::from)
}

/// Removes what a failed change made; what can't be removed now is removed by reconcile.
async fn discard(app: &App, driver: Arc<dyn Driver>, places: Vec<Place>) {
    let removed = blocking(move || {
        for place in &places {
            driver.remove(place.area, &place.name())?;
        }
        Ok(())
    })
    .await;
    if let Err(error) = removed {
        tracing::warn!(%error, "what a failed change made is left for later");
        app.mark_untidy();
    }
}

/// Gives staged contents their names. The rows are committed: a failure here is repaired later,
/// and told now.
async fn publish(app: &App, driver: Arc<dyn Driver>, places: Vec<Place>) -> Result<(), Error> {
    let published = blocking(move || places.iter().try_for_each(|p| driver.publish(p))).await;
    if published.is_err() {
        app.mark_untidy();
    }
    published
}

fn event(action: &str, resource: String, project: &str) -> Event {
    Event {
        action: action.to_owned(),
        resource,
        project: project.to_owned(),
        traceparent: berth_rpc::trace::current_traceparent().unwrap_or_default(),
        ..Event::default()
    }
}

fn new_uid() -> String {
    uuid::Uuid::now_v7().to_string()
}
