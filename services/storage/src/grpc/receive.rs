//! Takes an image's bytes off a stream.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use berth_proto::storage::ImportImageRequest;
use berth_proto::storage::import_image_request::{Header, Message};
use berth_rpc::Error;
use bytes::{Buf, Bytes};
use tokio::io::AsyncWriteExt;
use tonic::{Status, Streaming};

/// How long a sender may say nothing.
const PAUSE: Duration = Duration::from_secs(60);

async fn next(stream: &mut Streaming<ImportImageRequest>) -> Result<Option<Message>, Status> {
    let message = tokio::time::timeout(PAUSE, stream.message())
        .await
        .map_err(|_| {
            let seconds = PAUSE.as_secs();
            Error::aborted("UPLOAD_PAUSED", format!("nothing came for {seconds} s"))
        })?;
    Ok(message?.and_then(|message| message.message))
}

/// The first message.
pub(super) async fn header(stream: &mut Streaming<ImportImageRequest>) -> Result<Header, Status> {
    match next(stream).await? {
        Some(Message::Header(header)) => Ok(header),
        _ => Err(Error::invalid("header", "the first message is not a header").into()),
    }
}

/// One nameless file in `dir` for each blob, of exactly the length it should have.
pub(super) async fn blobs(
    stream: &mut Streaming<ImportImageRequest>,
    dir: &Path,
    sizes: &[u64],
) -> Result<Vec<File>, Status> {
    let mut rest = Bytes::new();
    let mut files = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let file = tempfile::tempfile_in(dir).map_err(|e| failed(&e, dir))?;
        let mut file = tokio::fs::File::from_std(file);
        let mut missing = size;
        while missing > 0 {
            while rest.is_empty() {
                rest = data(stream).await?.ok_or_else(|| {
                    Error::invalid("data", "the stream ended before all blobs were complete")
                })?;
            }
            let fits = usize::try_from(missing).map_or(rest.len(), |m| m.min(rest.len()));
            let part = rest.copy_to_bytes(fits);
            file.write_all(&part).await.map_err(|e| failed(&e, dir))?;
            missing -= part.len() as u64;
        }
        file.flush().await.map_err(|e| failed(&e, dir))?;
        files.push(file.into_std().await);
    }
    if !rest.is_empty() || data(stream).await?.is_some() {
        return Err(Error::invalid("data", "more bytes came than the blobs have").into());
    }
    Ok(files)
}

async fn data(stream: &mut Streaming<ImportImageRequest>) -> Result<Option<Bytes>, Status> {
    match next(stream).await? {
        None => Ok(None),
        Some(Message::Data(data)) => Ok(Some(data)),
        Some(Message::Header(_)) => Err(Error::invalid("header", "there are two headers").into()),
    }
}

fn failed(error: &io::Error, dir: &Path) -> Error {
    let sentence = format!("keeping an image's bytes in {}: {error}", dir.display());
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Error::exhausted("NO_SPACE", sentence),
        _ => Error::internal_with("keeping an image's bytes", io::Error::other(sentence)),
    }
}
