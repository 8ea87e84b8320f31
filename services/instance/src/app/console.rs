//! The guest's console, one client at a time.

use berth_monitor::error::FaultCode;
use berth_monitor::protocol::{Event, Request};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::App;
use super::exec::pty_size;
use super::live::link_error;
use crate::Error;
use crate::runtime::link::Link;

/// What a client sends to a console.
#[derive(Debug, Clone)]
pub enum ConsoleInput {
    Data(Bytes),
    Resize { width: i32, height: i32 },
}

/// An attached console: keys go in, bytes come out, until either side leaves.
#[derive(Debug)]
pub struct ConsoleSession {
    pub output: mpsc::Receiver<Result<Bytes, Error>>,
}

impl App {
    pub async fn attach_console(
        &self,
        project: &str,
        name: &str,
        (width, height): (i32, i32),
        force: bool,
        input: mpsc::Receiver<ConsoleInput>,
    ) -> Result<ConsoleSession, Error> {
        let slot = self.slot(project, name)?;
        if slot.link().is_none() {
            return Err(Error::precondition(
                "NOT_RUNNING",
                "Instance is not running",
            ));
        }
        let stream = self
            .runtime
            .connect(&slot.uid)
            .await
            .map_err(Error::internal)?;
        let (link, events, _greeting) = Link::open(stream);
        let attach = Request::AttachConsole {
            force,
            size: pty_size(width, height),
        };
        link.done(attach)
            .await
            .map_err(|error| match error.code() {
                Some(FaultCode::State) => Error::precondition(
                    "CONSOLE_BUSY",
                    "This console is already connected. Force is required to take it over.",
                ),
                _ => link_error(error, "Attaching the console"),
            })?;
        let (sender, output) = mpsc::channel(16);
        tokio::spawn(carry(link, events, input, sender));
        Ok(ConsoleSession { output })
    }
}

async fn carry(
    link: Link,
    mut events: crate::runtime::link::Events,
    mut input: mpsc::Receiver<ConsoleInput>,
    output: mpsc::Sender<Result<Bytes, Error>>,
) {
    loop {
        tokio::select! {
            item = input.recv() => {
                let sent = match item {
                    // The client left: the console is free for the next one.
                    None => return,
                    Some(ConsoleInput::Data(data)) => send_keys(&link, &data).await,
                    Some(ConsoleInput::Resize { width, height }) => match pty_size(width, height) {
                        Some(size) => link.send(Request::ResizeConsole { size }, &[]).await,
                        None => Ok(()),
                    },
                };
                if sent.is_err() {
                    return;
                }
            }
            event = events.recv() => match event {
                Some((Event::ConsoleOutput, payload)) => {
                    if output.send(Ok(payload)).await.is_err() {
                        return;
                    }
                }
                Some((Event::ConsoleDetached, _)) | None => return,
                Some(_) => {}
            },
            () = output.closed() => return,
        }
    }
}

async fn send_keys(link: &Link, data: &[u8]) -> Result<(), crate::runtime::link::LinkError> {
    for part in data.chunks(berth_monitor::protocol::CHUNK) {
        link.send(Request::ConsoleInput, part).await?;
    }
    Ok(())
}
