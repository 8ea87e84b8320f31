//! One dnsmasq per network: started so that it outlives this service, found again after a
//! restart, watched by a descriptor of its process, and started anew when it dies.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

mod measure;

use super::{HostError, io};
use crate::model::dnsmasq::{Account, HostRecord, Paths, arguments};
use crate::model::plan::NetworkPlan;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// One that ran longer than this starts from the first pause again.
const SETTLED: Duration = Duration::from_secs(60);
/// How long it gets to end.
const PATIENCE: Duration = Duration::from_secs(3);
/// Removals in one go are told to it once.
const GATHER: Duration = Duration::from_millis(200);

/// All dnsmasq processes of this service.
#[derive(Debug)]
pub(crate) struct Dnsmasqs {
    program: PathBuf,
    account: Option<Account>,
    root: PathBuf,
    running: Mutex<HashMap<String, Arc<Supervised>>>,
}

#[derive(Debug)]
struct Supervised {
    network: String,
    program: PathBuf,
    args: Vec<String>,
    paths: Paths,
    end: CancellationToken,
    state: Mutex<State>,
    reload: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Arc<AsyncFd<OwnedFd>>>,
    trouble: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dnsmasqs {
    /// `user` is who it runs as; that account must be able to reach the directory `root`.
    pub(crate) fn new(program: PathBuf, root: PathBuf, user: &str) -> Result<Self, HostError> {
        make_dir(&root, 0o711)?;
        let account = account(user, &root)?;
        if account.is_none() {
            tracing::warn!(user, root = %root.display(), "dnsmasq runs as root: the account is missing or cannot reach its directory");
        }
        Ok(Self {
            program,
            account,
            root,
            running: Mutex::default(),
        })
    }

    pub(crate) fn paths(&self, network: &str) -> Paths {
        Paths::new(&self.root, network)
    }

    /// Networks that have a directory here, whether or not they still exist.
    pub(crate) fn known(&self) -> Vec<String> {
        std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Runs it as the plan says. One that runs so already is kept.
    pub(crate) async fn ensure(&self, plan: &NetworkPlan) -> Result<(), HostError> {
        if !plan.wants_dnsmasq() {
            return self.stop(&plan.name).await;
        }
        let paths = self.paths(&plan.name);
        let raw = self.prepare(plan, &paths)?;
        let args = arguments(plan, &paths, &raw, self.account.as_ref());
        let present = lock(&self.running).get(&plan.name).cloned();
        if let Some(present) = present {
            if present.args == args {
                return Ok(());
            }
            self.stop(&plan.name).await?;
        }
        let supervised = Arc::new(Supervised {
            network: plan.name.clone(),
            program: self.program.clone(),
            args,
            paths,
            end: CancellationToken::new(),
            state: Mutex::default(),
            reload: tokio::sync::Notify::new(),
        });
        supervised.adopt_or_start().await?;
        measure::watch(&supervised);
        lock(&self.running).insert(plan.name.clone(), supervised.clone());
        tokio::spawn(supervised.clone().supervise());
        tokio::spawn(supervised.forward_reloads());
        Ok(())
    }

    fn prepare(&self, plan: &NetworkPlan, paths: &Paths) -> Result<PathBuf, HostError> {
        make_dir(&paths.dir, 0o755)?;
        make_dir(&paths.hosts(), 0o755)?;
        let digest = hex::encode(&Sha256::digest(plan.raw_dnsmasq.as_bytes())[..8]);
        let raw = paths.raw(&digest);
        if !raw.exists() {
            for old in std::fs::read_dir(&paths.dir)
                .into_iter()
                .flatten()
                .flatten()
            {
                if old.file_name().as_encoded_bytes().starts_with(b"raw-") {
                    let _ = std::fs::remove_file(old.path());
                }
            }
            let text = format!("{}\n", plan.raw_dnsmasq.trim_end());
            std::fs::write(&raw, text).map_err(io(format!("write {}", raw.display())))?;
        }
        if let Some(account) = &self.account {
            let (uid, gid) = ids(account).ok_or_else(|| HostError::Dnsmasq {
                network: plan.name.clone(),
                why: format!("user {:?} is gone", account.user),
            })?;
            // It writes its leases as that user. The directory stays root's: who may rename in it could give
            // a root dnsmasq another configuration at its next start, or this service a link to write through.
            if paths.leases().exists() {
                hand_over(&paths.leases(), uid, gid)?;
            }
        }
        Ok(raw)
    }

    /// Ends it, also one that an earlier run of this service started.
    pub(crate) async fn stop(&self, network: &str) -> Result<(), HostError> {
        let present = lock(&self.running).remove(network);
        let paths = self.paths(network);
        let mut process = None;
        if let Some(supervised) = present {
            supervised.end.cancel();
            process = lock(&supervised.state).process.take();
        }
        if process.is_none() {
            let ours = format!("--pid-file={}", paths.pid().display());
            process = find(&paths, |args| args.contains(&ours))
                .map(watch)
                .transpose()?
                .map(Arc::new);
        }
        if let Some(process) = process {
            end(&process).await;
        }
        let _ = std::fs::remove_file(paths.pid());
        Ok(())
    }

    /// Ends it and removes its files.
    pub(crate) async fn remove(&self, network: &str) -> Result<(), HostError> {
        self.stop(network).await?;
        let dir = self.paths(network).dir;
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(io(format!("remove {}", dir.display()))(e))
            }
            _ => Ok(()),
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn trouble(&self, network: &str) -> Option<String> {
        let supervised = lock(&self.running).get(network).cloned()?;
        lock(&supervised.state).trouble.clone()
    }

    /// Adds or replaces a record. A new one is read by itself, a changed one at a reload.
    pub(crate) fn put_record(&self, network: &str, record: &HostRecord) -> Result<(), HostError> {
        let dir = self.paths(network).hosts();
        let path = dir.join(&record.port);
        let line = record.line();
        let changed = match std::fs::read_to_string(&path) {
            Ok(now) if now == line => return Ok(()),
            Ok(_) => true,
            Err(_) => false,
        };
        make_dir(&dir, 0o755)?;
        // Names with a dot in front are not read; the rename is what it sees.
        let temporary = dir.join(format!(".{}", record.port));
        std::fs::write(&temporary, line)
            .and_then(|()| std::fs::set_permissions(&temporary, PermissionsExt::from_mode(0o644)))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(io(format!("write {}", path.display())))?;
        if changed {
            self.reload(network);
        }
        Ok(())
    }

    /// Removes a record.
    pub(crate) fn drop_record(&self, network: &str, port: &str) -> Result<(), HostError> {
        let path = self.paths(network).hosts().join(port);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.reload(network);
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io(format!("remove {}", path.display()))(e)),
        }
    }

    /// Makes the records exactly these.
    pub(crate) fn reset_records(
        &self,
        network: &str,
        records: &[HostRecord],
    ) -> Result<(), HostError> {
        let dir = self.paths(network).hosts();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !records
                .iter()
                .any(|r| name.as_encoded_bytes() == r.port.as_bytes())
            {
                std::fs::remove_file(entry.path())
                    .map_err(io(format!("remove {}", entry.path().display())))?;
                self.reload(network);
            }
        }
        for record in records {
            self.put_record(network, record)?;
        }
        Ok(())
    }

    fn reload(&self, network: &str) {
        if let Some(supervised) = lock(&self.running).get(network) {
            supervised.reload.notify_one();
        }
    }
}

impl Supervised {
    async fn adopt_or_start(&self) -> Result<(), HostError> {
        let ours = format!("--pid-file={}", self.paths.pid().display());
        if let Some(process) = find(&self.paths, |args| args.contains(&ours)) {
            let process = watch(process)?;
            if find(&self.paths, |args| args[1..] == self.args).is_some() {
                tracing::info!(network = %self.network, "found dnsmasq running");
                // Records may have changed while nobody told it.
                let _ = pidfd_send_signal(process.get_ref(), Signal::HUP);
                self.settle(process);
                return Ok(());
            }
            end(&process).await;
        }
        let refused = |why: String| HostError::Dnsmasq {
            network: self.network.clone(),
            why,
        };
        berth_server::failpoint::pass("network.dnsmasq.start")
            .await
            .map_err(|e| refused(e.to_string()))?;
        let output = tokio::process::Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .await
            .map_err(|e| refused(format!("{}: {e}", self.program.display())))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(refused(said.trim().replace('\n', " ")));
        }
        // It has gone to the background by now, after it wrote its pid.
        let process = find(&self.paths, |args| args.contains(&ours))
            .ok_or_else(|| refused("it ended at once".to_owned()))?;
        self.settle(watch(process)?);
        Ok(())
    }

    fn settle(&self, process: AsyncFd<OwnedFd>) {
        let mut state = lock(&self.state);
        state.process = Some(Arc::new(process));
        state.trouble = None;
    }

    async fn supervise(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let process = lock(&self.state).process.clone();
            if let Some(process) = process {
                let since = tokio::time::Instant::now();
                tokio::select! {
                    () = self.end.cancelled() => return,
                    _ = process.readable() => {}
                }
                if since.elapsed() > SETTLED {
                    pause = FIRST_PAUSE;
                }
                tracing::warn!(network = %self.network, "dnsmasq ended, starting it again");
                measure::ended(&self.network, 1);
                let mut state = lock(&self.state);
                state.process = None;
                state.trouble =
                    Some("dnsmasq ended and is being started again: no DHCP and DNS".to_owned());
            }
            tokio::select! {
                () = self.end.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            if let Err(error) = self.adopt_or_start().await {
                tracing::warn!(network = %self.network, %error, "dnsmasq does not start");
                lock(&self.state).trouble = Some(format!("No DHCP and DNS: {error}"));
            }
        }
    }

    async fn forward_reloads(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.end.cancelled() => return,
                () = self.reload.notified() => {}
            }
            tokio::time::sleep(GATHER).await;
            let process = lock(&self.state).process.clone();
            if let Some(process) = process
                && let Err(error) = pidfd_send_signal(process.get_ref(), Signal::HUP)
            {
                tracing::debug!(network = %self.network, %error, "dnsmasq is gone, it reads its records when it starts");
            }
        }
    }
}

/// Readable when the process has ended.
fn watch(process: OwnedFd) -> Result<AsyncFd<OwnedFd>, HostError> {
    // SAFETY: the descriptor is owned by the value and neither replaced nor closed before it.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }
        .map_err(|e| io("watch dnsmasq")(std::io::Error::from(e)))
}

async fn end(process: &AsyncFd<OwnedFd>) {
    for signal in [Signal::TERM, Signal::KILL] {
        if pidfd_send_signal(process.get_ref(), signal).is_err() {
            return;
        }
        if tokio::time::timeout(PATIENCE, process.readable())
            .await
            .is_ok()
        {
            return;
        }
    }
}

/// The process that the pid file names, if it is a dnsmasq of this network namespace with
/// fitting arguments: a pid by itself may belong to anyone by now.
fn find(paths: &Paths, fits: impl Fn(&[String]) -> bool) -> Option<OwnedFd> {
    let pid: i32 = std::fs::read_to_string(paths.pid())
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
    // Looked at after the descriptor is open, this is that very process.
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let args: Vec<String> = std::fs::read(proc.join("cmdline"))
        .ok()?
        .split(|b| *b == 0)
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect();
    // The last argument ends in NUL as well.
    let args = args.strip_suffix(&[String::new()]).unwrap_or(&args);
    (is_dnsmasq_of_ours(&proc)? && !args.is_empty() && fits(args)).then_some(process)
}

/// Whether a process is a dnsmasq in this network namespace. Its links tell, to whoever may trace it; in a unit
/// without CAP_SYS_PTRACE nobody may, but there it is in the unit's own cgroup, as only its children are.
fn is_dnsmasq_of_ours(proc: &Path) -> Option<bool> {
    let name = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"dnsmasq");
    let own = Path::new("/proc/thread-self");
    match std::fs::read_link(proc.join("ns/net")) {
        Ok(network) => {
            let program = std::fs::read_link(proc.join("exe")).ok()?;
            let same_network = network == std::fs::read_link(own.join("ns/net")).ok()?;
            Some(same_network && program.file_name().is_some_and(name))
        }
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let cgroups = |of: &Path| std::fs::read(of.join("cgroup")).ok();
            let comm = std::fs::read_to_string(proc.join("comm")).ok()?;
            Some(cgroups(proc)? == cgroups(own)? && name(comm.trim_end().as_ref()))
        }
        Err(_) => None,
    }
}

/// Changes the owner where it is another: idle services write nothing.
fn hand_over(path: &Path, uid: u32, gid: u32) -> Result<(), HostError> {
    use std::os::unix::fs::MetadataExt;
    let fail = || io(format!("hand over {}", path.display()));
    let now = std::fs::metadata(path).map_err(fail())?;
    if (now.uid(), now.gid()) == (uid, gid) {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(fail())
}

/// Makes a directory unless it is there. Its mode is not the umask's business: dnsmasq reads it
/// as another user.
fn make_dir(dir: &Path, mode: u32) -> Result<(), HostError> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)))
        .map_err(io(format!("make {}", dir.display())))
}

fn ids(account: &Account) -> Option<(u32, u32)> {
    let user = nix::unistd::User::from_name(&account.user).ok()??;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// The account, if there is one and it can reach the directory. Directories that are the
/// service's own (the last two of the path) are opened for passing through.
fn account(user: &str, root: &Path) -> Result<Option<Account>, HostError> {
    use std::os::unix::fs::MetadataExt;
    let Some(entry) = nix::unistd::User::from_name(user).ok().flatten() else {
        return Ok(None);
    };
    let Some(group) = nix::unistd::Group::from_gid(entry.gid).ok().flatten() else {
        return Ok(None);
    };
    for (depth, dir) in root.ancestors().enumerate() {
        if dir.as_os_str().is_empty() {
            continue;
        }
        let meta = std::fs::metadata(dir).map_err(io(format!("look at {}", dir.display())))?;
        if meta.mode() & 0o001 != 0
            || (meta.uid() == entry.uid.as_raw() && meta.mode() & 0o100 != 0)
        {
            continue;
        }
        if depth > 1 {
            return Ok(None);
        }
        let open = std::fs::Permissions::from_mode((meta.mode() & 0o7777) | 0o011);
        std::fs::set_permissions(dir, open).map_err(io(format!("open {}", dir.display())))?;
    }
    Ok(Some(Account {
        user: user.to_owned(),
        group: group.name,
    }))
}
