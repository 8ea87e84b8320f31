//! The pipes and terminals of execs: bounded both ways, so that nobody's slowness costs memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::watch::Watched;
use crate::error::{AtStage, Result};
use crate::protocol::EXEC_WINDOW;
use crate::ring::Ring;
use crate::sys;
use crate::sys::poll::{IN, OUT, Poller};

pub(super) struct Output {
    pub(super) fd: Option<Watched>,
    pub(super) ring: Ring,
    /// What the attached client got.
    pub(super) sent: u64,
}

#[derive(Default)]
pub(super) struct Stdin {
    pub(super) fd: Option<Watched>,
    pub(super) queue: VecDeque<u8>,
    /// Offset of the first byte not received yet.
    pub(super) received: u64,
    /// Offset of the first byte not given to the program yet.
    pub(super) accepted: u64,
    pub(super) eof: bool,
}

impl Output {
    pub(super) fn new(fd: Option<Watched>) -> Output {
        Output {
            fd,
            ring: Ring::new(EXEC_WINDOW),
            sent: 0,
        }
    }

    /// Reads while there is data and room. `over`: "nothing now" is "nothing more".
    pub(super) fn fill(&mut self, poller: &Poller, over: bool) {
        let mut buffer = [0; 64 << 10];
        while let Some(fd) = &mut self.fd {
            let room = self.ring.room().min(buffer.len());
            if room == 0 {
                // Not read and not watched: the program waits in its write until the client acknowledges.
                if fd.watch(poller, 0).is_err() {
                    self.close(poller);
                }
                return;
            }
            match sys::read(&*fd, &mut buffer[..room]) {
                Ok(0) => self.close(poller),
                Ok(n) => {
                    self.ring.push(&buffer[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !over => {
                    if fd.watch(poller, IN).is_err() {
                        self.close(poller);
                    }
                    return;
                }
                // EIO: the last slave of the terminal was closed.
                Err(_) => self.close(poller),
            }
        }
    }

    pub(super) fn close(&mut self, poller: &Poller) {
        if let Some(mut fd) = self.fd.take() {
            // Closing takes it out as well.
            let _ = fd.watch(poller, 0);
        }
    }
}

impl Stdin {
    /// Writes what the program takes; whether anything was.
    pub(super) fn drain(&mut self, poller: &Poller) -> bool {
        let before = self.accepted;
        while let (Some(fd), false) = (&self.fd, self.queue.is_empty()) {
            let (first, _) = self.queue.as_slices();
            match sys::write(fd, first) {
                Ok(n) => {
                    self.queue.drain(..n);
                    self.accepted += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // The program closed its stdin: what comes is thrown away, as a broken pipe would.
                Err(_) => self.close(poller),
            }
        }
        if self.fd.is_none() {
            self.accepted = self.received;
            self.queue.clear();
        } else if self.queue.is_empty() && self.eof {
            self.close(poller);
        } else {
            let interest = if self.queue.is_empty() { 0 } else { OUT };
            if let Some(fd) = &mut self.fd
                && fd.watch(poller, interest).is_err()
            {
                self.close(poller);
            }
        }
        self.accepted != before
    }

    pub(super) fn close(&mut self, poller: &Poller) {
        if let Some(mut fd) = self.fd.take() {
            let _ = fd.watch(poller, 0);
        }
    }
}

/// Our ends and the program's.
pub(super) struct Stdio {
    pub(super) ours: [Option<OwnedFd>; 3],
    pub(super) theirs: [OwnedFd; 3],
}

/// Pipes owned by the program's user, who may open /dev/stdout again.
pub(super) fn make_pipes(with_stdin: bool, uid: u32, gid: u32) -> Result<Stdio> {
    let pipe = || -> Result<(OwnedFd, OwnedFd)> {
        let (reader, writer) = sys::pipe().at("exec", "making a pipe")?;
        sys::fchownat(&reader, "", uid, gid).at("exec", "giving a pipe away")?;
        Ok((reader, writer))
    };
    let (stdin, our_stdin) = pipe()?;
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    for fd in [&our_stdin, &our_stdout, &our_stderr] {
        sys::set_nonblocking(fd).at("exec", "making a pipe non-blocking")?;
    }
    let ours = [
        with_stdin.then_some(our_stdin),
        Some(our_stdout),
        Some(our_stderr),
    ];
    Ok(Stdio {
        ours,
        theirs: [stdin, stdout, stderr],
    })
}
