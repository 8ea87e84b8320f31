//! Commands run in a guest. They live in its monitor, so that neither a caller's end nor this service's is
//! theirs; what is here starts them and carries their streams.

use std::collections::{BTreeMap, VecDeque};

use berth_monitor::error::FaultCode;
use berth_monitor::protocol::{
    CHUNK, EXEC_WINDOW, Event, ExecState, PtySize, Reply, Request, StartExec, Stream,
};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::live::link_error;
use super::{App, Slot};
use crate::Error;
use crate::model::record::Status;
use crate::model::spec;
use crate::runtime::link::{Events, Link, LinkError, unexpected};

/// Longest time that an ended exec is kept by the monitor.
const LINGER_SECONDS: i32 = berth_monitor::protocol::EXEC_LINGER_SECONDS as i32;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub cwd: String,
    pub user: u32,
    pub group: u32,
    pub interactive: bool,
    pub width: i32,
    pub height: i32,
    pub no_stdin: bool,
    pub linger_seconds: i32,
    /// Chosen by the caller; empty: a new one.
    pub exec_id: String,
}

/// An exec as it is now.
#[derive(Debug, Clone, Default)]
pub struct ExecStarted {
    pub id: String,
    pub pid: i32,
    /// Exit code as a shell tells it, once it ended.
    pub exit_code: Option<i32>,
    pub environment: BTreeMap<String, String>,
}

/// What a client sends to an exec.
#[derive(Debug, Clone)]
pub enum ExecInput {
    Stdin { offset: u64, data: Bytes, eof: bool },
    Resize { width: i32, height: i32 },
    Signal(i32),
    Ack { stdout: u64, stderr: u64 },
}

/// What an exec sends to its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Input taken so far: send from here on.
    StdinOffset(u64),
    Data {
        stderr: bool,
        offset: u64,
        data: Bytes,
    },
    /// Nothing comes after it.
    Exit(i32),
}

fn size(width: i32, height: i32) -> PtySize {
    let clamp = |n: i32, default: u16| u16::try_from(n).ok().filter(|n| *n > 0).unwrap_or(default);
    PtySize {
        rows: clamp(height, 24),
        cols: clamp(width, 80),
    }
}

pub(super) fn pty_size(width: i32, height: i32) -> Option<PtySize> {
    (width > 0 && height > 0).then(|| size(width, height))
}

fn check(request: &ExecRequest) -> Result<(), Error> {
    if request.command.is_empty() || request.command[0].is_empty() {
        return Err(Error::invalid("command", "The command is empty"));
    }
    let nul = |text: &String| text.contains('\0');
    if request.command.iter().any(nul) || request.cwd.contains('\0') {
        return Err(Error::invalid(
            "command",
            "The command or its directory holds a NUL",
        ));
    }
    for (name, value) in &request.environment {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(
                "environment",
                format!("{name:?} is no environment variable"),
            ));
        }
    }
    if !(0..=LINGER_SECONDS).contains(&request.linger_seconds) {
        let why = format!("An ended exec is kept at most {LINGER_SECONDS} seconds");
        return Err(Error::invalid("linger_seconds", why));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if request.exec_id.len() > 64 || !request.exec_id.bytes().all(plain) {
        return Err(Error::invalid(
            "exec_id",
            "It is at most 64 letters, digits, - and _",
        ));
    }
    Ok(())
}

/// Instance's own, then the caller's, then what every login has.
fn environment(own: Vec<(String, String)>, request: &ExecRequest) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = own.into_iter().collect();
    all.extend(request.environment.clone());
    let mut default = |key: &str, value: &str| {
        all.entry(key.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    default("PATH", PATH);
    default("LANG", "C.UTF-8");
    // By which programs know where they are, as LXC tells them.
    default("container", "lxc");
    if request.user == 0 {
        default("HOME", "/root");
        default("USER", "root");
    }
    if request.interactive {
        default("TERM", "linux");
    }
    all
}

impl App {
    fn running(&self, project: &str, name: &str) -> Result<(std::sync::Arc<Slot>, Link), Error> {
        let slot = self.slot(project, name)?;
        match (slot.run().status, slot.link()) {
            (Status::Frozen | Status::Freezing, _) => {
                Err(Error::precondition("FROZEN", "Instance is frozen"))
            }
            (_, Some(link)) => Ok((slot, link)),
            _ => Err(Error::precondition(
                "NOT_RUNNING",
                "Instance is not running",
            )),
        }
    }

    /// Starts a command. One that cannot be run is an exec that ended with 126 or 127.
    pub async fn create_exec(
        &self,
        project: &str,
        name: &str,
        request: ExecRequest,
    ) -> Result<ExecStarted, Error> {
        check(&request)?;
        let (slot, link) = self.running(project, name)?;
        let expanded = self.expand(&slot.record());
        let environment = environment(spec::environment(&expanded), &request);
        let cwd = match request.cwd.as_str() {
            "" => environment.get("HOME").cloned(),
            cwd => Some(cwd.to_owned()),
        };
        let id = match request.exec_id.as_str() {
            "" => uuid::Uuid::now_v7().to_string(),
            id => id.to_owned(),
        };
        let start = StartExec {
            exec_id: id.clone(),
            argv: request.command,
            env: environment.clone().into_iter().collect(),
            cwd,
            uid: request.user,
            gid: request.group,
            groups: Vec::new(),
            pty: request
                .interactive
                .then(|| size(request.width, request.height)),
            stdin: !request.no_stdin,
        };
        let started = ExecStarted {
            id: id.clone(),
            environment,
            ..ExecStarted::default()
        };
        let mut answer = link.call(Request::StartExec(start.clone())).await;
        if request.cwd.is_empty() && matches!(&answer, Err(LinkError::Fault(f)) if f.stage == "cwd")
        {
            // A guest without root's home: nobody asked to be in it.
            let start = StartExec { cwd: None, ..start };
            answer = link.call(Request::StartExec(start)).await;
        }
        match answer {
            Ok((Reply::ExecStarted { pid, .. }, _)) => Ok(ExecStarted { pid, ..started }),
            Ok(_) => Err(link_error(unexpected(), "Starting the command")),
            Err(error) => match error.code() {
                Some(FaultCode::CommandNotFound) => Ok(failed(&slot, started, 127)),
                Some(FaultCode::CommandNotExecutable) => Ok(failed(&slot, started, 126)),
                _ => Err(link_error(error, "Starting the command")),
            },
        }
    }

    pub async fn get_exec(
        &self,
        project: &str,
        name: &str,
        id: &str,
    ) -> Result<ExecStarted, Error> {
        let slot = self.slot(project, name)?;
        if let Some(code) = slot.failed_exec(id) {
            return Ok(ExecStarted {
                id: id.to_owned(),
                exit_code: Some(code),
                ..Default::default()
            });
        }
        let link = slot.link().ok_or_else(|| Error::not_found("Exec", id))?;
        let state = exec_state(&link, id).await?;
        Ok(ExecStarted {
            id: id.to_owned(),
            pid: state.pid,
            exit_code: state.status.map(|s| s.shell_code()),
            ..Default::default()
        })
    }

    /// Kills it if it runs, and forgets it.
    pub async fn delete_exec(&self, project: &str, name: &str, id: &str) -> Result<(), Error> {
        let slot = self.slot(project, name)?;
        if slot.failed_exec(id).is_some() {
            slot.forget_failed_exec(id);
            return Ok(());
        }
        let link = slot.link().ok_or_else(|| Error::not_found("Exec", id))?;
        let deleted = link
            .done(Request::DeleteExec {
                exec_id: id.to_owned(),
            })
            .await;
        deleted.map_err(|e| exec_error(e, id))
    }

    /// Carries the streams of an exec until it ended and everything was sent. Input is taken from `input`;
    /// when that ends the exec goes on.
    pub async fn stream_exec(
        &self,
        project: &str,
        name: &str,
        id: String,
        from: (u64, u64),
        input: mpsc::Receiver<ExecInput>,
        output: mpsc::Sender<Result<ExecOutput, Error>>,
    ) -> Result<(), Error> {
        let slot = self.slot(project, name)?;
        if let Some(code) = slot.failed_exec(&id) {
            // The client that is gone needs no answer.
            let _ = output.send(Ok(ExecOutput::Exit(code))).await;
            return Ok(());
        }
        if slot.link().is_none() {
            return Err(Error::not_found("Exec", &id));
        }
        // A connection of its own: one slow reader must not hold up the guest's other answers.
        let stream = self
            .runtime
            .connect(&slot.uid)
            .await
            .map_err(Error::internal)?;
        let (link, events, _greeting) = Link::open(stream);
        let attach = Request::AttachExec {
            exec_id: id.clone(),
            stdout_offset: from.0,
            stderr_offset: from.1,
        };
        let attached = link.call(attach).await.map_err(|e| exec_error(e, &id))?;
        let (Reply::ExecAttached { stdin_offset, .. }, _) = attached else {
            return Err(exec_error(unexpected(), &id));
        };
        tokio::spawn(async move {
            if output
                .send(Ok(ExecOutput::StdinOffset(stdin_offset)))
                .await
                .is_ok()
            {
                let window = StdinWindow::from(stdin_offset);
                carry(link, events, id, input, output, window).await;
            }
        });
        Ok(())
    }
}

fn failed(slot: &Slot, started: ExecStarted, code: i32) -> ExecStarted {
    slot.keep_failed_exec(&started.id, code);
    ExecStarted {
        exit_code: Some(code),
        ..started
    }
}

fn exec_error(error: LinkError, id: &str) -> Error {
    match error.code() {
        Some(FaultCode::NotFound) => Error::not_found("Exec", id),
        Some(FaultCode::OffsetGone) => Error::new(
            crate::Code::InvalidArgument,
            "OFFSET_GONE",
            "Output before that offset was acknowledged and is gone",
        ),
        _ => link_error(error, "Reaching the command"),
    }
}

async fn exec_state(link: &Link, id: &str) -> Result<ExecState, Error> {
    match link
        .call(Request::GetExec {
            exec_id: id.to_owned(),
        })
        .await
    {
        Ok((Reply::Exec(state), _)) => Ok(state),
        Ok(_) => Err(exec_error(unexpected(), id)),
        Err(error) => Err(exec_error(error, id)),
    }
}

/// Both directions, until the exec, the client or the monitor is gone.
async fn carry(
    link: Link,
    mut events: Events,
    id: String,
    mut input: mpsc::Receiver<ExecInput>,
    output: mpsc::Sender<Result<ExecOutput, Error>>,
    mut window: StdinWindow,
) {
    let mut more_input = true;
    loop {
        while let Some((offset, data, eof)) = window.next() {
            let exec_id = id.clone();
            let request = Request::ExecStdin {
                exec_id,
                offset,
                eof,
            };
            if link.send(request, &data).await.is_err() {
                return;
            }
        }
        tokio::select! {
            item = input.recv(), if more_input && window.has_room() => match item {
                Some(ExecInput::Stdin { offset, data, eof }) => window.push(offset, data, eof),
                Some(item) => {
                    if pass_input(&link, &id, item).await.is_err() {
                        return;
                    }
                }
                None => more_input = false,
            },
            event = events.recv() => {
                let Some((event, payload)) = event else {
                    let gone = Error::unavailable("The connection to the instance's monitor ended");
                    let _ = output.send(Err(gone)).await;
                    return;
                };
                if let Event::ExecStdinAccepted { exec_id, offset } = &event
                    && *exec_id == id
                {
                    window.accepted(*offset);
                }
                let (item, last) = match translate(event, payload, &id) {
                    Some(translated) => translated,
                    None => continue,
                };
                if output.send(item).await.is_err() || last {
                    return;
                }
            }
            () = output.closed() => return,
        }
    }
}

/// The item for the client, and whether it is the last.
fn translate(event: Event, payload: Bytes, id: &str) -> Option<(Result<ExecOutput, Error>, bool)> {
    match event {
        Event::ExecOutput {
            exec_id,
            stream,
            offset,
        } if exec_id == id => {
            let stderr = stream == Stream::Stderr;
            Some((
                Ok(ExecOutput::Data {
                    stderr,
                    offset,
                    data: payload,
                }),
                false,
            ))
        }
        Event::ExecStdinAccepted { exec_id, offset } if exec_id == id => {
            Some((Ok(ExecOutput::StdinOffset(offset)), false))
        }
        Event::ExecExited {
            exec_id, status, ..
        } if exec_id == id => Some((Ok(ExecOutput::Exit(status.shell_code())), true)),
        Event::ExecDetached { exec_id } if exec_id == id => {
            let taken = Error::aborted("TAKEN_OVER", "Another client attached to this exec");
            Some((Err(taken), true))
        }
        Event::Refused { fault } => {
            tracing::debug!(id, %fault, "the monitor refused input of an exec");
            None
        }
        _ => None,
    }
}

async fn pass_input(link: &Link, id: &str, item: ExecInput) -> Result<(), LinkError> {
    let exec_id = id.to_owned();
    match item {
        // Those go through the window.
        ExecInput::Stdin { .. } => Ok(()),
        ExecInput::Resize { width, height } => {
            let PtySize { rows, cols } = size(width, height);
            link.send(
                Request::ResizeExec {
                    exec_id,
                    rows,
                    cols,
                },
                &[],
            )
            .await
        }
        ExecInput::Signal(signal) => {
            link.send(Request::SignalExec { exec_id, signal }, &[])
                .await
        }
        ExecInput::Ack { stdout, stderr } => {
            link.send(
                Request::AckExec {
                    exec_id,
                    stdout,
                    stderr,
                },
                &[],
            )
            .await
        }
    }
}

/// Input on its way to the monitor: in pieces that fit a frame, and never more than the monitor keeps
/// for a program that does not read.
struct StdinWindow {
    /// One past the last byte that the monitor has room for.
    limit: u64,
    waiting: VecDeque<(u64, Bytes, bool)>,
    bytes: usize,
}

/// Input held here while the program does not read; then the client is not read either.
const MAX_WAITING: usize = 4 << 20;

impl StdinWindow {
    /// Of an exec that was sent `received` bytes. After the first attachment some of them may still
    /// be in the monitor, which then tells at once how many the program took.
    fn from(received: u64) -> Self {
        let room = if received == 0 { EXEC_WINDOW as u64 } else { 0 };
        Self {
            limit: received + room,
            waiting: VecDeque::new(),
            bytes: 0,
        }
    }

    fn accepted(&mut self, offset: u64) {
        self.limit = self.limit.max(offset + EXEC_WINDOW as u64);
    }

    fn has_room(&self) -> bool {
        self.bytes < MAX_WAITING
    }

    fn push(&mut self, offset: u64, data: Bytes, eof: bool) {
        self.bytes += data.len();
        self.waiting.push_back((offset, data, eof));
    }

    /// The next piece that may be sent now.
    fn next(&mut self) -> Option<(u64, Bytes, bool)> {
        let (offset, data, eof) = self.waiting.front_mut()?;
        let room = self.limit.saturating_sub(*offset);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(CHUNK);
        if room < data.len() {
            if room == 0 {
                return None;
            }
            let piece = (*offset, data.split_to(room), false);
            *offset += room as u64;
            self.bytes -= room;
            return Some(piece);
        }
        self.bytes -= data.len();
        let piece = (*offset, data.clone(), *eof);
        self.waiting.pop_front();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_waits_for_room_and_loses_nothing() {
        let mut window = StdinWindow::from(0);
        let size = EXEC_WINDOW + CHUNK + 5;
        window.push(0, Bytes::from(vec![7; size]), true);
        let (mut sent, mut ended) = (0, false);
        let mut drain = |window: &mut StdinWindow, sent: &mut usize| {
            while let Some((offset, data, eof)) = window.next() {
                assert_eq!(offset as usize, *sent);
                assert!(data.len() <= CHUNK && !ended);
                *sent += data.len();
                ended = eof;
            }
            ended
        };
        assert!(!drain(&mut window, &mut sent));
        assert_eq!(sent, EXEC_WINDOW);
        window.accepted(3);
        assert!(!drain(&mut window, &mut sent));
        assert_eq!(sent, EXEC_WINDOW + 3);
        window.accepted(EXEC_WINDOW as u64);
        assert!(drain(&mut window, &mut sent));
        assert_eq!((sent, window.bytes), (size, 0));
    }

    #[test]
    fn a_later_attachment_waits_until_it_knows_what_was_taken() {
        let mut window = StdinWindow::from(100);
        window.push(100, Bytes::from_static(b"more"), false);
        assert_eq!(window.next(), None);
        window.accepted(90);
        assert_eq!(
            window.next(),
            Some((100, Bytes::from_static(b"more"), false))
        );
    }

    #[test]
    fn the_environment_has_a_logins_defaults_and_the_callers_wishes() {
        let own = vec![
            ("A".to_owned(), "own".to_owned()),
            ("PATH".to_owned(), "/own".to_owned()),
        ];
        let mut request = ExecRequest {
            interactive: true,
            ..ExecRequest::default()
        };
        request.environment.insert("A".into(), "asked".into());
        let env = environment(own.clone(), &request);
        assert_eq!((env["A"].as_str(), env["PATH"].as_str()), ("asked", "/own"));
        assert_eq!(
            (env["HOME"].as_str(), env["TERM"].as_str()),
            ("/root", "linux")
        );
        assert_eq!(env["container"], "lxc");
        request.user = 1000;
        assert!(!environment(own, &request).contains_key("HOME"));
    }

    #[test]
    fn bad_requests_are_refused() {
        let good = ExecRequest {
            command: vec!["true".into()],
            ..ExecRequest::default()
        };
        assert!(check(&good).is_ok());
        for bad in [
            ExecRequest::default(),
            ExecRequest {
                linger_seconds: 301,
                ..good.clone()
            },
            ExecRequest {
                exec_id: "a/b".into(),
                ..good.clone()
            },
            ExecRequest {
                environment: [("A=B".to_owned(), String::new())].into(),
                ..good
            },
        ] {
            assert!(check(&bad).is_err());
        }
    }
}
