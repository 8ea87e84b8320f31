//! A connection to a monitor: many questions at once, answers found by number, events in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_monitor::error::{Fault, FaultCode};
use berth_monitor::frame::{self, Decoder};
use berth_monitor::protocol::{
    Event, FromMonitor, HelloReply, PROTOCOL_VERSION, Reply, Request, ToMonitor,
};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

type Answer = Result<(Reply, Bytes), Fault>;
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// Frames waiting to be written; more and callers wait.
const QUEUE: usize = 64;
/// Events waiting to be read; a reader that does not keep up stops its own connection only.
const EVENTS: usize = 256;

/// A monitor that takes longer to do something is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection. Cheap to clone; it closes when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Link {
    queue: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    next: Arc<AtomicU64>,
}

/// Events of a connection, each with its payload. `None` when the monitor is gone.
pub type Events = mpsc::Receiver<(Event, Bytes)>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The monitor refused.
    #[error("{0}")]
    Fault(Fault),
    /// The connection ended; the monitor may be gone.
    #[error("the connection to the instance's monitor ended")]
    Gone,
    /// No answer in the time allowed.
    #[error("the instance's monitor does not answer")]
    Late,
}

impl LinkError {
    pub fn code(&self) -> Option<FaultCode> {
        match self {
            LinkError::Fault(fault) => Some(fault.code),
            _ => None,
        }
    }
}

impl Link {
    /// Takes over a stream and says hello; the greeting's answer is not waited for.
    pub fn open(stream: UnixStream) -> (Link, Events, oneshot::Receiver<Answer>) {
        let (reader, writer) = stream.into_split();
        let (queue, frames) = mpsc::channel(QUEUE);
        let (sender, events) = mpsc::channel(EVENTS);
        let pending = Pending::default();
        tokio::spawn(write(writer, frames));
        tokio::spawn(read(reader, pending.clone(), sender));
        let link = Link {
            queue,
            pending,
            next: Arc::new(AtomicU64::new(1)),
        };
        let (id, hello) = link.expect();
        let greeting = ToMonitor {
            id,
            body: Request::Hello {
                version: PROTOCOL_VERSION,
            },
        };
        if let Ok(bytes) = frame::encode(&greeting, &[]) {
            // The queue was made a moment ago and has room.
            let _ = link.queue.try_send(bytes);
        }
        (link, events, hello)
    }

    /// Opens and checks who answers.
    pub async fn greet(stream: UnixStream) -> Result<(Link, Events, HelloReply), LinkError> {
        let (link, events, hello) = Link::open(stream);
        match hello.await {
            Ok(Ok((Reply::Hello(hello), _))) => Ok((link, events, hello)),
            Ok(Ok(_)) => Err(unexpected()),
            Ok(Err(fault)) => Err(LinkError::Fault(fault)),
            Err(_) => Err(LinkError::Gone),
        }
    }

    fn expect(&self) -> (u64, oneshot::Receiver<Answer>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, sender);
        (id, receiver)
    }

    /// Asks and waits for the answer.
    pub async fn call(&self, body: Request) -> Result<(Reply, Bytes), LinkError> {
        let (id, receiver) = self.expect();
        let _guard = Forget {
            pending: &self.pending,
            id,
        };
        let bytes = frame::encode(&ToMonitor { id, body }, &[]).map_err(|e| {
            LinkError::Fault(Fault::new("protocol", FaultCode::Invalid, e.to_string()))
        })?;
        self.queue.send(bytes).await.map_err(|_| LinkError::Gone)?;
        let answer = receiver.await.map_err(|_| LinkError::Gone)?;
        answer.map_err(LinkError::Fault)
    }

    /// The same, with an end.
    pub async fn call_within(
        &self,
        time: Duration,
        body: Request,
    ) -> Result<(Reply, Bytes), LinkError> {
        tokio::time::timeout(time, self.call(body))
            .await
            .unwrap_or(Err(LinkError::Late))
    }

    /// For requests that are answered with `Done`, which all but a graceful stop are soon.
    pub async fn done(&self, body: Request) -> Result<(), LinkError> {
        match self.call_within(PATIENCE, body).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Sends what wants no answer; waits while the queue is full.
    pub async fn send(&self, body: Request, payload: &[u8]) -> Result<(), LinkError> {
        let bytes = frame::encode(&ToMonitor { id: 0, body }, payload).map_err(|e| {
            LinkError::Fault(Fault::new("protocol", FaultCode::Invalid, e.to_string()))
        })?;
        self.queue.send(bytes).await.map_err(|_| LinkError::Gone)
    }
}

/// An answer of a kind that the request does not have.
pub fn unexpected() -> LinkError {
    LinkError::Fault(Fault::new(
        "protocol",
        FaultCode::Invalid,
        "unexpected answer of the monitor",
    ))
}

/// A call that is dropped midway leaves nothing behind.
struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = frames.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read(mut reader: OwnedReadHalf, pending: Pending, events: mpsc::Sender<(Event, Bytes)>) {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 64 << 10];
    let mut wanted = true;
    'stream: loop {
        let read = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        decoder.feed(&buffer[..read]);
        loop {
            match decoder.next::<FromMonitor>() {
                Ok(Some((FromMonitor::Reply { id, result }, payload))) => {
                    let waiting = pending
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(&id);
                    if let Some(waiting) = waiting {
                        // The caller may have gone away meanwhile.
                        let _ = waiting.send(result.map(|reply| (reply, Bytes::from(payload))));
                    }
                }
                Ok(Some((FromMonitor::Event(event), payload))) => {
                    if wanted && events.send((event, Bytes::from(payload))).await.is_err() {
                        wanted = false;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a monitor speaks no protocol of ours");
                    break 'stream;
                }
            }
        }
    }
    // Everyone who waits learns that nothing will come.
    pending
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clear();
}
