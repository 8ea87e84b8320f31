//! A Python with the clients people use, from PyPI, made once and kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
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

/// Generates gRPC stubs for every `.proto` below `protos` into `out`.
pub fn stubs(protos: &Path, out: &Path) {
    let mut files = Vec::new();
    collect(&protos.join("berth"), &mut files);
    collect(&protos.join("google"), &mut files);
    let mut protoc = Command::new(interpreter());
    protoc.args(["-m", "grpc_tools.protoc"]);
    protoc.arg(format!("--proto_path={}", protos.display()));
    protoc.arg(format!("--python_out={0}", out.display()));
    protoc.arg(format!("--grpc_python_out={0}", out.display()));
    run(protoc.args(files));
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
}

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
