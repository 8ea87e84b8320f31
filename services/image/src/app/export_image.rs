use super::App;
use crate::error::Error;
use crate::model::{Blob, Fingerprint, Image, Part, Prefix};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes in one message.
const CHUNK: usize = 512 << 10;
/// Messages between the disk and the network.
const QUEUE: usize = 4;

/// What an export sends.
#[derive(Debug)]
pub enum ExportMessage {
    /// A part begins.
    Part {
        /// Which.
        part: Part,
        /// Name to save it under.
        filename: String,
        /// Its length in bytes.
        size: u64,
    },
    /// Bytes of the part begun last.
    Data(Bytes),
}

/// The messages of an export. It has ended well only when it ends without an error: the digest of
/// each part is checked while it is read.
pub type Export = mpsc::Receiver<Result<ExportMessage, Error>>;

/// Opens all parts, then sends them. An image that is deleted meanwhile is still sent whole.
pub fn export_image(app: &Arc<App>, prefix: &Prefix) -> Result<Export, Error> {
    let image = super::get_image(app, prefix)?.image;
    let mut parts = Vec::new();
    for blob in &image.blobs {
        let file = match app.blobs.read(&blob.digest) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(app, &image));
            }
            Err(error) => return Err(Error::io("opening the image")(error)),
        };
        parts.push((file, blob.clone()));
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let app = app.clone();
    tokio::task::spawn_blocking(move || {
        for (file, blob) in parts {
            let sent = send_part(&image.fingerprint, file, &blob, &sender);
            let error = match sent {
                Ok(true) => continue,
                Ok(false) => damaged(&app, &image),
                Err(Stop::Gone) => return,
                Err(Stop::Read(error)) => Error::io("reading the image")(error),
            };
            // The receiver may be gone; nobody is left to tell then.
            let _ = sender.blocking_send(Err(error));
            return;
        }
    });
    Ok(receiver)
}

fn damaged(app: &App, image: &Image) -> Error {
    tracing::error!(fingerprint = %image.fingerprint, "an image's bytes are missing or changed");
    app.change(|catalogue| catalogue.set_damaged(&image.fingerprint));
    Error::Damaged(image.fingerprint.to_string())
}

enum Stop {
    Gone,
    Read(std::io::Error),
}

/// False when the bytes are not those that came.
fn send_part(
    fingerprint: &Fingerprint,
    mut file: File,
    blob: &Blob,
    sender: &mpsc::Sender<Result<ExportMessage, Error>>,
) -> Result<bool, Stop> {
    let send = |message| sender.blocking_send(Ok(message)).map_err(|_| Stop::Gone);
    send(ExportMessage::Part {
        part: blob.part,
        filename: filename(fingerprint, blob),
        size: blob.size,
    })?;
    let mut hash = Sha256::new();
    loop {
        let mut buffer = Vec::with_capacity(CHUNK);
        let count = (&mut file)
            .take(CHUNK as u64)
            .read_to_end(&mut buffer)
            .map_err(Stop::Read)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer);
        send(ExportMessage::Data(buffer.into()))?;
    }
    Ok(Fingerprint::from_digest(hash.finalize()) == blob.digest)
}

/// As LXD names exported files.
fn filename(fingerprint: &Fingerprint, blob: &Blob) -> String {
    let prefix = if blob.part == Part::Metadata {
        "meta-"
    } else {
        ""
    };
    format!("{prefix}{fingerprint}{}", blob.format.extension())
}
