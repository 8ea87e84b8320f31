//! Real monitors, one process for each guest.
//!
//! ```text
//! <run_dir>/<uid>/   monitor.sock status.json ...      gone after a clean end
//! <log_dir>/<uid>/   console.log monitor.log           kept until the instance is deleted
//! ```

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use berth_monitor::error::{Fault, FaultCode};
use berth_monitor::protocol::{Ended, StartReport};
use berth_monitor::spec::{PortSpec, Spec};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::meter::{Meter, Meters};
use super::scope::Scope;
use super::{Numbers, Place, Root, Runtime, Started, TemplateJob};
use crate::Error;
use crate::host::rootfs::{GuestRoot, Volume};
use crate::host::templates::{self, Templates};

/// Starts monitors on this host.
#[derive(Debug)]
pub struct Host {
    pub run_dir: PathBuf,
    pub log_dir: PathBuf,
    pub monitor: PathBuf,
    /// Parents of guests' cgroups, relative to each hierarchy's root.
    pub cgroup_parents: Vec<String>,
    /// Where host paths of attachments are looked up; this process's own when absent.
    pub host_mount_ns: Option<String>,
    /// Under systemd, where guests and monitors go.
    pub scope: Option<Scope>,
    pub meters: Meters,
}

fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

impl Host {
    /// Makes the directories.
    pub fn prepare(self) -> io::Result<Host> {
        make_dir(&self.run_dir)?;
        make_dir(&self.log_dir)?;
        Ok(self)
    }

    fn run(&self, uid: &str) -> PathBuf {
        self.run_dir.join(uid)
    }
}

/// Paths are made from uids; a uid of anywhere else than our database must not lead elsewhere.
fn check_uid(uid: &str) -> io::Result<()> {
    match uuid::Uuid::parse_str(uid) {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an instance's uid",
        )),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

#[async_trait::async_trait]
impl Runtime for Host {
    async fn directories(&self, uid: &str) -> io::Result<(String, String)> {
        check_uid(uid)?;
        let (run, log) = (self.run(uid), self.log_dir(uid));
        // Two mkdir on tmpfs and the state disk: shorter than a hop to another thread.
        make_dir(&run)?;
        make_dir(&log)?;
        Ok((
            run.to_string_lossy().into_owned(),
            log.to_string_lossy().into_owned(),
        ))
    }

    #[tracing::instrument(name = "monitor start", skip_all)]
    async fn start(&self, spec: Spec) -> Result<Started, Fault> {
        let fail = |e: io::Error| Fault::io("monitor", &e, "starting the monitor");
        if let Some(scope) = &self.scope {
            let ready = scope.ensure().await;
            ready.map_err(|e| Fault::new("scope", FaultCode::Kernel, format!("{e:#}")))?;
        }
        // Left by an earlier run: it would be taken for this one's end.
        match std::fs::remove_file(Path::new(&spec.run_dir).join("status.json")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        let binary = self.monitor.clone();
        let spawned = blocking(move || -> io::Result<_> {
            let (mut command, reader) = berth_monitor::spawn::command(&binary, &spec)?;
            command.stderr(Stdio::null());
            let child = command.spawn()?;
            // The command holds the writing end; the report ends when the monitor's copy is closed.
            drop(command);
            Ok((child, reader))
        });
        let (mut child, reader) = spawned.await.map_err(fail)?.map_err(fail)?;
        let fd = std::os::fd::OwnedFd::from(reader);
        let mut reader = tokio::net::unix::pipe::Receiver::from_owned_fd(fd).map_err(fail)?;
        let mut report = Vec::new();
        let read = reader.read_to_end(&mut report).await;
        // What was spawned only forked the monitor: it is reaped by the way, nobody waits for it.
        tokio::task::spawn_blocking(move || child.wait());
        read.map_err(fail)?;
        match berth_monitor::spawn::parse_report(&report)? {
            StartReport::Ok {
                init_pid,
                monitor_pid,
                ..
            } => Ok(Started {
                init_pid,
                monitor_pid,
            }),
            StartReport::Error(fault) => Err(fault),
        }
    }

    async fn connect(&self, uid: &str) -> io::Result<UnixStream> {
        check_uid(uid)?;
        UnixStream::connect(self.run(uid).join("monitor.sock")).await
    }

    fn open_meter(&self, uid: &str) -> Result<Meter, Fault> {
        if !self.meters.has_room() {
            let why = "this process has no descriptors to spare";
            return Err(Fault::new("meter", FaultCode::Unsupported, why));
        }
        check_uid(uid).map_err(|e| Fault::io("meter", &e, "finding the monitor"))?;
        let route = super::link_fds::open_route(&self.run(uid).join("monitor.sock"))?;
        Ok(self.meters.meter(route))
    }

    fn measure(&self, uid: &str, meter: &mut Meter, ports: &[PortSpec]) -> Result<Numbers, Fault> {
        self.meters.read(&self.cgroup_parents, uid, meter, ports)
    }

    async fn ended(&self, uid: &str) -> Option<Ended> {
        let bytes = std::fs::read(self.run(uid).join("status.json")).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(ended) => Some(ended),
            Err(error) => {
                tracing::warn!(uid, %error, "status.json is not readable");
                None
            }
        }
    }

    async fn known(&self) -> io::Result<Vec<String>> {
        let mut uids = Vec::new();
        for entry in std::fs::read_dir(&self.run_dir)? {
            let name = entry?.file_name();
            if let Some(uid) = name.to_str().filter(|n| check_uid(n).is_ok()) {
                uids.push(uid.to_owned());
            }
        }
        Ok(uids)
    }

    async fn clean(&self, uid: &str, all: bool) -> io::Result<()> {
        check_uid(uid)?;
        let run = self.run(uid);
        if !all {
            // A handful of files on tmpfs: shorter than a hop to another thread.
            return remove_tree(&run);
        }
        let name = crate::model::spec::cgroup_name(uid);
        let parents = self.cgroup_parents.clone();
        blocking(move || {
            for parent in &parents {
                crate::host::cgroup::remove(parent, &name)?;
            }
            remove_tree(&run)
        })
        .await?
    }

    async fn render_templates(&self, job: TemplateJob) -> Result<Arc<Templates>, Error> {
        let ns = self.host_mount_ns.clone();
        let done = crate::host::on_own_thread(move || -> Result<Arc<Templates>, Error> {
            let volume = Volume::open(&job.attachment, ns.as_deref())
                .map_err(|fault| describe(fault, "Opening the root volume"))?;
            let all = match job.known {
                Some(known) => known,
                None => Arc::new(templates::list(&volume)?),
            };
            templates::render(&volume, job.ids, &all, &job.triggers, &job.guest)?;
            Ok(all)
        });
        done.await.map_err(Error::internal)?
    }

    async fn root(&self, place: Place) -> Result<GuestRoot, Error> {
        let ns = self.host_mount_ns.clone();
        match place {
            Place::Running { uid, ids } => {
                check_uid(&uid).map_err(Error::internal)?;
                let socket = self.run(&uid).join("monitor.sock");
                let asked = blocking(move || super::link_fds::open_root(&socket)).await;
                let root = asked.map_err(Error::internal)?;
                let Root { dir, userns } =
                    root.map_err(|f| describe(f, "Reaching the guest's files"))?;
                drop(userns);
                Ok(GuestRoot { dir, ids })
            }
            Place::Stopped { attachment, ids } => {
                let opened = crate::host::on_own_thread(move || {
                    let volume = Volume::open(&attachment, ns.as_deref())
                        .map_err(|fault| describe(fault, "Opening the root volume"))?;
                    volume.rootfs(ids).map_err(Error::internal)
                });
                opened.await.map_err(Error::internal)?
            }
        }
    }

    async fn remove_logs(&self, uid: &str) -> io::Result<()> {
        check_uid(uid)?;
        let dir = self.log_dir(uid);
        blocking(move || remove_tree(&dir)).await?
    }

    fn log_dir(&self, uid: &str) -> PathBuf {
        self.log_dir.join(uid)
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A fault of the monitor in the service's words.
pub fn describe(fault: Fault, doing: &str) -> Error {
    let sentence = format!("{doing}: {fault}");
    match fault.code {
        FaultCode::Invalid => Error::invalid("instance", sentence),
        FaultCode::Unsupported => Error::unimplemented(sentence),
        FaultCode::NotFound | FaultCode::Exists | FaultCode::State | FaultCode::OffsetGone => {
            Error::precondition("GUEST_STATE", sentence)
        }
        FaultCode::Timeout => Error::new(crate::Code::DeadlineExceeded, "GUEST_TIMEOUT", sentence),
        FaultCode::CommandNotFound => Error::precondition("COMMAND_NOT_FOUND", "Command not found"),
        FaultCode::CommandNotExecutable => {
            Error::precondition("COMMAND_NOT_EXECUTABLE", "Command not executable")
        }
        FaultCode::Kernel => Error::internal_with(sentence, fault),
    }
}
