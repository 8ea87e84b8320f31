//! Configuration as an operator meets it: at the command line, and while a service runs.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use berth_e2e::{Server, server, wait};
use tempfile::TempDir;
use xtask::sandbox::{SERVICES, Sandbox, UpOptions, paths};

fn run(service: &str, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let binary = server::binaries().join(format!("berth-{service}"));
    let mut command = Command::new(binary);
    command.args(args).env_clear();
    command.envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn the_page_of_keys_is_what_the_services_say() {
    let page = xtask::docs::configuration(&server::binaries()).unwrap();
    let file = paths::workspace().join(xtask::docs::CONFIGURATION);
    let there = std::fs::read_to_string(file).unwrap();
    assert!(there == page, "run `cargo xtask docs`");
}

#[test]
fn every_service_checks_and_prints_its_configuration() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("x.toml");
    let path = file.to_str().unwrap();
    for service in SERVICES {
        std::fs::write(&file, "[server.log]\nlevel = 'debug'\n").unwrap();
        let good = run(service, &["--config", path, "--check-config"], &[]);
        assert_eq!(good.status.code(), Some(0), "{service}: {good:?}");
        let variable = format!("BERTH_{}__SERVER__DATABASE", service.to_uppercase());
        let secret = [(variable.as_str(), "postgres://me:hidden@db/berth")];
        let printed = run(service, &["--config", path, "--print-config"], &secret);
        let printed = String::from_utf8(printed.stdout).unwrap();
        assert!(
            printed.contains(&format!("level = \"debug\"  # {path}:2")),
            "{printed}"
        );
        assert!(printed.contains("postgres://me:***@db/berth"), "{printed}");
        assert!(!printed.contains("hidden"), "{printed}");

        let text = "nonsense = 1\n[server]\nlisten = ['tcp:0.0.0.0:1']\n[server.log]\nlevel = 'loud'\nformt = 'text'\n";
        std::fs::write(&file, text).unwrap();
        for args in [
            &["--config", path, "--check-config"][..],
            &["--config", path],
        ] {
            let bad = run(service, args, &[]);
            assert_eq!(bad.status.code(), Some(2), "{service}: {bad:?}");
            let said = String::from_utf8(bad.stderr).unwrap();
            let lines: Vec<_> = said.lines().collect();
            assert_eq!(lines.len(), 4, "{said}");
            for (line, (at, key)) in lines.iter().zip([
                (1, "nonsense"),
                (3, "server.listen[0]"),
                (5, "server.log.level"),
                (6, "server.log.formt"),
            ]) {
                assert!(line.starts_with(&format!("{path}:{at}: {key}: ")), "{line}");
            }
            assert!(
                lines[3].contains("did you mean server.log.format?"),
                "{said}"
            );
        }
    }
}

fn log(sandbox: &Sandbox) -> String {
    std::fs::read_to_string(sandbox.log_file("image")).unwrap()
}

/// Waits for a new line of the log.
#[track_caller]
fn logged(sandbox: &Sandbox, seen: usize, what: &str) {
    wait::until(what, Duration::from_secs(10), || {
        let log = log(sandbox);
        if log[seen..].contains(what) {
            Ok(())
        } else {
            Err(log)
        }
    });
}

#[test]
fn a_reload_takes_what_is_good_and_keeps_the_old_for_what_is_not() {
    let notices = TempDir::new().unwrap();
    server::open_to_others(notices.path());
    let socket = notices.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let server = Server::sandbox_with(UpOptions {
        only: vec!["image".to_owned()],
        environment: vec![("NOTIFY_SOCKET".to_owned(), socket.display().to_string())],
        ..UpOptions::default()
    });
    let sandbox = server.own();
    let file = sandbox.config_file("image");
    let good = std::fs::read_to_string(&file).unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    wait::until("readiness", Duration::from_secs(10), || {
        let told = told();
        (told == "READY=1").then_some(()).ok_or(told)
    });
    let clean = |sandbox: &Sandbox| {
        let seen = log(sandbox).len();
        sandbox.reload("image").unwrap();
        seen
    };

    let server_keys = "[server]\nlog.level = 'debug'\nsocket_mode = '0600'";
    let changed = good.replace("[server]", server_keys);
    std::fs::write(&file, format!("max_image_bytes = 1000\n{changed}")).unwrap();
    let seen = clean(sandbox);
    logged(sandbox, seen, "the configuration was reloaded");
    logged(sandbox, seen, "server.socket_mode");
    let reloading = told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(told(), "READY=1");

    std::fs::write(&file, format!("max_image_bytes = 'many'\n{good}")).unwrap();
    let seen = clean(sandbox);
    logged(
        sandbox,
        seen,
        &format!("{}:1: max_image_bytes", file.display()),
    );
    logged(sandbox, seen, "the old configuration stays in force");
    assert!(sandbox.pid("image").is_some());

    // The limit of the first reload still holds.
    let image = server::image_file(berth_e2e::Image::Busybox);
    let error = upload(sandbox, &image);
    assert!(error.contains("at most 1000 bytes"), "{error}");
}

fn upload(sandbox: &Sandbox, file: &Path) -> String {
    use berth_proto::image::image_service_client::ImageServiceClient;
    use berth_proto::image::import_image_request::{Chunk, Header, Message};
    use berth_proto::types::blob_ref::Part;
    let bytes = std::fs::read(file).unwrap();
    let address = format!("unix:{}", sandbox.grpc_socket("image").display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut images = ImageServiceClient::new(berth_rpc::connect(&address).unwrap());
        let header = Message::Header(Header {
            parent: "projects/default".to_owned(),
            ..Header::default()
        });
        let chunks = bytes.chunks(1 << 19).map(|data| {
            Message::Chunk(Chunk {
                part: Part::Unified.into(),
                data: data.to_vec().into(),
            })
        });
        let messages: Vec<_> = [header]
            .into_iter()
            .chain(chunks)
            .map(|message| berth_proto::image::ImportImageRequest {
                message: Some(message),
            })
            .collect();
        let status = images
            .import_image(tokio_stream::iter(messages))
            .await
            .unwrap_err();
        status.message().to_owned()
    })
}
