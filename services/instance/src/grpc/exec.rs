//! ExecService.

use std::pin::Pin;

use berth_proto::instance as proto;
use berth_proto::instance::exec_service_server::ExecService;
use berth_proto::instance::stream_exec_request::Message as In;
use berth_proto::instance::stream_exec_response::{self as out, Message as Out};
use berth_rpc::names;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, instance_name};
use crate::Error;
use crate::app::{ExecInput, ExecOutput, ExecRequest, ExecStarted};

type Answer<T> = Result<Response<T>, Status>;

/// Pieces under way between the monitor and the client.
const QUEUE: usize = 16;

fn name(name: &str) -> Result<names::Exec, Error> {
    names::Exec::parse("name", name)
}

fn rendered(project: &str, instance: &str, exec: ExecStarted) -> proto::Exec {
    proto::Exec {
        name: names::Exec::new(project, instance, exec.id).to_string(),
        pid: i64::from(exec.pid),
        exited: exec.exit_code.is_some(),
        exit_code: exec.exit_code.unwrap_or(0),
        environment: exec.environment.into_iter().collect(),
    }
}

fn input(message: In) -> Result<ExecInput, Error> {
    Ok(match message {
        In::Attach(_) => {
            return Err(Error::invalid(
                "attach",
                "Only the first message of a stream is attach",
            ));
        }
        In::Stdin(d) => ExecInput::Stdin {
            offset: d.offset,
            data: d.data,
            eof: d.eof,
        },
        In::Resize(r) => ExecInput::Resize {
            width: r.width,
            height: r.height,
        },
        In::Signal(signal) if (1..=64).contains(&signal) => ExecInput::Signal(signal),
        In::Signal(signal) => {
            return Err(Error::invalid("signal", format!("{signal} is no signal")));
        }
        In::Ack(a) => ExecInput::Ack {
            stdout: a.stdout_offset,
            stderr: a.stderr_offset,
        },
    })
}

fn output(item: ExecOutput) -> proto::StreamExecResponse {
    let message = match item {
        ExecOutput::StdinOffset(offset) => Out::StdinOffset(offset),
        ExecOutput::Data {
            stderr,
            offset,
            data,
        } => {
            let piece = out::Output {
                offset,
                data,
                eof: false,
            };
            if stderr {
                Out::Stderr(piece)
            } else {
                Out::Stdout(piece)
            }
        }
        ExecOutput::Exit(exit_code) => Out::Exit(out::Exit { exit_code }),
    };
    proto::StreamExecResponse {
        message: Some(message),
    }
}

/// Takes the client's messages until it leaves or says something wrong, which ends the stream.
async fn take_input(
    mut stream: Streaming<proto::StreamExecRequest>,
    input_sender: mpsc::Sender<ExecInput>,
    output_sender: mpsc::WeakSender<Result<ExecOutput, Error>>,
) {
    while let Some(Ok(request)) = stream.next().await {
        let Some(message) = request.message else {
            continue;
        };
        match input(message) {
            Ok(item) => {
                if input_sender.send(item).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if let Some(sender) = output_sender.upgrade() {
                    // Gone already is as good as told.
                    let _ = sender.send(Err(error)).await;
                }
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl ExecService for Api {
    async fn create_exec(&self, request: Request<proto::CreateExecRequest>) -> Answer<proto::Exec> {
        let r = request.into_inner();
        let (project, instance) = instance_name("parent", &r.parent)?;
        let exec = ExecRequest {
            command: r.command,
            environment: r.environment.into_iter().collect(),
            cwd: r.cwd,
            user: r.user.unwrap_or(0),
            group: r.group.unwrap_or(0),
            interactive: r.interactive,
            width: r.width,
            height: r.height,
            no_stdin: r.no_stdin,
            linger_seconds: r.linger_seconds,
            exec_id: r.exec_id,
        };
        let started = self.app.create_exec(&project, &instance, exec).await?;
        Ok(Response::new(rendered(&project, &instance, started)))
    }

    type StreamExecStream =
        Pin<Box<dyn Stream<Item = Result<proto::StreamExecResponse, Status>> + Send>>;

    async fn stream_exec(
        &self,
        request: Request<Streaming<proto::StreamExecRequest>>,
    ) -> Answer<Self::StreamExecStream> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|m| m.message);
        let Some(In::Attach(attach)) = first else {
            return Err(
                Error::invalid("attach", "The first message of the stream is attach").into(),
            );
        };
        let n = name(&attach.name)?;
        let (input_sender, input) = mpsc::channel(QUEUE);
        let (sender, items) = mpsc::channel(QUEUE);
        let from = (attach.stdout_offset, attach.stderr_offset);
        // A weak end: the answers end with the exec, not with the task that reads the client's messages.
        let weak = sender.downgrade();
        self.app
            .stream_exec(&n.project, &n.instance, n.exec, from, input, sender)
            .await?;
        tokio::spawn(take_input(stream, input_sender, weak));
        let ended = ends_with_exit(ReceiverStream::new(items));
        Ok(Response::new(Box::pin(ended)))
    }

    async fn get_exec(&self, request: Request<proto::GetExecRequest>) -> Answer<proto::Exec> {
        let n = name(&request.into_inner().name)?;
        let exec = self.app.get_exec(&n.project, &n.instance, &n.exec).await?;
        Ok(Response::new(rendered(&n.project, &n.instance, exec)))
    }

    async fn delete_exec(&self, request: Request<proto::DeleteExecRequest>) -> Answer<()> {
        let n = name(&request.into_inner().name)?;
        self.app
            .delete_exec(&n.project, &n.instance, &n.exec)
            .await?;
        Ok(Response::new(()))
    }
}

/// Nothing follows an exit or an error, whoever else may still have something to say.
fn ends_with_exit(
    items: ReceiverStream<Result<ExecOutput, Error>>,
) -> impl Stream<Item = Result<proto::StreamExecResponse, Status>> + Send {
    let mut over = false;
    items
        .take_while(move |item| {
            let go_on = !over;
            over = matches!(item, Ok(ExecOutput::Exit(_)) | Err(_));
            go_on
        })
        .map(|item| item.map(output).map_err(Status::from))
}
