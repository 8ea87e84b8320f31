//! FileService.

use std::pin::Pin;

use berth_proto::instance as proto;
use berth_proto::instance::file_service_server::FileService;
use berth_proto::instance::get_file_response::Message as Out;
use berth_proto::instance::put_file_request::{Header, Message as In};
use berth_rpc::Code;
use berth_server::BrokenOff;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, instance_name};
use crate::Error;
use crate::host::files::{self, Kind, NewFile, NewKind};

type Answer<T> = Result<Response<T>, Status>;

fn header(h: files::Header) -> proto::FileHeader {
    let (kind, entries, target) = match h.kind {
        Kind::File => ("file", Vec::new(), String::new()),
        Kind::Directory(entries) => ("directory", entries, String::new()),
        Kind::Symlink(target) => ("symlink", Vec::new(), target),
    };
    let modified =
        DateTime::from_timestamp(h.modified_seconds, h.modified_nanos).unwrap_or_default();
    proto::FileHeader {
        r#type: kind.to_owned(),
        uid: h.uid,
        gid: h.gid,
        mode: h.mode,
        size_bytes: h.size,
        modify_time: modified.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        entries,
        target,
    }
}

fn new_file(h: Header) -> Result<NewFile, Error> {
    let append = match h.write.as_str() {
        "" | "overwrite" => false,
        "append" => true,
        other => {
            return Err(Error::invalid(
                "write",
                format!("{other:?} is neither overwrite nor append"),
            ));
        }
    };
    let kind = match h.r#type.as_str() {
        "" | "file" => NewKind::File { append },
        "directory" => NewKind::Directory,
        "symlink" => NewKind::Symlink(h.symlink_target),
        other => return Err(Error::invalid("type", format!("Bad file type: {other}"))),
    };
    if h.mode.is_some_and(|mode| mode > 0o7777) {
        return Err(Error::invalid("mode", "It has more than permission bits"));
    }
    Ok(NewFile {
        path: h.path,
        kind,
        uid: h.uid.unwrap_or(0),
        gid: h.gid.unwrap_or(0),
        mode: h.mode,
    })
}

/// A client that goes away in the middle must not look like the end of its file.
async fn take_data(
    mut stream: Streaming<proto::PutFileRequest>,
    broken: BrokenOff,
    sender: mpsc::Sender<Result<Bytes, Error>>,
) {
    loop {
        let item = match stream.message().await {
            Ok(None) if broken.is_set() => Err(Error::new(
                Code::Cancelled,
                "CANCELLED",
                "The upload broke off",
            )),
            Ok(None) => return,
            Ok(Some(proto::PutFileRequest {
                message: Some(In::Data(data)),
            })) => Ok(data),
            Ok(Some(_)) => Err(Error::invalid(
                "data",
                "After the header only data may follow",
            )),
            Err(status) => Err(Error::from(status)),
        };
        let last = item.is_err();
        if sender.send(item).await.is_err() || last {
            return;
        }
    }
}

#[tonic::async_trait]
impl FileService for Api {
    type GetFileStream = Pin<Box<dyn Stream<Item = Result<proto::GetFileResponse, Status>> + Send>>;

    async fn get_file(
        &self,
        request: Request<proto::GetFileRequest>,
    ) -> Answer<Self::GetFileStream> {
        let r = request.into_inner();
        let (project, instance) = instance_name("name", &r.name)?;
        let reader = self
            .app
            .get_file(&project, &instance, r.path, r.head_only)
            .await?;
        let first = proto::GetFileResponse {
            message: Some(Out::Header(header(reader.header))),
        };
        let data = ReceiverStream::new(reader.data).map(|item| {
            item.map(|data| proto::GetFileResponse {
                message: Some(Out::Data(data)),
            })
            .map_err(Status::from)
        });
        Ok(Response::new(Box::pin(
            tokio_stream::once(Ok(first)).chain(data),
        )))
    }

    async fn put_file(
        &self,
        request: Request<Streaming<proto::PutFileRequest>>,
    ) -> Answer<proto::PutFileResponse> {
        let broken = BrokenOff::of(&request)?;
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|m| m.message);
        let Some(In::Header(header)) = first else {
            return Err(
                Error::invalid("header", "The first message of the stream is header").into(),
            );
        };
        let (project, instance) = instance_name("header.name", &header.name)?;
        let new = new_file(header)?;
        let (sender, data) = mpsc::channel(4);
        tokio::spawn(take_data(stream, broken, sender));
        self.app.put_file(&project, &instance, new, data).await?;
        Ok(Response::new(proto::PutFileResponse {}))
    }

    async fn delete_file(&self, request: Request<proto::DeleteFileRequest>) -> Answer<()> {
        let r = request.into_inner();
        let (project, instance) = instance_name("name", &r.name)?;
        self.app.delete_file(&project, &instance, r.path).await?;
        Ok(Response::new(()))
    }
}
