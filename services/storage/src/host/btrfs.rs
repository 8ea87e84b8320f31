//! btrfs by direct ioctl: subvolumes, snapshots, simple quotas and their numbers.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{Doing, Error, Result};

const IOC_SYNC: libc::Ioctl = 0x9408;
const IOC_RESIZE: libc::Ioctl = 0x5000_9403;
const IOC_SNAP_DESTROY: libc::Ioctl = 0x5000_940f;
const IOC_TREE_SEARCH_V2: libc::Ioctl = 0xc070_9411_u32 as libc::Ioctl;
const IOC_INO_LOOKUP: libc::Ioctl = 0xd000_9412_u32 as libc::Ioctl;
const IOC_SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417;
const IOC_SUBVOL_CREATE_V2: libc::Ioctl = 0x5000_9418;
const IOC_SUBVOL_GETFLAGS: libc::Ioctl = 0x8008_9419_u32 as libc::Ioctl;
const IOC_SUBVOL_SETFLAGS: libc::Ioctl = 0x4008_941a;
const IOC_FS_INFO: libc::Ioctl = 0x8400_941f_u32 as libc::Ioctl;
const IOC_QUOTA_CTL: libc::Ioctl = 0xc010_9428_u32 as libc::Ioctl;
const IOC_QGROUP_ASSIGN: libc::Ioctl = 0x4018_9429;
const IOC_QGROUP_CREATE: libc::Ioctl = 0x4010_942a;
const IOC_QGROUP_LIMIT: libc::Ioctl = 0x8030_942b_u32 as libc::Ioctl;
const IOC_SNAP_DESTROY_V2: libc::Ioctl = 0x5000_943f;

const SUBVOL_RDONLY: u64 = 1 << 1;
const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;

const QUOTA_ENABLE_SIMPLE: u64 = 4;
const QGROUP_LIMIT_MAX_RFER: u64 = 1;

const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
const ROOT_REF: u32 = 156;
const ORPHAN_ITEM: u32 = 48;
/// Holds an item for each deleted subvolume whose space isn't free yet.
const ORPHANS: u64 = (-5_i64).cast_unsigned();
const QGROUP_STATUS: u32 = 240;
const QGROUP_INFO: u32 = 242;
const FIRST_FREE_OBJECT: u64 = 256;

/// The level of the quota groups that this service makes: one for each volume, above the group that
/// the kernel makes for each subvolume. A subvolume that a guest makes joins its parent's.
const VOLUME_LEVEL: u64 = 1;

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    size: u64,
    qgroup_inherit: *const QgroupInherit,
    unused: [u64; 2],
    name: [u8; 4040],
}

#[repr(C)]
struct QgroupInherit {
    flags: u64,
    num_qgroups: u64,
    num_ref_copies: u64,
    num_excl_copies: u64,
    limit: [u64; 5],
    qgroup: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SearchKey {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    unused2: [u64; 4],
}

const SEARCH_BUFFER: usize = 64 * 1024;

#[repr(C)]
struct SearchArgs {
    key: SearchKey,
    size: u64,
    buffer: [u8; SEARCH_BUFFER],
}

#[repr(C)]
struct InoLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

fn last<T>(rc: i32, value: T) -> std::io::Result<T> {
    if rc < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

fn copy_name(into: &mut [u8], name: &str) -> std::io::Result<()> {
    // The last byte stays the terminator.
    if name.len() >= into.len() || name.len() > 255 || name.contains('\0') {
        return Err(std::io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    into[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

fn vol_args(name: &str) -> std::io::Result<Box<VolArgs>> {
    let mut args = Box::new(VolArgs {
        fd: 0,
        name: [0; 4088],
    });
    copy_name(&mut args.name, name)?;
    Ok(args)
}

fn vol_args_v2(name: &str) -> std::io::Result<Box<VolArgsV2>> {
    let mut args = Box::new(VolArgsV2 {
        fd: 0,
        transid: 0,
        flags: 0,
        size: 0,
        qgroup_inherit: std::ptr::null(),
        unused: [0; 2],
        name: [0; 4040],
    });
    copy_name(&mut args.name, name)?;
    Ok(args)
}

fn inherit(quota: Option<u32>) -> Option<Box<QgroupInherit>> {
    quota.map(|id| {
        Box::new(QgroupInherit {
            flags: 0,
            num_qgroups: 1,
            num_ref_copies: 0,
            num_excl_copies: 0,
            limit: [0; 5],
            qgroup: volume_group(id),
        })
    })
}

fn volume_group(id: u32) -> u64 {
    (VOLUME_LEVEL << 48) | u64::from(id)
}

/// Makes an empty subvolume, a member of the volume group `quota` when given.
pub fn create(parent: impl AsFd, name: &str, quota: Option<u32>) -> std::io::Result<()> {
    let mut args = vol_args_v2(name)?;
    let group = inherit(quota);
    if let Some(group) = &group {
        args.flags |= SUBVOL_QGROUP_INHERIT;
        args.size = size_of::<QgroupInherit>() as u64;
        args.qgroup_inherit = &raw const **group;
    }
    // SAFETY: SUBVOL_CREATE_V2 reads one vol_args_v2 and the group it points at; both outlive it.
    let rc = unsafe {
        libc::ioctl(
            parent.as_fd().as_raw_fd(),
            IOC_SUBVOL_CREATE_V2,
            &raw mut *args,
        )
    };
    last(rc, ())
}

/// Makes a snapshot of the one subvolume `source`, without those nested in it.
pub fn snapshot(
    source: impl AsFd,
    parent: impl AsFd,
    name: &str,
    read_only: bool,
    quota: Option<u32>,
) -> std::io::Result<()> {
    let mut args = vol_args_v2(name)?;
    args.fd = i64::from(source.as_fd().as_raw_fd());
    if read_only {
        args.flags |= SUBVOL_RDONLY;
    }
    let group = inherit(quota);
    if let Some(group) = &group {
        args.flags |= SUBVOL_QGROUP_INHERIT;
        args.size = size_of::<QgroupInherit>() as u64;
        args.qgroup_inherit = &raw const **group;
    }
    // SAFETY: SNAP_CREATE_V2 reads one vol_args_v2 and the group it points at; both outlive it.
    let rc = unsafe {
        libc::ioctl(
            parent.as_fd().as_raw_fd(),
            IOC_SNAP_CREATE_V2,
            &raw mut *args,
        )
    };
    last(rc, ())
}

/// Removes the subvolume `name`; it must not hold others.
pub fn destroy(parent: impl AsFd, name: &str) -> std::io::Result<()> {
    let mut args = vol_args(name)?;
    // SAFETY: SNAP_DESTROY reads one vol_args from the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(parent.as_fd().as_raw_fd(), IOC_SNAP_DESTROY, &raw mut *args) };
    last(rc, ())
}

/// Removes a subvolume by its id; `any` is a descriptor in the same filesystem.
pub fn destroy_id(any: impl AsFd, id: u64) -> std::io::Result<()> {
    let mut args = vol_args_v2("")?;
    args.flags = SUBVOL_SPEC_BY_ID;
    // The union's first eight bytes are the id with this flag.
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: SNAP_DESTROY_V2 reads one vol_args_v2 from the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_SNAP_DESTROY_V2, &raw mut *args) };
    last(rc, ())
}

/// Makes a subvolume read-only or writable.
pub fn set_read_only(subvolume: impl AsFd, read_only: bool) -> Result<()> {
    let fd = subvolume.as_fd().as_raw_fd();
    let mut flags = 0_u64;
    // SAFETY: SUBVOL_GETFLAGS writes one u64.
    let rc = unsafe { libc::ioctl(fd, IOC_SUBVOL_GETFLAGS, &mut flags) };
    last(rc, ()).doing(|| "reading a subvolume's flags")?;
    let want = if read_only {
        flags | SUBVOL_RDONLY
    } else {
        flags & !SUBVOL_RDONLY
    };
    if want == flags {
        return Ok(());
    }
    // SAFETY: SUBVOL_SETFLAGS reads one u64.
    let rc = unsafe { libc::ioctl(fd, IOC_SUBVOL_SETFLAGS, &want) };
    last(rc, ()).doing(|| "setting a subvolume's flags")
}

/// Id of the subvolume that holds `fd`.
pub fn subvolume_id(fd: impl AsFd) -> Result<u64> {
    Ok(ino_lookup(fd, 0, FIRST_FREE_OBJECT)
        .doing(|| "reading a subvolume's id")?
        .0)
}

/// Path of directory `object` in subvolume `tree` (0 = that of `fd`), ending with `/` unless empty.
fn ino_lookup(fd: impl AsFd, tree: u64, object: u64) -> std::io::Result<(u64, Vec<u8>)> {
    let mut args = Box::new(InoLookup {
        tree,
        object,
        name: [0; 4080],
    });
    // SAFETY: INO_LOOKUP reads and writes one ino_lookup_args, which outlives the call.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), IOC_INO_LOOKUP, &raw mut *args) };
    last(rc, ())?;
    let end = args.name.iter().position(|b| *b == 0).unwrap_or(0);
    Ok((args.tree, args.name[..end].to_vec()))
}

/// True when `fd` is the root directory of a subvolume (of the filesystem's own, too).
pub fn is_subvolume(fd: impl AsFd) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).doing(|| "reading a directory's inode")?;
    Ok(stat.st_ino == FIRST_FREE_OBJECT)
}

/// A subvolume inside another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Subvolume id.
    pub id: u64,
    /// Path in the subvolume that holds it; `None` when it is longer than the kernel will tell.
    pub path: Option<Vec<u8>>,
}

struct Item<'a> {
    offset: u64,
    data: &'a [u8],
}

fn le64(data: &[u8], at: usize) -> u64 {
    data.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn ne64(data: &[u8], at: usize) -> u64 {
    data.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_ne_bytes)
}

fn ne32(data: &[u8], at: usize) -> u32 {
    data.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// Visits the items of one object and type in key order.
fn search(
    fd: impl AsFd,
    tree: u64,
    object: u64,
    kind: u32,
    mut visit: impl FnMut(Item<'_>),
) -> std::io::Result<()> {
    const HEADER: usize = 32;
    let mut args = Box::new(SearchArgs {
        key: SearchKey::default(),
        size: SEARCH_BUFFER as u64,
        buffer: [0; SEARCH_BUFFER],
    });
    let mut from = 0_u64;
    loop {
        args.key = SearchKey {
            tree,
            min_object: object,
            max_object: object,
            min_offset: from,
            max_offset: u64::MAX,
            max_transid: u64::MAX,
            min_type: kind,
            max_type: kind,
            items: u32::MAX,
            ..SearchKey::default()
        };
        // SAFETY: TREE_SEARCH_V2 reads the key and writes at most `size` bytes to the buffer.
        let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), IOC_TREE_SEARCH_V2, &raw mut *args) };
        last(rc, ())?;
        if args.key.items == 0 {
            return Ok(());
        }
        let mut at = 0;
        for _ in 0..args.key.items {
            let header = &args.buffer[at..(at + HEADER).min(SEARCH_BUFFER)];
            let (offset, item) = (ne64(header, 16), ne32(header, 24));
            let length = ne32(header, 28) as usize;
            at += HEADER;
            let data = &args.buffer[at..(at + length).min(SEARCH_BUFFER)];
            at += length;
            from = offset;
            if item == kind {
                visit(Item { offset, data });
            }
        }
        match from.checked_add(1) {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// The subvolumes directly inside subvolume `id`; `any` is a descriptor in the filesystem.
pub fn nested(any: impl AsFd, id: u64) -> Result<Vec<Nested>> {
    let mut found = Vec::new();
    search(&any, ROOT_TREE, id, ROOT_REF, |item| {
        // struct btrfs_root_ref: dirid, sequence, name_len, name.
        let directory = le64(item.data, 0);
        let length = item
            .data
            .get(16..18)
            .map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
        let name = item.data.get(18..18 + length).unwrap_or_default().to_vec();
        found.push((item.offset, directory, name));
    })
    .doing(|| "looking for nested subvolumes")?;
    let mut out = Vec::with_capacity(found.len());
    for (child, directory, name) in found {
        let path = match ino_lookup(&any, id, directory) {
            Ok((_, mut path)) => {
                path.extend_from_slice(&name);
                Some(path)
            }
            // Its directory went away between the two calls, and so did it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => None,
            Err(error) => return Err(error).doing(|| "finding a nested subvolume's path"),
        };
        out.push(Nested { id: child, path });
    }
    Ok(out)
}

/// Writes everything out, and wakes the kernel's cleaner of deleted subvolumes.
pub fn sync(any: impl AsFd) -> Result<()> {
    // SAFETY: SYNC takes no argument.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_SYNC) };
    last(rc, ()).doing(|| "writing the filesystem out")
}

/// Deleted subvolumes whose space the kernel hasn't freed yet.
pub fn deleted_subvolumes(any: impl AsFd) -> Result<usize> {
    let mut count = 0;
    search(any, ROOT_TREE, ORPHANS, ORPHAN_ITEM, |_| count += 1)
        .doing(|| "looking for deleted subvolumes")?;
    Ok(count)
}

/// UUID of the filesystem, in the usual text form.
pub fn fs_uuid(any: impl AsFd) -> Result<String> {
    let mut info = [0_u8; 1024];
    // SAFETY: FS_INFO writes 1024 bytes.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_FS_INFO, info.as_mut_ptr()) };
    last(rc, ()).doing(|| "reading the filesystem's uuid")?;
    // max_id, num_devices, then fsid.
    let mut uuid = [0_u8; 16];
    uuid.copy_from_slice(&info[16..32]);
    Ok(uuid::Uuid::from_bytes(uuid).to_string())
}

/// Whether the filesystem keeps quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaMode {
    /// None.
    Off,
    /// Simple quotas: who wrote first pays; costs nothing when cloning.
    Simple,
    /// Full accounting of shared extents.
    Full,
}

/// Reads [`QuotaMode`].
pub fn quota_mode(any: impl AsFd) -> Result<QuotaMode> {
    let mut mode = QuotaMode::Off;
    let searched = search(any, QUOTA_TREE, 0, QGROUP_STATUS, |item| {
        // struct btrfs_qgroup_status_item: version, generation, flags.
        let flags = le64(item.data, 16);
        mode = match (flags & 1 != 0, flags & (1 << 3) != 0) {
            (false, _) => QuotaMode::Off,
            (true, true) => QuotaMode::Simple,
            (true, false) => QuotaMode::Full,
        };
    });
    match searched {
        // There is no quota tree.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(QuotaMode::Off),
        Err(error) => Err(error).doing(|| "reading the quota mode"),
        Ok(()) => Ok(mode),
    }
}

/// Turns simple quotas on.
pub fn enable_simple_quota(any: impl AsFd) -> Result<()> {
    let mut args = [QUOTA_ENABLE_SIMPLE, 0_u64];
    // SAFETY: QUOTA_CTL reads and writes two u64.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_QUOTA_CTL, &mut args) };
    last(rc, ()).doing(|| "turning on btrfs simple quotas")
}

/// Makes the volume group `id`; one that is there already is fine.
pub fn create_group(any: impl AsFd, id: u32) -> Result<()> {
    match qgroup_create(any, 1, id) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.doing(|| "making a quota group"),
    }
}

/// Makes subvolume `subvolume` a member of the volume group `id`; being one already is fine.
pub fn join_group(any: impl AsFd, subvolume: u64, id: u32) -> Result<()> {
    let args = [1, subvolume, volume_group(id)];
    // SAFETY: QGROUP_ASSIGN reads three u64.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_QGROUP_ASSIGN, &args) };
    match last(rc, ()) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.doing(|| "joining a quota group"),
    }
}

/// Removes the volume group `id`. False while subvolumes still belong to it.
pub fn remove_group(any: impl AsFd, id: u32) -> Result<bool> {
    match qgroup_create(any, 0, id) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(error).doing(|| "removing a quota group"),
    }
}

fn qgroup_create(any: impl AsFd, create: u64, id: u32) -> std::io::Result<()> {
    let args = [create, volume_group(id)];
    // SAFETY: QGROUP_CREATE reads two u64.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_QGROUP_CREATE, &args) };
    last(rc, ())
}

/// Limits what the volume group `id` may hold; `None` lifts the limit.
pub fn set_group_limit(any: impl AsFd, id: u32, bytes: Option<u64>) -> Result<()> {
    // u64::MAX is how the kernel is told to clear a limit.
    let args = [
        volume_group(id),
        QGROUP_LIMIT_MAX_RFER,
        bytes.unwrap_or(u64::MAX),
        0,
        0,
        0,
    ];
    // SAFETY: QGROUP_LIMIT reads one qgroup_limit_args, 48 bytes.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_QGROUP_LIMIT, &args) };
    last(rc, ()).doing(|| "setting a btrfs quota")
}

/// Bytes of every volume group, by its id: one search for all.
/// The numbers are those of the last transaction, at most half a minute old.
pub fn group_usage(any: impl AsFd) -> Result<Vec<(u32, u64)>> {
    let mut out = Vec::new();
    let searched = search(any, QUOTA_TREE, 0, QGROUP_INFO, |item| {
        if item.offset >> 48 == VOLUME_LEVEL
            && let Ok(id) = u32::try_from(item.offset & ((1 << 48) - 1))
        {
            // struct btrfs_qgroup_info_item: generation, rfer, ...
            out.push((id, le64(item.data, 8)));
        }
    });
    match searched {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(out),
        Err(error) => Err(error).doing(|| "reading btrfs quotas"),
        Ok(()) => Ok(out),
    }
}

/// Grows the filesystem to its device's size.
pub fn resize_to_device(any: impl AsFd) -> Result<()> {
    let mut args = vol_args("max").map_err(|e| Error::io("growing btrfs", e))?;
    // SAFETY: RESIZE reads one vol_args from the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), IOC_RESIZE, &raw mut *args) };
    last(rc, ()).doing(|| "growing btrfs")
}

/// Opens the subvolume at `path` (of any bytes) inside `dir`, through no link.
pub fn open_nested(dir: impl AsFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        dir,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        super::fs::BENEATH,
    )
}
