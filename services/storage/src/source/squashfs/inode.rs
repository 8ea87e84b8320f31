//! Inodes, directories and attributes of a squashfs.

use std::ffi::CString;

use super::{
    Cursor, FileData, Inode, MAX_RECORDS, NO_FRAGMENT, Reader, Tables, bad, u16_at, u32_at, u64_at,
};
use crate::error::Result;
use crate::source::sink::{Entry, Kind};

impl Reader<'_> {
    pub(super) fn inode(&mut self, tables: &Tables, reference: u64) -> Result<Inode> {
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
        if count > self.image.size.saturating_mul(2048) || count > MAX_RECORDS {
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
    pub(super) fn children(&mut self, inode: &Inode) -> Result<Vec<(Vec<u8>, u64)>> {
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
                self.names_left = self
                    .names_left
                    .checked_sub(1)
                    .ok_or_else(|| bad("its directories list too many names"))?;
                out.push((name, (start << 16) | u64::from(u16_at(&entry, 0)?)));
            }
        }
        out.reverse();
        Ok(out)
    }
}
