//! The manifest that cargo-deb reads.

use toml::{Table, Value, toml};

use super::package::Package;

/// A file of the package: where it is, where it goes, its mode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asset {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) mode: &'static str,
}

/// The manifest's text; `scripts`: there are maintainer scripts in the directory `scripts`.
pub(super) fn text(package: &Package, version: &str, assets: &[Asset], scripts: bool) -> String {
    let list = |words: &[&str]| {
        let words = words.iter().map(|word| word.replace("@version@", version));
        Value::Array(words.map(Value::String).collect())
    };
    let mut deb: Table = toml! {
        maintainer = "Berth maintainers <maintainers@berth.example>"
        section = "admin"
        priority = "optional"
        changelog = "changelog"
    };
    deb.insert("name".into(), package.name.into());
    deb.insert("extended-description".into(), package.description.into());
    let mut depends = package.depends.to_vec();
    if !package.binaries.is_empty() {
        depends.insert(0, "$auto");
    }
    for (key, words) in [
        ("depends", depends.as_slice()),
        ("recommends", package.recommends),
        ("suggests", package.suggests),
    ] {
        if !words.is_empty() || key == "depends" {
            deb.insert(key.into(), list(words));
        }
    }
    let asset = |asset: &Asset| {
        let words = [asset.source.as_str(), &asset.target, asset.mode];
        Value::Array(words.into_iter().map(Value::from).collect())
    };
    deb.insert(
        "assets".into(),
        Value::Array(assets.iter().map(asset).collect()),
    );
    if scripts {
        deb.insert("maintainer-scripts".into(), "scripts/".into());
        // Units are enabled, stopped on removal and forgotten on purge by what it generates. Starting and restarting
        // is for our scripts: a socket must not be closed by an upgrade, nor the target restarted.
        let units: Table = toml! {
            enable = true
            start = false
            restart-after-upgrade = false
            stop-on-upgrade = false
        };
        deb.insert("systemd-units".into(), Value::Table(units));
    }
    let mut crate_: Table = toml! {
        edition = "2024"
        license = "Apache-2.0"
    };
    crate_.insert("name".into(), package.name.into());
    crate_.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    crate_.insert("description".into(), package.summary.into());
    let metadata = Table::from_iter([("deb".to_owned(), Value::Table(deb))]);
    crate_.insert("metadata".into(), Value::Table(metadata));
    let manifest = Table::from_iter([
        ("package".to_owned(), Value::Table(crate_)),
        // Not a member of the workspace that it may lie in.
        ("workspace".to_owned(), Value::Table(Table::new())),
    ]);
    manifest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::PACKAGES;

    #[test]
    fn dependencies_carry_the_version_and_libraries_come_from_binaries_alone() {
        let manifest = |name: &str| -> Table {
            let package = PACKAGES
                .iter()
                .find(|package| package.name == name)
                .unwrap();
            let manifest: Table = text(package, "1.2-1+b3", &[], true).parse().unwrap();
            manifest["package"]["metadata"]["deb"]
                .as_table()
                .unwrap()
                .clone()
        };
        let image = manifest("berth-image");
        let depends = image["depends"].as_array().unwrap();
        assert_eq!(depends[0].as_str(), Some("$auto"));
        assert_eq!(depends[1].as_str(), Some("berth-common (>= 1.2-1+b3)"));
        let all = manifest("berth");
        assert!(!all["depends"].to_string().contains("auto"));
    }
}
