//! A squashfs 4.0 reader of our own: it keeps hard links, holes and attributes, takes bounded
//! memory, and answers anything malformed with a refusal.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::sink::{Entry, Kind, Sink};
use crate::error::{Error, Result};

const METADATA: usize = 8192;
/// Metadata blocks kept at a time: 16 MiB.
const KEPT_BLOCKS: usize = 2048;
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
        };
        let tables = reader.tables()?;
        let root = reader.inode(&tables, self.head.root)?;
        let mut names: HashMap<u32, Vec<u8>> = HashMap::new();
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
            // Each takes sixteen bytes somewhere, so there can't be more than this.
            if fragments as u64 > self.image.size {
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
            if count as u64 > self.image.size {
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

    fn inode(&mut self, tables: &Tables, reference: u64) -> Result<Inode> {
        let mut cursor = Cursor {
            block: self
                .image
                .head
                .inode_table
                .checked_add(reference >> 16)
                .ok_or_else(|| bad("an inode is nowhere"))?,
            offset: (reference & 0xffff) as usize,
        };
        let head = self.take(&mut cursor, 16)?;
        let kind = u16_at(&head, 0)?;
        let owner = |at| -> Result<u32> {
            let index = usize::from(u16_at(&head, at)?);
            let id = tables.ids.get(index).copied();
            id.filter(|id| *id != u32::MAX)
                .ok_or_else(|| bad("an owner is not in its table"))
        };
        let mut inode = Inode {
            entry: Entry {
                path: Vec::new(),
                kind: Kind::Directory,
                mode: u32::from(u16_at(&head, 2)?) & 0o7777,
                uid: owner(4)?,
                gid: owner(6)?,
                mtime: (i64::from(u32_at(&head, 8)?), 0),
                xattrs: Vec::new(),
            },
            number: u32_at(&head, 12)?,
            links: 1,
            directory: None,
            file: None,
        };
        let xattr = self.body(kind, &mut inode, &mut cursor)?;
        if xattr != u32::MAX {
            inode.entry.xattrs = self.xattrs(tables, xattr)?;
        }
        Ok(inode)
    }

    /// Reads what follows an inode's head; gives the number of its set of attributes.
    fn body(&mut self, kind: u16, inode: &mut Inode, cursor: &mut Cursor) -> Result<u32> {
        let none = u32::MAX;
        match kind {
            1 => {
                let d = self.take(cursor, 16)?;
                let size = usize::from(u16_at(&d, 8)?);
                self.directory(inode, u32_at(&d, 0)?, u16_at(&d, 10)?, size)?;
                Ok(none)
            }
            8 => {
                let d = self.take(cursor, 24)?;
                let size = u32_at(&d, 4)? as usize;
                self.directory(inode, u32_at(&d, 8)?, u16_at(&d, 18)?, size)?;
                u32_at(&d, 20)
            }
            2 => {
                let d = self.take(cursor, 16)?;
                let fragment = (u32_at(&d, 4)?, u32_at(&d, 8)?);
                let (start, size) = (u64::from(u32_at(&d, 0)?), u64::from(u32_at(&d, 12)?));
                self.regular(inode, cursor, start, size, fragment)?;
                Ok(none)
            }
            9 => {
                let d = self.take(cursor, 40)?;
                inode.links = u32_at(&d, 24)?;
                let fragment = (u32_at(&d, 28)?, u32_at(&d, 32)?);
                self.regular(inode, cursor, u64_at(&d, 0)?, u64_at(&d, 8)?, fragment)?;
                u32_at(&d, 36)
            }
            3 | 10 => {
                let d = self.take(cursor, 8)?;
                inode.links = u32_at(&d, 0)?;
                let length = u32_at(&d, 4)? as usize;
                if length > 4096 {
                    return Err(bad("a link's target is too long"));
                }
                inode.entry.kind = Kind::Symlink(self.take(cursor, length)?);
                self.extended(kind == 10, cursor)
            }
            4 | 5 | 11 | 12 => {
                let d = self.take(cursor, 8)?;
                inode.links = u32_at(&d, 0)?;
                let device = u32_at(&d, 4)?;
                let major = (device & 0xf_ff00) >> 8;
                let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
                inode.entry.kind = if matches!(kind, 4 | 11) {
                    Kind::Block(major, minor)
                } else {
                    Kind::Char(major, minor)
                };
                self.extended(kind > 7, cursor)
            }
            6 | 7 | 13 | 14 => {
                inode.links = u32_at(&self.take(cursor, 4)?, 0)?;
                inode.entry.kind = if matches!(kind, 6 | 13) {
                    Kind::Fifo
                } else {
                    Kind::Socket
                };
                self.extended(kind > 7, cursor)
            }
            _ => Err(bad("an inode is of an unknown type")),
        }
    }

    fn extended(&mut self, extended: bool, cursor: &mut Cursor) -> Result<u32> {
        if extended {
            u32_at(&self.take(cursor, 4)?, 0)
        } else {
            Ok(u32::MAX)
        }
    }

    fn directory(&self, inode: &mut Inode, block: u32, offset: u16, size: usize) -> Result<()> {
        let start = self
            .image
            .head
            .directory_table
            .checked_add(u64::from(block));
        let cursor = Cursor {
            block: start.ok_or_else(|| bad("a directory is nowhere"))?,
            offset: usize::from(offset),
        };
        // An empty directory has size 3: two entries that aren't stored.
        inode.directory = Some((cursor, size.saturating_sub(3)));
        inode.links = 1;
        Ok(())
    }

    fn regular(
        &mut self,
        inode: &mut Inode,
        cursor: &mut Cursor,
        start: u64,
        size: u64,
        (fragment, offset): (u32, u32),
    ) -> Result<()> {
        let block_size = u64::from(self.image.head.block_size);
        let tail = size % block_size;
        let count = if fragment == NO_FRAGMENT {
            size.div_ceil(block_size)
        } else {
            size / block_size
        };
        // Each block's size takes four bytes even where the block is a hole.
        if count > self.image.size.saturating_mul(2048) || count > 1 << 26 {
            return Err(bad("a file has too many blocks"));
        }
        let mut blocks = Vec::new();
        for _ in 0..count {
            blocks.push(u32_at(&self.take(cursor, 4)?, 0)?);
        }
        let mut segments: Vec<(u64, u64)> = Vec::new();
        let mut add = |offset: u64, length: u64| match segments.last_mut() {
            _ if length == 0 => {}
            Some((o, l)) if *o + *l == offset => *l += length,
            _ => segments.push((offset, length)),
        };
        for (i, block) in blocks.iter().enumerate() {
            let at = i as u64 * block_size;
            if *block != 0 {
                add(at, block_size.min(size - at));
            }
        }
        let fragment = (fragment != NO_FRAGMENT && tail > 0).then_some((
            fragment,
            offset,
            u32::try_from(tail).unwrap_or(0),
        ));
        if fragment.is_some() {
            add(size - tail, tail);
        }
        inode.entry.kind = Kind::File { size, segments };
        blocks.retain(|b| *b != 0);
        inode.file = Some(FileData {
            start,
            blocks,
            fragment,
        });
        Ok(())
    }

    fn xattrs(&mut self, tables: &Tables, set: u32) -> Result<Vec<(CString, Vec<u8>)>> {
        let found = tables
            .xattrs
            .as_ref()
            .and_then(|(s, t)| Some((*s, *t.get(set as usize)?)));
        let Some((start, (reference, count))) = found else {
            return Err(bad("an inode's attributes are not in their table"));
        };
        if count > 1024 {
            return Err(bad("an inode has too many attributes"));
        }
        let at = |reference: u64| Cursor {
            block: start.saturating_add(reference >> 16),
            offset: (reference & 0xffff) as usize,
        };
        let mut cursor = at(reference);
        let mut out = Vec::new();
        for _ in 0..count {
            let head = self.take(&mut cursor, 4)?;
            let kind = u16_at(&head, 0)?;
            let prefix: &[u8] = match kind & 0xff {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                _ => return Err(bad("an attribute is of an unknown kind")),
            };
            let name = self.take(&mut cursor, usize::from(u16_at(&head, 2)?))?;
            let name = CString::new([prefix, &name].concat())
                .map_err(|_| bad("an attribute's name holds a NUL"))?;
            let length = u32_at(&self.take(&mut cursor, 4)?, 0)? as usize;
            let value = if kind & 0x100 != 0 {
                let mut away = at(u64_at(&self.take(&mut cursor, 8)?, 0)?);
                let length = u32_at(&self.take(&mut away, 4)?, 0)? as usize;
                self.value(&mut away, length)?
            } else {
                self.value(&mut cursor, length)?
            };
            out.push((name, value));
        }
        Ok(out)
    }

    fn value(&mut self, cursor: &mut Cursor, length: usize) -> Result<Vec<u8>> {
        if length > 65536 {
            return Err(bad("an attribute is too long"));
        }
        self.take(cursor, length)
    }

    /// Names in a directory and the inodes they mean, last first.
    fn children(&mut self, inode: &Inode) -> Result<Vec<(Vec<u8>, u64)>> {
        let Some((mut cursor, mut left)) = inode.directory else {
            return Ok(Vec::new());
        };
        let mut out = Vec::new();
        let spend = |left: &mut usize, n: usize| -> Result<()> {
            *left = left
                .checked_sub(n)
                .ok_or_else(|| bad("a directory ends too early"))?;
            Ok(())
        };
        while left > 0 {
            spend(&mut left, 12)?;
            let head = self.take(&mut cursor, 12)?;
            let (count, start) = (u32_at(&head, 0)?, u64::from(u32_at(&head, 4)?));
            if count >= 256 {
                return Err(bad("a directory's header is wrong"));
            }
            for _ in 0..=count {
                spend(&mut left, 8)?;
                let entry = self.take(&mut cursor, 8)?;
                let length = usize::from(u16_at(&entry, 6)?) + 1;
                if length > 256 {
                    return Err(bad("a name is too long"));
                }
                spend(&mut left, length)?;
                let name = self.take(&mut cursor, length)?;
                if name.contains(&b'/') || name == b"." || name == b".." {
                    return Err(bad("a name is a path"));
                }
                out.push((name, (start << 16) | u64::from(u16_at(&entry, 0)?)));
            }
        }
        out.reverse();
        Ok(out)
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
