//! What the monitor opens on the host before the guest exists: detached mounts only.

use std::io;
use std::os::fd::OwnedFd;

use crate::attach::{self, open_attachment};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::{DeviceNode, IdKind, Mount, NodeKind, Spec};
use crate::sys;
use crate::sys::mount;

/// Descriptors the child inherits and moves into place. The monitor closes its copies once the guest runs:
/// a mount held open here would keep its filesystem busy after the guest's end.
pub(super) struct Prepared {
    pub(super) root: OwnedFd,
    pub(super) mounts: Vec<(Mount, OwnedFd)>,
    /// (name below /dev, bind of the host's node)
    pub(super) nodes: Vec<(&'static str, OwnedFd)>,
    /// (path in the guest, bind of a node made for it)
    pub(super) devices: Vec<(String, OwnedFd)>,
    /// (path below /proc or /sys, bind of lxcfs's file)
    pub(super) lxcfs: Vec<(&'static str, OwnedFd)>,
    pub(super) dev_lxd: Option<OwnedFd>,
}

/// Name, major, minor, whether every host has it.
const NODES: [(&str, u32, u32, bool); 8] = [
    ("null", 1, 3, true),
    ("zero", 1, 5, true),
    ("full", 1, 7, true),
    ("random", 1, 8, true),
    ("urandom", 1, 9, true),
    ("tty", 5, 0, true),
    ("fuse", 10, 229, false),
    ("net/tun", 10, 200, false),
];

/// Path, whether every lxcfs has it.
const LXCFS: [(&str, bool); 9] = [
    ("proc/cpuinfo", true),
    ("proc/diskstats", true),
    ("proc/loadavg", false),
    ("proc/meminfo", true),
    ("proc/stat", true),
    ("proc/swaps", true),
    ("proc/uptime", true),
    ("proc/slabinfo", false),
    ("sys/devices/system/cpu/online", false),
];

/// Opens everything. `devices_dir` is where device nodes of the guest are made.
pub(super) fn prepare(spec: &Spec, devices_dir: &OwnedFd) -> Result<Prepared> {
    let root = open_attachment(&spec.rootfs, None)?;
    if !sys::is_dir(&root).at("rootfs", "looking at the root filesystem")? {
        return Err(Fault::new(
            "rootfs",
            FaultCode::Invalid,
            "the root filesystem is not a directory",
        ));
    }
    let mut mounts = Vec::new();
    for disk in &spec.mounts {
        match open_attachment(&disk.attachment, None) {
            Err(e)
                if disk.optional
                    && matches!(e.errno, libc::ENOENT | libc::ENODEV | libc::ENXIO) => {}
            Err(e) => {
                return Err(Fault {
                    message: format!("disk {:?}: {}", disk.name, e.message),
                    ..e
                });
            }
            Ok(tree) => mounts.push((disk.clone(), tree)),
        }
    }
    let mut devices = Vec::new();
    for device in &spec.devices {
        devices.push((device.path.clone(), device_node(spec, devices_dir, device)?));
    }
    let dev_lxd = match &spec.dev_lxd_dir {
        Some(dir) => Some(mount::clone_path(dir, false).at("devices", format!("opening {dir}"))?),
        None => None,
    };
    Ok(Prepared {
        root,
        mounts,
        nodes: host_nodes()?,
        devices,
        lxcfs: lxcfs_files(spec)?,
        dev_lxd,
    })
}

impl Prepared {
    /// Gives the mounts of raw ownership the guest's ids; possible once its maps are written.
    pub(super) fn idmap(&self, spec: &Spec, userns: &OwnedFd) -> Result<()> {
        if spec.rootfs.needs_idmap(spec.privileged) {
            attach::idmap(&self.root, userns, &spec.rootfs)?;
        }
        for (disk, tree) in &self.mounts {
            if disk.attachment.needs_idmap(spec.privileged) {
                attach::idmap(tree, userns, &disk.attachment)?;
            }
        }
        Ok(())
    }
}

fn host_nodes() -> Result<Vec<(&'static str, OwnedFd)>> {
    let mut nodes = Vec::new();
    for (name, major, minor, always) in NODES {
        let path = format!("/dev/{name}");
        let tree = match mount::clone_path(&path, false) {
            Err(e) if !always && e.kind() == io::ErrorKind::NotFound => continue,
            other => other.at("devices", format!("opening {path}"))?,
        };
        let stat = sys::fstat(&tree).at("devices", format!("looking at {path}"))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFCHR
            || stat.st_rdev != libc::makedev(major, minor)
        {
            if always {
                return Err(Fault::new(
                    "devices",
                    FaultCode::Invalid,
                    format!("{path} on the host is not device {major}:{minor}"),
                ));
            }
            continue;
        }
        nodes.push((name, tree));
    }
    Ok(nodes)
}

fn lxcfs_files(spec: &Spec) -> Result<Vec<(&'static str, OwnedFd)>> {
    let Some(dir) = &spec.lxcfs_dir else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for (path, always) in LXCFS {
        match mount::clone_path(&format!("{dir}/{path}"), false) {
            Err(e) if !always && e.kind() == io::ErrorKind::NotFound => {}
            other => files.push((path, other.at("lxcfs", format!("opening {dir}/{path}"))?)),
        }
    }
    Ok(files)
}

/// Makes the node and gives a bind of it. It is owned by the guest's ids, and the bind takes `nodev` of the
/// file system it lies on away again (run directories are mounted so).
pub(crate) fn device_node(
    spec: &Spec,
    devices_dir: &OwnedFd,
    device: &DeviceNode,
) -> Result<OwnedFd> {
    let what = |action: &str| format!("{action} device {:?}", device.name);
    let unmapped = || {
        Fault::new(
            "devices",
            FaultCode::Invalid,
            format!("device {:?}: owner is not mapped in the guest", device.name),
        )
    };
    let uid = spec.host_id(IdKind::Uid, device.uid).ok_or_else(unmapped)?;
    let gid = spec.host_id(IdKind::Gid, device.gid).ok_or_else(unmapped)?;
    let file = node_file(&device.name);
    remove_node(devices_dir, &device.name).at("devices", what("replacing"))?;
    let kind = match device.kind {
        NodeKind::Char => libc::S_IFCHR,
        NodeKind::Block => libc::S_IFBLK,
    };
    sys::mknodat(
        devices_dir,
        &file,
        kind | device.mode,
        libc::makedev(device.major, device.minor),
    )
    .at("devices", what("making"))?;
    // mknod's mode went through the umask.
    let mode = rustix::fs::Mode::from_raw_mode(device.mode);
    rustix::fs::chmodat(devices_dir, &file, mode, rustix::fs::AtFlags::empty())
        .map_err(io::Error::from)
        .at("devices", what("setting the mode of"))?;
    sys::fchownat(devices_dir, &file, uid, gid).at("devices", what("giving away"))?;
    let tree = mount::clone_tree(devices_dir, &file, false).at("devices", what("binding"))?;
    mount::set_attr(&tree, 0, mount::ATTR_NODEV, None, false).at("devices", what("allowing"))?;
    Ok(tree)
}

/// Removes the host's node of a device; one that is not there is fine.
pub(crate) fn remove_node(devices_dir: &OwnedFd, name: &str) -> io::Result<()> {
    match sys::unlinkat(devices_dir, &node_file(name), 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Device names are free text.
fn node_file(name: &str) -> String {
    name.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                (b as char).to_string()
            } else {
                format!("-{b:02x}")
            }
        })
        .collect()
}
