//! The guest's console: always read, kept in a ring and in a file, shown to at most one client.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::watch::{Token, Watched};
use super::{Asker, Monitor, wrong_state};
use crate::error::{AtStage, Result};
use crate::protocol::{CHUNK, CONSOLE_RING, Event, PtySize, Reply};
use crate::ring::Ring;
use crate::sys;
use crate::sys::poll::{IN, OUT, Poller};

/// `console.log` is begun anew beyond this.
const LONGEST_LOG: u64 = 1 << 20;
/// Keys kept for a guest that does not read them.
const LONGEST_INPUT: usize = 64 << 10;

pub(super) struct Console {
    ring: Ring,
    log: File,
    master: Option<Watched>,
    input: Vec<u8>,
    pub(super) attached: Option<u64>,
    /// What the attached client got.
    sent: u64,
    /// The terminal hung up (a getty does that on purpose); it is read again then.
    pub(super) retry_at: Option<Instant>,
}

impl Console {
    pub(super) fn new(log_dir: &OwnedFd) -> Result<Console> {
        let flags =
            libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_TRUNC | libc::O_NOFOLLOW;
        let log = sys::openat(log_dir, "console.log", flags, 0o600)
            .at("console", "opening console.log")?;
        Ok(Console {
            ring: Ring::new(CONSOLE_RING),
            log: File::from(log),
            master: None,
            input: Vec::new(),
            attached: None,
            sent: 0,
            retry_at: None,
        })
    }

    /// Watches a run's terminal.
    pub(super) fn begin(&mut self, poller: &Poller, master: &OwnedFd) -> Result<()> {
        let copy = master.try_clone().at("console", "keeping the terminal")?;
        let mut master = Watched::new(copy, Token::Console.raw());
        master
            .watch(poller, IN)
            .at("console", "watching the terminal")?;
        self.master = Some(master);
        Ok(())
    }

    /// Reads what is left and lets the terminal go.
    pub(super) fn end(&mut self, poller: &Poller) {
        self.take_output();
        if let Some(mut master) = self.master.take() {
            // Closing takes it out as well.
            let _ = master.watch(poller, 0);
        }
        self.input.clear();
        self.retry_at = None;
    }

    pub(super) fn resume(&mut self, poller: &Poller) {
        let interest = self.interest();
        if let Some(master) = &mut self.master
            && let Err(e) = master.watch(poller, interest)
        {
            crate::log::line(format_args!("watching the console: {e}"));
        }
    }

    fn interest(&self) -> u32 {
        if self.input.is_empty() { IN } else { IN | OUT }
    }

    /// Whether the terminal is still of use.
    fn take_output(&mut self) -> bool {
        let Some(master) = &self.master else {
            return false;
        };
        let mut buffer = [0; 16 << 10];
        // Bounded: a guest that floods its console leaves others their turn.
        for _ in 0..4 {
            match sys::read(master, &mut buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    self.ring.push_over(&buffer[..n]);
                    write_log(&mut self.log, &buffer[..n], &self.ring);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn give_input(&mut self) -> bool {
        let Some(master) = &self.master else {
            return false;
        };
        while !self.input.is_empty() {
            match sys::write(master, &self.input) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    pub(super) fn log_bytes(&self) -> Vec<u8> {
        self.ring.read(self.ring.base(), CONSOLE_RING)
    }

    pub(super) fn clear_log(&mut self) -> Result<()> {
        self.ring.release(self.ring.end());
        self.log.set_len(0).at("console", "emptying console.log")
    }
}

fn write_log(log: &mut File, bytes: &[u8], ring: &Ring) {
    let long = log.metadata().is_ok_and(|m| m.len() > LONGEST_LOG);
    // A full disk must not stop a guest: the ring has the bytes, too.
    let _ = match long {
        true => log
            .set_len(0)
            .and_then(|()| log.write_all(&ring.read(ring.base(), CONSOLE_RING))),
        false => log.write_all(bytes),
    };
}

/// TIOCSWINSZ.
pub(super) fn set_size(terminal: &impl std::os::fd::AsFd, size: PtySize) -> std::io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl reads one winsize.
    sys::check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) })
        .map(|_| ())
}

impl Monitor {
    pub(super) fn on_console(&mut self, events: u32) {
        let mut alive = true;
        if events & OUT != 0 {
            alive = self.console.give_input();
        }
        if events & !OUT != 0 {
            alive = self.console.take_output() && alive;
        }
        if alive {
            self.console.resume(&self.poller);
        } else if let Some(master) = &mut self.console.master {
            let _ = master.watch(&self.poller, 0);
            self.console.retry_at = Some(Instant::now() + Duration::from_millis(100));
        }
        self.send_console();
    }

    pub(super) fn send_console(&mut self) {
        let Some(number) = self.console.attached else {
            return;
        };
        // A client slower than the ring loses the oldest, as on a real terminal.
        self.console.sent = self.console.sent.max(self.console.ring.base());
        while self.console.sent < self.console.ring.end() {
            let Some(conn) = self.conns.get_mut(&number).filter(|c| c.has_room()) else {
                return;
            };
            let bytes = self.console.ring.read(self.console.sent, CHUNK);
            self.console.sent += bytes.len() as u64;
            conn.event(&self.poller, Event::ConsoleOutput, &bytes);
        }
    }

    pub(super) fn attach_console(
        &mut self,
        asker: Asker,
        force: bool,
        size: Option<PtySize>,
    ) -> Result<Reply> {
        match self.console.attached {
            Some(other) if other != asker.conn && !force => {
                return Err(wrong_state("the console is in use"));
            }
            Some(other) if other != asker.conn => self.tell(other, Event::ConsoleDetached, &[]),
            _ => {}
        }
        if let Some(size) = size {
            self.resize_console(size)?;
        }
        self.console.attached = Some(asker.conn);
        self.console.sent = self.console.ring.end();
        Ok(Reply::Done)
    }

    pub(super) fn resize_console(&mut self, size: PtySize) -> Result<Reply> {
        set_size(&self.run.console_master, size).at("console", "resizing")?;
        Ok(Reply::Done)
    }

    pub(super) fn console_input(&mut self, asker: Asker, bytes: &[u8]) -> Result<Reply> {
        if self.console.attached != Some(asker.conn) {
            return Err(wrong_state(
                "the console is not attached to this connection",
            ));
        }
        if self.console.input.len() + bytes.len() > LONGEST_INPUT {
            return Err(wrong_state("the guest does not read its console"));
        }
        self.console.input.extend_from_slice(bytes);
        self.on_console(OUT);
        Ok(Reply::Done)
    }
}
