//! Each owner alone, without the gateway, from another language: the example in `examples/python`.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::process::Command;

use berth_e2e::inventory::{Traces, settles};
use berth_e2e::{Image, Server, python, server};
use xtask::sandbox::{UpOptions, paths};

#[test]
fn python_drives_the_four_owners() {
    let only = ["image", "storage", "network", "instance"]
        .map(str::to_owned)
        .to_vec();
    let server = Server::sandbox_with(UpOptions {
        only,
        ..UpOptions::default()
    });
    let sandbox = server.own();
    let traces = Traces::of(sandbox);
    let before = traces.look();
    for driver in ["btrfs", "dir"] {
        let mut example = Command::new(python::interpreter());
        example.arg(paths::workspace().join("examples/python/drive.py"));
        example.arg("--sockets").arg(sandbox.state().join("run"));
        example
            .arg("--image")
            .arg(server::image_file(Image::Busybox));
        let said = python::run(example.args(["--driver", driver]));
        assert!(said.lines().count() > 5, "{said}");
        settles(&traces, &before);
    }
}
