//! The client's side of an exec: one task for each socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::streams::{Control, PING};

/// What the sockets say to the bridge.
#[derive(Debug)]
pub(super) enum Input {
    Stdin(Bytes),
    StdinEnd,
    Control(Control),
    /// A socket whose loss ends the command is gone.
    Hangup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Output that reached the client. Beside the inputs' channel, because that may be full of input
/// that the command takes only once its output has gone.
#[derive(Debug, Default)]
pub(super) struct Written {
    stdout: AtomicU64,
    stderr: AtomicU64,
    pub(super) changed: Notify,
}

impl Written {
    pub(super) fn add(&self, stream: Stream, bytes: usize) {
        let counter = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Offsets of stdout and stderr.
    pub(super) fn offsets(&self) -> (u64, u64) {
        (
            self.stdout.load(Ordering::Relaxed),
            self.stderr.load(Ordering::Relaxed),
        )
    }
}

/// What one socket is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Role {
    /// It is read for the command's input.
    pub(super) stdin: bool,
    /// What it is written.
    pub(super) output: Option<Stream>,
    /// Its loss ends the command.
    pub(super) loss_is_hangup: bool,
}

/// How long a client may take to answer a close.
const GOODBYE: Duration = Duration::from_millis(500);

/// Serves one socket until its output ends: then the barrier, then a close.
pub(super) async fn serve(
    socket: WebSocket,
    role: Role,
    mut output: mpsc::Receiver<Bytes>,
    inputs: mpsc::Sender<Input>,
    written: Arc<Written>,
) {
    let (mut sink, mut source) = socket.split();
    let reader = async {
        let mut stdin_open = role.stdin;
        loop {
            let input = match source.next().await {
                Some(Ok(Message::Binary(data))) if stdin_open => Input::Stdin(data),
                // An empty text is the end of the input; any other text is data.
                Some(Ok(Message::Text(text))) if stdin_open => {
                    if text.is_empty() {
                        stdin_open = false;
                        Input::StdinEnd
                    } else {
                        Input::Stdin(Bytes::copy_from_slice(text.as_bytes()))
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    if stdin_open {
                        let _ = inputs.send(Input::StdinEnd).await;
                    }
                    if role.loss_is_hangup {
                        let _ = inputs.send(Input::Hangup).await;
                    }
                    break;
                }
                Some(Ok(_)) => continue,
            };
            // Waits where the command is slow; the client's socket fills, and that is the point.
            if inputs.send(input).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let writer = async {
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        let mut lost = false;
        loop {
            tokio::select! {
                data = output.recv() => match data {
                    Some(data) => {
                        let bytes = data.len();
                        lost = lost || sink.send(Message::Binary(data)).await.is_err();
                        if let Some(stream) = role.output {
                            // Output for a lost client is dropped, not kept for ever.
                            written.add(stream, bytes);
                        }
                    }
                    None => break,
                },
                _ = ping.tick() => {
                    lost = lost || sink.send(Message::Ping(Bytes::new())).await.is_err();
                }
            }
        }
        if role.output.is_some() && !lost {
            let _ = sink.send(Message::text("")).await;
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
    // Lets the client's answer to the close arrive, so that it sees an orderly end. The operation does not wait for
    // it: many clients read up to the barrier and then ask for the operation's result.
    tokio::spawn(async move {
        let answered = async { while let Some(Ok(_)) = source.next().await {} };
        let _ = tokio::time::timeout(GOODBYE, answered).await;
        drop(sink);
    });
}

/// Reads a control socket until the command ends; its loss before that ends the command.
pub(super) async fn read_control(
    mut socket: WebSocket,
    inputs: mpsc::Sender<Input>,
    mut ended: tokio::sync::watch::Receiver<bool>,
) {
    let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
    loop {
        let input = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => Control::parse(text.as_bytes()).map(Input::Control),
                Some(Ok(Message::Binary(data))) => Control::parse(&data).map(Input::Control),
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    let _ = inputs.send(Input::Hangup).await;
                    return;
                }
                Some(Ok(_)) => None,
            },
            _ = ping.tick() => {
                // A broken socket is found out by the next receive.
                let _ = socket.send(Message::Ping(Bytes::new())).await;
                None
            }
            () = async { let _ = ended.wait_for(|ended| *ended).await; } => {
                let _ = socket.send(Message::Close(None)).await;
                return;
            }
        };
        if let Some(input) = input
            && inputs.send(input).await.is_err()
        {
            return;
        }
    }
}
