//! Debian's stock `lxc`, unmodified, with a configuration directory of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use tempfile::TempDir;

/// No command of the scenarios takes longer.
const PATIENCE: &str = "60";

pub struct Lxc {
    socket: PathBuf,
    conf: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Lxc {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            conf: TempDir::new().unwrap(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=5", PATIENCE, "lxc"])
            .args(args)
            .env("LXD_SOCKET", &self.socket)
            .env("LXD_CONF", self.conf.path())
            .env("LC_ALL", "C.UTF-8")
            .env_remove("LXD_DIR")
            .env_remove("EDITOR");
        command
    }

    /// Runs a command with empty input, however it ends.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, b"")
    }

    #[track_caller]
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Done {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("lxc (package lxd-client)");
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // From a thread: a command that answers before it has read everything must not block us.
        let feed = std::thread::spawn(move || {
            // One that exits without reading its input breaks the pipe, which is its right.
            let _closed_early = stdin.write_all(&input);
        });
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        feed.join().unwrap();
        Done {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, b"")
    }

    #[track_caller]
    pub fn ok_with(&self, args: &[&str], input: &[u8]) -> String {
        let done = self.run_with(args, input);
        assert_eq!(
            done.code,
            0,
            "lxc {}: {}{}",
            args.join(" "),
            done.stderr,
            done.stdout
        );
        done.stdout
    }

    /// Standard error of a command that must fail.
    #[track_caller]
    pub fn fails(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_ne!(
            done.code,
            0,
            "lxc {} succeeded: {}",
            args.join(" "),
            done.stdout
        );
        assert!(
            done.code != 124 && done.code != 137,
            "lxc {} did not end",
            args.join(" ")
        );
        done.stderr
    }

    /// `lxc query`, its answer parsed.
    #[track_caller]
    pub fn query(&self, args: &[&str]) -> serde_json::Value {
        let answer = self.ok(&[&["query"], args].concat());
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("query {args:?}: {e}: {answer}"))
    }

    /// Starts a command that goes on, its output in pipes.
    #[track_caller]
    pub fn spawn(&self, args: &[&str]) -> Running {
        let child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Running::new(child)
    }

    /// Starts a command on a terminal of this size.
    #[track_caller]
    pub fn terminal(&self, args: &[&str], rows: u16, columns: u16) -> Terminal {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let mut command = self.command(args);
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.env("TERM", "xterm");
        command
            .stdin(end(&pty.slave))
            .stdout(end(&pty.slave))
            .stderr(end(&pty.slave));
        // SAFETY: the closure only makes system calls.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let child = command.spawn().unwrap();
        drop(pty.slave);
        Terminal {
            child,
            master: File::from(pty.master),
            seen: Vec::new(),
        }
    }
}

/// A command in the background; ended when dropped. Its output is read all the time, so it never
/// waits for a reader.
pub struct Running {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let output = Arc::new(Mutex::new(Vec::new()));
        let mut stdout = child.stdout.take().unwrap();
        let shared = Arc::clone(&output);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            output,
            reader: Some(reader),
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// Waits for the end; (exit code, output).
    pub fn wait(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.rest())
    }

    /// Ends it and returns what it had printed.
    pub fn end(mut self) -> String {
        self.terminate();
        self.rest()
    }

    fn rest(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.output()
    }

    /// SIGTERM, which timeout(1) hands on to the client.
    fn terminate(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _reaped = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// A command on a terminal.
pub struct Terminal {
    child: Child,
    master: File,
    seen: Vec<u8>,
}

impl Terminal {
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Tells the client that its window changed.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the request takes a pointer to a winsize, which outlives the call.
        let done = unsafe {
            nix::libc::ioctl(
                self.master.as_raw_fd(),
                nix::libc::TIOCSWINSZ,
                &raw const size,
            )
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Reads until this text has appeared since the last expectation; returns what came before.
    #[track_caller]
    pub fn expect(&mut self, text: &str, patience: Duration) -> String {
        let begun = Instant::now();
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if let Some(at) = seen.find(text) {
                self.seen = seen.as_bytes()[at + text.len()..].to_vec();
                return seen[..at].to_owned();
            }
            let left = patience.saturating_sub(begun.elapsed());
            assert!(
                !left.is_zero(),
                "{text:?} did not appear; there was {seen:?}"
            );
            if !self.read(left) {
                panic!("{text:?} did not appear before the end; there was {seen:?}");
            }
        }
    }

    /// The exit code, once everything is printed.
    #[track_caller]
    pub fn wait(mut self, patience: Duration) -> i32 {
        let begun = Instant::now();
        while self.read(patience.saturating_sub(begun.elapsed())) {
            assert!(begun.elapsed() < patience, "the command goes on");
        }
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    /// Waits for more; `false` when the other side is closed.
    fn read(&mut self, patience: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(patience.min(Duration::from_secs(60))).unwrap();
        if poll(&mut ready, limit).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.seen.extend_from_slice(&buffer[..count]);
                true
            }
            // The kernel answers EIO once nobody holds the terminal.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => false,
            Err(error) => panic!("terminal: {error}"),
        }
    }
}
