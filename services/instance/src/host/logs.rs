//! Log files of one instance's directory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// The monitor's log under the name that LXD's clients ask for.
const ALIASES: [(&str, &str); 1] = [("lxc.log", "monitor.log")];

fn real_name(name: &str) -> &str {
    ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name, |(_, real)| real)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/') && !name.contains('\0')
}

fn directory(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

/// Names of the files, sorted; none when there is no directory yet.
pub fn list(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            let alias = ALIASES
                .iter()
                .find(|(_, real)| *real == name)
                .map(|(alias, _)| *alias);
            names.push(alias.map_or(name, str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// Opens one of the files for reading.
pub fn open(dir: &Path, name: &str) -> io::Result<File> {
    if !is_plain(name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(directory(dir)?, real_name(name), flags, Mode::empty())?;
    Ok(File::from(fd))
}

/// Removes one of the files; the monitor's own are written on and stay.
pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
    if !is_plain(name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = rustix::fs::AtFlags::empty();
    Ok(rustix::fs::unlinkat(
        directory(dir)?,
        real_name(name),
        flags,
    )?)
}

/// Makes a file empty that may be there.
pub fn truncate(dir: &Path, name: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::TRUNC;
    let opened =
        directory(dir).and_then(|dir| Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?));
    match opened {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_listed_and_nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("monitor.log"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), ["lxc.log"]);
        assert!(open(dir.path(), "lxc.log").is_ok());
        for bad in ["link", "../etc/passwd", "", ".", ".."] {
            assert!(open(dir.path(), bad).is_err(), "{bad}");
        }
        remove(dir.path(), "lxc.log").unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
        assert!(list(&dir.path().join("none")).unwrap().is_empty());
    }
}
