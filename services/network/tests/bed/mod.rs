//! A host of its own for each test: network and mount namespaces, the real binary in them, and
//! guests that are network namespaces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]
#![allow(unreachable_pub, reason = "a module of tests")]
#![allow(dead_code, reason = "not every test file uses all of it")]

pub mod frames;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use berth_proto::network as proto;
use berth_proto::network::network_service_client::NetworkServiceClient;
use berth_proto::network::port_service_client::PortServiceClient;
use berth_proto::types;

const INSIDE: &str = "BERTH_TEST_INSIDE";

/// Runs the test `name` again inside namespaces of its own, or, inside, runs `test`.
pub fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    isolate(name, &[], test);
}

/// The same for a test that is ignored.
pub fn isolated_ignored<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    isolate(name, &["--ignored"], test);
}

fn isolate<F: Future<Output = ()>>(name: &str, more: &[&str], test: impl FnOnce() -> F) {
    if !nix::unistd::geteuid().is_root() {
        println!("{name} skipped: it needs root");
        return;
    }
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        // As strict as a unit file may be.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        run("ip", &["link", "set", "lo", "up"]);
        run("mount", &["-t", "tmpfs", "none", "/run"]);
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
        return;
    }
    let status = Command::new("unshare")
        .args(["-n", "-m", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .args(more)
        .env(INSIDE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespaces");
}

/// Runs a program that has to succeed; gives what it said.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Feeds rules to `nft`, as another firewall would.
pub fn nft(rules: &str) {
    use std::io::Write;
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "nft refused {rules}");
}

/// Waits until `check` is true.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}

/// The service under test.
pub struct Bed {
    pub dir: tempfile::TempDir,
    service: Option<Child>,
}

impl Bed {
    /// Starts it with its state in a directory that goes away with the test.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // dnsmasq gives up root and has to reach its files.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().display();
        std::fs::write(
            dir.path().join("network.toml"),
            format!(
                "reconcile_seconds = 2\ntable_prefix = 'bt'\n\
                 [server]\nlisten = ['unix:{path}/network.sock']\nstate_dir = '{path}/state'\n"
            ),
        )
        .unwrap();
        let mut bed = Self { dir, service: None };
        bed.serve(&[]).await;
        bed
    }

    /// Starts the service (again).
    pub async fn serve(&mut self, env: &[(&str, &str)]) {
        let _ = std::fs::remove_file(self.socket());
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        self.service = Some(
            self.command()
                .envs(env.iter().copied())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap(),
        );
        let socket = self.socket();
        eventually("the service listens", async || socket.exists()).await;
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-network"));
        command
            .arg("--config")
            .arg(self.dir.path().join("network.toml"));
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("network.sock")
    }

    /// As an operator's `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.service.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until it ended by itself (a failpoint).
    pub fn wait(&mut self) {
        self.service.take().unwrap().wait().unwrap();
    }

    /// `berth-network purge`.
    pub fn purge(&self) -> Output {
        self.command().arg("purge").output().unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn networks(&self) -> NetworkServiceClient<berth_rpc::Channel> {
        NetworkServiceClient::new(self.channel())
    }

    pub fn ports(&self) -> PortServiceClient<berth_rpc::Channel> {
        PortServiceClient::new(self.channel())
    }

    fn channel(&self) -> berth_rpc::Channel {
        berth_rpc::connect(&format!("unix:{}", self.socket().display())).unwrap()
    }

    /// Makes a network.
    pub async fn network(&self, name: &str, config: &[(&str, &str)]) -> proto::Network {
        self.networks()
            .create_network(proto::CreateNetworkRequest {
                parent: "projects/default".into(),
                network_id: name.into(),
                network: Some(proto::Network {
                    config: map(config),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn get(&self, name: &str) -> proto::Network {
        self.networks()
            .get_network(proto::GetNetworkRequest {
                name: format!("projects/default/networks/{name}"),
            })
            .await
            .unwrap()
            .into_inner()
    }

    /// Declares a port for the guest `guest`.
    pub async fn port(&self, network: &str, guest: &str, config: &[(&str, &str)]) -> types::Port {
        self.ports()
            .create_port(proto::CreatePortRequest {
                parent: format!("projects/default/networks/{network}"),
                port_id: format!("{guest}-eth0"),
                spec: Some(proto::PortSpec {
                    holder: format!("projects/default/instances/{guest}"),
                    hostname: guest.into(),
                    config: map(config),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner()
    }

    /// Pid of a network's dnsmasq.
    pub fn dnsmasq(&self, network: &str) -> Option<i32> {
        let path = self
            .dir
            .path()
            .join("state/dnsmasq")
            .join(network)
            .join("pid");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(mut child) = self.service.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Everything else dies with the namespaces, but dnsmasq is a process.
        let _ = self.purge();
    }
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// A network namespace with a link that Berth's monitor would have made.
pub struct Guest {
    pub name: String,
    pub port: types::Port,
}

impl Guest {
    /// Makes the link as the port says: host side in the bridge, peer born in the guest.
    pub fn plug(name: &str, port: &types::Port) -> Self {
        if !Path::new("/run/netns").join(name).exists() {
            run("ip", &["netns", "add", name]);
        }
        let host = port.host_name.as_str();
        run(
            "ip",
            &[
                "link", "add", host, "type", "veth", "peer", "name", "eth0", "address", &port.mac,
                "netns", name,
            ],
        );
        if !port.parent.is_empty() {
            run("ip", &["link", "set", host, "master", &port.parent]);
        }
        run("ip", &["link", "set", host, "up"]);
        let guest = Self {
            name: name.to_owned(),
            port: port.clone(),
        };
        guest.run("ip", &["link", "set", "lo", "up"]);
        guest.run("ip", &["link", "set", "eth0", "up"]);
        guest
    }

    /// Runs a program in the guest that has to succeed.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.try_run(program, args);
        assert!(
            output.status.success(),
            "{} {program} {args:?}: {}{}",
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn try_run(&self, program: &str, args: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.name, program])
            .args(args)
            .output()
            .unwrap()
    }

    /// Asks for an address by DHCP and takes it; gives it.
    pub fn dhcp(&self) -> Option<String> {
        let script = std::env::temp_dir().join(format!("udhcpc-{}", std::process::id()));
        std::fs::write(
            &script,
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr replace $ip/$mask dev $interface\n\
             for r in $router; do ip route replace default via $r; done\n\
             echo \"ADDRESS $ip $router $dns\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = script.to_str().unwrap();
        let output = self.try_run(
            "busybox",
            &[
                "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "6", "-T", "1", "-s", path,
            ],
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|l| l.strip_prefix("ADDRESS "))?;
        line.split(' ').next().map(str::to_owned)
    }

    pub fn pings(&self, address: &str) -> bool {
        self.try_run("busybox", &["ping", "-c", "1", "-W", "1", address])
            .status
            .success()
    }
}

/// Another host beyond a router link; it knows no way back to guests' addresses.
pub fn world() {
    run("ip", &["netns", "add", "world"]);
    run(
        "ip",
        &[
            "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "world",
        ],
    );
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "uplink"]);
    run("ip", &["link", "set", "uplink", "up"]);
    let inside = ["netns", "exec", "world", "ip"];
    run(
        "ip",
        &[&inside[..], &["addr", "add", "192.0.2.2/24", "dev", "eth0"]].concat(),
    );
    run(
        "ip",
        &[&inside[..], &["link", "set", "eth0", "up"]].concat(),
    );
}
