//! The small image: one static busybox, links to it, an init that asks for an address by DHCP.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use tar::{Builder, EntryType};

use super::Written;
use super::archive::{self, Metadata, Rootfs, header};

const BINARY: &str = "/bin/busybox";

const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/init.d", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// The shell on the console waits for Enter, so an idle guest runs init and udhcpc alone.
const INITTAB: &str = "\
::sysinit:/etc/init.d/rcS
console::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::restart:/sbin/init
";

/// In the background: a guest without a bridge, or whose bridge answers late, boots all the same.
const RCS: &str = "\
#!/bin/sh
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -t 10 -T 1 -A 5 -x hostname:$(hostname) -s /etc/udhcpc.script >/dev/null 2>&1 &
fi
";

const UDHCPC: &str = "\
#!/bin/sh
case $1 in
deconfig)
    ip -4 addr flush dev $interface
    ip link set $interface up ;;
bound|renew)
    ip -4 addr replace $ip/$mask dev $interface
    if [ -n \"$router\" ]; then
        ip -4 route replace default via ${router%% *} dev $interface
    fi
    {
        [ -n \"$domain\" ] && echo search $domain
        for server in $dns; do echo nameserver $server; done
    } >/etc/resolv.conf ;;
esac
exit 0
";

const FILES: &[(&str, u32, &str)] = &[
    (
        "etc/group",
        0o644,
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/hosts",
        0o644,
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n",
    ),
    ("etc/init.d/rcS", 0o755, RCS),
    ("etc/inittab", 0o644, INITTAB),
    (
        "etc/os-release",
        0o644,
        "NAME=BusyBox\nID=busybox\nPRETTY_NAME=\"BusyBox (Berth test image)\"\n",
    ),
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:100:user:/home:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    (
        "etc/shadow",
        0o600,
        "root:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::\n",
    ),
    ("etc/udhcpc.script", 0o755, UDHCPC),
];

pub(super) fn write(out: &Path, split: bool) -> Result<Written> {
    let built = std::fs::metadata(BINARY)
        .with_context(|| format!("{BINARY} (package busybox-static)"))?
        .modified()?
        .duration_since(UNIX_EPOCH)?
        .as_secs();
    let mut rootfs = Busybox {
        binary: std::fs::read(BINARY)?,
        applets: applets()?,
        created: built,
    };
    let metadata = Metadata {
        architecture: "x86_64",
        creation_date: built,
        properties: BTreeMap::from([
            ("architecture", "amd64"),
            ("description", "BusyBox test image (amd64)"),
            ("name", "busybox-amd64"),
            ("os", "BusyBox"),
            ("release", "static"),
            ("variant", "default"),
        ]),
    };
    archive::write(out, split, &metadata, &mut rootfs)
}

/// Changes with what the image is made from.
pub(super) fn recipe() -> Result<String> {
    let binary = std::fs::read(BINARY).with_context(|| format!("{BINARY} (busybox-static)"))?;
    let files = FILES.iter().map(|(_, _, text)| text.as_bytes());
    Ok(super::short_digest(
        &files.chain([binary.as_slice()]).collect::<Vec<_>>(),
    ))
}

/// Where busybox wants its links: `bin/sh`, `sbin/init`, …
fn applets() -> Result<BTreeSet<String>> {
    let listed = Command::new(BINARY).arg("--list-full").output()?;
    if !listed.status.success() {
        bail!("{BINARY} --list-full: {}", listed.status);
    }
    let mut applets: BTreeSet<String> = String::from_utf8(listed.stdout)?
        .lines()
        .map(str::trim)
        .filter(|line| line.contains('/') && *line != "bin/busybox")
        .map(str::to_owned)
        .collect();
    for needed in ["sbin/init", "bin/sh", "sbin/udhcpc"] {
        applets.insert(needed.to_owned());
    }
    let linked = Command::new("ldd").arg(BINARY).output().context("ldd")?;
    if linked.status.success() {
        bail!("{BINARY} is not static: install the package busybox-static");
    }
    Ok(applets)
}

struct Busybox {
    binary: Vec<u8>,
    applets: BTreeSet<String>,
    created: u64,
}

impl Rootfs for Busybox {
    fn append(&mut self, to: &mut Builder<&mut dyn Write>, prefix: &str) -> Result<()> {
        let top = if prefix.is_empty() { "./" } else { prefix };
        let mut directory = header(EntryType::Directory, 0o755, self.created);
        to.append_data(&mut directory, top, std::io::empty())?;
        for (path, mode) in DIRECTORIES {
            let mut directory = header(EntryType::Directory, *mode, self.created);
            to.append_data(&mut directory, format!("{prefix}{path}/"), std::io::empty())?;
        }
        let mut file = header(EntryType::Regular, 0o755, self.created);
        file.set_size(self.binary.len() as u64);
        to.append_data(
            &mut file,
            format!("{prefix}bin/busybox"),
            self.binary.as_slice(),
        )?;
        for applet in &self.applets {
            let up = "../".repeat(applet.matches('/').count());
            let mut link = header(EntryType::Symlink, 0o777, self.created);
            to.append_link(
                &mut link,
                format!("{prefix}{applet}"),
                format!("{up}bin/busybox"),
            )?;
        }
        for (path, mode, text) in FILES {
            let mut file = header(EntryType::Regular, *mode, self.created);
            file.set_size(text.len() as u64);
            to.append_data(&mut file, format!("{prefix}{path}"), text.as_bytes())?;
        }
        Ok(())
    }
}
