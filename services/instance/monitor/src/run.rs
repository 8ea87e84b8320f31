//! The program: arguments, the spec, leaving the caller, then one guest's life.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use crate::cgroup::MonitorGroups;
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::netlink::RouteSocket;
use crate::protocol::StartReport;
use crate::server::{Monitor, Setup};
use crate::spec::Spec;
use crate::start::Host;
use crate::sys::{self, mount};

/// Name of the socket in the run directory.
pub const SOCKET: &str = "monitor.sock";
/// Longest spec that is read.
const LONGEST_SPEC: u64 = 8 << 20;

const HELP: &str = "\
berth-monitor: supervises one Berth instance; started by berth-instance.

usage: berth-monitor [--spec-fd N] [--status-fd N]
       berth-monitor --hold
  --spec-fd N    descriptor with the sealed spec (default 0)
  --status-fd N  descriptor for the start report, JSON until its end (default 1)
  --hold         do nothing until killed: keeps the scope of guests while there are none
  --help         this text
  --version      version of program and protocol
";

struct Arguments {
    spec: RawFd,
    status: RawFd,
}

/// The whole program; gives the exit status.
pub fn main() -> i32 {
    // A panic in one place must not leave half a monitor: the guest ends with it (PR_SET_PDEATHSIG).
    std::panic::set_hook(Box::new(|info| {
        crate::log::line(format_args!("panic: {info}"));
        sys::exit_now(101);
    }));
    let arguments = match parse_arguments(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return 0,
        Err(text) => {
            eprintln!("berth-monitor: {text}\n\n{HELP}");
            return 64;
        }
    };
    let status = arguments.status;
    // Run from a descriptor, it would be named by its number.
    let _ = sys::prctl(libc::PR_SET_NAME, c"berth-monitor".as_ptr() as usize);
    // Only what was handed over stays: a directory of the host kept open would be a way out of the guest.
    for fd in [arguments.spec, status] {
        // SAFETY: plain integers.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            eprintln!("berth-monitor: descriptor {fd} is not open\n\n{HELP}");
            return 64;
        }
    }
    if let Err(e) = keep_only(&[arguments.spec, status]) {
        report(
            status,
            &StartReport::Error(Fault::io("monitor", &e, "closing descriptors")),
        );
        return 1;
    }
    match begin(&arguments) {
        Ok(Some(monitor)) => serve(monitor, &arguments),
        // The caller's child: the monitor goes on in another process.
        Ok(None) => 0,
        Err(fault) => {
            crate::log::line(format_args!("start failed: {fault}"));
            report(status, &StartReport::Error(fault));
            1
        }
    }
}

fn parse_arguments(
    mut arguments: impl Iterator<Item = String>,
) -> std::result::Result<Option<Arguments>, String> {
    let mut out = Arguments { spec: 0, status: 1 };
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--spec-fd" => &mut out.spec,
            "--status-fd" => &mut out.status,
            "--hold" => loop {
                // SAFETY: no arguments; returns after a handled signal, and none is.
                unsafe { libc::pause() };
            },
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(None);
            }
            "--version" => {
                println!(
                    "berth-monitor {} protocol {}",
                    env!("CARGO_PKG_VERSION"),
                    crate::protocol::PROTOCOL_VERSION
                );
                return Ok(None);
            }
            other => return Err(format!("unknown argument {other:?}")),
        };
        let value = arguments
            .next()
            .ok_or_else(|| format!("{argument} needs a number"))?;
        *target = value
            .parse()
            .ok()
            .filter(|n| *n >= 0)
            .ok_or_else(|| format!("{argument}: {value:?} is no descriptor"))?;
    }
    Ok(Some(out))
}

/// Closes every descriptor but stdio and these, which become close-on-exec.
fn keep_only(keep: &[RawFd]) -> std::io::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| *fd as u32)
        .filter(|fd| *fd > 2)
        .collect();
    kept.sort_unstable();
    kept.dedup();
    let mut from = 3;
    for fd in kept {
        if fd > from {
            sys::close_range(from, fd - 1, false)?;
        }
        sys::close_range(fd, fd, true)?;
        from = fd + 1;
    }
    sys::close_range(from, u32::MAX, false)
}

/// Reads the spec, leaves the caller, starts the guest. `None` in the caller's child.
fn begin(arguments: &Arguments) -> Result<Option<Monitor>> {
    let spec = read_spec(arguments.spec)?;
    if spec.privileged {
        run_from_read_only_mount()?;
    }
    let groups = MonitorGroups::open(&spec.cgroup)?;
    match sys::clone3(0, groups.v2()).at("monitor", "leaving the caller")? {
        Some(_) => return Ok(None),
        None => {
            groups.join()?;
            // SAFETY: no arguments.
            sys::check(unsafe { libc::setsid() }).at("monitor", "setsid")?;
        }
    }
    drop(groups);
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    let run_dir = sys::open(&spec.run_dir, directory)
        .at("monitor", format!("opening run_dir {}", spec.run_dir))?;
    let log_dir = sys::open(&spec.log_dir, directory)
        .at("monitor", format!("opening log_dir {}", spec.log_dir))?;
    open_log(&log_dir)?;
    crate::log::line(format_args!(
        "monitor {} of {}/{} ({}), generation {}, trace {}",
        std::process::id(),
        spec.project,
        spec.name,
        spec.uid,
        spec.generation,
        spec.traceparent.as_deref().unwrap_or("-"),
    ));
    let lock = lock(&run_dir)?;
    if let Some(path) = &spec.host_mount_ns {
        let ns = sys::open(path, libc::O_RDONLY).at("monitor", format!("opening {path}"))?;
        sys::setns(&ns, libc::CLONE_NEWNS).at("monitor", format!("entering {path}"))?;
    }
    std::env::set_current_dir("/").at("monitor", "entering /")?;
    let host = open_host(&run_dir)?;
    let pidns = sys::open("/proc/self/ns/pid", libc::O_RDONLY)
        .at("monitor", "opening the pid namespace")?;
    let listener = listen(&run_dir)?;
    let setup_dir = run_dir.try_clone().at("monitor", "copying run_dir")?;
    let started = Monitor::start(Setup {
        spec,
        host,
        run_dir,
        log_dir,
        listener,
        pidns,
    });
    // Held by this process until its end.
    std::mem::forget(lock);
    match started {
        Ok(monitor) => Ok(Some(monitor)),
        Err(fault) => {
            remove_socket(&setup_dir);
            Err(fault)
        }
    }
}

fn serve(monitor: Monitor, arguments: &Arguments) -> i32 {
    let (init_pid, started_at_ms) = (monitor.init_pid(), monitor.started_at_ms());
    crate::log::line(format_args!("started, init is {init_pid}"));
    let monitor_pid = std::process::id() as i32;
    report(
        arguments.status,
        &StartReport::Ok {
            init_pid,
            monitor_pid,
            started_at_ms,
        },
    );
    if let Err(e) = take_null_stdio(arguments) {
        crate::log::line(format_args!("taking /dev/null: {e}"));
        return 1;
    }
    match monitor.serve() {
        Ok(()) => 0,
        Err(fault) => {
            crate::log::line(format_args!("{fault}"));
            1
        }
    }
}

/// One JSON value, then the end.
fn report(status: RawFd, report: &StartReport) {
    let Ok(json) = serde_json::to_vec(report) else {
        return;
    };
    // SAFETY: the descriptor is ours by the way we are called; it is closed by `take_null_stdio` or our end.
    let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(status) });
    if let Err(e) = file.write_all(&json) {
        crate::log::line(format_args!("reporting the start: {e}"));
    }
}

/// Lets the caller's descriptors go: the end of the status pipe is part of the report.
fn take_null_stdio(arguments: &Arguments) -> std::io::Result<()> {
    let null = sys::open("/dev/null", libc::O_RDWR)?;
    for fd in 0..3 {
        sys::dup2(null.as_raw_fd(), fd)?;
    }
    for fd in [arguments.status, arguments.spec] {
        if fd > 2 {
            sys::close_range(fd as u32, fd as u32, false)?;
        }
    }
    Ok(())
}

/// The spec must be sealed: what was checked cannot be changed under the monitor.
fn read_spec(fd: RawFd) -> Result<Spec> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: plain integers.
    let found = sys::check(unsafe { libc::fcntl(fd, libc::F_GET_SEALS) })
        .at("spec", "looking for the seals of the spec (is it a memfd?)")?;
    if found & seals != seals {
        return Err(Fault::new(
            "spec",
            FaultCode::Invalid,
            "the spec's memfd is not sealed",
        ));
    }
    // The run may be executed anew (see below), so the descriptor stays and is read from its start.
    let path = format!("/proc/self/fd/{fd}");
    let file = File::open(&path).at("spec", "opening the spec")?;
    let mut bytes = Vec::new();
    file.take(LONGEST_SPEC + 1)
        .read_to_end(&mut bytes)
        .at("spec", "reading the spec")?;
    if bytes.len() as u64 > LONGEST_SPEC {
        return Err(Fault::new(
            "spec",
            FaultCode::Invalid,
            "the spec is longer than 8 MiB",
        ));
    }
    Spec::from_json(&bytes)
}

/// A privileged guest's root is the host's root: through /proc/<pid>/exe of our short-lived children it could
/// open this program for writing once it no longer runs (CVE-2019-5736). So run it from a sealed memfd, as the
/// service starts it, or else from a read-only mount that nobody can reach by path. (In a user namespace the program's owner is nobody, and the write is refused.)
fn run_from_read_only_mount() -> Result<()> {
    let file = File::open("/proc/self/exe").at("monitor", "opening the program")?;
    // SAFETY: plain integers; other files than memfds have no seals.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals >= 0 && seals & libc::F_SEAL_WRITE != 0 {
        return Ok(());
    }
    let stat = rustix::fs::fstatvfs(&file)
        .map_err(std::io::Error::from)
        .at("monitor", "looking at the program")?;
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let path = std::fs::read_link("/proc/self/exe").at("monitor", "finding the program")?;
    let path = std::str::from_utf8(path.as_os_str().as_bytes()).map_err(|_| {
        Fault::new(
            "monitor",
            FaultCode::Invalid,
            "the program's path is not UTF-8",
        )
    })?;
    let copy =
        mount::clone_path(path, false).at("monitor", "taking a copy of the program's mount")?;
    mount::set_attr(&copy, mount::ATTR_RDONLY, 0, None, false)
        .at("monitor", "making it read-only")?;
    let arguments: std::io::Result<Vec<_>> = std::env::args_os().map(sys::cstring).collect();
    let arguments = arguments.at("monitor", "copying the arguments")?;
    let pointers: Vec<*const libc::c_char> = arguments
        .iter()
        .map(|a| a.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    // SAFETY: all strings and the null-terminated array live over the call; the environment is empty.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            copy.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            [std::ptr::null::<libc::c_char>()].as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(Fault::io(
        "monitor",
        &std::io::Error::last_os_error(),
        "executing the read-only program",
    ))
}

fn open_log(log_dir: &OwnedFd) -> Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
    let file =
        sys::openat(log_dir, "monitor.log", flags, 0o600).at("monitor", "opening monitor.log")?;
    crate::log::to(File::from(file));
    Ok(())
}

/// One monitor per run directory. One that is ending has told so before it lets go: it is waited for.
fn lock(run_dir: &OwnedFd) -> Result<OwnedFd> {
    let file = sys::openat(
        run_dir,
        "monitor.lock",
        libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW,
        0o600,
    )
    .at("monitor", "opening monitor.lock")?;
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        // SAFETY: plain integers.
        match sys::check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
            Ok(_) => return Ok(file),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(Fault::new(
                    "monitor",
                    FaultCode::Exists,
                    "a monitor of this instance is running",
                ));
            }
            Err(e) => return Err(Fault::io("monitor", &e, "locking monitor.lock")),
        }
    }
}

fn open_host(run_dir: &OwnedFd) -> Result<Host> {
    match sys::mkdirat(run_dir, "devices", 0o711) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).at("monitor", "making devices/");
        }
        _ => {}
    }
    let devices_dir = sys::openat(
        run_dir,
        "devices",
        libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
        0,
    )
    .at("monitor", "opening devices/")?;
    let netns = sys::open("/proc/self/ns/net", libc::O_RDONLY)
        .at("monitor", "opening the network namespace")?;
    let route = RouteSocket::open().at("monitor", "opening a route socket")?;
    let score = std::fs::read_to_string("/proc/self/oom_score_adj")
        .at("monitor", "reading oom_score_adj")?;
    let oom_score_adj = score.trim().parse().unwrap_or(0);
    Ok(Host {
        netns,
        route,
        devices_dir,
        oom_score_adj,
    })
}

/// Binds beneath the directory's descriptor: paths of sockets are short, paths of run directories are not.
fn listen(run_dir: &OwnedFd) -> Result<OwnedFd> {
    remove_socket(run_dir);
    match sys::unlinkat(run_dir, "status.json", 0) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).at("monitor", "removing the last status.json");
        }
        _ => {}
    }
    let path = format!("/proc/self/fd/{}/{SOCKET}", run_dir.as_raw_fd());
    // SAFETY: sets one integer of this process.
    unsafe { libc::umask(0o077) };
    let listener =
        std::os::unix::net::UnixListener::bind(path).at("monitor", format!("binding {SOCKET}"))?;
    // What is made in a guest's file systems later has ordinary modes, whatever the service's umask was.
    // SAFETY: as above.
    unsafe { libc::umask(0o022) };
    listener
        .set_nonblocking(true)
        .at("monitor", "making the socket non-blocking")?;
    Ok(listener.into())
}

/// Removes the socket; one that is not there is fine.
pub(crate) fn remove_socket(run_dir: &OwnedFd) {
    match sys::unlinkat(run_dir, SOCKET, 0) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            crate::log::line(format_args!("removing the socket: {e}"))
        }
        _ => {}
    }
}
