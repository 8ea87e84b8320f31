//! The set-up every tool here expects of a server: a pool, a bridge, and a default profile on
//! them. It asks by REST, so it works on any LXD-compatible server.

use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use crate::rest::Client;

pub const POOL: &str = "default";
pub const BRIDGE: &str = "berthbr0";

/// Makes what is missing and leaves a profile that has a root disk alone.
pub async fn ensure(client: &mut Client) -> Result<()> {
    let profile = client.get("/1.0/profiles/default").await?;
    let mut devices = profile["devices"].as_object().cloned().unwrap_or_default();
    let is_root = |device: &Value| device["type"] == "disk" && device["path"] == "/";
    if devices.values().any(is_root) {
        return Ok(());
    }
    if client
        .find(&format!("/1.0/storage-pools/{POOL}"))
        .await?
        .is_none()
    {
        let pool = json!({"name": POOL, "driver": "btrfs", "config": {"size": "20GiB"}});
        client
            .change(Method::POST, "/1.0/storage-pools", Some(pool))
            .await?;
    }
    if client
        .find(&format!("/1.0/networks/{BRIDGE}"))
        .await?
        .is_none()
    {
        let bridge = json!({"name": BRIDGE, "type": "bridge", "config": {}});
        client
            .change(Method::POST, "/1.0/networks", Some(bridge))
            .await?;
    }
    devices.insert(
        "root".into(),
        json!({"type": "disk", "path": "/", "pool": POOL}),
    );
    devices.insert(
        "eth0".into(),
        json!({"type": "nic", "name": "eth0", "network": BRIDGE}),
    );
    let profile = json!({
        "config": profile["config"], "description": profile["description"], "devices": devices,
    });
    client
        .change(Method::PUT, "/1.0/profiles/default", Some(profile))
        .await?;
    Ok(())
}
