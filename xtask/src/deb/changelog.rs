//! The changelog of a build: the repository's, with an entry in front where the build has a version of its own.

use anyhow::{Context, Result, ensure};

/// `head`: the commit it is built from, shown, and its date as a changelog writes dates.
pub(super) fn text(checked_in: &str, version: &str, head: (&str, &str)) -> Result<String> {
    let newest = newest(checked_in).context("packaging/changelog: no entry")?;
    if newest == version {
        return Ok(checked_in.to_owned());
    }
    ensure!(
        version
            .strip_prefix(newest)
            .is_some_and(|rest| rest.starts_with('+')),
        "packaging/changelog: its newest entry is {newest}, the workspace's version is {version}"
    );
    let signature = checked_in
        .lines()
        .find_map(|line| line.strip_prefix(" -- "))
        .and_then(|line| line.split_once("  "))
        .map(|(maintainer, _)| maintainer)
        .context("packaging/changelog: no signature")?;
    let (commit, date) = head;
    Ok(format!(
        "berth ({version}) UNRELEASED; urgency=medium\n\n  * Built from {commit}.\n\n -- {signature}  {date}\n\n{checked_in}"
    ))
}

/// The version in the first line.
fn newest(changelog: &str) -> Option<&str> {
    let (_, rest) = changelog.lines().next()?.split_once('(')?;
    Some(rest.split_once(')')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::paths::workspace;

    const OLD: &str = "berth (1.0-1) unstable; urgency=medium\n\n  * First.\n\n -- A B <a@b.c>  Fri, 27 Nov 2026 23:00:00 +0000\n";

    #[test]
    fn builds_between_releases_get_an_entry_of_their_own() {
        let head = ("0823dfc", "Sat, 28 Nov 2026 00:00:00 +0000");
        assert_eq!(text(OLD, "1.0-1", head).unwrap(), OLD);
        let later = text(OLD, "1.0-1+b2", head).unwrap();
        assert_eq!(newest(&later), Some("1.0-1+b2"));
        assert!(
            later.contains("\n -- A B <a@b.c>  Sat, 28 Nov 2026 00:00:00 +0000\n\nberth (1.0-1)")
        );
        assert!(text(OLD, "1.1-1", head).is_err());
    }

    #[test]
    fn the_checked_in_one_is_of_this_version() {
        let checked_in = std::fs::read_to_string(workspace().join("packaging/changelog")).unwrap();
        assert_eq!(newest(&checked_in).unwrap(), super::super::version(None));
    }
}
