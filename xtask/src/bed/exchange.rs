//! Files cross in a tar that lies on a disk which both machines see: ssh under emulation carries a
//! megabyte a second on a busy machine.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

pub(super) const EXCHANGE: &str = "exchange";
/// The most that one copy may hold; what is not used takes no room.
pub(super) const SIZE: u64 = 8 << 30;

const DEVICE: &str = "/dev/disk/by-id/virtio-exchange";

/// The disk's file, for one copy at a time.
pub(super) struct Exchange {
    file: File,
    directory: PathBuf,
}

impl Exchange {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .open(directory.join(EXCHANGE))?;
        // Let go of when it is closed.
        file.lock()?;
        Ok(Self {
            file,
            directory: directory.to_owned(),
        })
    }

    /// Writes files and directories under their last names.
    pub(super) fn pack(&self, from: &[&Path]) -> Result<()> {
        self.empty()?;
        let mut tar = tar::Builder::new(BufWriter::new(&self.file));
        tar.follow_symlinks(false);
        for path in from {
            let shown = || path.display().to_string();
            // What is named itself may be a link, what is inside stays one.
            let real = path.canonicalize().with_context(shown)?;
            let name = name(path)?;
            match real.is_dir() {
                true => tar.append_dir_all(name, &real),
                false => tar.append_path_with_name(&real, name),
            }
            .with_context(shown)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    /// Takes out what the guest packed: one file or directory.
    pub(super) fn unpack(&self, to: &Path) -> Result<()> {
        let to = std::path::absolute(to)?;
        let parent = to.parent().context("a copy needs a name")?;
        fs::create_dir_all(parent)?;
        // Beside the goal, so that it is moved there and not copied.
        let unpacked = TempDir::with_prefix_in(".bed-", parent)?;
        (&self.file).rewind()?;
        let mut tar = tar::Archive::new(BufReader::new(&self.file));
        tar.unpack(unpacked.path())?;
        let mut entries = fs::read_dir(unpacked.path())?;
        let entry = entries.next().context("the guest packed nothing")??;
        let goal = match to.is_dir() {
            true => to.join(entry.file_name()),
            false => to,
        };
        fs::rename(entry.path(), &goal).with_context(|| goal.display().to_string())?;
        self.empty()
    }

    /// Gives back the room of the last copy.
    fn empty(&self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(SIZE)?;
        Ok((&self.file).rewind()?)
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({})", self.directory.display())
    }
}

fn name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.with_context(|| format!("{}: a copy needs a name", path.display()))
}

/// The guest's script that puts what was packed into a directory.
///
/// The flush is what makes the guest read the disk anew.
pub(super) fn unpack_into(to: &str) -> Result<String> {
    let to = shlex::try_quote(to)?;
    Ok(format!(
        "[ -d {to} ] || {{ echo {to} is not a directory >&2; exit 1; }}\n\
         blockdev --flushbufs {DEVICE}\n\
         tar --extract --no-same-owner --file {DEVICE} --directory {to}"
    ))
}

/// The same for one file or directory, which may get another name.
pub(super) fn unpack_one(from: &Path, to: &str) -> Result<String> {
    let (name, quoted) = (shlex::try_quote(name(from)?)?, shlex::try_quote(to)?);
    let into = unpack_into(to)?;
    Ok(format!(
        "if [ -d {quoted} ]; then\n{into}\nexit\nfi\n\
         temporary=$(mktemp -d {quoted}.XXXXXX)\n\
         blockdev --flushbufs {DEVICE}\n\
         tar --extract --no-same-owner --file {DEVICE} --directory \"$temporary\"\n\
         mv -fT \"$temporary\"/{name} {quoted}\n\
         rmdir \"$temporary\""
    ))
}

/// The guest's script that packs a file or directory.
pub(super) fn pack_one(from: &str) -> Result<String> {
    let path = Path::new(from);
    ensure!(
        path.is_absolute(),
        "{from}: a path in the bed begins with /"
    );
    let Some(parent) = path.parent().and_then(Path::to_str) else {
        bail!("{from}: a copy needs a name");
    };
    let (parent, name) = (shlex::try_quote(parent)?, shlex::try_quote(name(path)?)?);
    Ok(format!(
        "tar --create --file {DEVICE} --directory {parent} -- {name}\nblockdev --flushbufs {DEVICE}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let (bed, files) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        File::create(bed.path().join(EXCHANGE)).unwrap();
        let from = files.path().join("from");
        fs::create_dir(&from).unwrap();
        fs::write(from.join("a"), "1").unwrap();
        std::os::unix::fs::symlink("a", from.join("link")).unwrap();
        let exchange = Exchange::open(bed.path()).unwrap();
        exchange.pack(&[&from]).unwrap();
        let (new, existing) = (files.path().join("new"), files.path().join("existing"));
        exchange.unpack(&new).unwrap();
        assert_eq!(fs::read(new.join("a")).unwrap(), b"1");
        assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("a"));

        fs::create_dir(&existing).unwrap();
        exchange.pack(&[&from.join("a")]).unwrap();
        exchange.unpack(&existing).unwrap();
        assert_eq!(fs::read(existing.join("a")).unwrap(), b"1");
        assert!(exchange.pack(&[Path::new("/")]).is_err());
        assert!(exchange.pack(&[&files.path().join("missing")]).is_err());
    }

    #[test]
    fn paths_of_the_bed_are_quoted() {
        let script = unpack_one(Path::new("/a b"), "/root/c d").unwrap();
        assert!(
            script.contains("mv -fT \"$temporary\"/'a b' '/root/c d'"),
            "{script}"
        );
        assert!(pack_one("relative").is_err());
        assert!(pack_one("/").is_err());
    }
}
