//! What a sandbox has on the machine, so that two moments can be compared.
//!
//! Only what can be attributed to the sandbox is listed (by its namespaces, its directory, its
//! cgroup parent), so neighbours on the same machine do not disturb the comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::sandbox::Sandbox;
use xtask::sandbox::engine::Engine;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<&'static str, BTreeSet<String>>);

/// The directories the service keeps for its guests' cgroups and its monitors: made with the first
/// guest and kept for the next, so only taking the service down must remove them.
const PARENT: &str = "cgroup parent";

/// Whom to look for; outlives the sandbox, so that one can look after it is down.
#[derive(Clone, Debug)]
pub struct Traces {
    state: PathBuf,
    cgroup_parent: String,
    netns: String,
    netns_inode: Option<PathBuf>,
    bin: PathBuf,
}

impl Traces {
    /// Remembers what identifies a running sandbox.
    pub fn of(sandbox: &Sandbox) -> Self {
        let running = xtask::sandbox::SERVICES
            .iter()
            .find_map(|service| sandbox.pid(service));
        let running = running.expect("a running service");
        Self {
            state: sandbox.state().to_owned(),
            cgroup_parent: sandbox.cgroup_parent(),
            netns: sandbox.netns(),
            netns_inode: fs::read_link(format!("/proc/{running}/ns/net")).ok(),
            bin: sandbox.state().join("bin"),
        }
    }

    /// The same for a container engine and all that runs in it.
    pub fn of_engine(engine: &Engine) -> Self {
        let netns = engine.netns().to_owned();
        Self {
            state: engine.directory().to_owned(),
            cgroup_parent: engine.cgroup().to_owned(),
            netns_inode: engine
                .mount_namespace()
                .ok()
                .and_then(|mount| fs::read_link(mount.replace("/mnt", "/net")).ok()),
            netns,
            bin: engine.directory().join("bin"),
        }
    }

    /// Everything of the sandbox's that is there now.
    pub fn look(&self) -> Inventory {
        let mut found = Inventory::default();
        self.network(&mut found);
        self.processes(&mut found);
        self.cgroups(&mut found);
        self.loops(&mut found);
        found
    }

    fn network(&self, found: &mut Inventory) {
        if !Path::new("/run/netns").join(&self.netns).exists() {
            return;
        }
        found.add("network namespace", self.netns.clone());
        let links = run("ip", &["-n", &self.netns, "-o", "link", "show"]);
        for line in links.lines() {
            // "4: veth1234@if3: <…": numbers and flags change, names do not.
            let name = line.split(':').nth(1).unwrap_or(line).trim();
            found.add("link", name.split('@').next().unwrap_or(name).to_owned());
        }
        let args = [
            "netns",
            "exec",
            &self.netns,
            "nft",
            "--stateless",
            "list",
            "ruleset",
        ];
        let mut table = String::new();
        for line in run("ip", &args).lines() {
            if line.starts_with("table ") {
                table = line.trim_end_matches('{').trim().to_owned();
            }
            found.add("nft", format!("{table}: {}", line.trim()));
        }
    }

    /// By namespace, program and cgroup; mounts in any mount namespace below the state directory.
    fn processes(&self, found: &mut Inventory) {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        let mut seen_namespaces = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let proc = entry.path();
            let exe = fs::read_link(proc.join("exe")).unwrap_or_default();
            let cgroup = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
            let netns = fs::read_link(proc.join("ns/net")).ok();
            let here = netns.is_some() && netns == self.netns_inode;
            if here || exe.starts_with(&self.bin) || cgroup.contains(&self.cgroup_parent) {
                let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
                // This very process may be visiting, and one that just ended is no trace.
                if pid != std::process::id() && !name.is_empty() {
                    *counts.entry(name.trim().to_owned()).or_default() += 1;
                }
            }
            if let Ok(namespace) = fs::read_link(proc.join("ns/mnt"))
                && seen_namespaces.insert(namespace)
            {
                self.mounts(&proc, found);
            }
        }
        for (name, count) in counts {
            found.add("process", format!("{name} × {count}"));
        }
    }

    fn mounts(&self, proc: &Path, found: &mut Inventory) {
        let state = self.state.display().to_string();
        let table = fs::read_to_string(proc.join("mountinfo")).unwrap_or_default();
        for line in table.lines().filter(|line| line.contains(&state)) {
            let target = line.split(' ').nth(4).unwrap_or_default();
            if !target.starts_with(&state) {
                continue;
            }
            found.add("mount", target.to_owned());
            if line.contains(" - btrfs ") {
                self.subvolumes(proc, target, found);
            }
        }
    }

    fn subvolumes(&self, proc: &Path, target: &str, found: &mut Inventory) {
        let pid = proc
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let listed = Command::new("nsenter")
            .args([
                "--mount",
                "--target",
                &pid,
                "btrfs",
                "subvolume",
                "list",
                target,
            ])
            .output()
            .unwrap();
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let path = line.split(" path ").nth(1).unwrap_or(line);
            // Ones that are being cleaned up are listed by number alone.
            found.add("subvolume", format!("{target}: {path}"));
        }
    }

    fn cgroups(&self, found: &mut Inventory) {
        fn walk(directory: &Path, parent: &str, inside: bool, found: &mut Inventory) {
            let Ok(entries) = fs::read_dir(directory) else {
                return;
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let ours = inside || entry.file_name().to_string_lossy() == parent;
                if ours {
                    let kept = !inside || entry.file_name() == "monitors";
                    let kind = if kept { PARENT } else { "cgroup" };
                    found.add(kind, entry.path().display().to_string());
                }
                walk(&entry.path(), parent, ours, found);
            }
        }
        walk(
            Path::new("/sys/fs/cgroup"),
            &self.cgroup_parent,
            false,
            found,
        );
    }

    fn loops(&self, found: &mut Inventory) {
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
                continue;
            };
            if Path::new(file.trim()).starts_with(&self.state) {
                found.add("loop device", file.trim().to_owned());
            }
        }
    }
}

impl Inventory {
    fn add(&mut self, kind: &'static str, what: String) {
        self.0.entry(kind).or_default().insert(what);
    }

    pub fn is_empty(&self) -> bool {
        self.0.values().all(BTreeSet::is_empty)
    }

    /// What is in one and not in the other, one line each.
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let empty = BTreeSet::new();
        let kinds: BTreeSet<_> = self.0.keys().chain(later.0.keys()).collect();
        let mut lines = Vec::new();
        for kind in kinds.into_iter().filter(|kind| **kind != PARENT) {
            let (before, after) = (
                self.0.get(kind).unwrap_or(&empty),
                later.0.get(kind).unwrap_or(&empty),
            );
            lines.extend(
                before
                    .difference(after)
                    .map(|gone| format!("- {kind} {gone}")),
            );
            lines.extend(
                after
                    .difference(before)
                    .map(|new| format!("+ {kind} {new}")),
            );
        }
        lines
    }
}

/// Waits until the sandbox has what it had: kernel threads finish some removals after the answer.
#[track_caller]
pub fn settles(traces: &Traces, before: &Inventory) {
    crate::wait::until(
        "the inventory",
        std::time::Duration::from_secs(20),
        || match before.difference(&traces.look()) {
            same if same.is_empty() => Ok(()),
            lines => Err(lines.join("\n")),
        },
    );
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_came_and_what_went() {
        let (mut before, mut after) = (Inventory::default(), Inventory::default());
        before.add("link", "br0".into());
        before.add("link", "veth1".into());
        after.add("link", "br0".into());
        after.add("cgroup", "/berth/c1".into());
        assert_eq!(
            before.difference(&after),
            ["+ cgroup /berth/c1", "- link veth1"]
        );
        assert!(before.difference(&before).is_empty());
    }
}
