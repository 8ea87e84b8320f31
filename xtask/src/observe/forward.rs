//! Ports of a sandbox's loopback on this machine's, for a browser.

use std::fs::File;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpStream};

use crate::sandbox::Sandbox;

/// Passes connections on for as long as this process lives; gives where to connect to.
pub(super) fn into(sandbox: &Sandbox, port: u16) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let netns = File::open(format!("/run/netns/{}", sandbox.netns()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name(format!("forward {port}"))
        .spawn(move || -> Result<()> {
            // The listener was made outside, so it stays there; what this thread makes is inside.
            setns(netns, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (mut outer, _) = listener.accept().await?;
                    tokio::spawn(async move {
                        let mut inner = TcpStream::connect(("127.0.0.1", port)).await?;
                        tokio::io::copy_bidirectional(&mut outer, &mut inner).await
                    });
                }
            })
        })?;
    Ok(address)
}
