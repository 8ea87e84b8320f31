//! Networks: managed ones, and the host's other links to look at.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::network;
use berth_rpc::names;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::{self, Config, Json};
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, refuse_all, urls};
use crate::App;
use crate::app::{lists, networks};
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/networks", get(list).post(create))
        .route(
            "/1.0/networks/{network}",
            get(show)
                .put(replace)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
        .route("/1.0/networks/{network}/state", get(state))
        .route("/1.0/networks/{network}/leases", get(leases))
        .merge(refuse_all(&[
            ("/1.0/networks/{network}/forwards", "network forwards"),
            (
                "/1.0/networks/{network}/forwards/{address}",
                "network forwards",
            ),
            ("/1.0/networks/{network}/peers", "network peers"),
            ("/1.0/networks/{network}/peers/{peer}", "network peers"),
        ]))
}

/// A network as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    config: BTreeMap<String, String>,
    description: String,
    name: String,
    r#type: String,
    // `null` for a managed one that nothing uses, `[]` for others, as LXD has it.
    used_by: Option<Vec<String>>,
    managed: bool,
    status: String,
    locations: Option<[&'static str; 1]>,
}

impl From<network::Network> for Shown {
    fn from(network: network::Network) -> Self {
        let used_by = urls::of_resources(network.used_by.iter().map(String::as_str));
        Self {
            config: network.config.into_iter().collect(),
            description: network.description,
            name: urls::last(&network.name).to_owned(),
            r#type: network.r#type,
            used_by: (!used_by.is_empty() || !network.managed).then_some(used_by),
            managed: network.managed,
            status: network.status,
            locations: network.managed.then_some(["none"]),
        }
    }
}

impl Shown {
    fn etag(&self) -> String {
        etag::of(&(
            &self.name,
            self.managed,
            &self.r#type,
            &self.description,
            &self.config,
        ))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    name: String,
    r#type: String,
    description: Option<String>,
    #[serde(deserialize_with = "body::config_opt")]
    config: Option<Config>,
}

fn resource(query: &Query, network: &str) -> Result<String, Failure> {
    // `-` is not a network but stands for parents that have none.
    let name = match network {
        "-" => return Err(Failure::not_found("Network not found")),
        name => urls::named("Network", name)?,
    };
    Ok(names::Network::new(&query.project, name).to_string())
}

fn location(name: &str) -> String {
    format!("/1.0/networks/{}", urls::escape(name))
}

fn missing(status: tonic::Status) -> Failure {
    if status.code() == tonic::Code::NotFound {
        Failure::not_found("Network not found")
    } else {
        status.into()
    }
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let mut shown: Vec<Shown> = lists::networks(&app.owners, &query.parent(), true)
        .await?
        .into_iter()
        .map(Shown::from)
        .collect();
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    if query.recursion == 0 {
        let urls: Vec<String> = shown
            .iter()
            .map(|network| location(&network.name))
            .collect();
        return Ok(envelope::sync(urls));
    }
    Ok(envelope::sync(shown))
}

async fn read(app: &App, query: &Query, network: &str) -> Result<network::Network, Failure> {
    let name = resource(query, network)?;
    let network = app
        .owners
        .networks()
        .get_network(network::GetNetworkRequest { name })
        .await
        .map_err(missing)?;
    Ok(network.into_inner())
}

async fn show(State(app): State<App>, Path(network): Path<String>, query: Query) -> Answer {
    let shown = Shown::from(read(&app, &query, &network).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

fn check_name(name: &str) -> Result<(), Failure> {
    let wrong = if name.is_empty() {
        "No name provided"
    } else if name.len() < 2 {
        "Network interface is too short (minimum 2 characters)"
    } else if name.len() > 15 {
        "Network interface is too long (maximum 15 characters)"
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        "Network interface contains invalid characters"
    } else {
        return Ok(());
    };
    Err(Failure::bad_request(wrong))
}

async fn create(State(app): State<App>, query: Query, Json(body): Json<Body>) -> Answer {
    check_name(&body.name)?;
    let kind = match body.r#type.as_str() {
        "" => "bridge".to_owned(),
        _ => body.r#type,
    };
    let network = network::Network {
        name: resource(&query, &body.name)?,
        description: body.description.unwrap_or_default(),
        r#type: kind,
        config: body.config.unwrap_or_default().into_iter().collect(),
        ..network::Network::default()
    };
    networks::create(&app, &query.project, network).await?;
    Ok(envelope::created(&location(&body.name)))
}

async fn replace(
    State(app): State<App>,
    Path(network): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let mut new = managed(&app, &query, &network).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    if etag::if_match(&headers).is_none() {
        new.etag.clear();
    }
    new.config = body.config.unwrap_or_default().into_iter().collect();
    new.description = body.description.unwrap_or_default();
    write(&app, new).await
}

async fn change(
    State(app): State<App>,
    Path(network): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let mut new = managed(&app, &query, &network).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    new.config.extend(body.config.unwrap_or_default());
    if let Some(description) = body.description {
        new.description = description;
    }
    write(&app, new).await
}

/// A network that can be changed: the host's own links cannot.
async fn managed(app: &App, query: &Query, network: &str) -> Result<network::Network, Failure> {
    let found = read(app, query, network).await?;
    if !found.managed {
        return Err(Failure::not_found("Network not found"));
    }
    Ok(found)
}

async fn write(app: &App, mut network: network::Network) -> Answer {
    network.config.retain(|_, value| !value.is_empty());
    app.owners
        .networks()
        .update_network(network::UpdateNetworkRequest {
            network: Some(network),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["*".into()],
            }),
            request_id: crate::app::request_id(),
        })
        .await?;
    Ok(envelope::empty())
}

async fn rename(
    State(app): State<App>,
    Path(network): Path<String>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    check_name(&body.name)?;
    app.owners
        .networks()
        .rename_network(network::RenameNetworkRequest {
            name: resource(&query, &network)?,
            new_network_id: body.name.clone(),
            request_id: crate::app::request_id(),
        })
        .await
        .map_err(missing)?;
    Ok(envelope::created(&location(&body.name)))
}

async fn delete(State(app): State<App>, Path(network): Path<String>, query: Query) -> Answer {
    networks::delete(&app, &query.project, &resource(&query, &network)?).await?;
    Ok(envelope::empty())
}

async fn state(State(app): State<App>, Path(network): Path<String>, query: Query) -> Answer {
    let name = resource(&query, &network)?;
    let state = app
        .owners
        .networks()
        .get_network_state(network::GetNetworkStateRequest { name })
        .await
        .map_err(|status| match status.code() {
            tonic::Code::NotFound => {
                Failure::not_found(format!("Network interface {network:?} not found"))
            }
            _ => status.into(),
        })?
        .into_inner();
    Ok(envelope::sync(shown_state(&state)))
}

fn shown_state(state: &network::NetworkState) -> serde_json::Value {
    let addresses: Vec<_> = state
        .addresses
        .iter()
        .map(|a| {
            json!({"family": a.family, "address": a.address, "netmask": a.netmask,
                "scope": a.scope})
        })
        .collect();
    let counters = state.counters.unwrap_or_default();
    let bridge = state.bridge.as_ref().map(|b| {
        json!({"id": b.id, "stp": b.stp, "forward_delay": b.forward_delay,
            "vlan_default": b.vlan_default, "vlan_filtering": b.vlan_filtering,
            "upper_devices": b.upper_devices})
    });
    json!({
        "addresses": addresses,
        "counters": {
            "bytes_received": counters.bytes_received,
            "bytes_sent": counters.bytes_sent,
            "packets_received": counters.packets_received,
            "packets_sent": counters.packets_sent,
        },
        "hwaddr": state.hwaddr,
        "mtu": state.mtu,
        "state": state.state,
        "type": state.r#type,
        "bond": null,
        "bridge": bridge,
        "vlan": null,
        "ovn": null,
    })
}

async fn leases(State(app): State<App>, Path(network): Path<String>, query: Query) -> Answer {
    let parent = resource(&query, &network)?;
    let leases = app
        .owners
        .networks()
        .list_leases(network::ListLeasesRequest { parent })
        .await
        .map_err(missing)?
        .into_inner()
        .leases;
    let shown: Vec<_> = leases
        .into_iter()
        .map(|lease| {
            // The gateway's own address is everywhere and on no card; leases belong to a member.
            let (location, hwaddr) = match lease.r#type.as_str() {
                "gateway" | "uplink" => ("", String::new()),
                _ => ("none", lease.hwaddr),
            };
            json!({"hostname": lease.hostname, "hwaddr": hwaddr, "address": lease.address,
                "type": lease.r#type, "location": location})
        })
        .collect();
    Ok(envelope::sync(shown))
}
