//! Maintainer scripts: those of a service are one template each and what is particular to the service.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use super::package::Package;
use crate::sandbox::paths;

const NAMES: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

/// The scripts of a package, by name, as cargo-deb takes them. `packaging`: the repository's directory.
pub(super) fn render(package: &Package, packaging: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut scripts = Vec::new();
    for name in NAMES {
        let own = read(&packaging.join(format!("{}.{name}", package.name)))?;
        let text = match package.service {
            Some(service) => read(&packaging.join(format!("service.{name}")))?.map(|template| {
                fill(
                    &template,
                    service,
                    &units(package),
                    own.as_deref().unwrap_or_default(),
                )
            }),
            None => own,
        };
        scripts.extend(text.map(|text| (name, text)));
    }
    Ok(scripts)
}

/// Those of a package's units that the repository has.
pub(super) fn units(package: &Package) -> Vec<&'static str> {
    let directory = paths::workspace().join("systemd");
    let units = package.units.iter().copied();
    units.filter(|unit| directory.join(unit).exists()).collect()
}

/// Puts the hook where the template has its place for one; lines without a hook go.
fn fill(template: &str, service: &str, units: &[&str], hook: &str) -> String {
    let main = format!("berth-{service}.service");
    let also: Vec<&str> = units.iter().copied().filter(|unit| *unit != main).collect();
    let mut text = String::new();
    for line in template.lines() {
        if line.trim() == "@hook@" {
            text.push_str(hook);
        } else {
            text.push_str(
                &line
                    .replace("@service@", service)
                    .replace("@also@", &also.join(" ")),
            );
            text.push('\n');
        }
    }
    text
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::PACKAGES;

    #[test]
    fn hooks_take_their_place() {
        let units = ["berth-image.service", "berth-image.socket"];
        let template = "set -e\n    @hook@\nstart berth-@service@ @also@\n";
        let start = "start berth-image berth-image.socket\n";
        let filled = |hook| fill(template, "image", &units, hook);
        assert_eq!(filled("    one\n"), format!("set -e\n    one\n{start}"));
        assert_eq!(filled(""), format!("set -e\n{start}"));
    }

    #[test]
    fn every_hook_has_a_template_and_no_placeholder_is_left() {
        let packaging = paths::workspace().join("packaging");
        for package in PACKAGES {
            for (name, text) in render(package, &packaging).unwrap() {
                assert!(!text.contains('@'), "{}.{name}: {text}", package.name);
                assert!(text.contains("\n#DEBHELPER#\n"), "{}.{name}", package.name);
            }
        }
        for entry in fs::read_dir(&packaging).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some((owner, script)) = name.split_once('.') else {
                continue;
            };
            if NAMES.contains(&script) && owner != "service" {
                let package = PACKAGES.iter().find(|package| package.name == owner);
                let rendered = render(package.expect(owner), &packaging).unwrap();
                assert!(
                    rendered.iter().any(|(rendered, _)| *rendered == script),
                    "{name} is in no package"
                );
            }
        }
    }
}
