//! What an uploaded image is: container or virtual machine, and what its metadata says.

use super::squashfs::Squashfs;
use super::tar::{Member, MemberKind, Walk};
use super::{ArchiveError, decompress, detect};
use crate::model::{Format, Kind, Metadata, format, metadata};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// The result of looking at an upload.
#[derive(Debug)]
pub struct Inspected {
    /// What it makes.
    pub kind: Kind,
    /// metadata.yaml.
    pub metadata: Metadata,
    /// One for each part, in the parts' order.
    pub formats: Vec<Format>,
}

/// Looks at an image in one file. Blocks; reads no further than it must.
pub fn inspect_unified(file: &mut File) -> Result<Inspected, ArchiveError> {
    let format = detect_file("the image", file)?;
    if format == Format::Qcow2 {
        return Err(ArchiveError::bad(
            "the image is a bare disk without metadata.yaml; send it as the rootfs of a split image",
        ));
    }
    let mut found = Found::default();
    found.search("the image", file, format, true)?;
    let kind = found
        .rootfs
        .ok_or_else(|| ArchiveError::bad("the image holds neither rootfs/ nor rootfs.img"))?;
    Ok(Inspected {
        kind,
        metadata: found.metadata("the image")?,
        formats: vec![format],
    })
}

/// Looks at an image in two files: metadata, and the root filesystem or disk.
pub fn inspect_split(meta: &mut File, rootfs: &mut File) -> Result<Inspected, ArchiveError> {
    let meta_format = detect_file("the metadata part", meta)?;
    if meta_format == Format::Qcow2 {
        return Err(ArchiveError::bad(
            "the metadata part is a disk, not an archive",
        ));
    }
    let rootfs_format = detect_file("the rootfs part", rootfs)?;
    let mut found = Found::default();
    found.search("the metadata part", meta, meta_format, false)?;
    Ok(Inspected {
        kind: if rootfs_format == Format::Qcow2 {
            Kind::VirtualMachine
        } else {
            Kind::Container
        },
        metadata: found.metadata("the metadata part")?,
        formats: vec![meta_format, rootfs_format],
    })
}

fn detect_file(what: &str, file: &mut File) -> Result<Format, ArchiveError> {
    let mut head = Vec::with_capacity(format::HEAD);
    file.seek(SeekFrom::Start(0)).map_err(ArchiveError::Io)?;
    file.take(format::HEAD as u64)
        .read_to_end(&mut head)
        .map_err(ArchiveError::Io)?;
    if head.is_empty() {
        return Err(ArchiveError::bad(format!("{what} is empty")));
    }
    let format = detect(what, &head)?;
    file.seek(SeekFrom::Start(0)).map_err(ArchiveError::Io)?;
    Ok(format)
}

#[derive(Default)]
struct Found {
    yaml: Option<Vec<u8>>,
    rootfs: Option<Kind>,
}

impl Found {
    fn search(
        &mut self,
        what: &str,
        file: &mut File,
        format: Format,
        needs_rootfs: bool,
    ) -> Result<(), ArchiveError> {
        const YAML: &str = "metadata.yaml";
        let limit = metadata::MAX_SIZE as u64;
        if format == Format::Squashfs {
            let mut fs = Squashfs::open(BufReader::new(file))?;
            for entry in fs.top()? {
                if self.note(what, &entry.member)? {
                    self.yaml = Some(fs.read(&entry, limit, YAML)?);
                }
            }
            return Ok(());
        }
        let stored = file.metadata().map_err(ArchiveError::Io)?.len();
        let input = BufReader::with_capacity(128 << 10, file);
        let mut walk = Walk::new(decompress::tar_reader(format, input, stored)?);
        while let Some(member) = walk.next_member()? {
            if self.note(what, &member)? {
                self.yaml = Some(walk.read_data(limit, YAML)?);
            }
            if self.yaml.is_some() && (self.rootfs.is_some() || !needs_rootfs) {
                break;
            }
        }
        Ok(())
    }

    /// Looks at one name; true when it is the metadata.yaml to read.
    fn note(&mut self, what: &str, member: &Member) -> Result<bool, ArchiveError> {
        let mut steps = member.name.split(|b| *b == b'/');
        let (Some(first), more) = (steps.next(), steps.next().is_some()) else {
            return Ok(false);
        };
        // A link here would make whoever unpacks or reads the image follow it.
        let must_be = |kind: MemberKind, noun: &str| {
            if member.kind == kind {
                Ok(())
            } else {
                Err(ArchiveError::bad(format!(
                    "{} in {what} is not a {noun}",
                    String::from_utf8_lossy(&member.name)
                )))
            }
        };
        match first {
            b"metadata.yaml" if !more => {
                must_be(MemberKind::File, "regular file")?;
                return Ok(self.yaml.is_none());
            }
            b"templates" if !more => must_be(MemberKind::Directory, "directory")?,
            b"rootfs" => {
                if !more {
                    must_be(MemberKind::Directory, "directory")?;
                }
                self.rootfs.get_or_insert(Kind::Container);
            }
            b"rootfs.img" if !more => {
                must_be(MemberKind::File, "regular file")?;
                self.rootfs.get_or_insert(Kind::VirtualMachine);
            }
            _ => {}
        }
        Ok(false)
    }

    fn metadata(self, what: &str) -> Result<Metadata, ArchiveError> {
        let yaml = self
            .yaml
            .ok_or_else(|| ArchiveError::bad(format!("{what} has no metadata.yaml")))?;
        Metadata::parse(&yaml).map_err(ArchiveError::Bad)
    }
}
