//! The second test bed: a virtual machine with Debian 12, systemd, pure cgroup v2, AppArmor,
//! device-mapper and btrfs, for what a container or the machine at hand cannot show.
//!
//! ```text
//! CACHE/bed-<image>-<digest>/   disk, kernel, keys: made once by `build`
//! CACHE/beds/<name>/            a bed of `up`, until `down`
//! CACHE/beds/once-*/            beds that live as long as a process
//! ```
//!
//! QEMU runs it, by KVM where that works and by emulation elsewhere. Its network ends at QEMU:
//! the one way in is ssh from this machine's loopback, and there is none out; files cross on a disk of
//! their own. It writes to overlays, so each boot finds the same disk, and a second, empty one (`/dev/vdb`) for pools.

mod cli;
mod exchange;
mod image;
mod qemu;
mod ssh;
mod suites;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use cli::{Task, run};
pub use image::Image;
pub use qemu::Accel;
pub use ssh::Done;

use exchange::Exchange;
use image::Built;
use qemu::{Life, Machine, Qemu, Start};
use ssh::Ssh;

use crate::packages;
use crate::sandbox::paths;

/// How to boot.
#[derive(Clone, Debug)]
pub struct Options {
    pub image: Image,
    pub accel: Accel,
    /// MiB
    pub memory: u32,
    pub cpus: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: Image::Full,
            accel: Accel::Auto,
            memory: 2048,
            cpus: 2,
        }
    }
}

/// A running machine. One of `boot` ends when this is dropped, and with this process.
#[derive(Debug)]
pub struct Bed {
    directory: PathBuf,
    qemu: Qemu,
    ssh: Ssh,
    /// Of a machine that ends with this.
    once: Option<Once>,
}

/// The directory of a machine that no other process uses; unlocked means left behind.
#[derive(Debug)]
struct Once {
    _directory: TempDir,
    _lock: Option<File>,
}

/// What other processes must know of a bed of `up`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
}

const RECORD: &str = "bed.json";
const LOCK: &str = "lock";

/// From the emulator's start until systemd has started everything. Minutes on a machine that has
/// other work, seconds on one that has not.
const BOOT: Duration = Duration::from_secs(900);
/// For a command that says nothing else.
pub const COMMAND: Duration = Duration::from_secs(180);
/// For a copy.
const COPY: Duration = Duration::from_secs(300);

impl Bed {
    /// Boots a machine of this process's own, making its image if need be, and waits until systemd
    /// has started everything.
    pub fn boot(options: &Options) -> Result<Self> {
        let beds = beds()?;
        sweep(&beds)?;
        let directory = TempDir::with_prefix_in("once-", &beds)?;
        // Locked before it has the name that `sweep` looks at.
        let new = directory.path().join("lock.new");
        let lock = File::create(&new)?;
        lock.lock()?;
        fs::rename(&new, directory.path().join(LOCK))?;
        let mut bed = start(directory.path(), options, Life::Owned)?;
        bed.once = Some(Once {
            _directory: directory,
            _lock: Some(lock),
        });
        bed.wait_for_boot(None)?;
        Ok(bed)
    }

    /// Boots a machine that stays until `down`.
    pub fn up(name: &str, options: &Options) -> Result<Self> {
        if let Ok(bed) = Self::named(name) {
            bail!(
                "the bed `{name}` runs already ({})",
                bed.directory.display()
            );
        }
        let directory = directory(name)?;
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        let mut bed = start(&directory, options, Life::Detached)?;
        let record = Record {
            pid: bed.qemu.pid(),
        };
        fs::write(directory.join(RECORD), serde_json::to_vec(&record)?)?;
        if let Err(error) = bed.wait_for_boot(None) {
            bed.down()?;
            return Err(error);
        }
        Ok(bed)
    }

    /// A bed of `up`.
    pub fn named(name: &str) -> Result<Self> {
        let directory = directory(name)?;
        let none = || format!("no bed `{name}` runs: `cargo xtask bed up` starts one");
        let record = fs::read(directory.join(RECORD)).with_context(none)?;
        let record: Record = serde_json::from_slice(&record)?;
        let qemu = Qemu::recorded(record.pid, &directory).with_context(none)?;
        Ok(Self {
            ssh: Ssh::at(&directory),
            qemu,
            directory,
            once: None,
        })
    }

    /// Where its files are: the serial console, and a configuration for `ssh -F`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a program, however it ends.
    pub fn run(&self, argv: &[&str]) -> Result<Done> {
        self.run_for(COMMAND, argv, b"")
    }

    /// The same with a time limit and input of its own.
    pub fn run_for(&self, limit: Duration, argv: &[&str], input: &[u8]) -> Result<Done> {
        self.ssh.output(argv, input, limit)
    }

    /// Runs a shell script that must succeed, and returns what it printed.
    pub fn script(&self, script: &str) -> Result<String> {
        self.script_for(COMMAND, script)
    }

    /// The same with a time limit of its own.
    pub fn script_for(&self, limit: Duration, script: &str) -> Result<String> {
        let done = self.run_for(limit, &["sh", "-euc", script], b"")?;
        ensure!(
            done.code == 0,
            "`{script}` ended with {}: {}{}",
            done.code,
            done.stderr,
            done.stdout
        );
        Ok(done.stdout)
    }

    /// Runs a program on this process's own input and output; returns its exit code.
    pub fn stream(&self, limit: Duration, argv: &[&str]) -> Result<i32> {
        self.ssh.stream(argv, limit)
    }

    /// Copies files or directories of this machine, into `to` where that is a directory, else one
    /// of them as `to`. They belong to root.
    pub fn copy_in(&self, from: &[&Path], to: &str) -> Result<()> {
        let exchange = Exchange::open(&self.directory)?;
        exchange.pack(from)?;
        let script = match from {
            [one] => exchange::unpack_one(one, to)?,
            _ => exchange::unpack_into(to)?,
        };
        self.script_for(COPY, &script).map(drop)
    }

    /// Copies a file or directory of the bed, with the same meaning of `to`.
    pub fn copy_out(&self, from: &str, to: &Path) -> Result<()> {
        let exchange = Exchange::open(&self.directory)?;
        self.script_for(COPY, &exchange::pack_one(from)?)?;
        exchange.unpack(to)
    }

    /// Puts this workspace's programs, without their debugging symbols, into a directory.
    pub fn copy_build(&self, binaries: &Path, to: &str) -> Result<()> {
        let programs: Vec<_> = paths::BINARIES
            .iter()
            .map(|(_, program)| binaries.join(program))
            .collect();
        let programs: Vec<_> = programs.iter().map(PathBuf::as_path).collect();
        self.copy_programs(&programs, to)
    }

    /// Puts programs, without their debugging symbols, into a directory.
    pub fn copy_programs(&self, programs: &[&Path], to: &str) -> Result<()> {
        let stripped = TempDir::new()?;
        let mut copies = Vec::new();
        for program in programs {
            let name = program.file_name().context("a program has a name")?;
            let copy = stripped.path().join(name);
            let status = Command::new("strip")
                .arg("-o")
                .arg(&copy)
                .arg(program)
                .status()
                .context("strip (package binutils)")?;
            ensure!(status.success(), "strip {}: {status}", program.display());
            copies.push(copy);
        }
        let copies: Vec<_> = copies.iter().map(PathBuf::as_path).collect();
        self.run(&["mkdir", "-p", to])?;
        self.copy_in(&copies, to)
    }

    /// Boots again, as `reboot` does, and waits until systemd has started everything.
    pub fn reboot(&mut self) -> Result<()> {
        let before = self.boot_id()?;
        // The connection may end before the answer.
        let _cut_off = self.run(&["systemctl", "reboot"]);
        self.ssh.close();
        self.wait_for_boot(Some(&before))
    }

    fn boot_id(&self) -> Result<String> {
        self.script("cat /proc/sys/kernel/random/boot_id")
    }

    fn wait_for_boot(&mut self, before: Option<&str>) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.qemu.check()?;
            // While it shuts down the old system may still answer.
            if self.ssh.answers() && before.is_none_or(|b| self.boot_id().is_ok_and(|id| id != b)) {
                break;
            }
            self.ssh.close();
            if begun.elapsed() > BOOT {
                bail!(
                    "the bed does not answer after {} s; its console ends with:\n{}",
                    BOOT.as_secs(),
                    self.qemu.console_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        if before.is_none() {
            // The clock of a saved machine stands where it was saved.
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            self.script(&format!("date --set=@{}", now.as_secs()))?;
        }
        let left = BOOT.saturating_sub(begun.elapsed());
        let state = self.run_for(left, &["systemctl", "is-system-running", "--wait"], b"")?;
        if state.stdout.trim() != "running" {
            let failed = self.run(&["systemctl", "--failed", "--no-legend", "--plain"])?;
            bail!(
                "systemd is {}: {}",
                state.stdout.trim(),
                failed.stdout.trim()
            );
        }
        Ok(())
    }

    /// What systemd's journal has of this boot.
    pub fn journal(&self) -> Result<String> {
        self.script("journalctl --boot --no-pager --output short-monotonic")
    }

    /// What the kernel and systemd wrote to the serial console, since the machine was made.
    pub fn console(&self) -> Result<String> {
        self.qemu.console()
    }

    /// Ends the machine; what it wrote is gone.
    pub fn down(mut self) -> Result<()> {
        self.end()?;
        if self.once.is_none() {
            fs::remove_dir_all(&self.directory)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.qemu.end()?;
        self.ssh.close();
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.once.is_none() {
            return;
        }
        if let Err(error) = self.end() {
            eprintln!("the bed in {}: {error:#}", self.directory.display());
        }
    }
}

/// Makes an image if it is not there.
pub fn build(image: Image) -> Result<PathBuf> {
    Ok(built(image, Accel::Auto)?.directory().to_owned())
}

fn built(image: Image, accel: Accel) -> Result<Built> {
    packages::install(packages::BED)?;
    image::cached(image, &qemu::recipe()?, |built| {
        // KVM boots faster than this is worth.
        match uses_kvm(accel, built)? {
            true => Ok(()),
            false => save(built),
        }
    })
}

fn uses_kvm(accel: Accel, built: &Built) -> Result<bool> {
    match accel {
        Accel::Kvm => Ok(true),
        Accel::Tcg => Ok(false),
        Accel::Auto => qemu::kvm_works(built, &paths::cache().join("kvm")),
    }
}

/// Boots a new image and saves the machine, from which others then go on: a boot takes an emulated
/// machine most of a minute.
fn save(built: &Built) -> Result<()> {
    eprintln!("the bed boots, once, about a minute");
    let directory = TempDir::new_in(built.directory())?;
    let options = Options::default();
    let start = Start::ToBeSaved;
    let mut bed = start_machine(directory.path(), built, &options, false, start, Life::Owned)?;
    // Ends it when something fails below.
    bed.once = Some(Once {
        _directory: directory,
        _lock: None,
    });
    bed.wait_for_boot(None)?;
    bed.script("sync")?;
    bed.ssh.close();
    bed.qemu.save(&built.state())
}

fn start(directory: &Path, options: &Options, life: Life) -> Result<Bed> {
    let built = built(options.image, options.accel)?;
    let kvm = uses_kvm(options.accel, &built)?;
    let usual = Options::default();
    let same = (options.memory, options.cpus) == (usual.memory, usual.cpus);
    let start = match !kvm && same && built.state().exists() {
        true => Start::Saved,
        false => Start::Cold,
    };
    start_machine(directory, &built, options, kvm, start, life)
}

fn start_machine(
    directory: &Path,
    built: &Built,
    options: &Options,
    kvm: bool,
    start: Start,
    life: Life,
) -> Result<Bed> {
    // Free now; should somebody take it in between, QEMU says so and ends.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let directory = directory.canonicalize()?;
    let ssh = Ssh::configure(&directory, built, port)?;
    let machine = Machine {
        built,
        directory: &directory,
        start,
        kvm,
        memory: options.memory,
        cpus: options.cpus,
        port,
    };
    Ok(Bed {
        qemu: machine.start(life)?,
        ssh,
        directory,
        once: None,
    })
}

fn beds() -> Result<PathBuf> {
    let beds = paths::cache().join("beds");
    fs::create_dir_all(&beds)?;
    Ok(beds.canonicalize()?)
}

fn directory(name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    ensure!(
        !name.is_empty() && name.chars().all(plain) && !name.starts_with("once-"),
        "`{name}`: a bed's name is letters, digits and hyphens, not beginning with once-"
    );
    Ok(beds()?.join(name))
}

/// Removes what killed processes left; their emulators ended with them.
fn sweep(beds: &Path) -> Result<()> {
    for entry in fs::read_dir(beds)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("once-") {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_directory_of_beds() {
        for bad in ["", "a/b", "..", "once-a", "a b"] {
            assert!(directory(bad).is_err(), "{bad}");
        }
        assert!(directory("units-2").unwrap().ends_with("beds/units-2"));
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let beds = tempfile::tempdir().unwrap();
        for name in ["once-dead", "once-alive", "once-new", "named"] {
            fs::create_dir(beds.path().join(name)).unwrap();
        }
        for name in ["once-dead", "once-alive", "named"] {
            fs::write(beds.path().join(name).join(LOCK), "").unwrap();
        }
        let alive = File::open(beds.path().join("once-alive").join(LOCK)).unwrap();
        alive.lock().unwrap();
        sweep(beds.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(beds.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["named", "once-alive", "once-new"]);
    }
}
