//! Commands over one ssh connection, each within a time limit.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::image::{Built, HOST};
use crate::sandbox::process::{ends_within, open_process};

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A client of one bed. Sessions share a connection, because under emulation the handshake of one
/// takes a second.
#[derive(Debug)]
pub(super) struct Ssh {
    directory: PathBuf,
}

/// Beside the bed's other files; ssh is told of it by a relative path, since that of a socket must
/// be short.
const CONTROL: &str = "ssh";
pub(super) const CONFIG: &str = "ssh_config";
/// What a command in the guest may take to end when it is told to, and what the way there takes.
const GRACE: Duration = Duration::from_secs(30);
/// ssh's own failures.
const FAILED: i32 = 255;

impl Ssh {
    /// Writes the configuration into the bed's directory; it serves people's `ssh -F` too.
    pub(super) fn configure(directory: &Path, built: &Built, port: u16) -> Result<Self> {
        let lines = [
            format!("Host {HOST}"),
            "HostName 127.0.0.1".into(),
            format!("HostKeyAlias {HOST}"),
            format!("Port {port}"),
            "User root".into(),
            format!("IdentityFile \"{}\"", built.key().display()),
            "IdentitiesOnly yes".into(),
            format!("UserKnownHostsFile \"{}\"", built.known_hosts().display()),
            "StrictHostKeyChecking yes".into(),
            "BatchMode yes".into(),
            "LogLevel ERROR".into(),
            "ConnectTimeout 20".into(),
            // An emulated machine that shares its processors may be silent for long.
            "ServerAliveInterval 15".into(),
            "ServerAliveCountMax 8".into(),
        ];
        fs::write(directory.join(CONFIG), lines.join("\n    ") + "\n")?;
        Ok(Self::at(directory))
    }

    pub(super) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.directory)
            .args(["-F", CONFIG, "-o", "ControlMaster=auto"])
            .args(["-o", "ControlPersist=600"])
            .arg("-o")
            .arg(format!("ControlPath={CONTROL}"));
        command
    }

    /// The command of the guest, ended there when its time is over.
    fn remote(&self, argv: &[&str], limit: Duration) -> Result<Command> {
        let limit = limit.as_secs().max(1).to_string();
        let mut words = vec!["timeout", "--kill-after=5", &limit];
        words.extend(argv);
        let mut command = self.client("ssh");
        command
            .args(["-T", HOST, "--"])
            .arg(shlex::try_join(words)?);
        Ok(command)
    }

    /// Runs a command and keeps what it prints.
    pub(super) fn output(&self, argv: &[&str], input: &[u8], limit: Duration) -> Result<Done> {
        let command = self.remote(argv, limit)?;
        let begun = Instant::now();
        let done = output(command, input, limit + GRACE)?;
        check(argv, done.code, begun.elapsed() >= limit, &done.stderr)?;
        Ok(done)
    }

    /// Runs a command on this process's own input and output.
    pub(super) fn stream(&self, argv: &[&str], limit: Duration) -> Result<i32> {
        let mut command = self.remote(argv, limit)?;
        let begun = Instant::now();
        let mut child = command.spawn().context("ssh (package openssh-client)")?;
        let code = exit_code(wait(&mut child, limit + GRACE)?);
        check(argv, code, begun.elapsed() >= limit, "")?;
        Ok(code)
    }

    /// A shell on this terminal.
    pub(super) fn shell(&self) -> Result<i32> {
        let mut command = self.client("ssh");
        let status = command.args(["-t", HOST]).status();
        Ok(exit_code(status.context("ssh (package openssh-client)")?))
    }

    /// Whether it lets one in.
    pub(super) fn answers(&self) -> bool {
        let Ok(command) = self.remote(&["true"], Duration::from_secs(30)) else {
            return false;
        };
        output(command, b"", GRACE).is_ok_and(|done| done.code == 0)
    }

    /// Ends the connection, if there is one.
    pub(super) fn close(&self) {
        let mut command = self.client("ssh");
        command.args(["-O", "exit", HOST]);
        // Without a connection it says so, which is what was wanted.
        let _closed = output(command, b"", GRACE);
    }
}

/// Tells an end of ssh's or of `timeout`'s making from one of the command's own.
fn check(argv: &[&str], code: i32, late: bool, stderr: &str) -> Result<()> {
    match code {
        FAILED => bail!("the bed does not answer: {}", stderr.trim()),
        124 | 137 if late => bail!("`{}` took too long and was ended", argv.join(" ")),
        _ => Ok(()),
    }
}

fn output(mut command: Command, input: &[u8], limit: Duration) -> Result<Done> {
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} (package openssh-client)"))?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // A command may end without reading all of its input.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let status = wait(&mut child, limit)?;
    let text = |reader: JoinHandle<Vec<u8>>| -> Result<String> {
        let bytes = reader.join().ok().context("a reader of output died")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Done {
        code: exit_code(status),
        stdout: text(stdout)?,
        stderr: text(stderr)?,
    })
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is worth having.
            let _until_error = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let process = open_process(child.id().cast_signed())?;
    if !ends_within(&process, limit)? {
        child.kill()?;
        child.wait()?;
        bail!("no end within {} s", limit.as_secs());
    }
    Ok(child.wait()?)
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
