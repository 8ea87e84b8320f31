//! LogService.

use std::io::Read;
use std::pin::Pin;

use berth_proto::instance as proto;
use berth_proto::instance::log_service_server::LogService;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Api, instance_name};
use crate::Error;

type Answer<T> = Result<Response<T>, Status>;

const CHUNK: usize = 64 << 10;

fn send_log(mut file: std::fs::File, sender: &mpsc::Sender<Result<proto::GetLogResponse, Status>>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let item = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => Ok(proto::GetLogResponse {
                data: Bytes::copy_from_slice(&buffer[..read]),
            }),
            Err(error) => Err(Status::from(Error::internal(error))),
        };
        let last = item.is_err();
        if sender.blocking_send(item).is_err() || last {
            return;
        }
    }
}

#[tonic::async_trait]
impl LogService for Api {
    async fn list_logs(
        &self,
        request: Request<proto::ListLogsRequest>,
    ) -> Answer<proto::ListLogsResponse> {
        let (project, instance) = instance_name("name", &request.into_inner().name)?;
        let files = self.app.list_logs(&project, &instance)?;
        Ok(Response::new(proto::ListLogsResponse { files }))
    }

    type GetLogStream = Pin<Box<dyn Stream<Item = Result<proto::GetLogResponse, Status>> + Send>>;

    async fn get_log(&self, request: Request<proto::GetLogRequest>) -> Answer<Self::GetLogStream> {
        let r = request.into_inner();
        let (project, instance) = instance_name("name", &r.name)?;
        let file = self.app.open_log(&project, &instance, &r.file)?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || send_log(file, &sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delete_log(&self, request: Request<proto::DeleteLogRequest>) -> Answer<()> {
        let r = request.into_inner();
        let (project, instance) = instance_name("name", &r.name)?;
        self.app.delete_log(&project, &instance, &r.file)?;
        Ok(Response::new(()))
    }
}
