//! Writing LXD's image layout: `metadata.yaml` and `rootfs/` in one tar, or apart.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use tar::{Builder, EntryType, Header};

use super::Written;

#[derive(Serialize)]
pub(super) struct Metadata {
    pub(super) architecture: &'static str,
    /// Seconds since the epoch; taken from the input, so the same packages give the same image.
    pub(super) creation_date: u64,
    pub(super) properties: BTreeMap<&'static str, &'static str>,
}

/// A root filesystem under construction, in memory or streamed from a tar.
pub(super) trait Rootfs {
    /// Adds everything, each path below `prefix` (`""` or `"rootfs/"`).
    fn append(&mut self, to: &mut Builder<&mut dyn Write>, prefix: &str) -> Result<()>;
}

/// Writes a unified image, or the metadata to `out` and a squashfs beside it.
pub(super) fn write(
    out: &Path,
    split: bool,
    metadata: &Metadata,
    rootfs: &mut dyn Rootfs,
) -> Result<Written> {
    let partial = beside(out, ".partial");
    let mut gz = GzEncoder::new(File::create(&partial)?, Compression::fast());
    {
        let mut tar = Builder::new(&mut gz as &mut dyn Write);
        let yaml = serde_yaml_ng::to_string(metadata)?;
        let mut header = header(EntryType::Regular, 0o644, metadata.creation_date);
        header.set_size(yaml.len() as u64);
        tar.append_data(&mut header, "metadata.yaml", yaml.as_bytes())?;
        if !split {
            rootfs.append(&mut tar, "rootfs/")?;
        }
        tar.finish()?;
    }
    gz.finish()?.sync_all()?;
    std::fs::rename(&partial, out)?;
    let rootfs = match split {
        true => Some(squashfs(&beside(out, ".root"), rootfs)?),
        false => None,
    };
    Ok(Written {
        image: out.to_owned(),
        rootfs,
    })
}

fn squashfs(out: &Path, rootfs: &mut dyn Rootfs) -> Result<PathBuf> {
    if out.exists() {
        std::fs::remove_file(out)?;
    }
    let mut sqfstar = Command::new("sqfstar")
        .args([
            "-quiet",
            "-no-progress",
            "-comp",
            "gzip",
            "-root-mode",
            "755",
        ])
        .arg(out)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("sqfstar (package squashfs-tools)")?;
    let mut stdin = sqfstar.stdin.take().context("sqfstar takes no input")?;
    let mut tar = Builder::new(&mut stdin as &mut dyn Write);
    let written = rootfs.append(&mut tar, "").and_then(|()| Ok(tar.finish()?));
    drop(tar);
    drop(stdin);
    let output = sqfstar.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "sqfstar: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    written?;
    Ok(out.to_owned())
}

/// A header owned by root.
pub(super) fn header(kind: EntryType, mode: u32, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(0);
    header
}

/// Re-roots an existing tar, entry by entry: paths and hard links move below the prefix,
/// symbolic links keep their text.
pub(super) struct TarFile {
    pub(super) file: PathBuf,
    pub(super) created: u64,
}

impl Rootfs for TarFile {
    fn append(&mut self, to: &mut Builder<&mut dyn Write>, prefix: &str) -> Result<()> {
        // mmdebstrap leaves the root directory out; its mode must not be left to chance.
        let mut top = header(EntryType::Directory, 0o755, self.created);
        to.append_data(
            &mut top,
            if prefix.is_empty() { "./" } else { prefix },
            std::io::empty(),
        )?;
        let file = File::open(&self.file).with_context(|| self.file.display().to_string())?;
        let mut source = tar::Archive::new(std::io::BufReader::with_capacity(1 << 20, file));
        for entry in source.entries()? {
            let mut entry = entry?;
            let Some(path) = moved(prefix, &entry.path()?) else {
                continue;
            };
            let mut header = entry.header().clone();
            let link = entry.link_name()?.map(|l| l.into_owned());
            match (header.entry_type(), link) {
                (EntryType::Link, Some(target)) => {
                    let target = moved(prefix, &target).context("hard link to the root")?;
                    to.append_link(&mut header, path, target)?;
                }
                (EntryType::Symlink, Some(target)) => to.append_link(&mut header, path, target)?,
                _ => {
                    let attributes = extended_attributes(&mut entry)?;
                    if !attributes.is_empty() {
                        let pairs = attributes.iter().map(|(k, v)| (k.as_str(), v.as_slice()));
                        to.append_pax_extensions(pairs)?;
                    }
                    to.append_data(&mut header, path, &mut entry)?;
                }
            }
        }
        Ok(())
    }
}

fn extended_attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let key = extension.key()?;
            if key.starts_with("SCHILY.xattr.") {
                found.push((key.to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(found)
}

/// Where an entry goes; `None` for the root directory itself.
fn moved(prefix: &str, path: &Path) -> Option<PathBuf> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = relative.strip_prefix(".").unwrap_or(relative);
    (!relative.as_os_str().is_empty()).then(|| Path::new(prefix).join(relative))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_is_moved_below_the_prefix_and_its_links_keep_their_meaning() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("in.tar");
        let mut tar = Builder::new(File::create(&source).unwrap());
        let long = format!("./usr/{}/file", "d".repeat(150));
        let mut regular = header(EntryType::Regular, 0o644, 7);
        regular.set_size(2);
        tar.append_data(&mut regular, &long, &b"hi"[..]).unwrap();
        let mut hard = header(EntryType::Link, 0o644, 7);
        tar.append_link(&mut hard, "./usr/hard", &long).unwrap();
        let mut soft = header(EntryType::Symlink, 0o777, 7);
        tar.append_link(&mut soft, "./lib", "usr/lib").unwrap();
        tar.finish().unwrap();

        let mut bytes = Vec::new();
        let mut out = Builder::new(&mut bytes as &mut dyn Write);
        TarFile {
            file: source,
            created: 7,
        }
        .append(&mut out, "rootfs/")
        .unwrap();
        out.finish().unwrap();
        drop(out);

        let mut archive = tar::Archive::new(bytes.as_slice());
        let seen: Vec<(String, Option<String>)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let link = entry.link_name().unwrap().map(|l| l.display().to_string());
                (entry.path().unwrap().display().to_string(), link)
            })
            .collect();
        let file = format!("rootfs/usr/{}/file", "d".repeat(150));
        assert_eq!(
            seen,
            [
                ("rootfs/".into(), None),
                (file.clone(), None),
                ("rootfs/usr/hard".into(), Some(file)),
                ("rootfs/lib".into(), Some("usr/lib".into())),
            ]
        );
    }
}
