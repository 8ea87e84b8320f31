//! Connections: bytes in, frames out, nothing about guests.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::watch::Watched;
use crate::error::Fault;
use crate::frame::{self, Decoder};
use crate::protocol::{Event, FromMonitor, Reply, ToMonitor};
use crate::sys;
use crate::sys::poll::{IN, OUT, Poller};

/// A client that does not read this much is dropped.
const LONGEST_QUEUE: usize = 4 << 20;
/// Streams (exec output, console) wait while more than this is queued.
const STREAM_QUEUE: usize = 256 << 10;

pub(super) struct Conn {
    socket: Watched,
    decoder: Decoder,
    queue: VecDeque<Outgoing>,
    queued: usize,
    pub(super) greeted: bool,
    pub(super) subscribed: bool,
    /// Broken or misbehaving: removed at the end of the turn.
    pub(super) dead: bool,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Sent with the first byte.
    fds: Vec<Rc<OwnedFd>>,
}

impl Conn {
    pub(super) fn new(fd: OwnedFd, token: u64, poller: &Poller) -> io::Result<Conn> {
        let mut socket = Watched::new(fd, token);
        socket.watch(poller, IN)?;
        Ok(Conn {
            socket,
            decoder: Decoder::new(),
            queue: VecDeque::new(),
            queued: 0,
            greeted: false,
            subscribed: false,
            dead: false,
        })
    }

    /// Takes what the socket has now; whole requests come out. An end or an error marks the connection dead.
    pub(super) fn receive(&mut self) -> Vec<(ToMonitor, Vec<u8>)> {
        let mut requests = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        // Bounded, so that a flood of one client leaves others their turn.
        for _ in 0..8 {
            match sys::read(&self.socket, &mut buffer) {
                Ok(0) => self.dead = true,
                Ok(n) => {
                    self.decoder.feed(&buffer[..n]);
                    loop {
                        match self.decoder.next() {
                            Ok(Some(request)) => requests.push(request),
                            Ok(None) => break,
                            Err(e) => {
                                crate::log::line(format_args!("dropping a client: {e}"));
                                self.dead = true;
                                return requests;
                            }
                        }
                    }
                    if n == buffer.len() {
                        continue;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.dead = true,
            }
            break;
        }
        requests
    }

    pub(super) fn reply(&mut self, poller: &Poller, id: u64, result: Result<Reply, Fault>) {
        self.reply_with(poller, id, result, &[], Vec::new());
    }

    pub(super) fn reply_with(
        &mut self,
        poller: &Poller,
        id: u64,
        result: Result<Reply, Fault>,
        payload: &[u8],
        fds: Vec<Rc<OwnedFd>>,
    ) {
        match (id, result) {
            (0, Ok(_)) => {}
            (0, Err(fault)) => self.event(poller, Event::Refused { fault }, &[]),
            (id, result) => self.send(poller, &FromMonitor::Reply { id, result }, payload, fds),
        }
    }

    pub(super) fn event(&mut self, poller: &Poller, event: Event, payload: &[u8]) {
        self.send(poller, &FromMonitor::Event(event), payload, Vec::new());
    }

    fn send(
        &mut self,
        poller: &Poller,
        message: &FromMonitor,
        payload: &[u8],
        fds: Vec<Rc<OwnedFd>>,
    ) {
        match frame::encode(message, payload) {
            Ok(bytes) => {
                self.queued += bytes.len();
                self.queue.push_back(Outgoing {
                    bytes,
                    sent: 0,
                    fds,
                });
                self.flush(poller);
            }
            Err(e) => {
                crate::log::line(format_args!("cannot encode an answer: {e}"));
                self.dead = true;
            }
        }
    }

    /// Whether streams may add more.
    pub(super) fn has_room(&self) -> bool {
        !self.dead && self.queued < STREAM_QUEUE
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() || self.dead
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self, poller: &Poller) {
        while let Some(first) = self.queue.front_mut() {
            let sent = if first.sent == 0 {
                let fds: Vec<&OwnedFd> = first.fds.iter().map(|f| f.as_ref()).collect();
                sys::socket::send(&self.socket, &first.bytes, &fds)
            } else {
                sys::socket::send(&self.socket, &first.bytes[first.sent..], &[] as &[OwnedFd])
            };
            match sent {
                Ok(n) => {
                    first.sent += n;
                    self.queued -= n;
                    if first.sent == first.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
        if self.queued > LONGEST_QUEUE {
            crate::log::line(format_args!("dropping a client that does not read"));
            self.dead = true;
            return;
        }
        let wanted = if self.queue.is_empty() { IN } else { IN | OUT };
        if self.socket.watch(poller, wanted).is_err() {
            self.dead = true;
        }
    }
}
