//! `CreateVolume`: empty, from an image, or a copy.

use std::sync::Arc;

use berth_rpc::{Error, names};
use berth_server::failpoint;
use berth_store::StoreError;

use super::image_cache::{self, IMAGES};
use super::locks::{self, Want};
use super::{App, Ask, OpenPool, VolumeView, blocking, discard, event, new_uid, publish, read};
use crate::driver::{Driver, Place};
use crate::error::{Doing, Result as LowResult};
use crate::host;
use crate::model::config::{self, Config};
use crate::source::ImageSource;
use crate::store::{Hold, SnapshotRow, VolumeKey, VolumeRow, failed};

/// What a new volume starts from.
pub enum Source {
    /// Nothing.
    Empty,
    /// An image, through the pool's cache.
    Image(ImageSource),
    /// A volume, or one snapshot of it.
    Copy {
        /// The volume.
        volume: names::Volume,
        /// One of its snapshots instead of itself.
        snapshot: Option<String>,
        /// Bring all its snapshots too.
        with_snapshots: bool,
    },
}

/// A volume to be made.
pub struct NewVolume {
    /// Pool's name.
    pub pool: String,
    /// Its name.
    pub key: VolumeKey,
    /// User's text.
    pub description: String,
    /// Configuration as the user gave it.
    pub config: Config,
    /// What it starts from.
    pub source: Source,
    /// A hold taken together with it.
    pub hold: Option<Hold>,
    /// Check only.
    pub validate_only: bool,
}

/// Contents to copy from.
struct Origin {
    driver: Arc<dyn Driver>,
    place: Place,
    snapshots: Vec<SnapshotRow>,
}

/// Makes a volume. On failure nothing is left.
pub async fn create_volume(
    app: &Arc<App>,
    new: NewVolume,
    ask: Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    let pool = app.pool(&new.pool)?;
    if new.key.collection == IMAGES {
        return image_cache::create(app, new, ask).await;
    }
    config::check_volume(&new.key.collection, &new.config)?;
    let driver = pool.driver()?;
    for _ in 0..3 {
        let _held = app.locks.take(wanted(app, &pool, &new)?).await;
        // The pool may have been deleted and made anew while we waited.
        if app.pool(&new.pool)?.row.uid != pool.row.uid {
            break;
        }
        let there = VolumeRow::find(&mut app.store.read(), &pool.row.uid, &new.key).await;
        if there.map_err(failed)?.is_some() {
            return Err(Error::already_exists("Storage volume", &new.key.name));
        }
        let origin = match &new.source {
            Source::Empty => None,
            Source::Image(image) => match image_cache::find(app, &pool, image).await? {
                Some(cached) => Some(Origin {
                    driver: driver.clone(),
                    place: cached.place(),
                    snapshots: Vec::new(),
                }),
                None if new.validate_only => None,
                None => {
                    drop(_held);
                    image_cache::ensure(app, &pool, image).await?;
                    continue;
                }
            },
            Source::Copy {
                volume,
                snapshot,
                with_snapshots,
            } => Some(copied(app, &new.key, volume, snapshot.as_deref(), *with_snapshots).await?),
        };
        return make(app, pool, driver, new, origin, ask).await;
    }
    Err(Error::aborted(
        "CHANGED_MEANWHILE",
        "the pool or the image was removed meanwhile",
    ))
}

/// The locks: the new name alone, the source together with other readers.
fn wanted(app: &App, pool: &OpenPool, new: &NewVolume) -> Result<Vec<(String, Want)>, Error> {
    let mut wanted = vec![
        (locks::pool(&new.pool), Want::Read),
        (locks::volume(&pool.row.uid, &new.key), Want::Write),
    ];
    match &new.source {
        Source::Empty => {}
        Source::Image(image) => {
            let key = image_cache::key(&image.fingerprint);
            wanted.push((locks::volume(&pool.row.uid, &key), Want::Read));
        }
        Source::Copy { volume, .. } => {
            let source = app.pool(&volume.pool)?;
            wanted.push((locks::pool(&volume.pool), Want::Read));
            let key = read::key(volume);
            if key == new.key && source.row.uid == pool.row.uid {
                return Err(Error::invalid(
                    "copy_of",
                    "a volume can't be a copy of itself",
                ));
            }
            wanted.push((locks::volume(&source.row.uid, &key), Want::Read));
        }
    }
    Ok(wanted)
}

async fn copied(
    app: &App,
    key: &VolumeKey,
    volume: &names::Volume,
    snapshot: Option<&str>,
    with_snapshots: bool,
) -> Result<Origin, Error> {
    let from = &volume.collection;
    if *from != key.collection && !(from == IMAGES && key.collection == "containers") {
        return Err(Error::invalid(
            "copy_of",
            format!("a volume of {from} can't become one of {}", key.collection),
        ));
    }
    let pool = app.pool(&volume.pool)?;
    let row = app.volume(&pool, &read::key(volume)).await?;
    let mut db = app.store.read();
    let place = match snapshot {
        None => row.place(),
        Some(name) => SnapshotRow::find(&mut db, &row.uid, name)
            .await
            .map_err(failed)?
            .ok_or_else(|| Error::not_found("Storage volume snapshot", name))?
            .place(),
    };
    let snapshots = if with_snapshots && snapshot.is_none() {
        SnapshotRow::of(&mut db, &row.uid).await.map_err(failed)?
    } else {
        Vec::new()
    };
    Ok(Origin {
        driver: pool.driver()?,
        place,
        snapshots,
    })
}

async fn make(
    app: &Arc<App>,
    pool: Arc<OpenPool>,
    driver: Arc<dyn Driver>,
    new: NewVolume,
    origin: Option<Origin>,
    ask: Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    let row = VolumeRow {
        uid: new_uid(),
        pool: pool.row.uid.clone(),
        config: config::with_defaults(&pool.row.config, &new.key.collection, &new.config),
        key: new.key,
        description: new.description,
        content_type: "filesystem".to_owned(),
        generation: 1,
        quota_id: app.next_quota_id(),
        created_at: berth_store::now(),
        snapshot_count: 0,
    };
    config::check_volume(&row.key.collection, &row.config)?;
    let holds: Vec<Hold> = new.hold.into_iter().collect();
    let mut view = VolumeView { row, pool, holds };
    if new.validate_only {
        return Ok(view);
    }
    let row = &mut view.row;
    let (from, copied) = match origin {
        Some(origin) => (Some((origin.driver, origin.place)), origin.snapshots),
        None => (None, Vec::new()),
    };
    let snapshots: Vec<(SnapshotRow, Place)> = copied
        .into_iter()
        .map(|old| {
            let place = old.place();
            let uid = new_uid();
            (
                SnapshotRow {
                    uid,
                    volume: row.uid.clone(),
                    ..old
                },
                place,
            )
        })
        .collect();
    row.snapshot_count = i64::try_from(snapshots.len()).unwrap_or(0);
    let mut places = vec![row.place().staged()];
    places.extend(snapshots.iter().map(|(s, _)| s.place().staged()));
    let _building: Vec<_> = places.iter().map(|p| app.building(&p.uid)).collect();

    let effect = Effect {
        driver: driver.clone(),
        from,
        collection: row.key.collection.clone(),
        to: row.place().staged(),
        quota: row.quota_id,
        limit: config::limit(&row.config),
        snapshots: snapshots
            .iter()
            .map(|(s, p)| (p.clone(), s.place().staged()))
            .collect(),
    };
    if let Err(error) = blocking(move || effect.apply()).await {
        discard(app, driver, places).await;
        return Err(error);
    }
    if let Err(error) = commit(app, &view, &snapshots, &ask).await {
        discard(app, driver, places).await;
        return Err(error);
    }
    let hit = failpoint::pass("storage.create_volume.committed").await;
    publish(app, driver, places).await?;
    hit?;
    Ok(view)
}

/// What is to be done in the pool.
struct Effect {
    driver: Arc<dyn Driver>,
    from: Option<(Arc<dyn Driver>, Place)>,
    collection: String,
    to: Place,
    quota: u32,
    limit: Option<u64>,
    snapshots: Vec<(Place, Place)>,
}

impl Effect {
    fn apply(&self) -> LowResult<()> {
        match &self.from {
            None => self.empty()?,
            Some((source, place)) => {
                for (from, to) in &self.snapshots {
                    copy(source, from, &self.driver, to, None, true)?;
                }
                copy(
                    source,
                    place,
                    &self.driver,
                    &self.to,
                    Some(self.quota),
                    false,
                )?;
            }
        }
        if self.limit.is_some() {
            self.driver.set_limit(&self.to, self.quota, self.limit)?;
        }
        Ok(())
    }

    fn empty(&self) -> LowResult<()> {
        self.driver.create(&self.to, Some(self.quota))?;
        let top = self.driver.open(&self.to)?;
        if self.collection == "custom" {
            // The volume's top is what the guest sees.
            rustix::fs::fchmod(&top, rustix::fs::Mode::from_raw_mode(0o711))
                .doing(|| "setting a volume's mode")?;
        } else {
            host::fs::ensure_dir(&top, "rootfs", 0o755)?;
        }
        self.driver.persist(&self.to)
    }
}

/// Copies contents within a pool by its driver's best way, and between pools file by file.
fn copy(
    from: &Arc<dyn Driver>,
    place: &Place,
    to: &Arc<dyn Driver>,
    target: &Place,
    quota: Option<u32>,
    read_only: bool,
) -> LowResult<()> {
    if Arc::ptr_eq(from, to) {
        return to.copy(place, target, quota, read_only);
    }
    to.create(target, quota)?;
    host::tree::copy(from.open(place)?, to.open(target)?)?;
    if read_only {
        to.seal(target)?;
    }
    Ok(())
}

async fn commit(
    app: &App,
    view: &VolumeView,
    snapshots: &[(SnapshotRow, Place)],
    ask: &Ask<VolumeView>,
) -> Result<(), Error> {
    failpoint::pass("storage.create_volume.made").await?;
    let row = &view.row;
    let mut tx = app.begin().await?;
    row.insert(&mut tx).await.map_err(|error| match error {
        StoreError::Unique(_) => Error::already_exists("Storage volume", &row.key.name),
        other => failed(other),
    })?;
    for (snapshot, _) in snapshots {
        snapshot.insert(&mut tx).await.map_err(failed)?;
    }
    for hold in &view.holds {
        hold.take(&mut tx, &row.uid).await.map_err(failed)?;
    }
    let resource = row.resource(&view.pool.row.name);
    tx.emit(event("storage-volume-created", resource, &row.key.project))
        .await
        .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)
}
