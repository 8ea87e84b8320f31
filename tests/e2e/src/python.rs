//! A Python with the clients people use, from PyPI, made once and kept in the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use xtask::sandbox::paths;

/// Exact versions, so that a scenario fails for what changed here.
const PACKAGES: [&str; 4] = [
    "pylxd==2.4.2",
    "grpcio==1.76.0",
    "grpcio-tools==1.76.0",
    "setuptools<81",
];

/// The interpreter of a virtual environment that has [`PACKAGES`].
pub fn interpreter() -> PathBuf {
    let digest = <sha2::Sha256 as sha2::Digest>::digest(PACKAGES.join(" ").as_bytes());
    let home = paths::cache().join(format!("python-{}", hex::encode(&digest[..4])));
    let (python, complete) = (home.join("bin/python"), home.join("complete"));
    if complete.exists() {
        return python;
    }
    fs::create_dir_all(paths::cache()).unwrap();
    // Tests are processes of their own; the first makes it, the others wait here.
    let lock = fs::File::create(home.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !complete.exists() {
        run(Command::new("/usr/bin/python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home));
        let mut pip = Command::new(&python);
        run(pip
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(PACKAGES));
        fs::write(&complete, "").unwrap();
    }
    python
}

/// Standard output of a program that must succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
