//! ConsoleService.

use std::pin::Pin;

use berth_proto::instance as proto;
use berth_proto::instance::console_service_server::ConsoleService;
use berth_proto::instance::stream_console_request::Message as In;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, instance_name};
use crate::Error;
use crate::app::ConsoleInput;

type Answer<T> = Result<Response<T>, Status>;

async fn take_input(
    mut stream: Streaming<proto::StreamConsoleRequest>,
    sender: mpsc::Sender<ConsoleInput>,
) {
    while let Some(Ok(request)) = stream.next().await {
        let item = match request.message {
            Some(In::Data(data)) => ConsoleInput::Data(data),
            Some(In::Resize(r)) => ConsoleInput::Resize {
                width: r.width,
                height: r.height,
            },
            Some(In::Attach(_)) | None => continue,
        };
        if sender.send(item).await.is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl ConsoleService for Api {
    type StreamConsoleStream =
        Pin<Box<dyn Stream<Item = Result<proto::StreamConsoleResponse, Status>> + Send>>;

    async fn stream_console(
        &self,
        request: Request<Streaming<proto::StreamConsoleRequest>>,
    ) -> Answer<Self::StreamConsoleStream> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|m| m.message);
        let Some(In::Attach(attach)) = first else {
            return Err(
                Error::invalid("attach", "The first message of the stream is attach").into(),
            );
        };
        let (project, instance) = instance_name("attach.name", &attach.name)?;
        let (sender, input) = mpsc::channel(16);
        let size = (attach.width, attach.height);
        let session = self
            .app
            .attach_console(&project, &instance, size, attach.force, input)
            .await?;
        tokio::spawn(take_input(stream, sender));
        let output = ReceiverStream::new(session.output).map(|item| {
            item.map(|data| proto::StreamConsoleResponse { data })
                .map_err(Status::from)
        });
        Ok(Response::new(Box::pin(output)))
    }

    async fn get_console_log(
        &self,
        request: Request<proto::GetConsoleLogRequest>,
    ) -> Answer<proto::GetConsoleLogResponse> {
        let (project, instance) = instance_name("name", &request.into_inner().name)?;
        let data = self.app.console_log(&project, &instance).await?;
        Ok(Response::new(proto::GetConsoleLogResponse { data }))
    }

    async fn clear_console_log(
        &self,
        request: Request<proto::ClearConsoleLogRequest>,
    ) -> Answer<()> {
        let (project, instance) = instance_name("name", &request.into_inner().name)?;
        self.app.clear_console_log(&project, &instance).await?;
        Ok(Response::new(()))
    }
}
