//! Loop devices by direct ioctl.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const BLKGETDISKSEQ: libc::Ioctl = 0x8008_1280_u32 as libc::Ioctl;
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const EMPTY: LoopInfo64 = LoopInfo64 {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// A block device with a file behind it. Dropping this closes a descriptor and no more: the device
/// stays attached, because guests are mounted from it while this service is away.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    /// `/dev/loopN`.
    pub path: PathBuf,
}

/// The disk sequence number: another one means another disk behind the same node.
pub fn diskseq(device: RawFd) -> Result<i64> {
    let mut seq = 0_u64;
    // SAFETY: BLKGETDISKSEQ writes one u64 to the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(device, BLKGETDISKSEQ, &mut seq) };
    if rc < 0 {
        return Err(std::io::Error::last_os_error()).doing(|| "reading the disk sequence number");
    }
    Ok(i64::try_from(seq).unwrap_or(0))
}

fn status(device: RawFd) -> std::io::Result<LoopInfo64> {
    let mut info = EMPTY;
    // SAFETY: LOOP_GET_STATUS64 writes one loop_info64 to the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(device, LOOP_GET_STATUS64, &mut info) };
    if rc < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(info)
}

fn open_node(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
}

impl LoopDevice {
    /// The device that already has `backing` behind it, if there is one.
    /// Looks through the machine's loop devices: for start-up, not for a request's path.
    pub fn find(backing: &Path) -> Result<Option<Self>> {
        let want = match std::fs::metadata(backing) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing(|| format!("looking up {}", backing.display())),
        };
        let Ok(entries) = std::fs::read_dir("/sys/block") else {
            return Ok(None);
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else {
                continue;
            };
            if !entry.path().join("loop").exists() {
                continue;
            }
            let path = Path::new("/dev").join(name);
            let Ok(file) = open_node(&path) else { continue };
            // Inode and device, not the name: the file may have been reached by another path.
            if let Ok(info) = status(file.as_raw_fd())
                && info.inode == want.ino()
                && info.device == kernel_dev(want.dev())
            {
                return Ok(Some(Self { file, path }));
            }
        }
        Ok(None)
    }

    /// Puts `backing` behind a free device.
    pub fn attach(backing: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(backing)
            .doing(|| format!("opening {}", backing.display()))?;
        let control = open_node(Path::new("/dev/loop-control")).doing(|| "opening loop-control")?;
        // Another process may take the free device between the two calls.
        for _ in 0..64 {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(std::io::Error::last_os_error()).doing(|| "finding a free loop device");
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let node = open_node(&path).doing(|| format!("opening {}", path.display()))?;
            match configure(&node, &file, backing, LO_FLAGS_DIRECT_IO) {
                // Direct I/O keeps the pages from being cached twice; not every filesystem has it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    match configure(&node, &file, backing, 0) {
                        Ok(()) => return Ok(Self { file: node, path }),
                        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                        Err(error) => {
                            return Err(error).doing(|| format!("setting up {}", path.display()));
                        }
                    }
                }
                Ok(()) => return Ok(Self { file: node, path }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).doing(|| format!("setting up {}", path.display())),
            }
        }
        Err(Error::Unavailable("no loop device is free".into()))
    }

    /// The device's disk sequence number.
    pub fn diskseq(&self) -> Result<i64> {
        diskseq(self.file.as_raw_fd())
    }

    /// Makes the device as large as its file has become.
    pub fn grow(&self) -> Result<()> {
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_SET_CAPACITY, 0) };
        if rc < 0 {
            return Err(std::io::Error::last_os_error())
                .doing(|| format!("growing {}", self.path.display()));
        }
        Ok(())
    }

    /// Takes the file away. While something is mounted from it the kernel waits for the last user.
    pub fn detach(self) -> Result<()> {
        // SAFETY: LOOP_CLR_FD takes no argument.
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CLR_FD, 0) };
        if rc < 0 {
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENXIO) {
                return Err(error).doing(|| format!("detaching {}", self.path.display()));
            }
        }
        Ok(())
    }
}

/// `lo_device` is the kernel's own encoding of a device number ("huge": minor in two parts).
fn kernel_dev(dev: u64) -> u64 {
    let (major, minor) = (u64::from(libc::major(dev)), u64::from(libc::minor(dev)));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn configure(node: &File, file: &File, backing: &Path, flags: u32) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut info = EMPTY;
    info.flags = flags;
    let name = backing.as_os_str().as_bytes();
    let n = name.len().min(63);
    info.file_name[..n].copy_from_slice(&name[..n]);
    let config = LoopConfig {
        fd: file.as_raw_fd().unsigned_abs(),
        // 4096 lets direct I/O work on disks with large sectors and halves the requests' count.
        block_size: 4096,
        info,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one loop_config from the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(node.as_raw_fd(), LOOP_CONFIGURE, &config) };
    if rc < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
