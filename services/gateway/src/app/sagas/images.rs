//! Sagas on images.

use berth_operations::{Saga, Step, for_each};
use berth_proto::{image, storage};
use berth_rpc::Error;
use serde::{Deserialize, Serialize};

use super::Context;
use crate::app::lists;

/// Removes an image and what pools keep of it.
pub const DELETE: &str = "delete_image";

/// Pools that are cleared side by side.
const POOLS_AT_ONCE: usize = 4;

/// What is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// `projects/{p}`.
    pub parent: String,
    /// Whole fingerprint.
    pub fingerprint: String,
}

/// `delete_image`.
pub fn delete() -> Saga<crate::Gateway> {
    Saga {
        name: DELETE,
        version: 1,
        stages: vec![
            // A cache is lost by this and nothing else, so there is nothing to undo; it comes
            // first because with the image gone nobody would know of it.
            vec![Step::new("drop_cached_volumes", |ctx| {
                Box::pin(drop_cached_volumes(ctx))
            })],
            vec![Step::new("delete_image", |ctx| Box::pin(delete_image(ctx)))],
        ],
    }
}

async fn drop_cached_volumes(ctx: Context) -> Result<(), Error> {
    let Delete {
        parent,
        fingerprint,
    } = ctx.params()?;
    let owners = &ctx.app.owners;
    // Held images stay, and so do their copies.
    let name = format!("{parent}/images/{fingerprint}");
    let image = owners
        .images()
        .get_image(image::GetImageRequest { name: name.clone() })
        .await;
    match image.map_err(Error::from) {
        Ok(image) => {
            let holders: Vec<String> = image
                .into_inner()
                .holds
                .into_iter()
                .map(|hold| hold.holder)
                .collect();
            if !holders.is_empty() {
                return Err(Error::held("The image", holders));
            }
        }
        // Deleted already: a step may run twice.
        Err(error) if error.code == berth_rpc::Code::NotFound => {}
        Err(error) => return Err(error),
    }
    let volumes = lists::volumes(owners, "projects/-/storagePools/-", "images").await?;
    let cached: Vec<String> = volumes
        .into_iter()
        .map(|volume| volume.name)
        .filter(|name| name.rsplit('/').next() == Some(fingerprint.as_str()))
        .collect();
    for_each(cached, POOLS_AT_ONCE, |name| {
        let mut client = owners.volumes();
        let request_id = ctx.request_id_for(&name);
        async move {
            client
                .delete_volume(storage::DeleteVolumeRequest {
                    name,
                    allow_missing: true,
                    request_id,
                    ..Default::default()
                })
                .await?;
            Ok(())
        }
    })
    .await
}

async fn delete_image(ctx: Context) -> Result<(), Error> {
    let Delete {
        parent,
        fingerprint,
    } = ctx.params()?;
    ctx.app
        .owners
        .images()
        .delete_image(image::DeleteImageRequest {
            name: format!("{parent}/images/{fingerprint}"),
            request_id: ctx.request_id(),
            ..Default::default()
        })
        .await?;
    Ok(())
}
