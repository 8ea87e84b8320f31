//! Carries an image's bytes from the image service to a storage service that can't open them:
//! the two are on different hosts.

use std::sync::{Arc, Mutex, PoisonError};

use berth_proto::image::ExportImageRequest;
use berth_proto::image::export_image_response::Message as Out;
use berth_proto::storage::import_image_request::{Header, Message as In};
use berth_proto::storage::{ImageSource, ImportImageRequest};
use berth_proto::types::BlobRef;
use berth_rpc::Error;
use futures::{StreamExt, stream};

use super::Context;
use super::devices::Names;
use super::undo::answer;
use crate::app::wire::Wire;

/// With this reason storage says that a blob's uri leads nowhere on its host.
pub(super) const BLOB_ELSEWHERE: &str = "BLOB_ELSEWHERE";

/// Brings the image into the pool. Storage checks the bytes against the blobs' digests.
pub(super) async fn image(
    ctx: &Context,
    names: &Names,
    pool: &str,
    fingerprint: &str,
    blobs: &[Wire<BlobRef>],
) -> Result<(), Error> {
    let name = format!("projects/{}/images/{fingerprint}", names.project);
    let owners = &ctx.app.owners;
    let export = answer(
        owners
            .images()
            .export_image(ExportImageRequest { name })
            .await,
    )?;
    let header = Header {
        parent: names.pool(pool),
        image: Some(ImageSource {
            fingerprint: fingerprint.to_owned(),
            blobs: blobs.iter().map(|blob| blob.0.clone()).collect(),
        }),
        request_id: ctx.request_id_for(&format!("carry/{pool}/{fingerprint}")),
    };
    let parts = blobs.iter().map(|blob| blob.0.part).collect();
    let broken = Arc::new(Mutex::new(None));
    let data = data(export, parts, broken.clone());
    let request = stream::once(async { In::Header(header) })
        .chain(data)
        .map(|message| ImportImageRequest {
            message: Some(message),
        });
    tracing::info!(
        fingerprint,
        pool,
        "the image's bytes are carried to storage"
    );
    let imported = answer(owners.volumes().import_image(request).await).map(drop);
    // Storage only knows that the bytes ended; why is known here.
    let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (imported, broken) {
        (Err(_), Some(error)) => Err(error),
        (imported, _) => imported,
    }
}

/// The bytes of all parts, which must come in the order of the blobs. What goes wrong ends the
/// stream and is left in `broken`.
fn data(
    export: tonic::Streaming<berth_proto::image::ExportImageResponse>,
    parts: std::collections::VecDeque<i32>,
    broken: Arc<Mutex<Option<Error>>>,
) -> impl futures::Stream<Item = In> {
    stream::unfold((export, parts), move |(mut export, mut parts)| {
        let broken = broken.clone();
        async move {
            let leave = |error: Error| {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            };
            loop {
                match export.message().await {
                    Ok(Some(message)) => match message.message {
                        Some(Out::Data(data)) => return Some((In::Data(data), (export, parts))),
                        Some(Out::Part(header)) if parts.pop_front() == Some(header.part) => {}
                        Some(Out::Part(_)) => {
                            leave(Error::internal("an image's parts came in another order"));
                            return None;
                        }
                        None => {}
                    },
                    Ok(None) => return None,
                    Err(status) => {
                        leave(status.into());
                        return None;
                    }
                }
            }
        }
    })
}
