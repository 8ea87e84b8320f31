//! Where archives are unpacked, with something beside it that must not change.
#![allow(unreachable_pub, reason = "shared within a test")]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::support::{Archive, sha256};
use berth_storage::error::Error;
use berth_storage::host;
use berth_storage::source::{
    BlobRoots, BlobSource, Format, ImageSource, Limits, Location, Part, unpack,
};

/// A place to unpack into, with something beside it that must not change.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub canary: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("volume")).expect("a directory");
        std::fs::create_dir(dir.path().join("blobs")).expect("a directory");
        let canary = dir.path().join("canary");
        std::fs::write(&canary, "untouched").expect("a file");
        Self { dir, canary }
    }

    pub fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    pub fn blob(&self, name: &str, bytes: &[u8], format: Format, part: Part) -> BlobSource {
        let path = self.dir.path().join("blobs").join(name);
        std::fs::write(&path, bytes).expect("a blob");
        BlobSource {
            location: Location::Path(path),
            sha256: sha256(bytes),
            size: bytes.len() as u64,
            format,
            part,
        }
    }

    pub fn roots(&self) -> BlobRoots {
        BlobRoots::new(vec![self.dir.path().join("blobs")])
    }

    /// As the service: on a thread that ends with it.
    pub fn unpack(&self, image: ImageSource, limits: Limits) -> Result<(), Error> {
        let top: OwnedFd = host::fs::open_admin_dir(&self.volume()).expect("open");
        let roots = self.roots();
        let done = std::thread::spawn(move || unpack(&roots, limits, &image, &top))
            .join()
            .expect("the thread doesn't panic");
        // The thread was locked up; this one must not be.
        assert!(Path::new("/proc/self").exists());
        assert_eq!(
            std::fs::read_to_string(&self.canary).expect("canary"),
            "untouched"
        );
        let names: Vec<_> = std::fs::read_dir(self.dir.path()).expect("list").collect();
        assert_eq!(
            names.len(),
            3,
            "something was made beside the volume: {names:?}"
        );
        done
    }

    pub fn unified(&self, bytes: &[u8], format: Format) -> Result<(), Error> {
        let blob = self.blob("image", bytes, format, Part::Unified);
        let image = ImageSource::new(blob.sha256.clone(), vec![blob]).expect("an image");
        self.unpack(image, Limits::default())
    }
}

pub fn refused(archive: &mut Archive) -> String {
    let place = Place::new();
    let error = place
        .unified(&archive.end(), Format::Tar)
        .expect_err("this must be refused");
    assert!(
        matches!(error, Error::Archive(_) | Error::Unsupported(_)),
        "{error:?}"
    );
    error.to_string()
}

pub fn taken(archive: &mut Archive) -> Place {
    let place = Place::new();
    place
        .unified(&archive.end(), Format::Tar)
        .expect("this is a good image");
    place
}

pub fn pack(bytes: &[u8], format: Format) -> Vec<u8> {
    match format {
        Format::TarGzip => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(bytes).expect("write");
            to.finish().expect("packed")
        }
        Format::TarXz => {
            let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
            to.write_all(bytes).expect("write");
            to.finish().expect("packed")
        }
        Format::TarZstd => zstd::encode_all(bytes, 1).expect("packed"),
        Format::TarBzip2 => {
            let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            to.write_all(bytes).expect("write");
            to.finish().expect("packed")
        }
        Format::Tar | Format::Squashfs => bytes.to_vec(),
    }
}
