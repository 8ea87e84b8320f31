//! What is inside the fake's guests: files, a console log, and commands that echo.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_proto::instance::console_service_server::ConsoleService;
use berth_proto::instance::exec_service_server::ExecService;
use berth_proto::instance::file_service_server::FileService;
use berth_proto::instance::log_service_server::LogService;
use berth_proto::instance::{self as pb, FileHeader};
use berth_rpc::Error;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::replay::no;

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[derive(Debug, Default)]
pub struct Fake {
    files: Mutex<BTreeMap<String, (FileHeader, Vec<u8>)>>,
    console: Mutex<Vec<u8>>,
    pub execs: Mutex<BTreeMap<String, pb::CreateExecRequest>>,
    /// Breaks this many streams after their first output, as a service that dies does.
    pub broken: Mutex<usize>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    pub fn say(&self, text: &str) {
        lock(&self.console).extend_from_slice(text.as_bytes());
    }
}

#[tonic::async_trait]
impl FileService for Fake {
    type GetFileStream = Answers<pb::GetFileResponse>;

    async fn get_file(
        &self,
        request: Request<pb::GetFileRequest>,
    ) -> Result<Response<Self::GetFileStream>, Status> {
        use pb::get_file_response::Message;
        let request = request.into_inner();
        let files = lock(&self.files);
        let (mut header, data) = files
            .get(&request.path)
            .cloned()
            .ok_or_else(|| Error::not_found("File", &request.path))?;
        if header.r#type == "directory" {
            let prefix = format!("{}/", request.path.trim_end_matches('/'));
            header.entries = files
                .keys()
                .filter_map(|path| path.strip_prefix(&prefix))
                .filter(|name| !name.contains('/'))
                .map(str::to_owned)
                .collect();
        }
        header.size_bytes = i64::try_from(data.len()).unwrap();
        let answer = |message| {
            Ok(pb::GetFileResponse {
                message: Some(message),
            })
        };
        let mut answers = vec![answer(Message::Header(header))];
        if !request.head_only {
            answers.extend(
                data.chunks(3)
                    .map(|c| answer(Message::Data(Bytes::copy_from_slice(c)))),
            );
        }
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn put_file(
        &self,
        request: Request<Streaming<pb::PutFileRequest>>,
    ) -> Result<Response<pb::PutFileResponse>, Status> {
        use pb::put_file_request::Message;
        let mut stream = request.into_inner();
        let header = match stream.message().await?.and_then(|m| m.message) {
            Some(Message::Header(header)) => header,
            _ => return Err(Error::invalid("header", "it is missing").into()),
        };
        let mut data = Vec::new();
        while let Some(message) = stream.message().await? {
            if let Some(Message::Data(part)) = message.message {
                data.extend_from_slice(&part);
            }
        }
        let mut files = lock(&self.files);
        let before = files.get(&header.path);
        if header.write == "append"
            && let Some((_, old)) = before
        {
            data.splice(0..0, old.iter().copied());
        }
        let directory = header.r#type == "directory";
        let stored = before.map_or_else(
            || FileHeader {
                r#type: header.r#type.clone(),
                uid: header.uid.unwrap_or(0),
                gid: header.gid.unwrap_or(0),
                mode: header.mode.unwrap_or(if directory { 0o750 } else { 0o644 }),
                modify_time: "2026-01-01T00:00:00Z".to_owned(),
                target: header.symlink_target.clone(),
                ..Default::default()
            },
            |(header, _)| header.clone(),
        );
        files.insert(header.path, (stored, data));
        Ok(Response::new(pb::PutFileResponse {}))
    }

    async fn delete_file(
        &self,
        request: Request<pb::DeleteFileRequest>,
    ) -> Result<Response<()>, Status> {
        let path = request.into_inner().path;
        match lock(&self.files).remove(&path) {
            Some(_) => Ok(Response::new(())),
            None => Err(Error::not_found("File", path).into()),
        }
    }
}

#[tonic::async_trait]
impl ConsoleService for Fake {
    type StreamConsoleStream = Answers<pb::StreamConsoleResponse>;

    async fn stream_console(
        &self,
        _: Request<Streaming<pb::StreamConsoleRequest>>,
    ) -> Result<Response<Self::StreamConsoleStream>, Status> {
        no("consoles to attach to")
    }

    async fn get_console_log(
        &self,
        _: Request<pb::GetConsoleLogRequest>,
    ) -> Result<Response<pb::GetConsoleLogResponse>, Status> {
        let data = Bytes::from(lock(&self.console).clone());
        Ok(Response::new(pb::GetConsoleLogResponse { data }))
    }

    async fn clear_console_log(
        &self,
        _: Request<pb::ClearConsoleLogRequest>,
    ) -> Result<Response<()>, Status> {
        lock(&self.console).clear();
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl LogService for Fake {
    type GetLogStream = Answers<pb::GetLogResponse>;

    async fn list_logs(
        &self,
        _: Request<pb::ListLogsRequest>,
    ) -> Result<Response<pb::ListLogsResponse>, Status> {
        Ok(Response::new(pb::ListLogsResponse {
            files: vec!["console.log".to_owned()],
        }))
    }

    async fn get_log(
        &self,
        request: Request<pb::GetLogRequest>,
    ) -> Result<Response<Self::GetLogStream>, Status> {
        if request.get_ref().file != "console.log" {
            return Err(Error::not_found("Log", &request.get_ref().file).into());
        }
        let data = Bytes::from(lock(&self.console).clone());
        Ok(Response::new(Box::pin(stream::iter([Ok(
            pb::GetLogResponse { data },
        )]))))
    }

    async fn delete_log(&self, _: Request<pb::DeleteLogRequest>) -> Result<Response<()>, Status> {
        no("logs to delete")
    }
}

/// A command that says hello, echoes its input, and exits 7 at its end or 128+n on signal n.
#[tonic::async_trait]
impl ExecService for Fake {
    async fn create_exec(
        &self,
        request: Request<pb::CreateExecRequest>,
    ) -> Result<Response<pb::Exec>, Status> {
        let request = request.into_inner();
        let name = format!("{}/execs/{}", request.parent, request.exec_id);
        lock(&self.execs).insert(name.clone(), request);
        Ok(Response::new(pb::Exec {
            name,
            pid: 42,
            ..Default::default()
        }))
    }

    type StreamExecStream = Answers<pb::StreamExecResponse>;

    async fn stream_exec(
        &self,
        request: Request<Streaming<pb::StreamExecRequest>>,
    ) -> Result<Response<Self::StreamExecStream>, Status> {
        use pb::stream_exec_request::Message as Said;
        use pb::stream_exec_response::{Exit, Message, Output};
        let mut requests = request.into_inner();
        let breaks = {
            let mut broken = lock(&self.broken);
            let breaks = *broken > 0;
            *broken = broken.saturating_sub(1);
            breaks
        };
        let attach = match requests.message().await?.and_then(|m| m.message) {
            Some(Said::Attach(attach)) => attach,
            _ => return Err(Error::invalid("attach", "it comes first").into()),
        };
        let no_stdin = lock(&self.execs)
            .get(&attach.name)
            .ok_or_else(|| Error::not_found("Exec", &attach.name))?
            .no_stdin;
        let (answers, receiver) = mpsc::channel(64);
        let answer = |message| {
            Ok(pb::StreamExecResponse {
                message: Some(message),
            })
        };
        tokio::spawn(async move {
            let output = |offset: u64, data: Bytes| {
                answer(Message::Stdout(Output {
                    offset,
                    data,
                    eof: false,
                }))
            };
            let mut out = b"hello ".to_vec();
            let from = usize::try_from(attach.stdout_offset)
                .unwrap()
                .min(out.len());
            let _ = answers
                .send(output(from as u64, Bytes::copy_from_slice(&out[from..])))
                .await;
            if breaks {
                let _ = answers
                    .send(Err(Error::unavailable("going away").into()))
                    .await;
                return;
            }
            let mut code = 7;
            let mut taken = 0_u64;
            while !no_stdin && let Ok(Some(message)) = requests.message().await {
                match message.message {
                    Some(Said::Stdin(data)) => {
                        let known = usize::try_from(taken - data.offset.min(taken)).unwrap();
                        let new = data.data.slice(known.min(data.data.len())..);
                        taken += new.len() as u64;
                        let offset = out.len() as u64;
                        out.extend_from_slice(&new);
                        let _ = answers.send(output(offset, new)).await;
                        let _ = answers.send(answer(Message::StdinOffset(taken))).await;
                        if data.eof {
                            break;
                        }
                    }
                    Some(Said::Signal(signal)) => {
                        code = 128 + signal;
                        break;
                    }
                    _ => {}
                }
            }
            let _ = answers
                .send(answer(Message::Exit(Exit { exit_code: code })))
                .await;
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_exec(&self, _: Request<pb::GetExecRequest>) -> Result<Response<pb::Exec>, Status> {
        no("execs to look at")
    }

    async fn delete_exec(
        &self,
        request: Request<pb::DeleteExecRequest>,
    ) -> Result<Response<()>, Status> {
        lock(&self.execs).remove(&request.get_ref().name);
        Ok(Response::new(()))
    }
}
