//! The kernel's calls that std has no words for. Thin: one call each, `io::Error` out, no policy.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

pub mod mount;
pub(crate) mod poll;
pub mod socket;

/// -1 → errno.
pub fn check(value: i32) -> io::Result<i32> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

fn check_long(value: libc::c_long) -> io::Result<i32> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value as i32)
    }
}

/// Takes ownership of a descriptor a raw call returned.
pub(crate) fn own(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel just created this descriptor for us; nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn cstring(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

pub fn prctl(option: i32, arg: usize) -> io::Result<i32> {
    prctl4(option, arg, 0, 0)
}

pub fn prctl4(option: i32, a: usize, b: usize, c: usize) -> io::Result<i32> {
    // SAFETY: every option used in this crate takes integers, or pointers the caller keeps alive.
    check(unsafe { libc::prctl(option, a, b, c, 0usize) })
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child of this process: pid for waitpid and /proc while it is not reaped, pidfd for everything else.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Like fork with clone flags; `None` in the child. `cgroup` is a cgroup2 directory to be born in.
///
/// Only for a single-threaded process: the child goes on with a copy of everything, locks included.
pub(crate) fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags as u32 as u64 | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no stack: the child runs on its own copy of this one; `args` is laid out
    // as clone_args and lives over the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match check_long(pid)? {
        0 => Ok(None),
        pid => Ok(Some(Child {
            pid,
            pidfd: own(pidfd)?,
        })),
    }
}

pub(crate) fn setns(fd: impl AsFd, flags: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) }).map(|_| ())
}

pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::unshare(flags) }).map(|_| ())
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)
}

pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers, no siginfo.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            0usize,
            0,
        )
    };
    check_long(sent).map(|_| ())
}

/// Reaps one ended child without waiting: pid and raw wait status.
pub(crate) fn reap_one() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` lives over the call.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Waits for a child to end.
pub(crate) fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives over the call.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Ok(_) => return Ok(status),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Marks (or closes) every descriptor from `first` on.
pub(crate) fn close_range(first: u32, last: u32, cloexec: bool) -> io::Result<()> {
    let flags = if cloexec {
        libc::CLOSE_RANGE_CLOEXEC
    } else {
        0
    };
    // SAFETY: closing is what the caller asks for; it owns nothing in the range it still uses.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(|_| ())
}

pub(crate) fn dup2(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::dup2(from, to) }).map(|_| ())
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub const RESOLVE_NO_XDEV: u64 = 0x01;
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_BENEATH: u64 = 0x08;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

/// openat2(2); O_CLOEXEC always.
pub fn openat2(
    dir: impl AsFd,
    path: &str,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    let path = cstring(path)?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: mode as u64,
        resolve,
    };
    loop {
        // SAFETY: path and how live over the call, the size is how's.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_fd().as_raw_fd(),
                path.as_ptr(),
                &how,
                size_of::<OpenHow>(),
            )
        };
        match own(fd as i32) {
            // A rename raced with RESOLVE_IN_ROOT: the kernel asks to try again.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
}

/// openat(2) with O_CLOEXEC.
pub fn openat(dir: impl AsFd, path: &str, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = cstring(path)?;
    // SAFETY: path lives over the call.
    own(unsafe {
        libc::openat(
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode,
        )
    })
}

/// open(2) of an absolute host path with O_CLOEXEC.
pub fn open(path: &str, flags: i32) -> io::Result<OwnedFd> {
    let path = cstring(path)?;
    // SAFETY: path lives over the call.
    own(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

pub(crate) fn mkdirat(dir: impl AsFd, name: &str, mode: u32) -> io::Result<()> {
    let name = cstring(name)?;
    // SAFETY: name lives over the call.
    check(unsafe { libc::mkdirat(dir.as_fd().as_raw_fd(), name.as_ptr(), mode) }).map(|_| ())
}

pub(crate) fn symlinkat(target: &str, dir: impl AsFd, name: &str) -> io::Result<()> {
    let (target, name) = (cstring(target)?, cstring(name)?);
    // SAFETY: both live over the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_fd().as_raw_fd(), name.as_ptr()) })
        .map(|_| ())
}

pub(crate) fn unlinkat(dir: impl AsFd, name: &str, flags: i32) -> io::Result<()> {
    let name = cstring(name)?;
    // SAFETY: name lives over the call.
    check(unsafe { libc::unlinkat(dir.as_fd().as_raw_fd(), name.as_ptr(), flags) }).map(|_| ())
}

pub(crate) fn mknodat(dir: impl AsFd, name: &str, mode: u32, device: u64) -> io::Result<()> {
    let name = cstring(name)?;
    // SAFETY: name lives over the call.
    check(unsafe { libc::mknodat(dir.as_fd().as_raw_fd(), name.as_ptr(), mode, device) })
        .map(|_| ())
}

pub(crate) fn fchownat(dir: impl AsFd, name: &str, uid: u32, gid: u32) -> io::Result<()> {
    let name = cstring(name)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: name lives over the call.
    check(unsafe { libc::fchownat(dir.as_fd().as_raw_fd(), name.as_ptr(), uid, gid, flags) })
        .map(|_| ())
}

pub(crate) fn fstat(fd: impl AsFd) -> io::Result<libc::stat> {
    // SAFETY: an all-zero stat is a valid value; the kernel fills it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` lives over the call; AT_EMPTY_PATH makes it work on O_PATH descriptors as well.
    check(unsafe {
        libc::fstatat(
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            &mut stat,
            libc::AT_EMPTY_PATH,
        )
    })?;
    Ok(stat)
}

pub(crate) fn is_dir(fd: impl AsFd) -> io::Result<bool> {
    Ok(fstat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// read(2); 0 is the end.
pub(crate) fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer lives over the call and is as long as said.
    let n = unsafe {
        libc::read(
            fd.as_fd().as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    };
    if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    }
}

pub(crate) fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes live over the call.
    let n = unsafe { libc::write(fd.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    }
}

/// One write that must take everything: kernel files have no partial writes.
pub(crate) fn write_whole(fd: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    match write(fd, bytes)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

/// Writes a kernel file (cgroup, procfs) beneath a directory.
pub(crate) fn write_at(dir: impl AsFd, name: &str, text: &str) -> io::Result<()> {
    write_whole(openat(dir, name, libc::O_WRONLY, 0)?, text.as_bytes())
}

/// Reads a small kernel file beneath a directory.
pub(crate) fn read_at(dir: impl AsFd, name: &str) -> io::Result<String> {
    let fd = openat(dir, name, libc::O_RDONLY, 0)?;
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read(&fd, &mut buffer)? {
            0 => break,
            n => out.extend_from_slice(&buffer[..n]),
        }
    }
    String::from_utf8(out).map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))
}

pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: plain integers.
    let flags = check(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(|_| ())
}

/// Reading and writing end, close-on-exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

/// Whether a wait status is an exit, and which.
pub(crate) fn exit_status(status: i32) -> crate::protocol::ExitStatus {
    use crate::protocol::ExitStatus;
    if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    }
}

/// Installs a classic BPF filter for this process. `program` is `sock_filter[]` as bytes.
pub(crate) fn seccomp(program: &[u8]) -> io::Result<()> {
    let mut filters: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: filters.len() as u16,
        filter: filters.as_mut_ptr(),
    };
    // SAFETY: the program and its filters live over the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &program,
        )
    };
    check_long(set).map(|_| ())
}

/// Default disposition for every signal, nothing blocked: Rust ignores SIGPIPE and that would survive execve.
pub(crate) fn reset_signals() -> io::Result<()> {
    // The kernel's struct sigaction is at most this long; all zeroes are SIG_DFL and an empty mask.
    let default = [0_u64; 4];
    // SAFETY: the structures live through the calls, and a sigset of all zeroes is valid.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            // Past glibc, which keeps 32 and 33 for itself and refuses; SIGKILL and SIGSTOP cannot be set at all.
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8_usize,
            );
        }
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut empty);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &empty,
            std::ptr::null_mut(),
        ))
        .map(|_| ())
    }
}

/// The process image's last call in a child.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process without running destructors or atexit of the parent's copy.
    unsafe { libc::_exit(code) }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
