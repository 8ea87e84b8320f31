use super::{App, Call, alias_name, blocking, image_name, now};
use crate::error::Error;
use crate::model::{Fingerprint, Image, Prefix};
use crate::store;
use berth_server::failpoint;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Deletes an image with its aliases, then the files that no other image needs. Refused while
/// somebody holds it.
pub async fn delete_image(
    app: &Arc<App>,
    call: Call<()>,
    prefix: &Prefix,
    etag: &str,
) -> Result<(), Error> {
    let _writing = app.writing.lock().await;
    let image = super::get_image(app, prefix)?.image;
    let name = image_name(&image.fingerprint);
    let holders = image.holders(now());
    if !holders.is_empty() {
        let shown = format!("Image {}", image.fingerprint);
        return Err(Error::Rpc(berth_rpc::Error::held(shown, holders)));
    }
    if !etag.is_empty() && etag != image.etag() {
        return Err(Error::Rpc(berth_rpc::Error::etag_mismatch(name)));
    }
    let orphans = orphans(app, &image);
    let outcome = persist(app, &call, &image, name, &orphans).await;
    app.settled(outcome).await?;
    app.change(|catalogue| catalogue.remove_image(&image.fingerprint));
    failpoint::pass("image.delete.committed").await?;
    remove_files(app, orphans).await;
    Ok(())
}

/// The image's blobs that no other image has.
fn orphans(app: &App, image: &Image) -> BTreeSet<Fingerprint> {
    let catalogue = app.catalogue();
    let kept: BTreeSet<&Fingerprint> = catalogue
        .images_after(None)
        .filter(|other| other.fingerprint != image.fingerprint)
        .flat_map(|other| other.blobs.iter().map(|blob| &blob.digest))
        .collect();
    image
        .blobs
        .iter()
        .map(|blob| blob.digest.clone())
        .filter(|digest| !kept.contains(digest))
        .collect()
}

async fn persist(
    app: &App,
    call: &Call<()>,
    image: &Image,
    name: String,
    orphans: &BTreeSet<Fingerprint>,
) -> Result<(), Error> {
    let aliases = app.catalogue().aliases_of(&image.fingerprint);
    let mut tx = app.store.begin().await?;
    store::delete_image(&mut tx, &image.fingerprint, orphans).await?;
    for alias in aliases {
        let attributes = [("target", alias.target.to_string())];
        let name = alias_name(&alias.name);
        tx.emit(store::event(
            "image-alias-deleted",
            name,
            attributes,
            &call.traceparent,
        ))
        .await?;
    }
    let attributes = [("type", image.kind.as_str().to_owned())];
    tx.emit(store::event(
        "image-deleted",
        name,
        attributes,
        &call.traceparent,
    ))
    .await?;
    call.commit(tx, &()).await
}

/// Removes the files that no image needs. The rows are gone already, so a failure only costs
/// room: it is told, and the next start tries again.
pub(super) async fn remove_files(app: &Arc<App>, digests: BTreeSet<Fingerprint>) {
    let app = app.clone();
    let removed = blocking("removing blobs", move || {
        for digest in digests {
            if !app.catalogue().needs_blob(&digest) {
                app.blobs
                    .remove(&digest)
                    .map_err(Error::io("removing blobs"))?;
            }
        }
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "blobs stay behind"
        );
    }
}
