//! Between a client's websockets and one exec of the instance service.
//!
//! ```text
//!   ws 0 ──▶ stdin reader ──▶┐                        ┌──▶ writer ──▶ ws 1 (or 0)
//!   ws control ─▶ reader ───▶├── the bridge (1 task) ─┤
//!                            │   offsets, unacked in  └──▶ writer ──▶ ws 2
//!                            └────── StreamExec ─────▶ instance
//! ```
//!
//! The instance service may die and come back: the bridge attaches again from the offsets it has
//! taken over, and sends again the input that was not acknowledged. The command notices nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::instance::stream_exec_request::{self, Ack, Attach, Data, Resize};
use berth_proto::instance::stream_exec_response;
use berth_proto::instance::{CreateExecRequest, DeleteExecRequest, StreamExecRequest};
use berth_rpc::Error;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::exec_sockets::{Input, Role, Stream, Written, read_control, serve};
use super::streams::{self, Arrivals, Control};
use crate::app::operations::Handle;
use crate::clients::Owners;
use crate::error::Failure;

/// Input that may be under way without an acknowledgement; more waits in the client's socket.
const MAX_UNACKED: usize = 1 << 20;

/// How long the instance service may be away; its monitor keeps an exec's end 300 s.
const AWAY: Duration = Duration::from_secs(280);

/// How an exec is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// One stream both ways.
    Pty,
    /// stdin, stdout, stderr.
    Pipes,
}

impl Terminal {
    /// Streams that are offered.
    pub(super) fn streams(self) -> &'static [&'static str] {
        match self {
            Self::Pty => &["0", "control"],
            Self::Pipes => &["0", "1", "2", "control"],
        }
    }

    /// Streams that must be there before the command starts. pylxd never opens control for pipes.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Pty => &["0", "control"],
            Self::Pipes => &["0", "1", "2"],
        }
    }
}

/// Runs a command without anybody attached; output is dropped.
pub(super) async fn run_unattended(
    owners: Owners,
    request: CreateExecRequest,
    handle: Handle,
) -> Result<(), Failure> {
    // Kept open: without a client there is no input, and no hangup either.
    let (_inputs, receiver) = mpsc::channel(1);
    let outputs = Outputs::default();
    bridge(owners, request, receiver, outputs, &handle).await
}

/// Waits for the client's sockets, runs the command, and ends the sockets in the order clients expect.
pub(super) async fn run(
    owners: Owners,
    request: CreateExecRequest,
    terminal: Terminal,
    mut arrivals: Arrivals,
    handle: Handle,
) -> Result<(), Failure> {
    let mut sockets = streams::collect(&mut arrivals, terminal.required()).await?;
    let (inputs, receiver) = mpsc::channel(64);
    let mut outputs = Outputs::default();
    let mut tasks = Vec::new();
    let control = sockets.remove("control");
    let watch_output = control.is_none();
    let (control_end, control_ended) = tokio::sync::watch::channel(false);
    match control {
        Some(socket) => {
            tokio::spawn(read_control(socket, inputs.clone(), control_ended));
        }
        // It may still come.
        None => {
            let inputs = inputs.clone();
            tokio::spawn(async move {
                let mut ended = control_ended.clone();
                tokio::select! {
                    arrival = arrivals.recv() => if let Some((name, socket)) = arrival
                        && name == "control"
                    {
                        read_control(socket, inputs, control_ended).await;
                    },
                    _ = ended.changed() => {}
                }
            });
        }
    }
    for (name, socket) in sockets {
        match (terminal, name.as_str()) {
            (Terminal::Pty, "0") => {
                let (sender, receiver) = mpsc::channel(16);
                outputs.stdout = Some(sender);
                let role = Role {
                    stdin: true,
                    output: Some(Stream::Stdout),
                    loss_is_hangup: false,
                };
                let written = outputs.written.clone();
                tasks.push(tokio::spawn(serve(
                    socket,
                    role,
                    receiver,
                    inputs.clone(),
                    written,
                )));
            }
            (Terminal::Pipes, "0") => {
                let (sender, receiver) = mpsc::channel(1);
                outputs.stdin_open = Some(sender);
                let role = Role {
                    stdin: true,
                    output: None,
                    loss_is_hangup: false,
                };
                // Not waited for: the client may keep its end open.
                let written = outputs.written.clone();
                tokio::spawn(serve(socket, role, receiver, inputs.clone(), written));
            }
            (Terminal::Pipes, "1" | "2") => {
                let (sender, receiver) = mpsc::channel(16);
                let stream = if name == "1" {
                    outputs.stdout = Some(sender);
                    Stream::Stdout
                } else {
                    outputs.stderr = Some(sender);
                    Stream::Stderr
                };
                let role = Role {
                    stdin: false,
                    output: Some(stream),
                    loss_is_hangup: watch_output && stream == Stream::Stdout,
                };
                let written = outputs.written.clone();
                tasks.push(tokio::spawn(serve(
                    socket,
                    role,
                    receiver,
                    inputs.clone(),
                    written,
                )));
            }
            _ => {}
        }
    }
    drop(inputs);
    let result = bridge(owners, request, receiver, outputs, &handle).await;
    let _ = control_end.send(true);
    // The writers end after the barrier; one that hangs must not keep the operation open.
    let drained = futures::future::join_all(tasks);
    if tokio::time::timeout(Duration::from_secs(10), drained)
        .await
        .is_err()
    {
        tracing::debug!("a client does not take its output");
    }
    result
}

/// Where output goes. Dropping a sender ends its socket.
#[derive(Debug, Default)]
struct Outputs {
    stdout: Option<mpsc::Sender<Bytes>>,
    stderr: Option<mpsc::Sender<Bytes>>,
    /// Keeps the stdin socket's task alive while the command runs.
    stdin_open: Option<mpsc::Sender<Bytes>>,
    written: Arc<Written>,
}

impl Outputs {
    fn of(&self, stream: Stream) -> Option<&mpsc::Sender<Bytes>> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }
}

/// What must be known to attach again.
#[derive(Debug, Default)]
struct Position {
    /// Output taken over from the exec.
    stdout: u64,
    stderr: u64,
    /// Output taken over that its writer has no room for yet. No response is read meanwhile, but
    /// input and signals still pass.
    pending: Option<(mpsc::Sender<Bytes>, Bytes)>,
    /// Input not yet acknowledged, in order.
    unacked: VecDeque<(u64, Bytes)>,
    unacked_bytes: usize,
    stdin: u64,
    stdin_end: bool,
    /// Sent again after a reconnect: a signal may have been lost with the connection, and only a
    /// kill is safe to repeat.
    killed: bool,
}

/// Starts the command and carries everything until its exit.
async fn bridge(
    owners: Owners,
    mut request: CreateExecRequest,
    mut inputs: mpsc::Receiver<Input>,
    outputs: Outputs,
    handle: &Handle,
) -> Result<(), Failure> {
    request.exec_id = handle.id();
    let name = create(&owners, request).await?;
    let mut position = Position::default();
    let mut lost_at: Option<Instant> = None;
    let code = loop {
        match attach(
            &owners,
            &name,
            &mut position,
            &mut inputs,
            &outputs,
            &mut lost_at,
        )
        .await
        {
            Ok(code) => break code,
            Err(error) if error.is_transient() => {
                if lost_at.get_or_insert_with(Instant::now).elapsed() > AWAY {
                    return Err(error.into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    drop((outputs, position));
    let forget = DeleteExecRequest { name };
    tokio::spawn(async move {
        // Its owner forgets it by itself after a while.
        let _ = owners.execs().delete_exec(forget).await;
    });
    handle.update(|metadata| {
        metadata.insert("return".into(), code.into());
    });
    match code {
        126 => Err(Failure::bad_request("Command not executable")),
        127 => Err(Failure::bad_request("Command not found")),
        _ => Ok(()),
    }
}

/// Creating is idempotent on the exec's id, so an owner that is away is tried again for a moment.
async fn create(owners: &Owners, request: CreateExecRequest) -> Result<String, Error> {
    let since = Instant::now();
    loop {
        match owners.execs().create_exec(request.clone()).await {
            Ok(exec) => return Ok(exec.into_inner().name),
            Err(status) => {
                let error = Error::from(status);
                if !error.is_transient() || since.elapsed() > Duration::from_secs(10) {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One connection's worth of the bridge. Gives the exit code, or an error after which to attach again.
async fn attach(
    owners: &Owners,
    name: &str,
    position: &mut Position,
    inputs: &mut mpsc::Receiver<Input>,
    outputs: &Outputs,
    lost_at: &mut Option<Instant>,
) -> Result<i32, Error> {
    // Unbounded, since the bridge must never wait to send while the exec waits for its output to be
    // read; what is in it is bounded by MAX_UNACKED.
    let (sender, receiver) = mpsc::unbounded_channel();
    let gone = || Error::unavailable("the exec's connection is gone");
    let send = |request| sender.send(request).map_err(|_| gone());
    send(message(stream_exec_request::Message::Attach(Attach {
        name: name.to_owned(),
        stdout_offset: position.stdout,
        stderr_offset: position.stderr,
    })))?;
    for request in position.again() {
        send(request)?;
    }
    let mut responses = owners
        .execs()
        .stream_exec(UnboundedReceiverStream::new(receiver))
        .await?
        .into_inner();
    let mut attended = true;
    loop {
        let room = position.pending.clone();
        tokio::select! {
            response = next(&mut responses), if room.is_none() => {
                let response = response?;
                *lost_at = None;
                if let Some(code) = take(response, position, outputs) {
                    return Ok(code);
                }
            }
            permit = reserve(room.clone()), if room.is_some() => {
                // A client that is gone takes nothing; the command goes on.
                if let (Some((_, data)), Some(permit)) = (position.pending.take(), permit) {
                    permit.send(data);
                }
            }
            input = inputs.recv(), if attended && position.unacked_bytes < MAX_UNACKED => match input {
                Some(input) => if let Some(request) = forward(input, position) {
                    send(request)?;
                },
                None => attended = false,
            },
            () = outputs.written.changed.notified() => send(ack(&outputs.written))?,
        }
    }
}

async fn reserve(
    pending: Option<(mpsc::Sender<Bytes>, Bytes)>,
) -> Option<mpsc::OwnedPermit<Bytes>> {
    pending?.0.reserve_owned().await.ok()
}

async fn next(
    responses: &mut Streaming<berth_proto::instance::StreamExecResponse>,
) -> Result<stream_exec_response::Message, Error> {
    loop {
        match responses.message().await? {
            Some(response) => {
                if let Some(message) = response.message {
                    return Ok(message);
                }
            }
            // The owner went away in good order, without an exit: it will be back.
            None => return Err(Error::unavailable("the exec's stream ended early")),
        }
    }
}

fn message(message: stream_exec_request::Message) -> StreamExecRequest {
    StreamExecRequest {
        message: Some(message),
    }
}

fn ack(written: &Written) -> StreamExecRequest {
    let (stdout_offset, stderr_offset) = written.offsets();
    message(stream_exec_request::Message::Ack(Ack {
        stdout_offset,
        stderr_offset,
    }))
}

fn stdin(offset: u64, data: Bytes, eof: bool) -> StreamExecRequest {
    message(stream_exec_request::Message::Stdin(Data {
        offset,
        data,
        eof,
    }))
}

impl Position {
    fn acknowledge(&mut self, offset: u64) {
        while let Some((start, data)) = self.unacked.front() {
            if start + data.len() as u64 > offset {
                break;
            }
            self.unacked_bytes -= data.len();
            self.unacked.pop_front();
        }
    }

    /// What a new connection must be told again.
    fn again(&self) -> Vec<StreamExecRequest> {
        let mut again: Vec<_> = self
            .unacked
            .iter()
            .map(|(offset, data)| stdin(*offset, data.clone(), false))
            .collect();
        if self.stdin_end {
            again.push(stdin(self.stdin, Bytes::new(), true));
        }
        if self.killed {
            again.push(message(stream_exec_request::Message::Signal(9)));
        }
        again
    }
}

/// What an input asks of the exec.
fn forward(input: Input, position: &mut Position) -> Option<StreamExecRequest> {
    let out = match input {
        Input::Stdin(data) => {
            if position.stdin_end || data.is_empty() {
                return None;
            }
            let offset = position.stdin;
            position.stdin += data.len() as u64;
            position.unacked_bytes += data.len();
            position.unacked.push_back((offset, data.clone()));
            return Some(stdin(offset, data, false));
        }
        Input::StdinEnd => {
            if position.stdin_end {
                return None;
            }
            position.stdin_end = true;
            return Some(stdin(position.stdin, Bytes::new(), true));
        }
        Input::Control(Control::Resize(width, height)) => {
            stream_exec_request::Message::Resize(Resize { width, height })
        }
        Input::Control(Control::Signal(signal)) => stream_exec_request::Message::Signal(signal),
        Input::Hangup => {
            position.killed = true;
            stream_exec_request::Message::Signal(9)
        }
    };
    Some(message(out))
}

/// Takes a response over; gives the exit code at the end.
fn take(
    response: stream_exec_response::Message,
    position: &mut Position,
    outputs: &Outputs,
) -> Option<i32> {
    let (stream, output) = match response {
        stream_exec_response::Message::Stdout(output) => (Stream::Stdout, output),
        stream_exec_response::Message::Stderr(output) => (Stream::Stderr, output),
        stream_exec_response::Message::StdinOffset(offset) => {
            position.acknowledge(offset);
            return None;
        }
        stream_exec_response::Message::Exit(exit) => return Some(exit.exit_code),
    };
    let taken = match stream {
        Stream::Stdout => &mut position.stdout,
        Stream::Stderr => &mut position.stderr,
    };
    // After a reconnect the owner may begin a little before what was asked for.
    let known = usize::try_from(taken.saturating_sub(output.offset)).unwrap_or(usize::MAX);
    if known >= output.data.len() {
        return None;
    }
    let data = output.data.slice(known..);
    *taken = output.offset + output.data.len() as u64;
    match outputs.of(stream) {
        Some(to) => position.pending = Some((to.clone(), data)),
        None => outputs.written.add(stream, data.len()),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(offset: u64, data: &'static [u8]) -> stream_exec_response::Message {
        stream_exec_response::Message::Stdout(stream_exec_response::Output {
            offset,
            data: Bytes::from_static(data),
            eof: false,
        })
    }

    #[test]
    fn output_that_comes_twice_is_taken_once() {
        let mut position = Position::default();
        let outputs = Outputs::default();
        take(output(0, b"hello"), &mut position, &outputs);
        take(output(0, b"hello"), &mut position, &outputs);
        take(output(3, b"lo world"), &mut position, &outputs);
        assert_eq!(position.stdout, 11);
        assert_eq!(outputs.written.offsets().0, 11);
    }

    #[test]
    fn input_is_kept_until_the_command_has_it() {
        let mut position = Position::default();
        forward(Input::Stdin(Bytes::from_static(b"abc")), &mut position);
        forward(Input::Stdin(Bytes::from_static(b"de")), &mut position);
        forward(Input::StdinEnd, &mut position);
        assert_eq!(position.again().len(), 3);
        position.acknowledge(4);
        assert_eq!(position.unacked.len(), 1);
        position.acknowledge(5);
        assert_eq!(position.unacked_bytes, 0);
        assert_eq!(position.again().len(), 1, "the end is told again");
        assert!(forward(Input::Stdin(Bytes::from_static(b"x")), &mut position).is_none());
    }
}
