//! `cargo xtask observe`: Berth with a collector, Prometheus and a trace viewer, and a launch to
//! look at.

mod forward;
mod picture;
pub mod stack;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image::{self, Kind};
use crate::packages;
use crate::rest::Client;
use crate::sandbox::{DownOptions, Sandbox, UpOptions, down, paths, up};
use crate::venv;
use stack::Pass;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Take the binaries from here and build nothing.
    #[arg(long, value_name = "DIR", env = "BERTH_BIN_DIR")]
    bin_dir: Option<PathBuf>,

    /// Take a picture of the launch's trace in the viewer, write it here, and end.
    #[arg(long, value_name = "PNG")]
    picture: Option<PathBuf>,
}

/// Its parent by the client's `traceparent`, so that the trace is known beforehand.
const TRACE: &str = "be47be47be47be47be47be47be47be47";

/// Everything is in namespaces of its own and goes away at the end.
pub fn run(options: &Options) -> Result<()> {
    packages::install(packages::RUN)?;
    packages::install(&["prometheus", "python3-venv"])?;
    if options.picture.is_some() {
        packages::install(&["chromium"])?;
    }
    eprintln!("a collector and a trace viewer from PyPI (a gigabyte, the first time)");
    let python = venv::interpreter(&[stack::ROTEL, stack::PHOENIX])?;
    let directory = TempDir::with_prefix("berth-observe-")?;
    // Services without root must pass through it.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
    let state = directory.path().join("s");
    let sandbox = up(
        &state,
        &UpOptions {
            isolated: true,
            bin_dir: options.bin_dir.clone(),
            extra: stack::metrics_listen(),
            environment: stack::environment(),
            ..UpOptions::default()
        },
    )?;
    let shown = show(&sandbox, &python, options);
    down(sandbox.state(), &DownOptions::default())?;
    shown
}

fn show(sandbox: &Sandbox, python: &Path, options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let _viewer = stack::phoenix(sandbox, python)?;
    let _collector = stack::rotel(sandbox, python, Pass::Traces)?;
    let _prometheus = stack::prometheus(sandbox, "5s")?;
    let viewer = forward::into(sandbox, stack::VIEWER)?;
    let prometheus = forward::into(sandbox, stack::PROMETHEUS)?;
    runtime.block_on(async {
        wait_for(
            &format!("http://{viewer}/healthz"),
            Duration::from_secs(180),
        )
        .await?;
        launch(sandbox).await?;
        let page = trace_page(&viewer.to_string()).await?;
        if let Some(file) = &options.picture {
            return picture::take(&page, file).await;
        }
        println!(
            "\nthe launch, as one trace   {page}\nPrometheus                 http://{prometheus}\n\
             LXD's API                  export LXD_SOCKET={}\nlogs                       {}\n\n\
             Ctrl-C ends all of it.",
            sandbox.socket().display(),
            sandbox.state().join("log").display()
        );
        tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")
    })
}

async fn launch(sandbox: &Sandbox) -> Result<()> {
    let mut client = Client::new(sandbox.socket());
    let file = image::cached(Kind::Busybox, &paths::cache())?;
    let fingerprint = client.upload_image(&file).await?;
    let body = json!({
        "name": "seen", "start": true,
        "source": {"type": "image", "fingerprint": fingerprint},
    });
    let traceparent = format!("00-{TRACE}-be47be47be47be47-01");
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", traceparent.as_str()),
    ];
    let body = body.to_string().into();
    let reply = client
        .send(Method::POST, "/1.0/instances", &headers, body)
        .await?;
    client.settle(reply.json()?).await?;
    Ok(())
}

async fn fetch(url: &str) -> Result<(u16, Vec<u8>)> {
    let url: http::Uri = url.parse()?;
    let authority = url.authority().context("an address")?.to_string();
    let stream = tokio::net::TcpStream::connect(&authority).await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(url.path_and_query().map_or("/", |p| p.as_str()))
        .header(http::header::HOST, authority)
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await?;
    connection.abort();
    Ok((status, body.to_bytes().to_vec()))
}

async fn wait_for(url: &str, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        match fetch(url).await {
            Ok((200, _)) => return Ok(()),
            other if begun.elapsed() > patience => bail!("{url}: {other:?}"),
            _ => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

/// Phoenix's page of the launch, once its spans are there.
async fn trace_page(viewer: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let (_, body) = fetch(&format!(
            "http://{viewer}/v1/projects/default/spans?trace_id={TRACE}&limit=1000"
        ))
        .await?;
        let spans: Value = serde_json::from_slice(&body).unwrap_or_default();
        let count = spans["data"].as_array().map_or(0, Vec::len);
        // A launch makes some forty; the last batch comes half a second later.
        if count >= 20 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            break;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("the viewer has {count} spans of the launch: {spans}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (_, body) = fetch(&format!("http://{viewer}/v1/projects/default")).await?;
    let project: Value = serde_json::from_slice(&body)?;
    let id = project["data"]["id"]
        .as_str()
        .with_context(|| format!("the viewer's project: {project}"))?;
    Ok(format!("http://{viewer}/projects/{id}/traces/{TRACE}"))
}
