//! Puts an image's parts into an empty volume.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use super::blob::{BlobRoots, BlobSource, DigestReader, Format, Part, Whole};
use super::limits::{Limits, Meter};
use super::sink::Sink;
use super::squashfs::Squashfs;
use super::tar::TarReader;
use crate::error::{Doing, Error, Result};
use crate::host::fs::{self, open_dir_beneath};

/// An image: its fingerprint and its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// Sha256 over all parts, metadata first; lowercase hex.
    pub fingerprint: String,
    /// One unified part, or metadata and rootfs in this order.
    pub parts: Vec<BlobSource>,
}

impl ImageSource {
    /// Puts the parts in order and refuses what isn't a whole image.
    pub fn new(fingerprint: String, mut parts: Vec<BlobSource>) -> Result<Self> {
        parts.sort_by_key(|p| p.part == Part::Rootfs);
        let kinds: Vec<Part> = parts.iter().map(|p| p.part).collect();
        if !matches!(kinds[..], [Part::Unified] | [Part::Metadata, Part::Rootfs]) {
            return Err(Error::invalid(
                "image.blobs",
                "an image is one unified blob, or a metadata blob and a rootfs blob",
            ));
        }
        Ok(Self { fingerprint, parts })
    }
}

/// Decoders may want this much memory; what needs more is refused.
const DECODER_MEMORY: u64 = 256 << 20;

/// Unpacks into `top`. Blocks for as long as it takes: run it on a thread of its own, which it
/// locks up: root directory at `top`, few capabilities, low priority. The thread must end after it.
pub fn unpack(roots: &BlobRoots, limits: Limits, image: &ImageSource, top: &OwnedFd) -> Result<()> {
    // All that is outside is opened before the door shuts.
    let files: Vec<File> = image
        .parts
        .iter()
        .map(|part| roots.open(part))
        .collect::<Result<_>>()?;
    lock_up(top)?;
    let packed = image.parts.iter().map(|p| p.size).sum();
    let mut meter = Meter::new(limits, packed);
    let whole: Option<Whole> = (image.parts.len() > 1).then(|| Arc::new(Mutex::new(Sha256::new())));
    for (file, part) in files.into_iter().zip(&image.parts) {
        let root = match part.part {
            Part::Unified | Part::Metadata => reopen(top)?,
            Part::Rootfs => fs::ensure_dir(top, "rootfs", 0o755)?,
        };
        // A decoder that panics on a hostile stream refuses an image, and no more.
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            unpack_part(file, part, root, &mut meter, whole.clone())
        }))
        .unwrap_or_else(|_| Err(Error::Archive("its decoder failed".into())))?;
    }
    let fingerprint = match whole {
        Some(whole) => match whole.lock() {
            Ok(whole) => hex::encode(whole.clone().finalize()),
            Err(_) => return Err(Error::Archive("its digest could not be made".into())),
        },
        // One part: its digest was checked, and is the fingerprint.
        None => image
            .parts
            .first()
            .map(|p| p.sha256.clone())
            .unwrap_or_default(),
    };
    if fingerprint != image.fingerprint {
        return Err(Error::Archive(format!(
            "its fingerprint is {fingerprint}, not {}",
            image.fingerprint
        )));
    }
    check(top)
}

fn reopen(top: &OwnedFd) -> Result<OwnedFd> {
    rustix::fs::openat(top, ".", fs::DIRECTORY, Mode::empty()).doing(|| "opening the volume")
}

fn unpack_part(
    file: File,
    part: &BlobSource,
    root: OwnedFd,
    meter: &mut Meter,
    whole: Option<Whole>,
) -> Result<()> {
    let mut sink = Sink::new(root, part.part, meter);
    if part.format == Format::Squashfs {
        // Read at random, so digested first: through the same descriptor of a sealed blob.
        let before = rustix::fs::fstat(&file).doing(|| "reading a blob's attributes")?;
        let again = file.try_clone().doing(|| "duplicating a descriptor")?;
        DigestReader::new(file, whole).finish(part)?;
        let image = Squashfs::open(again, part.size)?;
        image.unpack(&mut sink)?;
        let after = rustix::fs::fstat(image.file()).doing(|| "reading a blob's attributes")?;
        let stamp =
            |s: &rustix::fs::Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime_nsec);
        if stamp(&before) != stamp(&after) {
            return Err(Error::Archive("it was changed while it was read".into()));
        }
        return sink.finish();
    }
    let source = DigestReader::new(file, whole);
    let source = match part.format {
        Format::Tar => tar(source, &mut sink)?,
        Format::TarGzip => {
            let decoder = flate2::bufread::MultiGzDecoder::new(buffered(source));
            tar(decoder, &mut sink)?.into_inner().into_inner()
        }
        Format::TarXz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                DECODER_MEMORY,
                liblzma::stream::CONCATENATED,
            )
            .map_err(|e| Error::Archive(format!("its decoder could not be made: {e}")))?;
            let decoder = liblzma::bufread::XzDecoder::new_stream(buffered(source), stream);
            tar(decoder, &mut sink)?.into_inner().into_inner()
        }
        Format::TarZstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered(source))
                .doing(|| "making a decoder")?;
            decoder.window_log_max(27).doing(|| "bounding a decoder")?;
            tar(decoder, &mut sink)?.finish().into_inner()
        }
        Format::TarBzip2 => {
            let decoder = bzip2::bufread::MultiBzDecoder::new(buffered(source));
            tar(decoder, &mut sink)?.into_inner().into_inner()
        }
        Format::Squashfs => return Err(Error::Archive("a squashfs is no tar".into())),
    };
    source.finish(part)?;
    sink.finish()
}

fn buffered(source: DigestReader) -> BufReader<DigestReader> {
    BufReader::with_capacity(128 * 1024, source)
}

fn tar<R: Read>(source: R, sink: &mut Sink<'_>) -> Result<R> {
    let limit = sink.stream_limit();
    let mut reader = TarReader::new(Bounded {
        inner: source,
        left: limit,
    });
    while let Some(entry) = reader.next_entry()? {
        sink.entry(&entry, &mut reader)?;
    }
    Ok(reader.into_inner().inner)
}

/// Ends a stream that is longer than an image within the limits can be: most of a bomb may stand in entries
/// that are left out, and in headers.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| std::io::Error::other("it unpacks to more than its limits allow"))?;
        Ok(n)
    }
}

/// What a volume must hold, whatever the archive said last.
fn check(top: &OwnedFd) -> Result<()> {
    open_dir_beneath(top, "rootfs")
        .map_err(|_| Error::Archive("it has no rootfs directory".into()))?;
    let metadata = rustix::fs::statat(top, "metadata.yaml", AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|_| Error::Archive("it has no metadata.yaml".into()))?;
    if fs::file_type(&metadata) != FileType::RegularFile {
        return Err(Error::Archive(
            "its metadata.yaml is not a regular file".into(),
        ));
    }
    match rustix::fs::statat(top, "templates", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if fs::file_type(&stat) != FileType::Directory => {
            Err(Error::Archive("its templates is not a directory".into()))
        }
        _ => Ok(()),
    }
}

/// Locks the calling thread up in the volume: a mistake in what follows finds no host to write to.
fn lock_up(top: &OwnedFd) -> Result<()> {
    use caps::{CapSet, Capability};
    // SAFETY: unshares the filesystem context (root, working directory, umask) of this thread from
    // the other threads; no descriptor table or memory changes hands.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
        .doing(|| "confining the unpacking thread")?;
    rustix::process::fchdir(top.as_fd()).doing(|| "entering the volume")?;
    rustix::process::chroot(".").doing(|| "confining the unpacking thread")?;
    rustix::process::umask(Mode::empty());
    low_priority();
    let keep = [
        Capability::CAP_CHOWN,
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_DAC_READ_SEARCH,
        Capability::CAP_FOWNER,
        Capability::CAP_FSETID,
        Capability::CAP_MKNOD,
        Capability::CAP_SETFCAP,
    ];
    let have = caps::read(None, CapSet::Permitted)
        .map_err(|e| Error::Unavailable(format!("reading capabilities: {e}")))?;
    let kept = keep.into_iter().filter(|c| have.contains(c)).collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept)
            .map_err(|e| Error::Unavailable(format!("dropping capabilities: {e}")))?;
    }
    Ok(())
}

/// Guests come first. A kernel without I/O priorities just unpacks at the usual one.
fn low_priority() {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    const BEST_EFFORT_LOWEST: i32 = (2 << 13) | 7;
    // SAFETY: both calls take numbers only and touch the calling thread (id 0).
    unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            BEST_EFFORT_LOWEST,
        );
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// Opens a file of a volume for reading, through no link: for tests and checks.
pub fn open_file(top: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        top,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
        fs::BENEATH,
    )
}
