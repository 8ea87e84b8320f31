//! A blocking client of a monitor: for tests, tools, and calls that carry descriptors.
//!
//! The instance service speaks the same frames asynchronously and uses this one (on a blocking thread) for
//! [`Client::open_root`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::error::{Fault, FaultCode};
use crate::frame::{self, Decoder};
use crate::protocol::{
    Event, FromMonitor, HelloReply, PROTOCOL_VERSION, Reply, Request, ToMonitor,
};
use crate::sys;

/// One connection.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    decoder: Decoder,
    next_id: u64,
    events: VecDeque<(Event, Vec<u8>)>,
    fds: Vec<OwnedFd>,
    /// What the monitor said of itself.
    pub hello: HelloReply,
}

fn broken(error: impl std::fmt::Display) -> Fault {
    Fault::new(
        "client",
        FaultCode::Kernel,
        format!("the monitor's connection broke: {error}"),
    )
}

impl Client {
    /// Connects to `monitor.sock` in a run directory and says hello. ENOENT or ECONNREFUSED: the guest does not run.
    pub fn connect(run_dir: &Path) -> Result<Client, Fault> {
        // Through the directory's descriptor: run directories may be longer than a socket address.
        let dir = std::fs::File::open(run_dir)
            .map_err(|e| Fault::io("client", &e, "opening the run directory"))?;
        let path = format!(
            "/proc/self/fd/{}/{}",
            std::os::fd::AsRawFd::as_raw_fd(&dir),
            crate::run::SOCKET
        );
        let socket = UnixStream::connect(path)
            .map_err(|e| Fault::io("client", &e, "connecting to the monitor"))?;
        let hello = HelloReply {
            version: 0,
            build: String::new(),
            uid: String::new(),
            project: String::new(),
            name: String::new(),
            generation: 0,
            monitor_pid: 0,
        };
        let mut client = Client {
            socket,
            decoder: Decoder::new(),
            next_id: 1,
            events: VecDeque::new(),
            fds: Vec::new(),
            hello,
        };
        match client.call(Request::Hello {
            version: PROTOCOL_VERSION,
        })? {
            Reply::Hello(hello) => client.hello = hello,
            other => return Err(broken(format!("{other:?} for hello"))),
        }
        Ok(client)
    }

    /// Bounds every later wait.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Asks and waits; events that come meanwhile are kept.
    pub fn call(&mut self, request: Request) -> Result<Reply, Fault> {
        self.call_with(request, &[]).map(|(reply, _)| reply)
    }

    /// As [`call`](Self::call), with payloads both ways.
    pub fn call_with(
        &mut self,
        request: Request,
        payload: &[u8],
    ) -> Result<(Reply, Vec<u8>), Fault> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(id, request, payload)?;
        loop {
            match self.receive()? {
                (FromMonitor::Reply { id: got, result }, payload) if got == id => {
                    return result.map(|r| (r, payload));
                }
                (FromMonitor::Reply { .. }, _) => {}
                (FromMonitor::Event(event), payload) => self.events.push_back((event, payload)),
            }
        }
    }

    /// Sends without waiting for an answer.
    pub fn cast(&mut self, request: Request, payload: &[u8]) -> Result<(), Fault> {
        self.send(0, request, payload)
    }

    /// The next event.
    pub fn event(&mut self) -> Result<(Event, Vec<u8>), Fault> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let (FromMonitor::Event(event), payload) = self.receive()? {
                return Ok((event, payload));
            }
        }
    }

    /// The guest's root directory (O_PATH) and its user namespace.
    pub fn open_root(&mut self) -> Result<(OwnedFd, OwnedFd), Fault> {
        self.fds.clear();
        self.call(Request::OpenRoot)?;
        let mut fds = std::mem::take(&mut self.fds).into_iter();
        match (fds.next(), fds.next()) {
            (Some(root), Some(userns)) => Ok((root, userns)),
            _ => Err(broken("no descriptors came with the answer")),
        }
    }

    fn send(&mut self, id: u64, body: Request, payload: &[u8]) -> Result<(), Fault> {
        let bytes = frame::encode(&ToMonitor { id, body }, payload).map_err(broken)?;
        let mut sent = 0;
        while sent < bytes.len() {
            sent += sys::socket::send(&self.socket, &bytes[sent..], &[] as &[OwnedFd])
                .map_err(broken)?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(FromMonitor, Vec<u8>), Fault> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.decoder.next().map_err(broken)? {
                return Ok(message);
            }
            let (n, fds) = sys::socket::receive(&self.socket, &mut buffer, 0).map_err(broken)?;
            if n == 0 {
                return Err(broken("closed"));
            }
            self.fds.extend(fds);
            self.decoder.feed(&buffer[..n]);
        }
    }
}
