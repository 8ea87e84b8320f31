//! `/` and `/1.0`: what this server is.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_proto::instance::{GetHostRequest, Host};
use berth_proto::storage::list_drivers_response::Driver;
use berth_proto::storage::{ListDriversRequest, ListPoolsRequest};
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::body::{self, Config, Json};
use super::envelope::{self, Answer};
use super::etag;
use super::extensions::EXTENSIONS;
use super::query::Query;
use crate::App;
use crate::error::Failure;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(|| async { envelope::sync(["/1.0"]) }))
        .route("/1.0", get(show).put(update).patch(update))
}

/// `GET /1.0`.
#[derive(Debug, Serialize)]
struct ServerView {
    config: Config,
    api_extensions: Vec<&'static str>,
    api_status: &'static str,
    api_version: &'static str,
    auth: &'static str,
    public: bool,
    auth_methods: [&'static str; 1],
    environment: Environment,
}

#[derive(Debug, Serialize)]
struct Environment {
    addresses: Vec<String>,
    architectures: Vec<String>,
    certificate: String,
    certificate_fingerprint: String,
    driver: &'static str,
    driver_version: String,
    firewall: &'static str,
    kernel: String,
    kernel_architecture: String,
    kernel_features: BTreeMap<String, String>,
    kernel_version: String,
    lxc_features: BTreeMap<String, String>,
    os_name: String,
    os_version: String,
    project: String,
    server: &'static str,
    server_clustered: bool,
    server_event_mode: &'static str,
    server_name: String,
    server_pid: u32,
    server_version: &'static str,
    storage: String,
    storage_version: String,
    storage_supported_drivers: Vec<DriverView>,
}

/// LXD capitalises these keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DriverView {
    name: String,
    version: String,
    remote: bool,
}

/// Host facts and drivers, each asked of its owner at the same time. Where one is away the server
/// still answers, with what it can know empty: clients call this before everything else.
async fn facts(app: &App) -> (Host, Vec<Driver>, Vec<String>) {
    let mut instances = app.owners.instances();
    let mut pools = app.owners.pools();
    let mut drivers = app.owners.pools();
    let (host, pools, drivers) = tokio::join!(
        instances.get_host(GetHostRequest {}),
        pools.list_pools(ListPoolsRequest::default()),
        drivers.list_drivers(ListDriversRequest {}),
    );
    let away = |status: tonic::Status| tracing::warn!(%status, "an owner is away");
    let host = host.map_or_else(
        |status| {
            away(status);
            Host::default()
        },
        tonic::Response::into_inner,
    );
    let drivers = drivers.map_or_else(
        |status| {
            away(status);
            Vec::new()
        },
        |answer| answer.into_inner().drivers,
    );
    let mut used: Vec<String> = pools.map_or_else(
        |_| Vec::new(),
        |answer| {
            answer
                .into_inner()
                .pools
                .into_iter()
                .map(|p| p.driver)
                .collect()
        },
    );
    used.sort();
    used.dedup();
    (host, drivers, used)
}

async fn show(State(app): State<App>, query: Query) -> Answer {
    let (host, drivers, used) = facts(&app).await;
    let version_of = |name: &String| {
        drivers
            .iter()
            .find(|d| d.name == *name)
            .map_or("", |d| d.version.as_str())
    };
    let versions: Vec<&str> = used.iter().map(version_of).collect();
    let config = Config::new();
    let tag = etag::of(&config);
    let view = ServerView {
        config,
        api_extensions: EXTENSIONS.iter().map(|e| e.name).collect(),
        api_status: "stable",
        api_version: "1.0",
        auth: "trusted",
        public: false,
        auth_methods: ["tls"],
        environment: Environment {
            addresses: Vec::new(),
            architectures: host.architectures,
            certificate: String::new(),
            certificate_fingerprint: String::new(),
            driver: "lxc",
            driver_version: host.runtime_version,
            firewall: "nftables",
            kernel: host.kernel,
            kernel_architecture: host.kernel_architecture,
            kernel_features: host.kernel_features.into_iter().collect(),
            kernel_version: host.kernel_version,
            lxc_features: host.runtime_features.into_iter().collect(),
            os_name: host.os_name,
            os_version: host.os_version,
            project: query.project,
            server: "lxd",
            server_clustered: false,
            server_event_mode: "full-mesh",
            server_name: host.hostname,
            server_pid: app.identity.pid,
            server_version: app.identity.api_release,
            storage: used.join(" | "),
            storage_version: versions.join(" | "),
            storage_supported_drivers: drivers
                .into_iter()
                .map(|d| DriverView {
                    name: d.name,
                    version: d.version,
                    remote: d.remote,
                })
                .collect(),
        },
    };
    Ok(envelope::sync_etag(view, &tag))
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct UpdateBody {
    #[serde(deserialize_with = "body::config")]
    config: Config,
}

/// No server key does anything yet, so none is taken; setting nothing changes nothing.
async fn update(headers: HeaderMap, Json(body): Json<UpdateBody>) -> Answer {
    etag::check(&headers, &etag::of(&Config::new()))?;
    match body.config.iter().find(|(_, value)| !value.is_empty()) {
        Some((key, _)) => Err(Failure::unsupported(format!("server configuration {key}"))),
        None => Ok(envelope::empty()),
    }
}
