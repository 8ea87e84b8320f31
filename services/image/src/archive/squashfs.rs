//! Finds what stands at the top of a squashfs 4 and reads one small file of it.
//!
//! Reads the superblock, the root inode, the root's listing and the file's blocks: constant
//! memory, where a general reader loads every inode of the image. Offsets and lengths come from
//! the file and are all checked.

use super::ArchiveError;
use super::decompress::WINDOW;
use super::tar::{Member, MemberKind};
use std::io::{Read, Seek, SeekFrom};

const METADATA_BLOCK: usize = 8192;
/// Largest listing of the top directory that is read; an image has three or four names there.
const MAX_LISTING: u64 = 1 << 20;
const NO_FRAGMENT: u32 = u32::MAX;

/// An opened squashfs.
pub(super) struct Squashfs<R> {
    file: R,
    compressor: Compressor,
    block_size: u32,
    fragments: u32,
    root: u64,
    inode_table: u64,
    directory_table: u64,
    fragment_table: u64,
}

#[derive(Clone, Copy)]
enum Compressor {
    Gzip,
    Xz,
    Zstd,
}

/// A name at the top.
pub(super) struct TopEntry {
    pub(super) member: Member,
    inode: (u64, u16),
}

struct File {
    size: u64,
    blocks_start: u64,
    fragment: u32,
    fragment_offset: u32,
    block_sizes: Vec<u32>,
}

fn broken(what: &str) -> ArchiveError {
    ArchiveError::bad(format!("the squashfs is damaged: {what}"))
}

fn le<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ArchiveError> {
    bytes
        .get(at..at + N)
        .and_then(|slice| slice.try_into().ok())
        .ok_or_else(|| broken("a record is too short"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ArchiveError> {
    le(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ArchiveError> {
    le(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ArchiveError> {
    le(bytes, at).map(u64::from_le_bytes)
}

impl<R: Read + Seek> Squashfs<R> {
    /// Reads the superblock.
    pub(super) fn open(mut file: R) -> Result<Self, ArchiveError> {
        let mut sb = [0u8; 96];
        read_at(&mut file, 0, &mut sb)?;
        if &sb[..4] != b"hsqs" || u16_at(&sb, 28)? != 4 {
            return Err(broken("it is not version 4"));
        }
        let block_size = u32_at(&sb, 12)?;
        if !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
            return Err(broken("its block size is impossible"));
        }
        let unsupported = |name| {
            Err(ArchiveError::Unsupported(format!(
                "squashfs compressed with {name} is not supported"
            )))
        };
        let compressor = match u16_at(&sb, 20)? {
            1 => Compressor::Gzip,
            4 => Compressor::Xz,
            6 => Compressor::Zstd,
            2 => return unsupported("lzma"),
            3 => return unsupported("lzo"),
            5 => return unsupported("lz4"),
            _ => return Err(broken("its compressor is unknown")),
        };
        Ok(Self {
            compressor,
            block_size,
            fragments: u32_at(&sb, 16)?,
            root: u64_at(&sb, 32)?,
            inode_table: u64_at(&sb, 64)?,
            directory_table: u64_at(&sb, 72)?,
            fragment_table: u64_at(&sb, 80)?,
            file,
        })
    }

    /// What stands at the top.
    pub(super) fn top(&mut self) -> Result<Vec<TopEntry>, ArchiveError> {
        let root = (self.root >> 16, (self.root & 0xffff) as u16);
        let mut inode = self.metadata(self.inode_table, root)?;
        let head: [u8; 16] = inode.take(self)?;
        let (start, offset, size) = match u16_at(&head, 0)? {
            1 => {
                let rest: [u8; 16] = inode.take(self)?;
                let size = u64::from(u16_at(&rest, 8)?);
                (u32_at(&rest, 0)?, u16_at(&rest, 10)?, size)
            }
            8 => {
                let rest: [u8; 24] = inode.take(self)?;
                let size = u64::from(u32_at(&rest, 4)?);
                (u32_at(&rest, 8)?, u16_at(&rest, 18)?, size)
            }
            _ => return Err(broken("its root is not a directory")),
        };
        // The size counts `.` and `..`, which are not stored.
        let mut left = size.saturating_sub(3);
        if left > MAX_LISTING {
            return Err(ArchiveError::bad(
                "the squashfs has too many names at its top",
            ));
        }
        let mut listing = self.metadata(self.directory_table, (u64::from(start), offset))?;
        let mut out = Vec::new();
        while left > 0 {
            let header: [u8; 12] = listing.take(self)?;
            let count = u32_at(&header, 0)?.saturating_add(1);
            let inode_block = u64::from(u32_at(&header, 4)?);
            left = left.checked_sub(12).ok_or_else(|| broken("a listing"))?;
            if count > 256 {
                return Err(broken("a listing has too many entries"));
            }
            for _ in 0..count {
                let entry: [u8; 8] = listing.take(self)?;
                let length = usize::from(u16_at(&entry, 6)?) + 1;
                left = left
                    .checked_sub(8 + length as u64)
                    .ok_or_else(|| broken("a listing"))?;
                let name = listing.take_bytes(self, length)?;
                let kind = match u16_at(&entry, 4)? {
                    1 | 8 => MemberKind::Directory,
                    2 | 9 => MemberKind::File,
                    3 | 10 => MemberKind::Symlink,
                    _ => MemberKind::Other,
                };
                out.push(TopEntry {
                    inode: (inode_block, u16_at(&entry, 0)?),
                    member: Member {
                        name,
                        kind,
                        size: 0,
                    },
                });
            }
        }
        Ok(out)
    }

    /// The bytes of a regular file at the top, unless there are more than `limit`.
    pub(super) fn read(
        &mut self,
        entry: &TopEntry,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, ArchiveError> {
        let file = self.file_inode(entry.inode, limit, what)?;
        let mut out = Vec::new();
        let mut at = file.blocks_start;
        for stored in &file.block_sizes {
            let want = (file.size - out.len() as u64).min(u64::from(self.block_size));
            let want = usize::try_from(want).map_err(|_| broken("a file's size"))?;
            let data = self.data_block(at, *stored, want)?;
            if data.len() != want {
                return Err(broken("a block has the wrong length"));
            }
            out.extend_from_slice(&data);
            at = at
                .checked_add(u64::from(stored & 0x00ff_ffff))
                .ok_or_else(|| broken("an offset"))?;
        }
        if file.fragment != NO_FRAGMENT {
            let tail = usize::try_from(file.size - out.len() as u64)
                .map_err(|_| broken("a file's size"))?;
            let data = self.fragment(file.fragment)?;
            let from = file.fragment_offset as usize;
            let slice = from
                .checked_add(tail)
                .and_then(|to| data.get(from..to))
                .ok_or_else(|| broken("a fragment is too short"))?;
            out.extend_from_slice(slice);
        }
        Ok(out)
    }

    fn file_inode(&mut self, at: (u64, u16), limit: u64, what: &str) -> Result<File, ArchiveError> {
        let mut inode = self.metadata(self.inode_table, at)?;
        let head: [u8; 16] = inode.take(self)?;
        let (size, blocks_start, fragment, fragment_offset) = match u16_at(&head, 0)? {
            2 => {
                let rest: [u8; 16] = inode.take(self)?;
                let start = u64::from(u32_at(&rest, 0)?);
                let size = u64::from(u32_at(&rest, 12)?);
                (size, start, u32_at(&rest, 4)?, u32_at(&rest, 8)?)
            }
            9 => {
                let rest: [u8; 40] = inode.take(self)?;
                let (start, size) = (u64_at(&rest, 0)?, u64_at(&rest, 8)?);
                (size, start, u32_at(&rest, 28)?, u32_at(&rest, 32)?)
            }
            _ => return Err(ArchiveError::bad(format!("{what} is not a regular file"))),
        };
        if size > limit {
            return Err(ArchiveError::bad(format!(
                "{what} in the squashfs is larger than {limit} bytes"
            )));
        }
        let block = u64::from(self.block_size);
        let blocks = if fragment == NO_FRAGMENT {
            size.div_ceil(block)
        } else {
            size / block
        };
        let mut block_sizes = Vec::new();
        for _ in 0..blocks {
            block_sizes.push(u32::from_le_bytes(inode.take(self)?));
        }
        Ok(File {
            size,
            blocks_start,
            fragment,
            fragment_offset,
            block_sizes,
        })
    }

    fn fragment(&mut self, index: u32) -> Result<Vec<u8>, ArchiveError> {
        if index >= self.fragments {
            return Err(broken("a fragment that isn't there"));
        }
        let mut pointer = [0u8; 8];
        let at = self
            .fragment_table
            .checked_add(u64::from(index / 512) * 8)
            .ok_or_else(|| broken("an offset"))?;
        read_at(&mut self.file, at, &mut pointer)?;
        let offset = u16::try_from(index % 512 * 16).map_err(|_| broken("a fragment"))?;
        let mut table = self.metadata(u64::from_le_bytes(pointer), (0, offset))?;
        let entry: [u8; 16] = table.take(self)?;
        let capacity = self.block_size as usize;
        self.data_block(u64_at(&entry, 0)?, u32_at(&entry, 8)?, capacity)
    }

    /// A data block of at most `capacity` bytes; bit 24 says that it is not compressed.
    fn data_block(
        &mut self,
        at: u64,
        stored: u32,
        capacity: usize,
    ) -> Result<Vec<u8>, ArchiveError> {
        let length = (stored & 0x00ff_ffff) as usize;
        if length == 0 {
            return Ok(vec![0; capacity]);
        }
        if length > self.block_size as usize {
            return Err(broken("a block is too long"));
        }
        let mut data = vec![0u8; length];
        read_at(&mut self.file, at, &mut data)?;
        if stored & 0x0100_0000 != 0 {
            return Ok(data);
        }
        self.inflate(&data, capacity)
    }

    fn inflate(&self, data: &[u8], capacity: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut reader: Box<dyn Read + '_> = match self.compressor {
            Compressor::Gzip => Box::new(flate2::bufread::ZlibDecoder::new(data)),
            Compressor::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(WINDOW, 0)
                    .map_err(|e| ArchiveError::reading("the squashfs", e.into()))?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(data, stream))
            }
            Compressor::Zstd => Box::new(
                zstd::stream::read::Decoder::with_buffer(data)
                    .map_err(|e| ArchiveError::reading("the squashfs", e))?,
            ),
        };
        let mut out = Vec::new();
        reader
            .by_ref()
            .take(capacity as u64 + 1)
            .read_to_end(&mut out)
            .map_err(|e| ArchiveError::reading("the squashfs", e))?;
        if out.len() > capacity {
            return Err(broken("a block is longer than it may be"));
        }
        Ok(out)
    }

    /// A reader of metadata blocks from `table` on, at block offset and offset in the block.
    fn metadata(&mut self, table: u64, at: (u64, u16)) -> Result<Metadata, ArchiveError> {
        let next = table.checked_add(at.0).ok_or_else(|| broken("an offset"))?;
        let mut metadata = Metadata {
            next,
            block: Vec::new(),
            position: 0,
        };
        metadata.load(self)?;
        metadata.position = usize::from(at.1);
        if metadata.position > metadata.block.len() {
            return Err(broken("an offset is beyond its block"));
        }
        Ok(metadata)
    }
}

/// Bytes that run over a chain of metadata blocks.
struct Metadata {
    next: u64,
    block: Vec<u8>,
    position: usize,
}

impl Metadata {
    fn load<R: Read + Seek>(&mut self, fs: &mut Squashfs<R>) -> Result<(), ArchiveError> {
        let mut header = [0u8; 2];
        read_at(&mut fs.file, self.next, &mut header)?;
        let header = u16::from_le_bytes(header);
        let length = usize::from(header & 0x7fff);
        if length == 0 || length > METADATA_BLOCK {
            return Err(broken("a metadata block has an impossible length"));
        }
        let mut data = vec![0u8; length];
        let start = self
            .next
            .checked_add(2)
            .ok_or_else(|| broken("an offset"))?;
        read_at(&mut fs.file, start, &mut data)?;
        self.next = start
            .checked_add(length as u64)
            .ok_or_else(|| broken("an offset"))?;
        self.block = if header & 0x8000 == 0 {
            fs.inflate(&data, METADATA_BLOCK)?
        } else {
            data
        };
        if self.block.is_empty() {
            return Err(broken("a metadata block is empty"));
        }
        self.position = 0;
        Ok(())
    }

    fn take_bytes<R: Read + Seek>(
        &mut self,
        fs: &mut Squashfs<R>,
        count: usize,
    ) -> Result<Vec<u8>, ArchiveError> {
        let mut out = Vec::with_capacity(count);
        while out.len() < count {
            if self.position == self.block.len() {
                self.load(fs)?;
            }
            let end = self.block.len().min(self.position + count - out.len());
            out.extend_from_slice(&self.block[self.position..end]);
            self.position = end;
        }
        Ok(out)
    }

    fn take<const N: usize, R: Read + Seek>(
        &mut self,
        fs: &mut Squashfs<R>,
    ) -> Result<[u8; N], ArchiveError> {
        self.take_bytes(fs, N)?
            .try_into()
            .map_err(|_| broken("a record is too short"))
    }
}

fn read_at<R: Read + Seek>(file: &mut R, at: u64, buffer: &mut [u8]) -> Result<(), ArchiveError> {
    file.seek(SeekFrom::Start(at))
        // An offset that no file can have is the archive's fault, not the disk's.
        .map_err(|_| broken("an offset"))?;
    file.read_exact(buffer)
        .map_err(|e| ArchiveError::reading("the squashfs", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use backhand::compression::Compressor as Backhand;
    use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
    use proptest::prelude::*;
    use std::io::Cursor;

    fn build(compressor: Backhand, metadata: &[u8], others: usize) -> Vec<u8> {
        let mut writer = FilesystemWriter::default();
        writer.set_compressor(FilesystemCompressor::new(compressor, None).unwrap());
        let header = NodeHeader::default();
        writer
            .push_file(Cursor::new(metadata.to_vec()), "metadata.yaml", header)
            .unwrap();
        writer.push_dir("rootfs", header).unwrap();
        writer.push_symlink("nowhere", "templates", header).unwrap();
        for i in 0..others {
            let name = format!("other-{i:04}");
            writer
                .push_file(Cursor::new(vec![1]), name, header)
                .unwrap();
        }
        let mut out = Cursor::new(Vec::new());
        writer.write(&mut out).unwrap();
        out.into_inner()
    }

    #[test]
    fn the_top_is_listed_and_a_file_is_read() {
        // Small: in a fragment. Large: whole blocks and a tail.
        let large: Vec<u8> = (0..700_001u32).map(|i| (i % 251) as u8).collect();
        for compressor in [Backhand::Gzip, Backhand::Xz, Backhand::Zstd] {
            for (metadata, others) in [(b"hello".to_vec(), 0), (large.clone(), 900)] {
                let bytes = build(compressor, &metadata, others);
                let mut fs = Squashfs::open(Cursor::new(&bytes)).unwrap();
                let top = fs.top().unwrap();
                assert_eq!(top.len(), 3 + others);
                let find = |name: &[u8]| top.iter().find(|e| e.member.name == name).unwrap();
                assert_eq!(find(b"rootfs").member.kind, MemberKind::Directory);
                assert_eq!(find(b"templates").member.kind, MemberKind::Symlink);
                let entry = find(b"metadata.yaml");
                assert_eq!(fs.read(entry, 1 << 20, "it").unwrap(), metadata);
                let error = fs.read(entry, 4, "it").unwrap_err();
                assert!(error.to_string().contains("larger than"), "{error}");
                assert!(fs.read(find(b"rootfs"), 9, "it").is_err());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn damage_never_panics(changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
            let mut bytes = build(Backhand::Gzip, b"architecture: x86_64", 2);
            let length = bytes.len();
            for (at, to) in changes {
                // Mostly the superblock and the tables behind the data.
                bytes[usize::from(at) % length.min(700)] = to;
            }
            if let Ok(mut fs) = Squashfs::open(Cursor::new(&bytes))
                && let Ok(top) = fs.top()
            {
                for entry in &top {
                    let _ = fs.read(entry, 1 << 20, "it");
                }
            }
        }
    }
}
