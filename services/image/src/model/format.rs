//! Formats of an image's parts, told by their first bytes and never by a name.

/// Bytes from the start that [`Format::detect`] wants to see: up to the end of a tar's magic.
pub const HEAD: usize = 262;

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Plain tar.
    Tar,
    /// tar.gz.
    TarGzip,
    /// tar.xz.
    TarXz,
    /// tar.zst.
    TarZstd,
    /// tar.bz2.
    TarBzip2,
    /// squashfs 4.
    Squashfs,
    /// A virtual machine's disk.
    Qcow2,
}

/// Why the first bytes name no format that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrecognised {
    /// Known, and refused by this name.
    Unsupported(&'static str),
    /// Nothing known.
    Unknown,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] = [
        Self::Tar,
        Self::TarGzip,
        Self::TarXz,
        Self::TarZstd,
        Self::TarBzip2,
        Self::Squashfs,
        Self::Qcow2,
    ];

    /// Tells the format by its magic; give [`HEAD`] bytes, or all there are.
    pub fn detect(head: &[u8]) -> Result<Self, Unrecognised> {
        if head.starts_with(b"BZh") {
            Ok(Self::TarBzip2)
        } else if head.starts_with(&[0x1f, 0x8b]) {
            Ok(Self::TarGzip)
        } else if head.starts_with(b"\xfd7zXZ\0") {
            Ok(Self::TarXz)
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Ok(Self::TarZstd)
        } else if head.starts_with(b"hsqs") {
            Ok(Self::Squashfs)
        } else if head.starts_with(b"QFI\xfb") {
            Ok(Self::Qcow2)
        } else if head.get(257..262) == Some(b"ustar") {
            Ok(Self::Tar)
        } else if head.starts_with(&[0x5d, 0x00, 0x00]) {
            Err(Unrecognised::Unsupported("lzma (.tar.lzma)"))
        } else {
            Err(Unrecognised::Unknown)
        }
    }

    /// File extension, with its dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Tar => ".tar",
            Self::TarGzip => ".tar.gz",
            Self::TarXz => ".tar.xz",
            Self::TarZstd => ".tar.zst",
            Self::TarBzip2 => ".tar.bz2",
            Self::Squashfs => ".squashfs",
            Self::Qcow2 => ".qcow2",
        }
    }

    /// As `BlobRef.media_type` says it; also how the database keeps it.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/x-tar",
            Self::TarGzip => "application/x-tar+gzip",
            Self::TarXz => "application/x-tar+xz",
            Self::TarZstd => "application/x-tar+zstd",
            Self::TarBzip2 => "application/x-tar+bzip2",
            Self::Squashfs => "application/vnd.squashfs",
            Self::Qcow2 => "application/x-qcow2",
        }
    }

    /// The inverse of [`Self::media_type`].
    pub fn from_media_type(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.media_type() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn media_types_go_both_ways() {
        for format in Format::ALL {
            assert_eq!(Format::from_media_type(format.media_type()), Some(format));
        }
        assert_eq!(Format::from_media_type("text/plain"), None);
    }

    #[test]
    fn lzma_is_refused_by_name() {
        assert_eq!(
            Format::detect(&[0x5d, 0, 0, 0x80]),
            Err(Unrecognised::Unsupported("lzma (.tar.lzma)"))
        );
        assert_eq!(Format::detect(b""), Err(Unrecognised::Unknown));
    }

    proptest! {
        #[test]
        fn detection_never_panics(head in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Format::detect(&head);
        }
    }
}
