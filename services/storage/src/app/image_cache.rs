//! Images in a pool: unpacked once, then cloned. Callers that want the same image at the same
//! time wait for the one that unpacks it.

use std::sync::Arc;

use berth_rpc::{Code, Error};
use berth_server::failpoint;
use berth_store::StoreError;

use super::create_volume::{NewVolume, Source};
use super::locks::{self, Held, Want};
use super::{App, Ask, OpenPool, VolumeView, blocking, discard, event, new_uid, publish};
use crate::driver::Driver;
use crate::model::config::{self, Config};
use crate::source::{self, ImageSource};
use crate::store::{Hold, VolumeKey, VolumeRow, failed};

/// Collection of cached images.
pub const IMAGES: &str = "images";

/// The name of an image's volume: images belong to no project but the first.
pub fn key(fingerprint: &str) -> VolumeKey {
    VolumeKey {
        project: berth_rpc::names::DEFAULT_PROJECT.to_owned(),
        collection: IMAGES.to_owned(),
        name: fingerprint.to_owned(),
    }
}

/// The image's volume, if it is in the pool.
pub async fn find(
    app: &App,
    pool: &OpenPool,
    image: &ImageSource,
) -> Result<Option<VolumeRow>, Error> {
    VolumeRow::find(
        &mut app.store.read(),
        &pool.row.uid,
        &key(&image.fingerprint),
    )
    .await
    .map_err(failed)
}

/// Brings the image into the pool unless it is there.
pub async fn ensure(
    app: &Arc<App>,
    pool: &Arc<OpenPool>,
    image: &ImageSource,
) -> Result<(), Error> {
    let _held = app.locks.take(wanted(pool, image)).await;
    if find(app, pool, image).await?.is_some() {
        return Ok(());
    }
    let ask = Ask {
        request_id: String::new(),
        render: |_| Vec::new(),
    };
    build(app, pool, image, Base::default(), &ask)
        .await
        .map(drop)
}

/// Waits until nobody else brings this image into this pool.
pub async fn turn(app: &App, pool: &OpenPool, fingerprint: &str) -> Held {
    let name = locks::upload(&pool.row.uid, fingerprint);
    app.locks.take([(name, Want::Write)]).await
}

/// The image's volume, as `ImportImage` answers it, if it is in the pool.
pub async fn view(
    app: &App,
    pool: &Arc<OpenPool>,
    fingerprint: &str,
) -> Result<Option<VolumeView>, Error> {
    let found = VolumeRow::find(&mut app.store.read(), &pool.row.uid, &key(fingerprint)).await;
    match found.map_err(failed)? {
        Some(row) => Ok(Some(app.view(pool.clone(), row).await?)),
        None => Ok(None),
    }
}

/// Brings an image into the pool whose bytes were received.
pub async fn import(
    app: &Arc<App>,
    pool: &Arc<OpenPool>,
    image: &ImageSource,
) -> Result<VolumeView, Error> {
    ensure(app, pool, image).await?;
    view(app, pool, &image.fingerprint)
        .await?
        .ok_or_else(|| Error::aborted("IMAGE_GONE", "the image was removed meanwhile"))
}

/// `CreateVolume` in `images`: the caller wants the image in the pool ahead of its first use.
pub async fn create(
    app: &Arc<App>,
    new: NewVolume,
    ask: Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    let Source::Image(image) = new.source else {
        return Err(Error::invalid(
            "source",
            "an image's volume is made from an image",
        ));
    };
    if new.key != key(&image.fingerprint) {
        return Err(Error::invalid(
            "volume_id",
            "an image's volume is called by its fingerprint, in project default",
        ));
    }
    config::check_volume(IMAGES, &new.config)?;
    if new.config.contains_key("size") {
        return Err(Error::invalid(
            "config.size",
            "an image's volume has no size of its own",
        ));
    }
    let pool = app.pool(&new.pool)?;
    let _held = app.locks.take(wanted(&pool, &image)).await;
    if find(app, &pool, &image).await?.is_some() {
        return Err(Error::already_exists("Storage volume", &new.key.name));
    }
    let base = Base {
        description: new.description,
        config: new.config,
        hold: new.hold,
        validate_only: new.validate_only,
    };
    build(app, &pool, &image, base, &ask).await
}

#[derive(Default)]
struct Base {
    description: String,
    config: Config,
    hold: Option<Hold>,
    validate_only: bool,
}

fn wanted(pool: &OpenPool, image: &ImageSource) -> [(String, Want); 2] {
    [
        (locks::pool(&pool.row.name), Want::Read),
        (
            locks::volume(&pool.row.uid, &key(&image.fingerprint)),
            Want::Write,
        ),
    ]
}

async fn build(
    app: &Arc<App>,
    pool: &Arc<OpenPool>,
    image: &ImageSource,
    base: Base,
    ask: &Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    let driver = pool.driver()?;
    let row = VolumeRow {
        uid: new_uid(),
        pool: pool.row.uid.clone(),
        key: key(&image.fingerprint),
        description: base.description,
        content_type: "filesystem".to_owned(),
        config: base.config,
        generation: 1,
        quota_id: app.next_quota_id(),
        created_at: berth_store::now(),
        snapshot_count: 0,
    };
    let view = VolumeView {
        row,
        pool: pool.clone(),
        holds: base.hold.into_iter().collect(),
    };
    if base.validate_only {
        return Ok(view);
    }
    let staged = view.row.place().staged();
    let _building = app.building(&view.row.uid);
    let started = std::time::Instant::now();
    let made = unpack(app, driver.clone(), &view.row, image.clone()).await;
    let done = match made {
        Ok(()) => commit(app, &view, ask).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        discard(app, driver.clone(), vec![staged]).await;
        if error.code == Code::ResourceExhausted {
            // What was half made must not keep the pool full for the caller's next try.
            blocking(move || driver.reclaim()).await?;
        }
        return Err(error);
    }
    let hit = failpoint::pass("storage.image.committed").await;
    publish(app, driver, vec![staged]).await?;
    hit?;
    tracing::info!(
        fingerprint = image.fingerprint,
        pool = pool.row.name,
        milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(0),
        "image unpacked"
    );
    Ok(view)
}

async fn unpack(
    app: &App,
    driver: Arc<dyn Driver>,
    row: &VolumeRow,
    image: ImageSource,
) -> Result<(), Error> {
    let (place, quota) = (row.place().staged(), row.quota_id);
    let (roots, limits) = (app.blob_roots.clone(), app.limits());
    let to = driver.clone();
    let at = place.clone();
    let top = blocking(move || {
        to.create(&at, Some(quota))?;
        to.open(&at)
    })
    .await?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let span = tracing::Span::current();
    // A thread of its own, because it is locked up for good: see source::unpack.
    std::thread::Builder::new()
        .name("unpack".to_owned())
        .spawn(move || {
            let done = span.in_scope(|| source::unpack(&roots, limits, &image, &top));
            // Nobody waits any more only when the whole process ends.
            let _ = sender.send(done);
        })
        .map_err(Error::internal)?;
    receiver.await.map_err(Error::internal)??;
    failpoint::pass("storage.image.unpacked").await?;
    blocking(move || {
        driver.seal(&place)?;
        driver.flush()
    })
    .await
}

async fn commit(app: &App, view: &VolumeView, ask: &Ask<VolumeView>) -> Result<(), Error> {
    let row = &view.row;
    let mut tx = app.begin().await?;
    row.insert(&mut tx).await.map_err(|error| match error {
        StoreError::Unique(_) => Error::already_exists("Storage volume", &row.key.name),
        other => failed(other),
    })?;
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
