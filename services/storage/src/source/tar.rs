//! A tar reader of our own: the streams come from strangers, so every length in them is bounded
//! before memory is taken, and what is ambiguous between readers is refused.
//! Knows ustar, GNU (long names, sparse files) and pax (0.1 and 1.0 sparse files, attributes).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read;

use super::sink::{Entry, Kind, read_error};
use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// Bytes of one extended header, and of all that stand before one entry.
const MAX_EXTENDED: u64 = 1 << 20;
/// Bytes of all global headers together: every entry carries them.
const MAX_GLOBAL: usize = 64 << 10;
/// Pieces of one sparse file.
const MAX_SEGMENTS: usize = 1 << 18;

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads entries one after another.
pub struct TarReader<R> {
    inner: R,
    /// Bytes of the present entry's data that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    globals: Records,
}

fn bad(what: impl Into<String>) -> Error {
    Error::Archive(what.into())
}

/// A number in a header: octal text, or binary with the top bit set.
fn number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
            if value.unsigned_abs() > u128::from(u64::MAX) {
                return Err(bad("a number in a header is too large"));
            }
        }
        return i64::try_from(value).map_err(|_| bad("a number in a header is too large"));
    }
    let text: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|b| *b == b' ')
        .take_while(|b| *b != 0 && *b != b' ')
        .collect();
    if text.is_empty() {
        return Ok(0);
    }
    std::str::from_utf8(&text)
        .ok()
        .filter(|t| t.bytes().all(|b| (b'0'..=b'7').contains(&b)))
        .and_then(|t| i64::from_str_radix(t, 8).ok())
        .ok_or_else(|| bad("a header holds something that is not a number"))
}

fn size_field(field: &[u8]) -> Result<u64> {
    u64::try_from(number(field)?).map_err(|_| bad("a header holds a negative size"))
}

fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|b| *b != 0).collect()
}

fn decimal(value: &[u8]) -> Result<u64> {
    std::str::from_utf8(value)
        .ok()
        .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| bad("an extended header holds something that is not a number"))
}

fn id(value: u64) -> Result<u32> {
    // u32::MAX means "leave alone" to chown.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| bad("an owner's number is too large"))
}

/// Seconds with an optional sign and fraction.
fn time(value: &[u8]) -> Result<(i64, u32)> {
    let wrong = || bad("an extended header holds something that is not a time");
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let nanos: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = nanos.parse().map_err(|_| wrong())?;
    if text.starts_with('-') && nanos > 0 {
        return Ok((seconds.saturating_sub(1), 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

/// Records of a pax header: `<length> <key>=<value>\n`.
fn records(mut data: &[u8], into: &mut Records) -> Result<()> {
    let wrong = || bad("an extended header is malformed");
    while !data.is_empty() {
        if data.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let blank = data.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
        let length = usize::try_from(decimal(&data[..blank])?).map_err(|_| wrong())?;
        let record = data.get(blank + 1..length).ok_or_else(wrong)?;
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            return Err(bad(
                "it holds a sparse file of pax version 0.0, which is not supported",
            ));
        }
        into.insert(key.to_vec(), value.to_vec());
        data = &data[length..];
    }
    Ok(())
}

/// What extended headers say about the entry that follows them.
#[derive(Default)]
struct Ahead {
    pax: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl<R: Read> TarReader<R> {
    /// Starts at the archive's first block.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
            globals: Records::new(),
        }
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; its data are read from `self` until the following call.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut ahead = Ahead::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = size_field(&header[124..136])?;
            match header[156] {
                b'x' => {
                    let data = self.extended(size, &mut ahead)?;
                    records(&data, &mut ahead.pax)?;
                }
                b'g' => {
                    let data = self.extended(size, &mut ahead)?;
                    records(&data, &mut self.globals)?;
                    let held: usize = self.globals.iter().map(|(k, v)| k.len() + v.len()).sum();
                    if held > MAX_GLOBAL {
                        return Err(bad("its global headers are too large"));
                    }
                }
                b'L' => ahead.long_name = Some(text(&self.extended(size, &mut ahead)?)),
                b'K' => ahead.long_link = Some(text(&self.extended(size, &mut ahead)?)),
                // A volume's label: of tapes.
                b'V' => {
                    self.left = 0;
                    self.padding = 0;
                }
                _ => return self.entry(&header, size, ahead).map(Some),
            }
        }
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0_u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..]).map_err(read_error)? {
                0 if have == 0 => return Ok(None),
                0 => return Err(bad("it ends too early")),
                n => have += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let stored = number(&block[148..156])?;
        let sum = |signed: bool| -> i64 {
            block
                .iter()
                .enumerate()
                .map(|(i, b)| match i {
                    148..156 => i64::from(b' '),
                    _ if signed => i64::from(b.cast_signed()),
                    _ => i64::from(*b),
                })
                .sum()
        };
        if stored != sum(false) && stored != sum(true) {
            return Err(bad(
                "a header's checksum is wrong: it is no tar archive, or a broken one",
            ));
        }
        Ok(Some(block))
    }

    fn extended(&mut self, size: u64, ahead: &mut Ahead) -> Result<Vec<u8>> {
        ahead.bytes = ahead.bytes.saturating_add(size);
        if size > MAX_EXTENDED || ahead.bytes > MAX_EXTENDED {
            return Err(bad("an extended header is too large"));
        }
        self.begin(size);
        let mut data = vec![0_u8; usize::try_from(size).unwrap_or(0)];
        self.read_exact(&mut data).map_err(read_error)?;
        Ok(data)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<()> {
        let mut rest = self.left.saturating_add(self.padding);
        let mut buffer = [0_u8; 16 * 1024];
        while rest > 0 {
            let want = usize::try_from(rest)
                .unwrap_or(buffer.len())
                .min(buffer.len());
            self.inner
                .read_exact(&mut buffer[..want])
                .map_err(read_error)?;
            rest -= want as u64;
        }
        self.left = 0;
        self.padding = 0;
        Ok(())
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, ahead: Ahead) -> Result<Entry> {
        let mut pax = self.globals.clone();
        pax.extend(ahead.pax);
        let get = |key: &str| pax.get(key.as_bytes());
        let size = get("size").map_or(Ok(size), |v| decimal(v))?;
        let path = match (get("path"), ahead.long_name) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path,
            (None, None) => {
                let name = text(&header[..100]);
                let prefix = text(&header[345..500]);
                // GNU headers use those bytes for something else.
                if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
                    [&prefix[..], b"/", &name].concat()
                } else {
                    name
                }
            }
        };
        let link = match (get("linkpath"), ahead.long_link) {
            (Some(link), _) => link.clone(),
            (None, Some(link)) => link,
            (None, None) => text(&header[157..257]),
        };
        let header_id = |range: std::ops::Range<usize>| size_field(&header[range]);
        let mut entry = Entry {
            path,
            kind: Kind::Directory,
            mode: u32::try_from(number(&header[100..108])? & 0o7777).unwrap_or(0),
            uid: id(get("uid").map_or_else(|| header_id(108..116), |v| decimal(v))?)?,
            gid: id(get("gid").map_or_else(|| header_id(116..124), |v| decimal(v))?)?,
            mtime: get("mtime").map_or_else(|| Ok((number(&header[136..148])?, 0)), |v| time(v))?,
            xattrs: xattrs(&pax)?,
        };
        let device = || -> Result<(u32, u32)> {
            let part = |range| {
                u32::try_from(number(&header[range])?).map_err(|_| bad("a device number is wrong"))
            };
            Ok((part(329..337)?, part(337..345)?))
        };
        let kind = header[156];
        let plain = matches!(kind, b'0' | 0 | b'7' | b'S');
        if !plain && size > 0 {
            return Err(bad(format!(
                "entry {:?} has data though it is no file",
                entry.shown()
            )));
        }
        self.begin(size);
        entry.kind = match kind {
            0 if entry.path.last() == Some(&b'/') => Kind::Directory,
            b'0' | 0 | b'7' => self.file(&mut entry.path, size, &pax)?,
            b'S' => self.gnu_sparse(header)?,
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::Char(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(bad(format!(
                    "entry {:?} is of type {:?}, which is not supported",
                    entry.shown(),
                    char::from(other)
                )));
            }
        };
        Ok(entry)
    }

    fn file(&mut self, path: &mut Vec<u8>, size: u64, pax: &Records) -> Result<Kind> {
        let get = |key: &str| pax.get(key.as_bytes());
        if let Some(name) = get("GNU.sparse.name") {
            path.clone_from(name);
        }
        if let Some(major) = get("GNU.sparse.major") {
            let minor = get("GNU.sparse.minor").map_or(&b"0"[..], |v| v);
            if (&major[..], minor) != (b"1", b"0") {
                return Err(bad("it holds a sparse file of an unknown version"));
            }
            let real =
                get("GNU.sparse.realsize").ok_or_else(|| bad("a sparse file has no size"))?;
            let real = decimal(real)?;
            let map = self.sparse_map()?;
            return self.sparse(real, map);
        }
        if let Some(map) = get("GNU.sparse.map") {
            let real = get("GNU.sparse.size").ok_or_else(|| bad("a sparse file has no size"))?;
            let real = decimal(real)?;
            let numbers: Vec<u64> = map
                .split(|b| *b == b',')
                .map(decimal)
                .collect::<Result<_>>()?;
            return self.sparse(real, pairs(&numbers)?);
        }
        let segments = if size > 0 {
            vec![(0, size)]
        } else {
            Vec::new()
        };
        Ok(Kind::File { size, segments })
    }

    /// The map at the head of a pax 1.0 sparse file: decimal lines, padded to a block.
    fn sparse_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut taken = 0_usize;
        let mut line = |this: &mut Self| -> Result<u64> {
            let mut digits = Vec::new();
            loop {
                let mut byte = [0_u8];
                this.read_exact(&mut byte).map_err(read_error)?;
                taken += 1;
                match byte[0] {
                    b'\n' => return decimal(&digits),
                    b if digits.len() < 20 => digits.push(b),
                    _ => return Err(bad("a sparse file's map is malformed")),
                }
            }
        };
        let count = usize::try_from(line(self)?).unwrap_or(usize::MAX);
        if count > MAX_SEGMENTS {
            return Err(bad("a sparse file has too many pieces"));
        }
        let mut numbers = Vec::new();
        for _ in 0..count * 2 {
            numbers.push(line(self)?);
        }
        let mut padding = [0_u8; BLOCK];
        let rest = (BLOCK - taken % BLOCK) % BLOCK;
        self.read_exact(&mut padding[..rest]).map_err(read_error)?;
        pairs(&numbers)
    }

    fn gnu_sparse(&mut self, header: &[u8; BLOCK]) -> Result<Kind> {
        let mut map = Vec::new();
        let mut take = |table: &[u8]| -> Result<()> {
            for pair in table.chunks_exact(24) {
                if pair[0] == 0 {
                    break;
                }
                map.push((size_field(&pair[..12])?, size_field(&pair[12..])?));
            }
            if map.len() > MAX_SEGMENTS {
                return Err(bad("a sparse file has too many pieces"));
            }
            Ok(())
        };
        take(&header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0_u8; BLOCK];
            self.inner.read_exact(&mut block).map_err(read_error)?;
            take(&block[..504])?;
            more = block[504] != 0;
        }
        self.sparse(size_field(&header[483..495])?, map)
    }

    /// Checks a map: in order, inside the file, and exactly the data that follow.
    fn sparse(&self, size: u64, mut map: Vec<(u64, u64)>) -> Result<Kind> {
        map.retain(|(_, length)| *length > 0);
        let (mut end, mut data) = (0_u64, 0_u64);
        for (offset, length) in &map {
            let next = offset.checked_add(*length).filter(|n| *n <= size);
            let (Some(next), true) = (next, *offset >= end) else {
                return Err(bad("a sparse file's map is malformed"));
            };
            end = next;
            data += length;
        }
        if data > self.left {
            return Err(bad("a sparse file's map is longer than its data"));
        }
        Ok(Kind::File {
            size,
            segments: map,
        })
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>> {
    if !numbers.len().is_multiple_of(2) || numbers.len() > MAX_SEGMENTS * 2 {
        return Err(bad("a sparse file's map is malformed"));
    }
    Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

fn xattrs(pax: &Records) -> Result<Vec<(CString, Vec<u8>)>> {
    let mut out = Vec::new();
    for (key, value) in pax {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            let name = CString::new(name).map_err(|_| bad("an attribute's name holds a NUL"))?;
            out.push((name, value.clone()));
        }
    }
    Ok(out)
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let n = self.inner.read(&mut buffer[..want])?;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(b"12x4\0").is_err());
        assert!(number(&[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert!(time(b"1e9").is_err());
    }

    #[test]
    fn records_must_add_up() {
        let mut into = Records::new();
        records(b"12 path=ab\nc\n", &mut into).unwrap_err();
        records(b"11 path=ab\n", &mut into).unwrap();
        assert_eq!(into.get(&b"path"[..]), Some(&b"ab".to_vec()));
        for wrong in [
            &b"99 path=ab\n"[..],
            b"path",
            b"3 a\n",
            b"-1 a=b\n",
            b"0 a=b\n",
        ] {
            assert!(records(wrong, &mut into).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let mut reader = TarReader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next_entry() {}
        }

        #[test]
        fn any_header_with_a_right_checksum_is_answered(
            mut block in proptest::collection::vec(any::<u8>(), 512..=512),
            kind in proptest::sample::select(b"01234567SxgLKV\0Z".to_vec()),
            rest in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            block[156] = kind;
            block[124..136].copy_from_slice(b"00000000777\0");
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            block.extend(rest);
            let mut reader = TarReader::new(&block[..]);
            while let Ok(Some(_)) = reader.next_entry() {}
        }
    }
}
