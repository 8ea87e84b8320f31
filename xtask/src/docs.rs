//! `docs`: pages that are made from the binaries.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sandbox::{SERVICES, paths};

/// The page with every configuration key.
pub const CONFIGURATION: &str = "docs/configuration.md";

const HEAD: &str = "\
# Configuration

<!-- Made by `cargo xtask docs` from the services' own types: change their doc comments. -->

Each service has one file in TOML, by default `/etc/berth/SERVICE.toml` in the units: `berth-image --config FILE`. Every key has a default. A variable
of the environment goes over the file: `BERTH_IMAGE__SERVER__LOG__LEVEL=debug`; lists are written as in the file,
`BERTH_STORAGE__BLOB_ROOTS='[\"/srv/blobs\"]'`.

* `--check-config` says all that is wrong at once, each with the line or variable where it is written, and ends with 2; with 0 when all is good.
  A service that is started with a wrong configuration ends with 2 as well.
* `--print-config` prints the configuration in force as TOML, each value with where it comes from; passwords are left out.
* SIGHUP (`systemctl reload berth-image`) reads the file again. Keys with *reload: yes* change at once; of the others the log says that they need a
  restart. When anything in the new file is wrong, all of the old one stays in force, and the log says what is wrong, with the line.
";

/// The page as the binaries in `bin_dir` have it.
pub fn configuration(bin_dir: &Path) -> Result<String> {
    let mut page = HEAD.to_owned();
    for service in SERVICES {
        let binary = bin_dir.join(format!("berth-{service}"));
        let output = Command::new(&binary)
            .arg("--print-keys")
            .output()
            .with_context(|| binary.display().to_string())?;
        ensure!(
            output.status.success(),
            "{}: {}",
            binary.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let table = String::from_utf8(output.stdout)?;
        page += &format!("\n## berth-{service}\n\n{table}");
    }
    Ok(page)
}

/// Writes the pages, or fails when they are not as they would be written.
pub fn docs(bin_dir: Option<&Path>, check: bool) -> Result<()> {
    let built;
    let bin_dir = match bin_dir {
        Some(dir) => dir,
        None => {
            built = paths::build(false)?;
            &built
        }
    };
    let file = paths::workspace().join(CONFIGURATION);
    let page = configuration(bin_dir)?;
    if !check {
        return fs::write(&file, page).with_context(|| file.display().to_string());
    }
    if fs::read_to_string(&file).ok().as_ref() != Some(&page) {
        bail!("{CONFIGURATION} is not what the services say: run `cargo xtask docs`");
    }
    Ok(())
}
