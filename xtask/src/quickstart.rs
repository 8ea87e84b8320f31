//! From a clone to a running container.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::{Value, json};

use crate::image::{self, Kind};
use crate::packages;
use crate::rest::Client;
use crate::sandbox::{self, Sandbox, UpOptions, paths};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where Berth keeps everything; every parent must be open to other users.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/berth")]
    state: PathBuf,

    /// In a network and a mount namespace apart from the machine's.
    #[arg(long)]
    isolated: bool,

    #[arg(long)]
    release: bool,

    /// Take the binaries from here and build nothing.
    #[arg(long, value_name = "DIR", env = "BERTH_BIN_DIR")]
    bin_dir: Option<PathBuf>,
}

const NAME: &str = "first";
const ALIAS: &str = "busybox";

/// Installs, builds, starts, launches and shows; what is there already is used.
pub fn run(options: &Options) -> Result<()> {
    packages::install(packages::RUN)?;
    let sandbox = running(options)?;
    let socket = sandbox.socket();
    let file = image::cached(Kind::Busybox, &paths::cache())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let launched = runtime.block_on(launch(&socket, &file))?;
    lxc(&socket, &["list"])?;
    lxc(&socket, &["exec", NAME, "--", "uname", "-a"])?;
    println!(
        "\n{NAME} was created and started in {} ms. Use the server with\n\
         \n    export LXD_SOCKET={}\n    lxc list\n    lxc exec {NAME} -- sh\n\
         \nand end it, without a trace, with\n\n    cargo xtask down --state {}",
        launched.as_millis(),
        socket.display(),
        sandbox.state().display()
    );
    Ok(())
}

fn running(options: &Options) -> Result<Sandbox> {
    if let Ok(state) = options.state.canonicalize() {
        let sandbox = Sandbox::at(&state);
        if sandbox::SERVICES
            .iter()
            .all(|service| sandbox.pid(service).is_some())
        {
            return Ok(sandbox);
        }
        if state.join("sandbox.json").exists() {
            sandbox.start(&sandbox::SERVICES)?;
            return Ok(sandbox);
        }
    }
    eprintln!("building and starting the services");
    let up = UpOptions {
        isolated: options.isolated,
        release: options.release,
        bin_dir: options.bin_dir.clone(),
        ..UpOptions::default()
    };
    sandbox::up(&options.state, &up)
}

async fn launch(socket: &Path, file: &Path) -> Result<Duration> {
    let mut client = Client::new(socket);
    let fingerprint = client.upload_image(file).await?;
    if client
        .find(&format!("/1.0/images/aliases/{ALIAS}"))
        .await?
        .is_none()
    {
        let alias = json!({"name": ALIAS, "target": fingerprint, "description": ""});
        client
            .change(Method::POST, "/1.0/images/aliases", Some(alias))
            .await?;
    }
    let path = format!("/1.0/instances/{NAME}");
    if client.find(&path).await?.is_some() {
        bail!("there is an instance {NAME} already: lxc delete --force {NAME}");
    }
    let begun = Instant::now();
    let create = json!({"name": NAME, "source": {"type": "image", "alias": ALIAS}});
    client
        .change(Method::POST, "/1.0/instances", Some(create))
        .await?;
    let start = json!({"action": "start", "timeout": -1});
    client
        .change(Method::PUT, &format!("{path}/state"), Some(start))
        .await?;
    let took = begun.elapsed();
    address(&mut client, NAME, Duration::from_secs(20)).await?;
    Ok(took)
}

/// Waits for the address that DHCP gives to `eth0`.
pub async fn address(client: &mut Client, name: &str, patience: Duration) -> Result<String> {
    let begun = Instant::now();
    loop {
        let state = client.get(&format!("/1.0/instances/{name}/state")).await?;
        let addresses = state["network"]["eth0"]["addresses"].as_array();
        let global = |address: &&Value| address["family"] == "inet" && address["scope"] == "global";
        if let Some(found) = addresses.and_then(|all| all.iter().find(global)) {
            return found["address"]
                .as_str()
                .map(str::to_owned)
                .context("address without text");
        }
        if begun.elapsed() > patience {
            bail!(
                "{name} got no IPv4 address within {} s: {state}",
                patience.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs the stock client; its configuration stays out of the caller's home.
fn lxc(socket: &Path, args: &[&str]) -> Result<()> {
    let conf = tempfile::tempdir()?;
    // With a configuration, however empty, the client leaves out its words for newcomers.
    std::fs::write(conf.path().join("config.yml"), "")?;
    println!("\n$ lxc {}", args.join(" "));
    let status = Command::new("lxc")
        .env("LXD_SOCKET", socket)
        .env("LXD_CONF", conf.path())
        .args(args)
        .status()
        .context("lxc (package lxd-client)")?;
    if !status.success() {
        bail!("lxc {}: {status}", args.join(" "));
    }
    Ok(())
}
