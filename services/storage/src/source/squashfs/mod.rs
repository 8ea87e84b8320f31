//! A squashfs 4.0 reader of our own: it keeps hard links, holes and attributes, takes bounded
//! memory, and answers anything malformed with a refusal.

mod inode;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::sink::{Entry, Kind, MAX_HELD, Sink};
use crate::error::{Error, Result};

const METADATA: usize = 8192;
/// Metadata blocks kept at a time: 16 MiB.
const KEPT_BLOCKS: usize = 2048;
/// Records of one table, blocks of one file: their places in the image may be shared, so its size bounds neither.
const MAX_RECORDS: u64 = 1 << 22;
const NO_FRAGMENT: u32 = u32::MAX;
const NO_TABLE: u64 = u64::MAX;
/// Bit of a data block's size that says it isn't compressed.
const PLAIN: u32 = 1 << 24;

fn bad(what: &str) -> Error {
    Error::Archive(format!("its squashfs is malformed: {what}"))
}

fn u16_at(data: &[u8], at: usize) -> Result<u16> {
    data.get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_le_bytes)
        .ok_or_else(|| bad("it ends too early"))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32> {
    data.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or_else(|| bad("it ends too early"))
}

fn u64_at(data: &[u8], at: usize) -> Result<u64> {
    data.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map(u64::from_le_bytes)
        .ok_or_else(|| bad("it ends too early"))
}

#[derive(Debug, Clone, Copy)]
enum Compression {
    Gzip,
    Xz,
    Zstd,
}

struct Super {
    block_size: u32,
    compression: Compression,
    fragments: u32,
    ids: u16,
    root: u64,
    id_table: u64,
    xattr_table: u64,
    inode_table: u64,
    directory_table: u64,
    fragment_table: u64,
}

/// An opened image.
pub struct Squashfs {
    file: File,
    size: u64,
    head: Super,
}

struct Tables {
    ids: Vec<u32>,
    /// Start and size of each fragment block.
    fragments: Vec<(u64, u32)>,
    /// Where the values are, and one reference, count for each set of attributes.
    xattrs: Option<(u64, Vec<(u64, u32)>)>,
}

/// A place in a stream of metadata blocks.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    block: u64,
    offset: usize,
}

struct Reader<'s> {
    image: &'s Squashfs,
    blocks: HashMap<u64, (Arc<Vec<u8>>, u64)>,
    fragment: Option<(u32, Arc<Vec<u8>>)>,
    /// Names that directories may still list: each becomes an entry, and a listing that many directories share,
    /// or one that holds itself, would take memory without end.
    names_left: u64,
}

struct Inode {
    entry: Entry,
    number: u32,
    links: u32,
    directory: Option<(Cursor, usize)>,
    file: Option<FileData>,
}

struct FileData {
    start: u64,
    blocks: Vec<u32>,
    fragment: Option<(u32, u32, u32)>,
}

impl Squashfs {
    /// Reads the superblock. `size` is the blob's length.
    pub fn open(file: File, size: u64) -> Result<Self> {
        let mut data = [0_u8; 96];
        file.read_exact_at(&mut data, 0)
            .map_err(|_| bad("it ends too early"))?;
        if &data[..4] != b"hsqs" {
            return Err(bad("it has no superblock"));
        }
        if (u16_at(&data, 28)?, u16_at(&data, 30)?) != (4, 0) {
            return Err(Error::Archive(
                "its squashfs is of an unsupported version".into(),
            ));
        }
        let compression = match u16_at(&data, 20)? {
            1 => Compression::Gzip,
            4 => Compression::Xz,
            6 => Compression::Zstd,
            other => {
                let name = match other {
                    2 => "lzma",
                    3 => "lzo",
                    5 => "lz4",
                    _ => "an unknown compression",
                };
                return Err(Error::Unsupported(format!(
                    "squashfs images packed with {name} are not supported by this build"
                )));
            }
        };
        let head = Super {
            block_size: u32_at(&data, 12)?,
            compression,
            fragments: u32_at(&data, 16)?,
            ids: u16_at(&data, 26)?,
            root: u64_at(&data, 32)?,
            id_table: u64_at(&data, 48)?,
            xattr_table: u64_at(&data, 56)?,
            inode_table: u64_at(&data, 64)?,
            directory_table: u64_at(&data, 72)?,
            fragment_table: u64_at(&data, 80)?,
        };
        if !head.block_size.is_power_of_two() || !(4096..=1 << 20).contains(&head.block_size) {
            return Err(bad("its block size is wrong"));
        }
        Ok(Self { file, size, head })
    }

    /// The blob's file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of it into `sink`.
    pub fn unpack(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut reader = Reader {
            image: self,
            blocks: HashMap::new(),
            fragment: None,
            names_left: sink.max_entries(),
        };
        let tables = reader.tables()?;
        let root = reader.inode(&tables, self.head.root)?;
        let mut names: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut held = 0;
        sink.entry(&root.entry, &mut std::io::empty())?;
        let mut stack = vec![(Vec::new(), reader.children(&root)?)];
        while let Some((path, children)) = stack.last_mut() {
            let Some((name, reference)) = children.pop() else {
                stack.pop();
                continue;
            };
            let mut inode = reader.inode(&tables, reference)?;
            let mut full = path.clone();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(&name);
            inode.entry.path = full;
            if inode.directory.is_none() && inode.links > 1 {
                if let Some(first) = names.get(&inode.number) {
                    inode.entry.kind = Kind::Hardlink(first.clone());
                    sink.entry(&inode.entry, &mut std::io::empty())?;
                    continue;
                }
                held += inode.entry.path.len();
                if held > MAX_HELD {
                    return Err(bad("the paths of its hard links are too long"));
                }
                names.insert(inode.number, inode.entry.path.clone());
            }
            match inode.file.take() {
                Some(file) => {
                    let mut data = FileReader::new(&mut reader, &tables, file);
                    sink.entry(&inode.entry, &mut data)?;
                }
                None => sink.entry(&inode.entry, &mut std::io::empty())?,
            }
            if inode.directory.is_some() {
                let children = reader.children(&inode)?;
                stack.push((inode.entry.path, children));
            }
        }
        Ok(())
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let end = at
            .checked_add(length as u64)
            .filter(|end| *end <= self.size);
        if end.is_none() {
            return Err(bad("it points beyond its end"));
        }
        let mut data = vec![0_u8; length];
        self.file
            .read_exact_at(&mut data, at)
            .map_err(|_| bad("it ends too early"))?;
        Ok(data)
    }

    /// Unpacks a block that may hold at most `most` bytes.
    fn inflate(&self, packed: &[u8], most: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let limit = most as u64 + 1;
        let done = match self.head.compression {
            Compression::Gzip => flate2::read::ZlibDecoder::new(packed)
                .take(limit)
                .read_to_end(&mut out),
            Compression::Xz => liblzma::stream::Stream::new_stream_decoder(64 << 20, 0)
                .map_err(std::io::Error::from)
                .and_then(|stream| {
                    liblzma::read::XzDecoder::new_stream(packed, stream)
                        .take(limit)
                        .read_to_end(&mut out)
                }),
            Compression::Zstd => zstd::stream::read::Decoder::new(packed)
                .and_then(|decoder| decoder.take(limit).read_to_end(&mut out)),
        };
        match done {
            Ok(n) if n <= most => Ok(out),
            Ok(_) => Err(bad("a block is larger than it may be")),
            Err(_) => Err(bad("a block can't be decompressed")),
        }
    }
}

impl Reader<'_> {
    /// The metadata block at `at`, and where the next one starts.
    fn block(&mut self, at: u64) -> Result<(Arc<Vec<u8>>, u64)> {
        if let Some(found) = self.blocks.get(&at) {
            return Ok(found.clone());
        }
        let header = u16_at(&self.image.read(at, 2)?, 0)?;
        let length = usize::from(header & 0x7fff);
        let packed = self.image.read(at + 2, length)?;
        let data = if header & 0x8000 != 0 {
            packed
        } else {
            self.image.inflate(&packed, METADATA)?
        };
        if data.len() > METADATA || data.is_empty() {
            return Err(bad("a metadata block has a wrong size"));
        }
        if self.blocks.len() >= KEPT_BLOCKS {
            self.blocks.clear();
        }
        let found = (Arc::new(data), at + 2 + length as u64);
        self.blocks.insert(at, found.clone());
        Ok(found)
    }

    /// Reads on from a cursor, over as many blocks as it takes.
    fn take(&mut self, cursor: &mut Cursor, length: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(length.min(METADATA));
        while out.len() < length {
            let (data, next) = self.block(cursor.block)?;
            if cursor.offset >= data.len() {
                if cursor.offset > data.len() {
                    return Err(bad("it points beyond a block"));
                }
                *cursor = Cursor {
                    block: next,
                    offset: 0,
                };
                continue;
            }
            let n = (data.len() - cursor.offset).min(length - out.len());
            out.extend_from_slice(&data[cursor.offset..cursor.offset + n]);
            cursor.offset += n;
        }
        Ok(out)
    }

    /// A table of `count` records: pointers to metadata blocks that hold them.
    fn table(&mut self, at: u64, count: usize, record: usize) -> Result<Vec<u8>> {
        let per_block = METADATA / record;
        let blocks = count.div_ceil(per_block);
        let pointers = self.image.read(at, blocks * 8)?;
        let mut out = Vec::new();
        for i in 0..blocks {
            let mut cursor = Cursor {
                block: u64_at(&pointers, i * 8)?,
                offset: 0,
            };
            let here = (count - i * per_block).min(per_block);
            out.extend(self.take(&mut cursor, here * record)?);
        }
        Ok(out)
    }

    fn tables(&mut self) -> Result<Tables> {
        let head = &self.image.head;
        let (ids, id_table) = (usize::from(head.ids), head.id_table);
        let (fragments, fragment_table) = (head.fragments as usize, head.fragment_table);
        let xattr_table = head.xattr_table;
        let raw = self.table(id_table, ids, 4)?;
        let ids = raw
            .chunks_exact(4)
            .map(|c| u32_at(c, 0))
            .collect::<Result<_>>()?;
        let fragments = if fragment_table == NO_TABLE || fragments == 0 {
            Vec::new()
        } else {
            if fragments as u64 > MAX_RECORDS {
                return Err(bad("it has too many fragments"));
            }
            self.table(fragment_table, fragments, 16)?
                .chunks_exact(16)
                .map(|c| Ok((u64_at(c, 0)?, u32_at(c, 8)?)))
                .collect::<Result<_>>()?
        };
        let xattrs = if xattr_table == NO_TABLE {
            None
        } else {
            let head = self.image.read(xattr_table, 16)?;
            let (start, count) = (u64_at(&head, 0)?, u32_at(&head, 8)? as usize);
            if count as u64 > MAX_RECORDS {
                return Err(bad("it has too many attributes"));
            }
            let sets = self
                .table(xattr_table + 16, count, 16)?
                .chunks_exact(16)
                .map(|c| Ok((u64_at(c, 0)?, u32_at(c, 8)?)))
                .collect::<Result<_>>()?;
            Some((start, sets))
        };
        Ok(Tables {
            ids,
            fragments,
            xattrs,
        })
    }

    /// A data block of a file or a fragment.
    fn data(&self, at: u64, size: u32) -> Result<Vec<u8>> {
        let most = self.image.head.block_size as usize;
        let length = (size & !PLAIN) as usize;
        if length > most {
            return Err(bad("a data block is larger than it may be"));
        }
        let packed = self.image.read(at, length)?;
        if size & PLAIN != 0 {
            Ok(packed)
        } else {
            self.image.inflate(&packed, most)
        }
    }

    fn fragment(&mut self, tables: &Tables, index: u32) -> Result<Arc<Vec<u8>>> {
        if let Some((kept, data)) = &self.fragment
            && *kept == index
        {
            return Ok(data.clone());
        }
        let (start, size) = *tables
            .fragments
            .get(index as usize)
            .ok_or_else(|| bad("a fragment is not in its table"))?;
        let data = Arc::new(self.data(start, size)?);
        self.fragment = Some((index, data.clone()));
        Ok(data)
    }
}

/// Bytes of a file's data, holes left out.
struct FileReader<'r, 's> {
    reader: &'r mut Reader<'s>,
    tables: &'r Tables,
    file: FileData,
    next: usize,
    at: u64,
    buffer: Vec<u8>,
    given: usize,
}

impl<'r, 's> FileReader<'r, 's> {
    fn new(reader: &'r mut Reader<'s>, tables: &'r Tables, file: FileData) -> Self {
        let at = file.start;
        Self {
            reader,
            tables,
            file,
            next: 0,
            at,
            buffer: Vec::new(),
            given: 0,
        }
    }

    /// Reads the next block; false at the end.
    fn fill(&mut self) -> Result<bool> {
        self.given = 0;
        if let Some(size) = self.file.blocks.get(self.next) {
            self.buffer = self.reader.data(self.at, *size)?;
            self.at = self.at.saturating_add(u64::from(size & !PLAIN));
            self.next += 1;
            return Ok(true);
        }
        let Some((index, offset, length)) = self.file.fragment.take() else {
            return Ok(false);
        };
        let data = self.reader.fragment(self.tables, index)?;
        let (from, to) = (offset as usize, offset as usize + length as usize);
        let tail = data
            .get(from..to)
            .ok_or_else(|| bad("a fragment is too short"))?;
        self.buffer = tail.to_vec();
        Ok(true)
    }
}

impl Read for FileReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.given == self.buffer.len() {
            if !self.fill().map_err(std::io::Error::other)? {
                return Ok(0);
            }
        }
        let n = (self.buffer.len() - self.given).min(out.len());
        out[..n].copy_from_slice(&self.buffer[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}
