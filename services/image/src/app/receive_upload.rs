//! Takes an upload's bytes: to a file, hashed on the way, in constant memory.

use super::{App, blocking};
use crate::blobs::Incoming;
use crate::error::Error;
use crate::model::{Fingerprint, Part};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes in one message.
const MAX_CHUNK: usize = 1 << 20;
/// How long an upload may pause.
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// Messages between the network and the disk.
const QUEUE: usize = 4;

/// A piece of one part.
#[derive(Debug)]
pub struct UploadChunk {
    /// Which part.
    pub part: Part,
    /// At most 1 MiB.
    pub data: Bytes,
}

/// A part that has come whole.
#[derive(Debug)]
pub(super) struct ReceivedPart {
    pub(super) part: Part,
    pub(super) incoming: Incoming,
    pub(super) digest: Fingerprint,
    pub(super) size: u64,
}

/// An upload that has come whole.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) parts: Vec<ReceivedPart>,
    pub(super) fingerprint: Fingerprint,
}

struct Writing {
    part: Part,
    incoming: Incoming,
    hash: Sha256,
    size: u64,
}

/// What the writing thread is told. The channel closing without `End` means that the upload broke
/// off, which must never pass for its end.
enum Message {
    Chunk(UploadChunk),
    End,
}

struct Receiver {
    app: Arc<App>,
    expected: &'static [Part],
    done: Vec<ReceivedPart>,
    current: Option<Writing>,
    /// Over all parts' bytes.
    hash: Sha256,
    total: u64,
}

impl Receiver {
    fn take(&mut self, chunk: &UploadChunk) -> Result<(), Error> {
        if chunk.data.len() > MAX_CHUNK {
            return Err(Error::invalid(
                "chunk.data",
                format!("a chunk has at most {MAX_CHUNK} bytes"),
            ));
        }
        if self.current.as_ref().is_some_and(|c| c.part != chunk.part) {
            self.finish_part()?;
        }
        if self.current.is_none() {
            self.begin_part(chunk.part)?;
        }
        self.total += chunk.data.len() as u64;
        let most = self.app.max_image_bytes();
        if self.total > most {
            return Err(Error::Rpc(berth_rpc::Error::exhausted(
                "IMAGE_TOO_LARGE",
                format!("an image has at most {most} bytes here"),
            )));
        }
        if let Some(current) = &mut self.current {
            current.size += chunk.data.len() as u64;
            current.hash.update(&chunk.data);
            current
                .incoming
                .file
                .write_all(&chunk.data)
                .map_err(Error::io("writing the upload"))?;
        }
        // A unified image's only part has the image's hash: hashing twice would halve the speed.
        if self.expected.len() > 1 {
            self.hash.update(&chunk.data);
        }
        Ok(())
    }

    fn begin_part(&mut self, part: Part) -> Result<(), Error> {
        let wanted = self.expected.get(self.done.len());
        if wanted != Some(&part) {
            return Err(Error::invalid(
                "chunk.part",
                match wanted {
                    Some(wanted) => format!(
                        "expected a chunk of the {} part, got one of the {} part",
                        wanted.as_str(),
                        part.as_str()
                    ),
                    None => format!("a chunk of the {} part came after the last", part.as_str()),
                },
            ));
        }
        self.current = Some(Writing {
            part,
            incoming: self
                .app
                .blobs
                .begin()
                .map_err(Error::io("writing the upload"))?,
            hash: Sha256::new(),
            size: 0,
        });
        Ok(())
    }

    fn finish_part(&mut self) -> Result<(), Error> {
        if let Some(current) = self.current.take() {
            current
                .incoming
                .file
                .sync_all()
                .map_err(Error::io("writing the upload"))?;
            self.done.push(ReceivedPart {
                part: current.part,
                incoming: current.incoming,
                digest: Fingerprint::from_digest(current.hash.finalize()),
                size: current.size,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Received, Error> {
        self.finish_part()?;
        if let Some(missing) = self.expected.get(self.done.len()) {
            return Err(Error::invalid(
                "chunk",
                format!("the upload has no {} part", missing.as_str()),
            ));
        }
        let fingerprint = match self.done.as_slice() {
            [only] => only.digest.clone(),
            _ => Fingerprint::from_digest(self.hash.finalize()),
        };
        Ok(Received {
            parts: self.done,
            fingerprint,
        })
    }
}

fn paused() -> Error {
    Error::Rpc(berth_rpc::Error::new(
        berth_rpc::Code::DeadlineExceeded,
        "UPLOAD_PAUSED",
        format!("nothing was uploaded for {} seconds", MAX_PAUSE.as_secs()),
    ))
}

/// Writes and hashes the chunks of a unified or split image until the stream ends.
pub(super) async fn receive(
    app: &Arc<App>,
    split: bool,
    chunks: impl Stream<Item = Result<UploadChunk, Error>>,
) -> Result<Received, Error> {
    let (sender, mut messages) = tokio::sync::mpsc::channel(QUEUE);
    let mut receiver = Receiver {
        app: app.clone(),
        expected: if split {
            &[Part::Metadata, Part::Rootfs]
        } else {
            &[Part::Unified]
        },
        done: Vec::new(),
        current: None,
        hash: Sha256::new(),
        total: 0,
    };
    let writer = blocking("writing the upload", move || {
        while let Some(message) = messages.blocking_recv() {
            match message {
                Message::Chunk(chunk) => receiver.take(&chunk)?,
                Message::End => return receiver.finish(),
            }
        }
        Err(Error::Rpc(berth_rpc::Error::new(
            berth_rpc::Code::Cancelled,
            "CANCELLED",
            "the upload broke off",
        )))
    });
    let feeder = async move {
        let mut chunks = pin!(chunks);
        loop {
            let next = tokio::time::timeout(MAX_PAUSE, chunks.next());
            let Some(chunk) = next.await.map_err(|_| paused())? else {
                break;
            };
            // The writer has failed and says why.
            if sender.send(Message::Chunk(chunk?)).await.is_err() {
                return Ok(());
            }
        }
        let _ = sender.send(Message::End).await;
        Ok(())
    };
    let (fed, written) = tokio::join!(feeder, writer);
    fed.and(written)
}
