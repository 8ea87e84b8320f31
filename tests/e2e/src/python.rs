//! A Python with the clients people use, from PyPI, made once and kept in the cache.

use std::path::PathBuf;
use std::process::Command;

use xtask::observe::stack;

/// Exact versions, so that a scenario fails for what changed here.
const PACKAGES: [&str; 5] = [
    "pylxd==2.4.2",
    stack::ROTEL,
    "grpcio==1.76.0",
    "grpcio-tools==1.76.0",
    "setuptools<81",
];

/// The interpreter of a virtual environment that has [`PACKAGES`].
pub fn interpreter() -> PathBuf {
    xtask::venv::interpreter(&PACKAGES).unwrap()
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
