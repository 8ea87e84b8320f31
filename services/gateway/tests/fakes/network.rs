//! A network service in memory, with one unmanaged link, `lo`.

use std::collections::{BTreeMap, BTreeSet};

use berth_proto::network::network_service_server::NetworkService;
use berth_proto::network::port_service_server::PortService;
use berth_proto::network::{self, Network, NetworkState, PortSpec};
use berth_proto::types::{Event, Port, WatchEventsRequest, port::Kind};
use berth_rpc::{Error, etag};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::replay::{Replaying, last};

#[derive(Debug, Default)]
pub struct State {
    pub networks: BTreeMap<String, Network>,
    /// Holders besides ports, by network.
    pub holds: BTreeMap<String, BTreeSet<String>>,
    pub ports: BTreeMap<String, (Port, PortSpec)>,
    made: i64,
}

#[derive(Debug, Default)]
pub struct Fake(pub Replaying<State>);

impl State {
    fn get(&self, name: &str) -> Result<Network, Error> {
        if last(name) == "lo" {
            return Ok(lo());
        }
        let mut network = self
            .networks
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found("Network", last(name)))?;
        let mut config: Vec<_> = network.config.iter().collect();
        config.sort();
        network.etag = etag([format!("{config:?}{}", network.description).as_str()]);
        network.used_by = self.users(name).into_iter().collect();
        Ok(network)
    }

    fn users(&self, name: &str) -> BTreeSet<String> {
        let prefix = format!("{name}/ports/");
        let ports = self
            .ports
            .iter()
            .filter(|(port, _)| port.starts_with(&prefix))
            .map(|(_, (port, _))| port.holder.clone());
        let holds = self.holds.get(name).cloned().unwrap_or_default();
        ports.chain(holds).collect()
    }
}

fn lo() -> Network {
    Network {
        name: "projects/default/networks/lo".into(),
        r#type: "loopback".into(),
        ..Network::default()
    }
}

#[tonic::async_trait]
impl NetworkService for Fake {
    async fn create_network(
        &self,
        request: Request<network::CreateNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut network = request.network.unwrap_or_default();
            if network.r#type != "bridge" {
                return Err(Error::invalid("network.type", "Unknown driver"));
            }
            if let Some(key) = network.config.keys().find(|key| !key.contains('.')) {
                return Err(Error::invalid(
                    format!("network.config.{key}"),
                    format!("Invalid option for network option {key:?}"),
                ));
            }
            network.name = format!("{}/networks/{}", request.parent, request.network_id);
            if state.networks.contains_key(&network.name) {
                return Err(Error::already_exists("Network", &request.network_id));
            }
            network.managed = true;
            network.status = "Created".into();
            let name = network.name.clone();
            state.networks.insert(name.clone(), network);
            state.get(&name)
        })
    }

    async fn get_network(
        &self,
        request: Request<network::GetNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        self.0.with(|state| state.get(&request.get_ref().name))
    }

    async fn list_networks(
        &self,
        request: Request<network::ListNetworksRequest>,
    ) -> Result<Response<network::ListNetworksResponse>, Status> {
        self.0.with(|state| {
            let mut networks: Vec<Network> = state
                .networks
                .keys()
                .map(|name| state.get(name))
                .collect::<Result<_, _>>()?;
            if request.get_ref().include_unmanaged {
                networks.push(lo());
            }
            Ok(network::ListNetworksResponse {
                networks,
                next_page_token: String::new(),
            })
        })
    }

    async fn update_network(
        &self,
        request: Request<network::UpdateNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let new = request.network.unwrap_or_default();
            let old = state.get(&new.name)?;
            if !new.etag.is_empty() && new.etag != old.etag {
                return Err(Error::etag_mismatch("The network"));
            }
            let network = state.networks.get_mut(&new.name).unwrap();
            network.config = new.config;
            network.description = new.description;
            state.get(&old.name)
        })
    }

    async fn rename_network(
        &self,
        request: Request<network::RenameNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let users = state.users(&request.name);
            if !users.is_empty() {
                return Err(Error::held("The network", users.into_iter().collect()));
            }
            let mut network = state.get(&request.name)?;
            state.networks.remove(&request.name);
            network.name = format!("projects/default/networks/{}", request.new_network_id);
            let name = network.name.clone();
            state.networks.insert(name.clone(), network);
            state.get(&name)
        })
    }

    async fn delete_network(
        &self,
        request: Request<network::DeleteNetworkRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if !state.networks.contains_key(&request.name) {
                return Err(Error::not_found("Network", last(&request.name)));
            }
            let users = state.users(&request.name);
            if !users.is_empty() {
                return Err(Error::held("The network", users.into_iter().collect()));
            }
            state.networks.remove(&request.name);
            Ok(())
        })
    }

    async fn get_network_state(
        &self,
        request: Request<network::GetNetworkStateRequest>,
    ) -> Result<Response<NetworkState>, Status> {
        self.0.with(|state| {
            state.get(&request.get_ref().name)?;
            Ok(NetworkState {
                hwaddr: "00:16:3e:00:00:01".into(),
                mtu: 1500,
                state: "up".into(),
                r#type: "broadcast".into(),
                ..NetworkState::default()
            })
        })
    }

    async fn list_leases(
        &self,
        request: Request<network::ListLeasesRequest>,
    ) -> Result<Response<network::ListLeasesResponse>, Status> {
        self.0.with(|state| {
            let network = state.get(&request.get_ref().parent)?;
            if !network.managed {
                return Err(Error::not_found("Network", last(&network.name)));
            }
            let lease = |kind: &str, address: &str| network::Lease {
                hostname: "c1".into(),
                hwaddr: "00:16:3e:00:00:02".into(),
                address: address.into(),
                r#type: kind.into(),
                project: "default".into(),
            };
            Ok(network::ListLeasesResponse {
                leases: vec![lease("gateway", "10.0.0.1"), lease("dynamic", "10.0.0.2")],
            })
        })
    }

    async fn hold_network(
        &self,
        request: Request<network::HoldNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            state.get(&request.name)?;
            let holder = request.hold.unwrap_or_default().holder;
            state
                .holds
                .entry(request.name.clone())
                .or_default()
                .insert(holder);
            state.get(&request.name)
        })
    }

    async fn release_network(
        &self,
        request: Request<network::ReleaseNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            if let Some(holds) = state.holds.get_mut(&request.name) {
                holds.remove(&request.holder);
            }
            state.get(&request.name)
        })
    }

    type WatchEventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

#[tonic::async_trait]
impl PortService for Fake {
    async fn create_port(
        &self,
        request: Request<network::CreatePortRequest>,
    ) -> Result<Response<Port>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if last(&request.parent) != "-" {
                state.get(&request.parent)?;
            }
            let name = format!("{}/ports/{}", request.parent, request.port_id);
            if state.ports.contains_key(&name) {
                return Err(Error::already_exists("Port", &request.port_id));
            }
            let spec = request.spec.unwrap_or_default();
            state.made += 1;
            let port = Port {
                uid: format!("port-{}", state.made),
                kind: Kind::Bridged.into(),
                host_name: format!("veth{}", state.made),
                guest_name: spec.guest_name.clone(),
                mac: spec.mac.clone(),
                parent: last(&request.parent),
                generation: 1,
                holder: spec.holder.clone(),
                name: name.clone(),
                ..Port::default()
            };
            state.ports.insert(name, (port.clone(), spec));
            Ok(port)
        })
    }

    async fn get_port(
        &self,
        request: Request<network::GetPortRequest>,
    ) -> Result<Response<Port>, Status> {
        let name = request.into_inner().name;
        self.0.with(|state| match state.ports.get(&name) {
            Some((port, _)) => Ok(port.clone()),
            None => Err(Error::not_found("Port", last(&name))),
        })
    }

    async fn list_ports(
        &self,
        _: Request<network::ListPortsRequest>,
    ) -> Result<Response<network::ListPortsResponse>, Status> {
        self.0.with(|state| {
            Ok(network::ListPortsResponse {
                ports: state.ports.values().map(|(port, _)| port.clone()).collect(),
                next_page_token: String::new(),
            })
        })
    }

    async fn update_port(
        &self,
        request: Request<network::UpdatePortRequest>,
    ) -> Result<Response<Port>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let Some((port, spec)) = state.ports.get_mut(&request.name) else {
                return Err(Error::not_found("Port", last(&request.name)));
            };
            *spec = request.spec.unwrap_or_default();
            port.guest_name.clone_from(&spec.guest_name);
            port.mac.clone_from(&spec.mac);
            port.holder.clone_from(&spec.holder);
            port.generation += 1;
            Ok(port.clone())
        })
    }

    async fn delete_port(
        &self,
        request: Request<network::DeletePortRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if state.ports.remove(&request.name).is_none() && !request.allow_missing {
                return Err(Error::not_found("Port", last(&request.name)));
            }
            Ok(())
        })
    }
}

/// What there is, for comparing.
pub fn inventory(fake: &Fake) -> Vec<String> {
    let state = fake.0.lock();
    let networks = state.networks.values().map(|network| {
        let config: BTreeMap<_, _> = network.config.iter().collect();
        let users = state.users(&network.name);
        format!("{} {config:?} used by {users:?}", network.name)
    });
    let ports = state.ports.values().map(|(port, spec)| {
        let config: BTreeMap<_, _> = spec.config.iter().collect();
        format!("{} of {} {config:?}", port.name, port.holder)
    });
    networks.chain(ports).collect()
}
