//! Waiting until what was started answers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Sandbox;
use crate::rest::Client;

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits for gRPC health, and for REST where it is the gateway.
pub(super) fn wait(sandbox: &Sandbox, service: &str) -> Result<()> {
    // A thread of its own: callers may be inside a runtime, which must not be blocked on.
    std::thread::scope(|scope| scope.spawn(|| wait_here(sandbox, service)).join())
        .map_err(|_| anyhow::anyhow!("the wait for {service} panicked"))?
}

fn wait_here(sandbox: &Sandbox, service: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let begun = Instant::now();
    loop {
        let answer = runtime.block_on(async {
            let one = tokio::time::timeout(Duration::from_secs(5), probe(sandbox, service));
            one.await.context("no answer within 5 s")?
        });
        let Err(error) = answer else { return Ok(()) };
        if sandbox.pid(service).is_none() {
            bail!("{service} ended:\n{}", tail(&sandbox.log_file(service)));
        }
        if begun.elapsed() > PATIENCE {
            return Err(error.context(format!(
                "{service} is not ready after {} s:\n{}",
                PATIENCE.as_secs(),
                tail(&sandbox.log_file(service))
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

async fn probe(sandbox: &Sandbox, service: &str) -> Result<()> {
    let socket = sandbox.grpc_socket(service);
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .connect()
        .await?;
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let status = HealthClient::new(channel)
        .check(request)
        .await?
        .into_inner()
        .status();
    if status != ServingStatus::Serving {
        bail!("health is {}", status.as_str_name());
    }
    if service == "gateway" {
        Client::new(sandbox.socket()).get("/1.0").await?;
    }
    Ok(())
}

/// lxcfs is ready when its mount point is one, seen from where it runs.
pub(super) fn lxcfs(sandbox: &Sandbox) -> Result<()> {
    let begun = Instant::now();
    loop {
        let Some(pid) = sandbox.pid("lxcfs") else {
            // Between fork and exec the process still runs this program.
            if begun.elapsed() > Duration::from_secs(5) {
                bail!("lxcfs ended:\n{}", tail(&sandbox.log_file("lxcfs")));
            }
            std::thread::sleep(PAUSE);
            continue;
        };
        let seen = format!(
            "/proc/{pid}/root{}",
            sandbox.state().join("lxcfs").display()
        );
        let mounted = match (fs::metadata(&seen), fs::metadata(format!("{seen}/.."))) {
            (Ok(inner), Ok(outer)) => inner.dev() != outer.dev(),
            _ => false,
        };
        if mounted {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!(
                "lxcfs does not mount:\n{}",
                tail(&sandbox.log_file("lxcfs"))
            );
        }
        std::thread::sleep(PAUSE);
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
    let lines: Vec<_> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
