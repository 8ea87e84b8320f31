//! Walks over a tar's members in a stream, in constant memory.
//!
//! Understands ustar, GNU long names and sparse files, and pax. Written here because the usual
//! crate reads GNU and pax extensions whole, however long they say they are.

use super::ArchiveError;
use std::io::Read;

const BLOCK: usize = 512;
/// Longest GNU long name or pax header that is believed.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most extension members before one real member.
const MAX_EXTENSIONS: usize = 16;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    File,
    Directory,
    Symlink,
    HardLink,
    /// Devices, fifos, sparse files and what else there is.
    Other,
}

/// A member's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Without leading `./` and trailing `/`; bytes, since names need not be UTF-8.
    pub(super) name: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) size: u64,
}

/// The walk.
pub(super) struct Walk<R> {
    reader: R,
    /// Data and padding of the current member not read yet.
    data_left: u64,
    padding: u64,
}

impl<R: Read> Walk<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            data_left: 0,
            padding: 0,
        }
    }

    /// The next member, or `None` at the end mark. What is left of the current one is skipped.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut long_name = None;
        let mut long_size = None;
        for _ in 0..MAX_EXTENSIONS {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = long_size
                .take_if(|_| !matches!(header[156], b'x' | b'g' | b'L' | b'K'))
                .map_or_else(|| number(&header[124..136]), Ok)?;
            self.set_data(size);
            match header[156] {
                b'L' => {
                    let mut name = self.read_data(MAX_EXTENSION, "a long name")?;
                    name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
                    long_name = Some(name);
                }
                b'x' => {
                    let records = self.read_data(MAX_EXTENSION, "a pax header")?;
                    let pax = Pax::parse(&records)?;
                    long_name = pax.name.or(long_name);
                    long_size = pax.size.or(long_size);
                }
                // Long link targets and global headers don't matter for what is looked for.
                b'K' | b'g' => {}
                flag => {
                    if flag == b'1' {
                        // As GNU tar reads it: a hard link has no data, whatever its size says.
                        self.set_data(0);
                    }
                    if flag == b'S' {
                        self.skip_sparse_map(&header)?;
                    }
                    let name = long_name.unwrap_or_else(|| header_name(&header));
                    return Ok(Some(Member {
                        kind: kind_of(flag, &name),
                        name: normalise(&name),
                        size,
                    }));
                }
            }
        }
        Err(ArchiveError::bad(
            "the archive has too many extension headers in a row",
        ))
    }

    /// The current member's data, unless it is longer than `limit`.
    pub(super) fn read_data(&mut self, limit: u64, what: &str) -> Result<Vec<u8>, ArchiveError> {
        if self.data_left > limit {
            return Err(ArchiveError::bad(format!(
                "{what} in the archive is larger than {limit} bytes"
            )));
        }
        let mut data = Vec::new();
        let count = (&mut self.reader)
            .take(self.data_left)
            .read_to_end(&mut data)
            .map_err(|e| ArchiveError::reading("the archive", e))?;
        if count as u64 != self.data_left {
            return Err(ends_early());
        }
        self.data_left = 0;
        Ok(data)
    }

    fn set_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let rest = self
            .data_left
            .checked_add(self.padding)
            .ok_or_else(ends_early)?;
        let count = std::io::copy(&mut (&mut self.reader).take(rest), &mut std::io::sink())
            .map_err(|e| ArchiveError::reading("the archive", e))?;
        if count != rest {
            return Err(ends_early());
        }
        self.data_left = 0;
        self.padding = 0;
        Ok(())
    }

    /// `None` at a zero block or a clean end of the stream.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let count = self
                .reader
                .read(&mut block[filled..])
                .map_err(|e| ArchiveError::reading("the archive", e))?;
            if count == 0 {
                break;
            }
            filled += count;
        }
        if filled == 0 || (filled == BLOCK && block.iter().all(|b| *b == 0)) {
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(ends_early());
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| u64::from(if (148..156).contains(&i) { b' ' } else { *b }))
            .sum();
        if number(&block[148..156])? != sum {
            return Err(ArchiveError::bad(
                "the archive is not a tar, or damaged: a header's checksum is wrong",
            ));
        }
        Ok(Some(block))
    }

    /// Old GNU sparse files carry further blocks of their map between header and data.
    fn skip_sparse_map(&mut self, header: &[u8; BLOCK]) -> Result<(), ArchiveError> {
        let mut more = header[482] != 0;
        while more {
            let mut block = [0u8; BLOCK];
            self.reader
                .read_exact(&mut block)
                .map_err(|e| ArchiveError::reading("the archive", e))?;
            more = block[504] != 0;
        }
        Ok(())
    }
}

fn ends_early() -> ArchiveError {
    ArchiveError::bad("the archive ends too early")
}

fn kind_of(flag: u8, name: &[u8]) -> MemberKind {
    match flag {
        // Before ustar, a directory was a file with a slash behind its name.
        0 | b'0' | b'7' if name.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' => MemberKind::File,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'5' => MemberKind::Directory,
        _ => MemberKind::Other,
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

fn header_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // GNU's own format uses the prefix field for times.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

fn normalise(name: &[u8]) -> Vec<u8> {
    name.split(|b| *b == b'/')
        .filter(|step| !step.is_empty() && *step != b".")
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// An octal or GNU base-256 number.
fn number(field: &[u8]) -> Result<u64, ArchiveError> {
    let bad = || ArchiveError::bad("the archive is not a tar, or damaged: a number is malformed");
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            if first & 0x40 != 0 {
                return Err(bad());
            }
            let mut value = u64::from(first & 0x3f);
            for byte in &field[1..] {
                value = value
                    .checked_mul(256)
                    .and_then(|v| v.checked_add(u64::from(*byte)))
                    .ok_or_else(bad)?;
            }
            Ok(value)
        }
        _ => {
            let mut value = 0u64;
            let text = field
                .iter()
                .skip_while(|b| **b == b' ')
                .take_while(|b| !matches!(b, 0 | b' '));
            for byte in text {
                if !(b'0'..=b'7').contains(byte) {
                    return Err(bad());
                }
                value = value
                    .checked_mul(8)
                    .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                    .ok_or_else(bad)?;
            }
            Ok(value)
        }
    }
}

#[derive(Default)]
struct Pax {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Pax {
    /// Records are `LENGTH KEY=VALUE\n`, the length counting itself.
    fn parse(mut records: &[u8]) -> Result<Self, ArchiveError> {
        let bad = || ArchiveError::bad("the archive has a malformed pax header");
        let mut pax = Self::default();
        while !records.is_empty() && records[0] != 0 {
            let space = records.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(bad)?;
            let record = records.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" if pax.name.is_none() => pax.name = Some(value.to_vec()),
                // The real name of a sparse file whose header carries a made-up one.
                b"GNU.sparse.name" => pax.name = Some(value.to_vec()),
                b"size" => {
                    let text = std::str::from_utf8(value).ok();
                    pax.size = Some(text.and_then(|t| t.parse().ok()).ok_or_else(bad)?);
                }
                _ => {}
            }
            records = &records[length..];
        }
        Ok(pax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walk(bytes: &[u8]) -> Result<Vec<Member>, ArchiveError> {
        let mut walk = Walk::new(bytes);
        let mut out = Vec::new();
        while let Some(member) = walk.next_member()? {
            out.push(member);
        }
        Ok(out)
    }

    fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    #[test]
    fn names_sizes_and_kinds_are_read() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("rootfs/{}", "d/".repeat(120));
        builder
            .append(
                &header("./metadata.yaml", tar::EntryType::Regular, 3),
                &b"abc"[..],
            )
            .unwrap();
        let mut sized = header("x", tar::EntryType::Regular, 600);
        builder
            .append_data(&mut sized, format!("{long}f"), &[7u8; 600][..])
            .unwrap();
        builder
            .append_pax_extensions([("path", "rootfs/pax".as_bytes()), ("size", b"2")])
            .unwrap();
        let mut small = header("zz", tar::EntryType::Regular, 2);
        small.set_cksum();
        builder.append(&small, &b"hi"[..]).unwrap();
        builder
            .append(
                &header("templates/", tar::EntryType::Directory, 0),
                &b""[..],
            )
            .unwrap();
        let bytes = builder.into_inner().unwrap();
        let members = walk(&bytes).unwrap();
        let names: Vec<String> = members
            .iter()
            .map(|m| String::from_utf8_lossy(&m.name).into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "metadata.yaml",
                &format!("{long}f"),
                "rootfs/pax",
                "templates"
            ]
        );
        assert_eq!(members[1].size, 600);
        assert_eq!(members[3].kind, MemberKind::Directory);
        for cut in [1, 511, 513, 700, 1600, bytes.len() - 1200] {
            assert!(walk(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn giant_extensions_are_refused_unread() {
        for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
            let mut header = header("x", kind, 1 << 40);
            header.set_cksum();
            let endless = std::io::Read::chain(&header.as_bytes()[..], std::io::repeat(b'a'));
            let error = Walk::new(endless).next_member().unwrap_err();
            assert!(error.to_string().contains("larger than"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = walk(&bytes);
        }

        #[test]
        fn a_changed_tar_never_panics(at in 0usize..4096, to: u8) {
            let mut builder = tar::Builder::new(Vec::new());
            builder.append_pax_extensions([("path", b"p".as_slice()), ("size", b"4")]).unwrap();
            builder.append(&header("a", tar::EntryType::Regular, 4), &b"1234"[..]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            let length = bytes.len();
            bytes[at % length] = to;
            let _ = walk(&bytes);
        }

        #[test]
        fn pax_junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::parse(&bytes);
        }

        #[test]
        fn any_name_comes_back(name in "[a-zé]{1,40}(/[a-z.]{1,60}){0,8}x") {
            let mut builder = tar::Builder::new(Vec::new());
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(tar::EntryType::Regular);
            h.set_size(1);
            prop_assume!(!name.split('/').any(|s| s == "." || s == ".."));
            builder.append_data(&mut h, &name, &b"x"[..]).unwrap();
            let members = walk(&builder.into_inner().unwrap()).unwrap();
            prop_assert_eq!(&members[0].name, name.as_bytes());
        }
    }
}
