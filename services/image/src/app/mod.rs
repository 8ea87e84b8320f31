//! The use cases. Each takes parsed values and gives values of the model.

mod aliases;
mod delete_image;
mod export_image;
mod holds;
mod import_image;
mod receive_upload;
mod resolve_image;
mod update_image;
mod uses;

pub use aliases::{AliasChange, create_alias, delete_alias, rename_alias, update_alias};
pub use delete_image::delete_image;
pub use export_image::{Export, ExportMessage, export_image};
pub use holds::{hold_image, release_image};
pub use import_image::{ImportHeader, NewAlias, import_image};
pub use receive_upload::UploadChunk;
pub use resolve_image::{get_image, resolve_image};
pub use update_image::{ImageChange, update_image};

use crate::blobs::Blobs;
use crate::config::Config;
use crate::error::Error;
use crate::model::{Alias, Catalogue, Fingerprint, Image};
use crate::store;
use berth_store::{Store, Tx};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use uses::Uses;

/// Everything the use cases work on.
#[derive(Debug)]
pub struct App {
    store: Store,
    pub(crate) blobs: Blobs,
    /// Never locked across an await.
    catalogue: RwLock<Catalogue>,
    /// Held from the checks of a change to its end, so that the catalogue is what the database
    /// says whenever a check looks at it, and a blob isn't removed while another import places it.
    writing: tokio::sync::Mutex<()>,
    uses: Arc<Uses>,
    max_image_bytes: AtomicU64,
}

/// An image as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageView {
    /// The image.
    pub image: Arc<Image>,
    /// Its aliases by name.
    pub aliases: Vec<Alias>,
}

/// Writes an answer as it is kept.
pub type Encode<T> = Box<dyn Fn(&T) -> Vec<u8> + Send + Sync>;

/// What a change carries beside its arguments.
pub struct Call<T> {
    /// Under which the answer is kept; empty keeps none.
    pub request_id: String,
    /// For the events.
    pub traceparent: String,
    /// Writes the answer as it is kept.
    pub encode: Encode<T>,
}

impl<T> std::fmt::Debug for Call<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

impl<T> Call<T> {
    /// Keeps the answer in the change's own transaction, then makes both happen.
    async fn commit(&self, mut tx: Tx, answer: &T) -> Result<(), Error> {
        if !self.request_id.is_empty() {
            tx.finish_request(&self.request_id, (self.encode)(answer))
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

impl App {
    /// Opens the folder, reads the database and brings the two together.
    pub async fn open(config: &Config, store: Store) -> Result<Arc<Self>, Error> {
        let blobs =
            Blobs::open(&config.server.state_dir).map_err(Error::io("opening the store"))?;
        let catalogue = crate::reconcile::run(&store, &blobs).await?;
        let app = Arc::new(Self {
            store,
            blobs,
            catalogue: RwLock::new(catalogue),
            writing: tokio::sync::Mutex::new(()),
            uses: Arc::default(),
            max_image_bytes: AtomicU64::new(config.max_image_bytes),
        });
        uses::flush_in_background(
            &app,
            std::time::Duration::from_secs(config.use_flush_seconds),
        );
        Ok(app)
    }

    /// Takes up what reloads of the configuration say.
    pub fn follow(self: &Arc<Self>, mut configs: tokio::sync::watch::Receiver<Config>) {
        let app = Arc::downgrade(self);
        tokio::spawn(async move {
            while configs.changed().await.is_ok() {
                let Some(app) = app.upgrade() else { return };
                let most = configs.borrow_and_update().max_image_bytes;
                app.max_image_bytes.store(most, Ordering::Relaxed);
            }
        });
    }

    fn max_image_bytes(&self) -> u64 {
        self.max_image_bytes.load(Ordering::Relaxed)
    }

    /// The database, for events and kept answers.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The read model. Don't keep the guard.
    pub fn catalogue(&self) -> RwLockReadGuard<'_, Catalogue> {
        // A panic while it was locked can't leave it half changed: changes are single calls.
        self.catalogue
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Catalogue) -> R) -> R {
        change(
            &mut self
                .catalogue
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn view(&self, fingerprint: &Fingerprint) -> Result<ImageView, Error> {
        let catalogue = self.catalogue();
        let image = catalogue
            .image(fingerprint)
            .ok_or_else(|| Error::NoImage(fingerprint.to_string()))?;
        Ok(ImageView {
            image: image.clone(),
            aliases: catalogue.aliases_of(fingerprint),
        })
    }

    /// After a change failed, whether it was committed is not always known: ask the database.
    async fn reload(&self) -> Result<(), Error> {
        let mut fresh = store::load(&self.store).await?;
        self.change(|catalogue| {
            for image in catalogue.images_after(None) {
                if catalogue.is_damaged(&image.fingerprint) {
                    fresh.set_damaged(&image.fingerprint);
                }
            }
            *catalogue = fresh;
        });
        Ok(())
    }

    /// Passes on the outcome of a change's transaction; after a failed one the catalogue is read
    /// again.
    async fn settled<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if outcome.is_err()
            && let Err(error) = self.reload().await
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the catalogue was not read again"
            );
        }
        outcome
    }

    /// Writes down uses that are not yet. Called when the service ends.
    pub async fn flush_uses(&self) -> Result<(), Error> {
        uses::flush(self).await
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // The background task looks whether the app is still there.
        self.uses.wake();
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// The resource name of an image.
pub fn image_name(fingerprint: &Fingerprint) -> String {
    berth_rpc::names::Image::new(store::PROJECT, fingerprint.as_str()).to_string()
}

/// The resource name of an alias.
pub fn alias_name(alias: &crate::model::AliasName) -> String {
    let segment = berth_rpc::names::encode_segment(alias.as_str());
    berth_rpc::names::ImageAlias::new(store::PROJECT, segment).to_string()
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        // It panicked: a fault of ours that must not take the service along.
        .map_err(|error| Error::io(what)(std::io::Error::other(error)))?
}
