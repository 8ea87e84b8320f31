//! The emulator's process: how it is started, and that it ends.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::exchange::{self, EXCHANGE};
use super::image::Built;
use crate::sandbox::process::{ends_within, open_process, send};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// How instructions are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// KVM where it boots the guest's kernel, else emulation.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

/// When the emulator ends, besides when it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// With this process, however that ends.
    Owned,
    /// Never by itself.
    Detached,
}

/// What a machine begins with, and what becomes of its root disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Boots; what it writes goes with the emulator.
    Cold,
    /// Goes on where the image's own machine was saved; what it writes goes with the emulator.
    Saved,
    /// Boots and keeps its disk, to be saved.
    ToBeSaved,
}

#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) built: &'a Built,
    pub(super) directory: &'a Path,
    pub(super) start: Start,
    pub(super) kvm: bool,
    pub(super) memory: u32,
    pub(super) cpus: u32,
    /// Of 127.0.0.1, to the guest's ssh.
    pub(super) port: u16,
}

#[derive(Debug)]
pub(super) struct Qemu {
    pid: i32,
    directory: PathBuf,
    /// Of the process that started it.
    child: Option<Child>,
}

const SERIAL: &str = "serial.log";
const ERRORS: &str = "qemu.log";
const DATA: &str = "data";
/// The size of the empty second disk; what is not used takes no room.
const DATA_SIZE: u64 = 32 << 30;
/// What a killed emulator may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

impl Machine<'_> {
    fn command(&self) -> Result<Command> {
        File::create(self.directory.join(DATA))?.set_len(DATA_SIZE)?;
        File::create(self.directory.join(EXCHANGE))?.set_len(exchange::SIZE)?;
        // A comma would begin QEMU's next option.
        let disk = path_text(&self.built.disk())?.replace(',', ",,");
        let root = match self.start {
            Start::ToBeSaved => KEPT,
            Start::Cold | Start::Saved => OVERLAY,
        };
        let forward = format!("hostfwd=tcp:127.0.0.1:{}-:22", self.port);
        let mut qemu = Command::new(PROGRAM);
        qemu.current_dir(self.directory)
            // The overlays are unlinked files here.
            .env("TMPDIR", self.directory)
            .arg("-name")
            .arg(name(self.directory))
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "q35", "-serial"])
            .arg(format!("file:{SERIAL}"))
            .args(accelerator(self.kvm))
            .arg("-smp")
            .arg(self.cpus.to_string())
            .arg("-m")
            .arg(self.memory.to_string())
            .arg("-kernel")
            .arg(self.built.kernel())
            .arg("-initrd")
            .arg(self.built.initrd())
            .args(["-append", COMMAND_LINE, "-drive"])
            .arg(format!("{DRIVE},{root},id=root,file={disk}"))
            .args(["-device", "virtio-blk-pci,drive=root", "-drive"])
            .arg(format!("{DRIVE},{OVERLAY},id=data,file={DATA}"))
            .args(["-device", "virtio-blk-pci,drive=data,serial=data", "-drive"])
            .arg(format!("{DRIVE},id=exchange,file={EXCHANGE}"))
            .args(["-device", "virtio-blk-pci,drive=exchange,serial=exchange"])
            .arg("-netdev")
            .arg(format!("user,id=net,restrict=on,ipv6=off,{forward}"))
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-device", "virtio-rng-pci"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.directory.join(ERRORS))?);
        match self.start {
            Start::Cold => qemu.args(["-monitor", "none"]),
            Start::Saved => {
                let state = path_text(&self.built.state())?;
                let cat = format!("exec:cat {}", shlex::try_quote(&state)?);
                qemu.args(["-monitor", "none", "-incoming", &cat])
            }
            Start::ToBeSaved => qemu
                .args(["-monitor", "stdio"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        };
        Ok(qemu)
    }

    pub(super) fn start(&self, life: Life) -> Result<Qemu> {
        let mut command = self.command()?;
        let child = match life {
            Life::Owned => spawn_owned(command),
            Life::Detached => {
                // SAFETY: the closure makes one system call.
                unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
                command.spawn()
            }
        };
        let child = child.with_context(|| format!("{PROGRAM} (package {PACKAGE})"))?;
        Ok(Qemu {
            pid: child.id().cast_signed(),
            directory: self.directory.to_owned(),
            child: Some(child),
        })
    }
}

const DRIVE: &str = "if=none,format=raw,discard=unmap";
/// What is written goes with the emulator.
const OVERLAY: &str = "snapshot=on";
/// It need not survive this machine's power failure.
const KEPT: &str = "cache=unsafe";

/// Expedited grace periods because cgroups, mounts and links wait for those most of the time.
const COMMAND_LINE: &str = "root=/dev/vda rootfstype=ext4 rw fsck.mode=skip console=ttyS0 \
                            net.ifnames=0 mitigations=off rcupdate.rcu_expedited=1 panic=-1";

fn accelerator(kvm: bool) -> [&'static str; 4] {
    match kvm {
        true => ["-accel", "kvm", "-cpu", "host"],
        // Five levels of page tables are a level more to walk.
        false => [
            "-accel",
            "tcg,thread=multi,tb-size=512",
            "-cpu",
            "max,la57=off",
        ],
    }
}

/// The kernel's signal at a parent's death means the *thread* that started the process, so that is
/// one which lives as long as this process does.
fn spawn_owned(mut command: Command) -> std::io::Result<Child> {
    let owner = Pid::this();
    // SAFETY: the closure only makes system calls.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            match getppid() == owner {
                true => Ok(()),
                false => Err(ErrorKind::Interrupted.into()),
            }
        })
    };
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("bed-owner".into())
        .spawn(move || {
            if sender.send(command.spawn()).is_ok() {
                loop {
                    std::thread::park();
                }
            }
        })?;
    receiver.recv().map_err(std::io::Error::other)?
}

fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().context("the cache's path is not UTF-8")?;
    Ok(text.to_owned())
}

/// The emulator's name says whose it is.
fn name(directory: &Path) -> String {
    directory.to_string_lossy().replace(',', ",,")
}

impl Qemu {
    /// The emulator of a bed that another process started, if it still runs.
    pub(super) fn recorded(pid: i32, directory: &Path) -> Option<Self> {
        is_of(pid, directory).then(|| Self {
            pid,
            directory: directory.to_owned(),
            child: None,
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// An error when it has ended, with what it said.
    pub(super) fn check(&mut self) -> Result<()> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => !is_of(self.pid, &self.directory),
        };
        if ended {
            let said = fs::read_to_string(self.directory.join(ERRORS)).unwrap_or_default();
            bail!("{PROGRAM} has ended: {}", said.trim());
        }
        Ok(())
    }

    /// Ends it and writes what its memory and devices hold to a file. Its ssh must be closed: the
    /// other end of a connection is not saved.
    pub(super) fn save(&mut self, file: &Path) -> Result<()> {
        let child = self.child.as_mut().context("not this process's emulator")?;
        let mut monitor = child.stdin.take().context("it has no monitor")?;
        let cat = format!("exec:cat > {}", shlex::try_quote(&path_text(file)?)?);
        // The monitor's own quoting, around the shell's.
        let cat = cat.replace('\\', "\\\\").replace('"', "\\\"");
        writeln!(monitor, "migrate_set_parameter max-bandwidth 8G")?;
        writeln!(monitor, "migrate \"{cat}\"")?;
        writeln!(monitor, "info migrate")?;
        writeln!(monitor, "quit")?;
        let process = open_process(self.pid)?;
        let ended = ends_within(&process, SAVE)?;
        if !ended {
            child.kill()?;
        }
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        child.wait()?;
        ensure!(
            ended && said.contains("Migration status: completed"),
            "{PROGRAM} did not save the machine: {said}"
        );
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
        let Ok(process) = open_process(self.pid) else {
            return Ok(());
        };
        // The descriptor may be of a later process with that pid.
        if is_of(self.pid, &self.directory) {
            send(Pid::from_raw(self.pid), Signal::SIGKILL)?;
            ensure!(
                ends_within(&process, PATIENCE)?,
                "{} does not end",
                self.pid
            );
        }
        Ok(())
    }

    /// What the kernel and systemd wrote to the serial console.
    pub(super) fn console(&self) -> Result<String> {
        let console = fs::read(self.directory.join(SERIAL)).context("no serial console yet")?;
        Ok(String::from_utf8_lossy(&console).replace('\r', ""))
    }

    /// The console's last lines.
    pub(super) fn console_tail(&self) -> String {
        let console = self.console().unwrap_or_default();
        let lines: Vec<_> = console.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Whether that process is the emulator of the bed in this directory.
fn is_of(pid: i32, directory: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let name = name(directory);
    let mut words = line.split(|byte| *byte == 0);
    words.any(|word| word == name.as_bytes())
}

/// What writing some hundred MiB may take.
const SAVE: Duration = Duration::from_secs(120);

/// The emulator's version, on which saved machines depend.
fn version() -> Result<String> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .with_context(|| format!("{PROGRAM} (package {PACKAGE})"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What decides, beside the image's own recipe, what a saved machine looks like.
pub(super) fn recipe() -> Result<String> {
    let parts = [
        COMMAND_LINE,
        &accelerator(false).join(" "),
        DRIVE,
        &version()?,
    ];
    Ok(parts.join("\n"))
}

/// What a machine without a root disk takes to give up, many times over.
const PROBE: Duration = Duration::from_secs(10);

/// Whether KVM boots the guest's kernel: the device alone does not tell, some hosts offer one on
/// which kernels hang. Asked once after each boot of the host, since it can take ten seconds.
pub(super) fn kvm_works(built: &Built, verdicts: &Path) -> Result<bool> {
    let open = File::options().read(true).write(true).open("/dev/kvm");
    if open.is_err() {
        return Ok(false);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let (yes, no) = (format!("{boot}works"), format!("{boot}hangs"));
    match fs::read_to_string(verdicts) {
        Ok(known) if known == yes => return Ok(true),
        Ok(known) if known == no => return Ok(false),
        _ => {}
    }
    let works = probe(built)?;
    fs::write(verdicts, if works { yes } else { no })?;
    Ok(works)
}

/// The kernel must come as far as missing its root disk.
fn probe(built: &Built) -> Result<bool> {
    let directory = tempfile::tempdir()?;
    let console = directory.path().join(SERIAL);
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(directory.path())
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args([
            "-machine",
            "q35",
            "-monitor",
            "none",
            "-no-reboot",
            "-serial",
        ])
        .arg(format!("file:{SERIAL}"))
        .args(accelerator(true))
        .args(["-smp", "2", "-m", "256", "-kernel"])
        .arg(built.kernel())
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child =
        spawn_owned(command).with_context(|| format!("{PROGRAM} (package {PACKAGE})"))?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() && begun.elapsed() < PROBE {
        std::thread::sleep(Duration::from_millis(50));
    }
    // It may have ended by itself in between.
    let _already_gone = child.kill();
    child.wait()?;
    let said = fs::read(console).unwrap_or_default();
    Ok(String::from_utf8_lossy(&said).contains("Unable to mount root fs"))
}
