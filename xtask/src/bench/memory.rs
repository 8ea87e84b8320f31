//! Memory by proportional set size, so that what processes share is counted once.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The processes of one server.
pub(super) struct Daemons {
    /// Answers REST; instances' monitors share its network namespace.
    front: i32,
    all: Vec<i32>,
}

/// Kilobytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Size {
    pub(super) pss: u64,
    pub(super) rss: u64,
}

impl Daemons {
    pub(super) fn single(front: i32) -> Self {
        Self {
            front,
            all: vec![front],
        }
    }

    /// The five services that `xtask up` recorded in `state/run/*.pid`.
    pub(super) fn recorded(front: i32, state: &Path) -> Result<Self> {
        let mut all = Vec::new();
        for service in crate::sandbox::SERVICES {
            let file = state.join("run").join(format!("{service}.pid"));
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            all.push(text.trim().parse()?);
        }
        Ok(Self { front, all })
    }

    pub(super) fn processes(&self) -> &[i32] {
        &self.all
    }

    pub(super) fn size(&self) -> Result<Size> {
        let mut sum = Size::default();
        for &pid in &self.all {
            let size = of_process(pid).with_context(|| format!("memory of process {pid}"))?;
            sum.pss += size.pss;
            sum.rss += size.rss;
        }
        Ok(sum)
    }

    /// Monitors of this server's instances: how many, and their memory together.
    ///
    /// Both servers rename them to `[lxc monitor] …` and `[berth monitor] …`; other servers' on
    /// this machine live in other network namespaces.
    pub(super) fn monitors(&self) -> Result<(u64, Size)> {
        let home = fs::read_link(format!("/proc/{}/ns/net", self.front))?;
        let (mut count, mut sum) = (0, Size::default());
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let Ok(argv) = fs::read(format!("/proc/{pid}/cmdline")) else {
                continue;
            };
            let monitor = [&b"[lxc monitor]"[..], b"[berth monitor]"]
                .iter()
                .any(|name| argv.starts_with(name));
            if !monitor || fs::read_link(format!("/proc/{pid}/ns/net")).ok().as_ref() != Some(&home)
            {
                continue;
            }
            // One that ends while being read is no longer memory in use.
            let Ok(size) = of_process(pid) else { continue };
            count += 1;
            sum.pss += size.pss;
            sum.rss += size.rss;
        }
        Ok((count, sum))
    }
}

fn of_process(pid: i32) -> Result<Size> {
    let text = fs::read(format!("/proc/{pid}/smaps_rollup"))?;
    let text = std::ffi::OsStr::from_bytes(&text).to_string_lossy();
    let field = |name: &str| -> Result<u64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .context("no such field")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    };
    Ok(Size {
        pss: field("Pss:")?,
        rss: field("Rss:")?,
    })
}
