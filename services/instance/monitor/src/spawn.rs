//! Starting a monitor, for the instance service.
//!
//! Spec and status channel travel as stdin and stdout, so that the standard library's posix_spawn path
//! carries them: no descriptor is ever inheritable in the (threaded) service, and nothing runs between
//! fork and exec there. The monitor takes both over and puts /dev/null in their place.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Fault, FaultCode};
use crate::protocol::StartReport;
use crate::spec::Spec;

/// The monitor's program in memory: guests keep no file of the service's (which may be in a container that is
/// replaced, or be upgraded), and no guest can write it. All monitors of one service share its pages.
#[derive(Debug)]
pub struct Program(File);

impl Program {
    /// Copies the program at `path`.
    pub fn load(path: &Path) -> io::Result<Program> {
        let mut source = File::open(path)?;
        // Kernels before 6.3 do not know the flag, and let every memfd be executed.
        const MFD_EXEC: u32 = 0x10;
        let mut file = match memfd(c"berth-monitor", MFD_EXEC) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => memfd(c"berth-monitor", 0)?,
            made => made?,
        };
        io::copy(&mut source, &mut file)?;
        seal(&file)?;
        Ok(Program(file))
    }

    /// A path that this process's children can execute it by, while the value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// The spec as a sealed memfd, positioned at its start.
pub fn sealed_spec(spec: &Spec) -> io::Result<File> {
    let json = serde_json::to_vec(spec)?;
    let mut file = memfd(c"berth-spec", 0)?;
    file.write_all(&json)?;
    file.seek(SeekFrom::Start(0))?;
    seal(&file)?;
    Ok(file)
}

fn memfd(name: &CStr, flags: u32) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags;
    // SAFETY: the name is NUL-terminated and lives over the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: memfd_create just gave us this descriptor.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: plain fcntl on a descriptor we own.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A command that starts the monitor of `spec` and the reading end of its status pipe. Spawn it, drop
/// the command (it holds the writing end), read the report to its end, wait for the child: it leaves at
/// once, the monitor itself is no child of the caller.
pub fn command(binary: impl AsRef<OsStr>, spec: &Spec) -> io::Result<(Command, io::PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(binary);
    command
        // The whole command line, so that ps shows whose monitor it is; the descriptors are the defaults.
        .arg0(format!("[berth monitor] {} {}", spec.project, spec.name))
        .stdin(Stdio::from(sealed_spec(spec)?))
        .stdout(Stdio::from(writer))
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/");
    Ok((command, reader))
}

/// Reads what [`StartReport`] bytes say; an empty report is a monitor that died.
pub fn parse_report(bytes: &[u8]) -> Result<StartReport, Fault> {
    if bytes.is_empty() {
        return Err(Fault::new(
            "monitor",
            FaultCode::Kernel,
            "the monitor ended before it reported",
        ));
    }
    serde_json::from_slice(bytes)
        .map_err(|e| Fault::new("monitor", FaultCode::Invalid, format!("start report: {e}")))
}

/// Starts a guest and waits for the report; blocking. For tests and tools.
pub fn start(binary: impl AsRef<OsStr>, spec: &Spec) -> Result<StartReport, Fault> {
    let fail = |e: io::Error| Fault::io("monitor", &e, "starting the monitor");
    let (mut command, mut reader) = command(binary, spec).map_err(fail)?;
    let mut child = command.spawn().map_err(fail)?;
    drop(command);
    let mut report = Vec::new();
    let read = reader.read_to_end(&mut report);
    child.wait().map_err(fail)?;
    read.map_err(fail)?;
    match parse_report(&report)? {
        StartReport::Error(fault) => Err(fault),
        ok => Ok(ok),
    }
}
