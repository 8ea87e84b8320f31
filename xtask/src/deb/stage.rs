//! A package's files, laid out as they will be installed, and the manifest beside them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::manifest::{self, Asset};
use super::package::Package;
use super::{changelog, script};
use crate::sandbox::paths;

/// Lays out `package` in `stage`: `root/` with its files, `scripts/`, `changelog`, `Cargo.toml`.
pub(super) fn lay_out(
    package: &Package,
    binaries: &Path,
    version: &str,
    stage: &Path,
) -> Result<()> {
    let workspace = paths::workspace();
    let packaging = workspace.join("packaging");
    let root = stage.join("root");
    // cargo asks for a target; it is not built.
    write(&stage.join("src/lib.rs"), "")?;
    let checked_in = fs::read_to_string(packaging.join("changelog"))?;
    let head = head(&workspace);
    let text = changelog::text(&checked_in, version, (&head.0, &head.1))?;
    write(&stage.join("changelog"), &text)?;

    for (binary, directory) in package.binaries {
        strip(&binaries.join(binary), &root.join(directory).join(binary))?;
    }
    for binary in package.documented {
        run(Command::new(binaries.join(binary))
            .arg("manual")
            .arg(root.join("usr/share")))?;
    }
    if let Some(service) = package.service {
        let profile = workspace.join(format!("systemd/apparmor/berth-{service}"));
        if profile.exists() {
            copy(
                &profile,
                &root.join(format!("etc/apparmor.d/berth-{service}")),
            )?;
        }
        let printed = run(
            environment_less(&binaries.join(format!("berth-{service}"))).arg("--print-config")
        )?;
        write(
            &root.join(format!("etc/berth/{service}.toml")),
            &conffile(service, &printed),
        )?;
    }
    for unit in script::units(package) {
        let file = workspace.join("systemd").join(unit);
        copy(&file, &root.join("usr/lib/systemd/system").join(unit))?;
    }
    for (from, to) in package.files {
        copy(&workspace.join(from), &root.join(to))?;
    }
    let doc = root.join("usr/share/doc").join(package.name);
    copy(&packaging.join("copyright"), &doc.join("copyright"))?;
    let overrides = lintian_overrides(package, &packaging)?;
    write(
        &root.join("usr/share/lintian/overrides").join(package.name),
        &overrides,
    )?;

    let scripts = script::render(package, &packaging)?;
    for (name, text) in &scripts {
        write(&stage.join("scripts").join(name), text)?;
    }
    let mut assets = Vec::new();
    collect(&root, &root, &mut assets)?;
    assets.sort();
    write(
        &stage.join("Cargo.toml"),
        &manifest::text(package, version, &assets, !scripts.is_empty()),
    )
}

/// Those of all packages, of services, and of this one.
fn lintian_overrides(package: &Package, packaging: &Path) -> Result<String> {
    let mut files = vec!["lintian-overrides".to_owned()];
    if package.service.is_some() {
        files.push("service.lintian-overrides".to_owned());
    }
    let own = format!("{}.lintian-overrides", package.name);
    if packaging.join(&own).exists() {
        files.push(own);
    }
    let read = |file: &String| {
        let path = packaging.join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    files.iter().map(read).collect()
}

/// What a service prints as its defaults, for people to change: tables stay, values are comments.
pub fn conffile(service: &str, printed: &str) -> String {
    let mut text = format!(
        "# Configuration of berth-{service}. Every key is shown with its default: uncomment what you change, then\n\
         #     berth-{service} --config /etc/berth/{service}.toml --check-config && systemctl restart berth-{service}\n\
         # BERTH_{}__SERVER__LOG__LEVEL=debug in the service's environment goes over the key level of [server.log].\n\n",
        service.to_uppercase()
    );
    for line in printed.lines() {
        // What is unset or not there is a comment already.
        if !line.is_empty() && !line.starts_with(['[', '#']) {
            text.push('#');
        }
        text.push_str(line.strip_suffix("  # default").unwrap_or(line));
        text.push('\n');
    }
    text
}

/// The environment goes over the defaults, and this one is not the machine's that installs the package.
fn environment_less(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env_clear();
    command
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| program.clone())?;
    if !output.status.success() {
        bail!(
            "{program}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    parent(to)?;
    let mut command = Command::new("strip");
    command
        .args([
            "--strip-unneeded",
            "--remove-section=.comment",
            "--remove-section=.note",
        ])
        .arg("-o")
        .args([to, from]);
    run(&mut command)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

/// The commit and its date; a build outside a repository says so.
fn head(workspace: &Path) -> (String, String) {
    let git = |format: &str| {
        let mut command = Command::new("git");
        command
            .current_dir(workspace)
            .args(["log", "-1", "--date=rfc", format]);
        run(&mut command).map(|text| text.trim().to_owned())
    };
    match (git("--format=%h"), git("--format=%cd")) {
        (Ok(commit), Ok(date)) => (format!("commit {commit}"), date),
        _ => (
            "sources that are not in git".to_owned(),
            "Thu, 01 Jan 1970 00:00:00 +0000".to_owned(),
        ),
    }
}

fn collect(root: &Path, directory: &Path, assets: &mut Vec<Asset>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, assets)?;
            continue;
        }
        let executable = fs::metadata(&path)?.permissions().mode() & 0o111 != 0;
        let text = |path: &Path| -> Result<String> {
            Ok(path
                .to_str()
                .context("a path that is not UTF-8")?
                .to_owned())
        };
        assets.push(Asset {
            target: text(path.strip_prefix(root)?)?,
            source: text(&path)?,
            mode: if executable { "755" } else { "644" },
        });
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| from.display().to_string())?;
    parent(to)?;
    Ok(fs::write(to, bytes)?)
}

fn write(to: &PathBuf, text: &str) -> Result<()> {
    parent(to)?;
    Ok(fs::write(to, text)?)
}

fn parent(path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conffile_sets_nothing_and_shows_every_default() {
        let printed = "max = 3\nroots = [\n    \"/a\",\n]\n\n[server]\nlisten = []\n\n[server.log]\nlevel = \"info\"\n";
        let text = conffile("image", printed);
        let table: toml::Table = text.parse().unwrap();
        let empty: toml::Table = "[server]\n[server.log]\n".parse().unwrap();
        assert_eq!(table, empty);
        let (_, defaults) = text.split_once("\n\n").unwrap();
        let shown: Vec<_> = defaults
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .collect();
        assert_eq!(shown, printed.lines().collect::<Vec<_>>());
    }
}
