//! Brings the folder and the database together at start. Safe to run twice. It never deletes a
//! blob that it doesn't know: that is set aside, and told.

use crate::blobs::{Blobs, Entry};
use crate::error::Error;
use crate::model::Catalogue;
use crate::store;
use berth_store::Store;

/// Gives the catalogue as the database has it, with damaged images marked.
pub(crate) async fn run(store: &Store, blobs: &Blobs) -> Result<Catalogue, Error> {
    let mut catalogue = store::load(store).await?;
    let removals = store::removals(store).await?;

    let swept = blobs
        .sweep_incoming()
        .map_err(Error::io("removing broken uploads"))?;
    if swept > 0 {
        tracing::info!(count = swept, "removed uploads that were cut off");
    }
    for entry in blobs.list().map_err(Error::io("listing blobs"))? {
        let name = match entry {
            Entry::Blob(digest) if catalogue.needs_blob(&digest) => continue,
            Entry::Blob(digest) if removals.contains(&digest) => {
                blobs
                    .remove(&digest)
                    .map_err(Error::io("removing a blob"))?;
                continue;
            }
            Entry::Blob(digest) => digest.to_string(),
            Entry::Stranger(name) => name,
        };
        let to = blobs
            .set_aside(&name)
            .map_err(Error::io("setting a blob aside"))?;
        tracing::warn!(blob = name, to = %to.display(), "set aside a blob that no image has");
    }
    blobs.sync().map_err(Error::io("listing blobs"))?;
    if !removals.is_empty() {
        let mut tx = store.begin().await?;
        store::forget_removals(&mut tx, &removals).await?;
        tx.commit().await?;
    }

    let images: Vec<_> = catalogue.images_after(None).cloned().collect();
    for image in images {
        for blob in &image.blobs {
            let length = blobs
                .length(&blob.digest)
                .map_err(Error::io("looking at a blob"))?;
            if length != Some(blob.size) {
                tracing::error!(
                    fingerprint = %image.fingerprint,
                    digest = %blob.digest,
                    expected = blob.size,
                    found = length,
                    "an image's blob is missing or has another length"
                );
                catalogue.set_damaged(&image.fingerprint);
            }
        }
    }
    Ok(catalogue)
}
