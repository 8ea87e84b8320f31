//! From an [`Attachment`] to a detached mount: a descriptor, in nobody's mount tree.
//!
//! The monitor moves it into the guest; the instance service works beneath it on the files of a stopped
//! guest. Closing the descriptor unmounts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::{Attachment, MountAttr, Source};
use crate::sys;
use crate::sys::mount;

const STAGE: &str = "attachment";

/// Opens an attachment as a detached mount. With `userns` (a descriptor of a user namespace whose maps are
/// written) the mount is idmapped; without it the ids are those on the disk.
///
/// Host paths are looked up in the calling thread's mount namespace.
pub fn open_attachment(attachment: &Attachment, userns: Option<&OwnedFd>) -> Result<OwnedFd> {
    let tree = open_source(attachment)?;
    let attr = attr_bits(&attachment.attr);
    if attr != 0 {
        mount::set_attr(&tree, attr, 0, None, true).at(STAGE, "setting mount attributes")?;
    }
    if let Some(userns) = userns {
        idmap(&tree, userns, attachment)?;
    }
    Ok(tree)
}

/// Gives a detached mount the ids of a user namespace. Possible once per mount.
pub(crate) fn idmap(tree: &OwnedFd, userns: &OwnedFd, attachment: &Attachment) -> Result<()> {
    let recursive = matches!(
        attachment.source,
        Source::HostPath {
            recursive: true,
            ..
        }
    );
    mount::set_attr(tree, mount::ATTR_IDMAP, 0, Some(userns), recursive)
        .at(STAGE, format!("idmapping {}", describe(&attachment.source)))
}

fn describe(source: &Source) -> String {
    match source {
        Source::HostPath { path, .. } => path.clone(),
        Source::Device { path, fs_type, .. } => format!("{fs_type} on {path}"),
    }
}

fn attr_bits(attr: &MountAttr) -> u64 {
    [
        (attr.ro, mount::ATTR_RDONLY),
        (attr.nosuid, mount::ATTR_NOSUID),
        (attr.nodev, mount::ATTR_NODEV),
        (attr.noexec, mount::ATTR_NOEXEC),
    ]
    .iter()
    .filter(|(set, _)| *set)
    .fold(0, |bits, (_, bit)| bits | bit)
}

/// What is being done, for an error: a volume that is nowhere is most likely elsewhere.
fn opening(path: &str) -> String {
    let place = if std::path::Path::new(path).exists() {
        ""
    } else {
        " (not on this host: storage must be on the host of the instances)"
    };
    format!("opening {path}{place}")
}

fn open_source(attachment: &Attachment) -> Result<OwnedFd> {
    match &attachment.source {
        Source::HostPath { path, recursive } => {
            mount::clone_path(path, *recursive).at(STAGE, opening(path))
        }
        Source::Device {
            path,
            diskseq,
            fs_type,
            options,
            subpath,
        } => {
            check_device(path, *diskseq, fs_type, attachment.fs_uuid.as_deref())?;
            let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
            // A subvolume may be the default one; `subvol=` would not reach a directory below one.
            if fs_type == "btrfs" && subpath.is_some() {
                options.push("subvolid=5");
            }
            let tree = mount::new_filesystem(fs_type, Some(path), &options, 0)
                .at(STAGE, format!("mounting {fs_type} on {path}"))?;
            match subpath {
                Some(sub) => open_subpath(tree, sub),
                None => Ok(tree),
            }
        }
    }
}

/// A detached mount of what lies at `sub` in a detached mount.
fn open_subpath(tree: OwnedFd, sub: &str) -> Result<OwnedFd> {
    match clone_below(&tree, sub) {
        // Only kernels from 6.15 on clone part of a detached mount.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => clone_below_attached(tree, sub),
        other => other,
    }
    .at(STAGE, format!("taking subpath {sub:?} of a device"))
}

fn clone_below(tree: &OwnedFd, sub: &str) -> std::io::Result<OwnedFd> {
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_XDEV;
    let dir = sys::openat2(tree, sub, libc::O_PATH, 0, resolve)?;
    mount::clone_tree(&dir, "", false)
}

/// The same by way of a mount namespace that lives as long as one thread: the mount is attached
/// there and nowhere else.
fn clone_below_attached(tree: OwnedFd, sub: &str) -> std::io::Result<OwnedFd> {
    let sub = sub.to_owned();
    let work = move || {
        // SAFETY: no memory is involved; CLONE_FS first makes the thread's root its own.
        sys::check(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) })?;
        mount::propagation("/", libc::MS_PRIVATE)?;
        let root = sys::open("/", libc::O_PATH | libc::O_DIRECTORY)?;
        mount::attach(&tree, &root)?;
        clone_below(&tree, &sub)
    };
    std::thread::Builder::new()
        .spawn(work)?
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the mounting thread panicked")))
}

/// Device numbers are reused and paths are re-pointed: the disk's sequence number and the filesystem's UUID
/// say whether this still is what was meant, before anything is mounted.
fn check_device(
    path: &str,
    diskseq: Option<u64>,
    fs_type: &str,
    fs_uuid: Option<&str>,
) -> Result<()> {
    if diskseq.is_none() && fs_uuid.is_none() {
        return Ok(());
    }
    let file = std::fs::File::from(sys::open(path, libc::O_RDONLY).at(STAGE, opening(path))?);
    if let Some(wanted) = diskseq {
        const BLKGETDISKSEQ: libc::c_ulong = 0x8008_1280;
        let mut found: u64 = 0;
        // SAFETY: the ioctl writes one u64.
        sys::check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETDISKSEQ as _, &mut found) })
            .at(STAGE, format!("reading the disk sequence number of {path}"))?;
        if found != wanted {
            return Err(Fault::new(
                STAGE,
                FaultCode::State,
                format!("{path} is another disk now (sequence {found}, not {wanted})"),
            ));
        }
    }
    if let Some(wanted) = fs_uuid {
        let found = read_uuid(&file, fs_type)
            .at(STAGE, format!("reading the filesystem UUID of {path}"))?;
        let found = found.ok_or_else(|| {
            Fault::new(
                STAGE,
                FaultCode::Unsupported,
                format!("fs_uuid cannot be checked: no {fs_type} superblock known on {path}"),
            )
        })?;
        if !found.eq_ignore_ascii_case(wanted) {
            return Err(Fault::new(
                STAGE,
                FaultCode::State,
                format!("{path} holds filesystem {found}, not {wanted}"),
            ));
        }
    }
    Ok(())
}

/// UUID from the superblock; `None` when it is not this kind of filesystem, or one not known here.
fn read_uuid(file: &std::fs::File, fs_type: &str) -> std::io::Result<Option<String>> {
    let (magic_at, magic, uuid_at): (u64, &[u8], u64) = match fs_type {
        "btrfs" => (0x1_0040, b"_BHRfS_M", 0x1_0020),
        "ext2" | "ext3" | "ext4" => (0x438, &[0x53, 0xef], 0x468),
        "xfs" => (0, b"XFSB", 32),
        _ => return Ok(None),
    };
    let mut found = vec![0; magic.len()];
    file.read_exact_at(&mut found, magic_at)?;
    if found != magic {
        return Ok(None);
    }
    let mut uuid = [0; 16];
    file.read_exact_at(&mut uuid, uuid_at)?;
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_another_host_has_is_said_to_be_elsewhere() {
        assert!(opening("/nowhere/volume").contains("not on this host"));
        assert_eq!(opening("/"), "opening /");
    }

    #[test]
    fn uuids_come_from_superblocks() {
        let mut file = tempfile::tempfile().unwrap();
        let mut image = vec![0u8; 0x2_0000];
        image[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        for i in 0..16 {
            image[0x1_0020 + i] = i as u8;
        }
        file.write_all(&image).unwrap();
        let uuid = read_uuid(&file, "btrfs").unwrap();
        assert_eq!(
            uuid.as_deref(),
            Some("00010203-0405-0607-0809-0a0b0c0d0e0f")
        );
        assert_eq!(read_uuid(&file, "xfs").unwrap(), None);
        assert_eq!(read_uuid(&file, "zfs").unwrap(), None);
    }

    #[test]
    fn attributes_are_the_kernels_bits() {
        let attr = MountAttr {
            ro: true,
            noexec: true,
            ..MountAttr::default()
        };
        assert_eq!(attr_bits(&attr), 0x9);
    }

    #[test]
    fn part_of_a_mount_is_taken_on_old_and_new_kernels() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let make = || {
            let tree = mount::new_filesystem("tmpfs", None, &["mode=755"], 0).unwrap();
            for dir in ["a", "a/b"] {
                rustix::fs::mkdirat(&tree, dir, rustix::fs::Mode::RWXU).unwrap();
            }
            rustix::fs::symlinkat("a", &tree, "link").unwrap();
            tree
        };
        for take in [clone_below_attached, |tree, sub: &str| {
            clone_below(&tree, sub)
        }] {
            let part = take(make(), "a").unwrap();
            let has = |name: &str| rustix::fs::statat(&part, name, rustix::fs::AtFlags::empty());
            assert!(has("b").is_ok() && has("a").is_err());
            assert!(take(make(), "link/b").is_err());
            assert!(take(make(), "../etc").is_err());
        }
        assert!(
            !std::path::Path::new("/a/b").exists(),
            "attached outside its namespace"
        );
    }
}
