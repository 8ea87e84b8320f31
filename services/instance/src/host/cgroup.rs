//! Removing what a dead monitor left in the cgroup hierarchies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_monitor::MONITORS;

/// Tasks that were killed leave their group a little later.
const PATIENCE: Duration = Duration::from_secs(2);

/// Mount points of every cgroup hierarchy, v1 and v2.
pub fn hierarchies() -> io::Result<Vec<PathBuf>> {
    Ok(parse_mountinfo(&fs::read_to_string(
        "/proc/self/mountinfo",
    )?))
}

fn parse_mountinfo(text: &str) -> Vec<PathBuf> {
    let mut points = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if !matches!(right.split(' ').next(), Some("cgroup" | "cgroup2")) {
            continue;
        }
        let mut fields = left.split(' ').skip(3);
        // Only whole hierarchies: a bind of a part would hide where we are.
        if let (Some("/"), Some(point)) = (fields.next(), fields.next()) {
            points.push(PathBuf::from(point));
        }
    }
    points
}

/// Kills what is in `<parent>/<name>` of every hierarchy and removes the directories.
pub fn remove(parent: &str, name: &str) -> io::Result<()> {
    let groups: Vec<PathBuf> = hierarchies()?
        .into_iter()
        .map(|point| point.join(parent).join(name))
        .filter(|group| group.is_dir())
        .collect();
    for group in &groups {
        kill(group)?;
    }
    let deadline = Instant::now() + PATIENCE;
    for group in &groups {
        remove_tree(group, deadline)?;
    }
    Ok(())
}

/// Removes a parent directory that has become empty, in every hierarchy. Monitors that are ending are waited for.
pub fn remove_empty_parent(parent: &str) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for point in hierarchies()? {
        match remove_tree(&point.join(parent).join(MONITORS), deadline) {
            Err(e) if !busy(&e) => return Err(e),
            _ => {}
        }
        match fs::remove_dir(point.join(parent)) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound) && !busy(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

/// `cgroup.kill` where there is one; else every task by number, thawed first since a v1-frozen task
/// does not die. The groups are ours alone, so a number read from them is one of the guest's.
fn kill(group: &Path) -> io::Result<()> {
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    // Absent outside the freezer hierarchy.
    let _ = fs::write(group.join("freezer.state"), "THAWED");
    for directory in descendants(group)? {
        let Ok(tasks) = fs::read_to_string(directory.join("cgroup.procs")) else {
            continue;
        };
        for pid in tasks
            .lines()
            .filter_map(|l| l.parse::<i32>().ok())
            .filter(|pid| *pid > 1)
        {
            // SAFETY: kill has no memory effects; a task that is gone already is no error of ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    Ok(())
}

/// The group and all below it, deepest first.
fn descendants(group: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![group.to_owned()];
    let mut at = 0;
    while at < all.len() {
        match fs::read_dir(&all[at]) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        all.push(entry.path());
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        at += 1;
    }
    all.reverse();
    Ok(all)
}

fn remove_tree(group: &Path, deadline: Instant) -> io::Result<()> {
    for directory in descendants(group)? {
        loop {
            match fs::remove_dir(&directory) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) if busy(&e) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_hierarchies_count() {
        let text = "\
30 24 0:26 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw
31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 24 0:27 /part /mnt rw - cgroup cgroup rw,memory
33 24 0:28 / /proc rw - proc proc rw";
        let points = parse_mountinfo(text);
        assert_eq!(
            points,
            ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory"].map(PathBuf::from)
        );
    }
}
