//! A bed with Berth installed from its packages, and what can be seen of it from outside.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use xtask::bed::{Bed, Done, Image, Options};
use xtask::sandbox::{SERVICES, paths};

use crate::server::image_file;
use crate::wait;

/// Under emulation, on a machine with other work.
const SLOW: Duration = Duration::from_secs(300);

pub struct Machine {
    bed: Bed,
    packages: Vec<PathBuf>,
}

/// Everything that a package, a guest or a service might leave, one line each.
pub type Traces = BTreeSet<String>;

impl Machine {
    /// A freshly installed Debian, with the packages of this build and an image beside them.
    pub fn fresh(packages: Vec<PathBuf>) -> Self {
        let options = Options {
            image: Image::Plain,
            ..Options::default()
        };
        let bed = Bed::boot(&options).unwrap();
        let machine = Self { bed, packages };
        machine.sh("mkdir /root/berth");
        let files: Vec<_> = machine.packages.iter().map(PathBuf::as_path).collect();
        machine.bed.copy_in(&files, "/root/berth").unwrap();
        let image = image_file(crate::Image::Debian);
        machine
            .bed
            .copy_in(&[&image], "/root/debian.tar.gz")
            .unwrap();
        machine
    }

    pub fn bed(&mut self) -> &mut Bed {
        &mut self.bed
    }

    /// What a script that must succeed prints.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        match self.bed.script_for(SLOW, script) {
            Ok(printed) => printed.trim_end().to_owned(),
            Err(error) => panic!("{error:#}"),
        }
    }

    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> Done {
        self.bed.run_for(SLOW, argv, b"").unwrap()
    }

    /// The stock `lxc` of the machine.
    #[track_caller]
    pub fn lxc(&self, args: &[&str]) -> String {
        let argv = ["env", "LXD_SOCKET=/var/lib/berth/unix.socket", "lxc"];
        let done = self.run(&[&argv, args].concat());
        let (out, err) = (&done.stdout, &done.stderr);
        assert_eq!(done.code, 0, "lxc {}: {err}{out}", args.join(" "));
        out.trim_end().to_owned()
    }

    /// A script in a guest.
    #[track_caller]
    pub fn inside(&self, guest: &str, script: &str) -> String {
        self.lxc(&["exec", guest, "--", "sh", "-c", script])
    }

    /// The pid of a guest's init, on the machine.
    #[track_caller]
    pub fn init_of(&self, guest: &str) -> String {
        let state = self.lxc(&["query", &format!("/1.0/instances/{guest}/state")]);
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        let pid = state["pid"].as_i64().unwrap();
        assert!(pid > 1, "{guest} does not run: {state}");
        pid.to_string()
    }

    /// Waits for a script to succeed.
    #[track_caller]
    pub fn until(&self, what: &str, script: &str) -> String {
        wait::until(what, SLOW, || {
            let done = self.run(&["sh", "-euc", script]);
            match done.code {
                0 => Ok(done.stdout.trim_end().to_owned()),
                _ => Err(format!("{}{}", done.stdout, done.stderr)),
            }
        })
    }

    /// Waits until systemd in a guest has started everything; returns its address.
    #[track_caller]
    pub fn wait_for_guest(&self, guest: &str) -> String {
        let lxc = "LXD_SOCKET=/var/lib/berth/unix.socket lxc";
        self.until(
            "systemd in the guest",
            &format!(
                "s=$({lxc} exec {guest} -- systemctl is-system-running --wait) || :\n\
                 [ \"$s\" = running ] || {{ echo \"$s\"; {lxc} exec {guest} -- systemctl --failed; exit 1; }}"
            ),
        );
        self.until(
            "an address by DHCP",
            &format!("{lxc} list {guest} --format csv -c 4 | grep -o '^[0-9.]* (eth0)'"),
        )
    }

    /// Waits until all five services are serving, as systemd and the API see it.
    #[track_caller]
    pub fn wait_for_services(&self) {
        let units: Vec<_> = SERVICES
            .iter()
            .map(|s| format!("berth-{s}.service"))
            .collect();
        self.until(
            "five active services",
            &format!("systemctl is-active {}", units.join(" ")),
        );
        self.until(
            "an answer",
            "LXD_SOCKET=/var/lib/berth/unix.socket timeout 60 lxc list --format csv",
        );
    }

    /// What the machine has that is not Debian's own doing.
    #[track_caller]
    pub fn traces(&self) -> Traces {
        self.sh(TRACES).lines().map(str::to_owned).collect()
    }

    /// The journal and the console, where whoever reads the failure finds them.
    fn keep_logs(&self) {
        let name = std::thread::current()
            .name()
            .unwrap_or("main")
            .replace("::", "-");
        let kept = paths::target().join("e2e-logs").join(name);
        let keep = || -> anyhow::Result<()> {
            std::fs::create_dir_all(&kept)?;
            std::fs::write(kept.join("console"), self.bed.console()?)?;
            std::fs::write(kept.join("journal"), self.bed.journal()?)?;
            Ok(())
        };
        match keep() {
            Ok(()) => eprintln!("logs are in {}", kept.display()),
            Err(error) => eprintln!("not all logs are in {}: {error:#}", kept.display()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
    }
}

/// The lines that came and those that went.
pub fn difference(before: &Traces, after: &Traces) -> Vec<String> {
    let came = after.difference(before).map(|line| format!("+ {line}"));
    let went = before.difference(after).map(|line| format!("- {line}"));
    went.chain(came).collect()
}

/// What logs, caches and dpkg's own records hold is nobody's trace. Cgroups are those of units that
/// stay; systemd makes and removes others as it likes.
const TRACES: &str = r#"
for f in passwd group shadow gshadow subuid subgid; do sed "s|^|$f |" /etc/$f; done
ls /sys/class/net | sed 's/^/link /'
ip -br addr | tr -s ' ' | sed 's/^/address /'
findmnt -rno TARGET,FSTYPE | sed 's/^/mount /'
nft list ruleset | sed 's/^/nft /'
find /sys/fs/cgroup -type d -iname '*berth*' | sed 's/^/cgroup /'
losetup --list --noheadings --output NAME,BACK-FILE | sed 's/^/loop /'
systemctl list-unit-files --no-legend --no-pager | tr -s ' ' | sed 's/^/unit-file /'
systemctl list-units --all --no-legend --no-pager --plain 'berth*' | tr -s ' ' | sed 's/^/unit /'
ps -e -o uid=,comm= --ppid 2 --deselect | grep -vE ' (ps|sh|sed|timeout|sshd|grep|tr|sleep|systemd-timedat|systemd-hostnam|\(sd-pam\)|\(udev-worker\))$' | sed 's/^ */process /'
cat /sys/kernel/security/apparmor/profiles | sed 's/^/profile /'
sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding | sed 's/^/forwarding /'
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp \
    -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt \
    -o -path /var/local/repo -o -path /root \) -prune -o -printf 'file %p %y\n' \
    | grep -vE '^file /(run|var/lib)/systemd/|\.cache |/ld.so.cache|/__pycache__'
find /run -xdev -iname '*berth*' -printf 'file %p %y\n'
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_came_and_what_went() {
        let of = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect();
        let (before, after) = (of(&["link lo", "link a"]), of(&["link lo", "user b"]));
        assert_eq!(difference(&before, &after), ["- link a", "+ user b"]);
        assert!(difference(&before, &before).is_empty());
    }
}
