//! Images: taking one in, deleting one.

use berth_proto::image::import_image_request::Message;
use berth_proto::image::{Image, ImportImageRequest};
use berth_rpc::{Code, Error};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::App;
use crate::app::operations::{About, View};
use crate::app::sagas::images as steps;
use crate::clients::upload::Complete;
use crate::error::Failure;

/// Largest piece the image service takes.
pub const CHUNK: usize = 1 << 20;
/// Pieces that may be under way: memory for one upload is this many chunks.
const WINDOW: usize = 4;

/// An image on its way in. Dropped before [`Upload::finish`], nothing of it stays anywhere.
#[derive(Debug)]
pub struct Upload {
    sender: mpsc::Sender<ImportImageRequest>,
    complete: Complete,
    answer: JoinHandle<Result<Image, Error>>,
}

impl Upload {
    /// Opens the stream to the image service.
    pub fn begin(app: &App) -> Self {
        let (sender, receiver) = mpsc::channel(WINDOW);
        let complete = Complete::default();
        let mut client = app.owners.image_upload(complete.clone());
        let answer = tokio::spawn(async move {
            let image = client.import_image(ReceiverStream::new(receiver)).await?;
            Ok(image.into_inner())
        });
        Self {
            sender,
            complete,
            answer,
        }
    }

    /// Hands a piece on. Once the service has refused the image the rest goes nowhere: the client
    /// sends all of it before it listens.
    pub async fn send(&self, message: Message) {
        // The service's reason comes out of `finish`.
        let _ = self
            .sender
            .send(ImportImageRequest {
                message: Some(message),
            })
            .await;
    }

    /// All of it was sent.
    ///
    /// # Errors
    /// Why the image service refused it, in LXD's words where it has some.
    pub async fn finish(self, expected: &str) -> Result<Image, Failure> {
        self.complete.declare();
        drop(self.sender);
        let image = self
            .answer
            .await
            .map_err(Error::internal)?
            .map_err(|error| {
                if error.code == Code::AlreadyExists {
                    Failure::conflict("Image with same fingerprint already exists")
                } else {
                    error.into()
                }
            })?;
        tracing::info!(fingerprint = image.fingerprint, expected, "image imported");
        Ok(image)
    }

    /// The rest will not come; returns when the service knows.
    pub async fn abort(self) {
        drop(self.sender);
        // Its answer can only be that the upload broke off.
        let _ = self.answer.await;
    }
}

/// The operation that tells a client what came of its upload.
///
/// The import itself is one call that the image service commits or forgets as a whole, and its
/// bytes cannot be sent again: there is nothing for a saga to resume or undo.
pub fn imported(app: &App, project: &str, imported: Result<Image, Failure>) -> View {
    app.operations.spawn(
        About::task("Downloading image", project),
        |handle| async move {
            let image = imported?;
            handle.update(|metadata| {
                metadata.insert("fingerprint".into(), image.fingerprint.into());
                // A string, as LXD has it.
                metadata.insert("size".into(), image.size_bytes.to_string().into());
            });
            Ok(())
        },
    )
}

/// Begins to remove an image, with what pools keep of it.
///
/// # Errors
/// When the operation cannot be written down.
pub async fn delete(app: &App, project: &str, fingerprint: &str) -> Result<View, Failure> {
    app.operations
        .begin(
            steps::DELETE,
            &deletion(project, fingerprint),
            about_delete(project, fingerprint, ""),
        )
        .await
}

/// What is deleted, as the saga's parameters have it.
pub fn deletion(project: &str, fingerprint: &str) -> steps::Delete {
    steps::Delete {
        parent: format!("projects/{project}"),
        fingerprint: fingerprint.to_owned(),
    }
}

/// How the removal of an image presents itself.
pub fn about_delete(project: &str, fingerprint: &str, request_id: &str) -> About {
    About::task("Deleting image", project)
        .on("images", fingerprint)
        .requested_as(request_id)
}
