//! The services through their own router, over a host of the imagination.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::HashMap;
use std::sync::Arc;

use berth_network::app::App;
use berth_network::grpc;
use berth_network::host::{AddressFilter, Fake, Link, LinkAddress, LinkKind, Scope};
use berth_network::model::lease::FileLease;
use berth_network::store::{MIGRATIONS, Networks};
use berth_proto::network as proto;
use berth_proto::network::network_service_client::NetworkServiceClient;
use berth_proto::network::port_service_client::PortServiceClient;
use berth_proto::types;
use berth_testkit::{TestDatabase, databases, serve_in_memory};
use tonic::Code;

struct Bed {
    host: Arc<Fake>,
    app: Arc<App>,
    channel: berth_rpc::Channel,
}

impl Bed {
    async fn new(database: &TestDatabase) -> Self {
        let store = database.open(MIGRATIONS).await.unwrap();
        let host = Arc::new(Fake::default());
        let app = App::new(Networks::new(store, "here"), host.clone());
        let (networks, ports) = grpc::services(&app);
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(networks);
        routes.add_service(ports);
        let channel = serve_in_memory(routes.routes()).await;
        Self { host, app, channel }
    }

    fn networks(&self) -> NetworkServiceClient<berth_rpc::Channel> {
        NetworkServiceClient::new(self.channel.clone())
    }

    fn ports(&self) -> PortServiceClient<berth_rpc::Channel> {
        PortServiceClient::new(self.channel.clone())
    }

    async fn create(
        &self,
        ask: proto::CreateNetworkRequest,
    ) -> Result<proto::Network, tonic::Status> {
        Ok(self.networks().create_network(ask).await?.into_inner())
    }

    async fn port(&self, ask: proto::CreatePortRequest) -> Result<types::Port, tonic::Status> {
        Ok(self.ports().create_port(ask).await?.into_inner())
    }

    async fn delete_port(&self, name: &str) -> Result<(), tonic::Status> {
        let ask = proto::DeletePortRequest {
            name: name.into(),
            ..Default::default()
        };
        self.ports().delete_port(ask).await.map(|_| ())
    }
}

/// Runs a test on each kind of database.
async fn everywhere(test: impl AsyncFn(Bed)) {
    for database in databases().await.unwrap() {
        test(Bed::new(&database).await).await;
        database.remove().await.unwrap();
    }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn network(name: &str, config: &[(&str, &str)]) -> proto::CreateNetworkRequest {
    proto::CreateNetworkRequest {
        parent: "projects/default".into(),
        network_id: name.into(),
        network: Some(proto::Network {
            config: map(config),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn port(network: &str, guest: &str, config: &[(&str, &str)]) -> proto::CreatePortRequest {
    proto::CreatePortRequest {
        parent: format!("projects/default/networks/{network}"),
        port_id: format!("{guest}-eth0"),
        spec: Some(proto::PortSpec {
            holder: format!("projects/default/instances/{guest}"),
            hostname: guest.into(),
            config: map(config),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn link(name: &str, kind: LinkKind, address: Option<&str>) -> Link {
    Link {
        index: 7,
        name: name.into(),
        kind,
        mac: None,
        mtu: 1500,
        up: true,
        broadcast: true,
        point_to_point: false,
        controller: None,
        alias: None,
        addresses: address
            .map(|a| LinkAddress {
                net: a.parse().unwrap(),
                scope: Scope::Global,
            })
            .into_iter()
            .collect(),
        counters: [1, 2, 3, 4],
        bridge: None,
    }
}

const NAME: &str = "projects/default/networks/br0";

#[tokio::test]
async fn a_network_from_creation_to_deletion() {
    everywhere(async |bed| {
        let mut events = bed
            .networks()
            .watch_events(types::WatchEventsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let made = bed
            .create(network("br0", &[("user.a", "b\nc")]))
            .await
            .unwrap();
        assert_eq!(
            (made.name.as_str(), made.status.as_str()),
            (NAME, "Created")
        );
        assert_eq!(made.r#type, "bridge");
        assert!(made.managed && !made.uid.is_empty() && made.used_by.is_empty());
        assert!(
            made.config["ipv4.address"].starts_with("10.") && made.config["ipv4.nat"] == "true"
        );
        assert!(bed.host.state().networks.contains_key("br0"));

        let mut change = made.clone();
        change.description = "mine".into();
        change.config.insert("ipv4.nat".into(), "false".into());
        let ask = |network: &proto::Network| proto::UpdateNetworkRequest {
            network: Some(network.clone()),
            ..Default::default()
        };
        let changed = bed
            .networks()
            .update_network(ask(&change))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(changed.description, "mine");
        assert!(!bed.host.state().networks["br0"].ipv4.as_ref().unwrap().nat);
        // The etag is that of before the change.
        let stale = bed
            .networks()
            .update_network(ask(&change))
            .await
            .unwrap_err();
        assert_eq!(stale.code(), Code::Aborted);

        // A mask merges one key.
        let patch = proto::UpdateNetworkRequest {
            network: Some(proto::Network {
                name: NAME.into(),
                config: map(&[("ipv4.nat", "true")]),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["config.ipv4.nat".into()],
            }),
            ..Default::default()
        };
        let patched = bed
            .networks()
            .update_network(patch)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(patched.config["user.a"], "b\nc");
        assert_eq!(patched.description, "mine");

        let renamed = bed
            .networks()
            .rename_network(proto::RenameNetworkRequest {
                name: NAME.into(),
                new_network_id: "br1".into(),
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(renamed.uid, made.uid);
        bed.networks()
            .delete_network(proto::DeleteNetworkRequest {
                name: renamed.name,
                ..Default::default()
            })
            .await
            .unwrap();
        assert!(bed.host.state().networks.is_empty());
        let mut actions = Vec::new();
        for _ in 0..5 {
            actions.push(events.message().await.unwrap().unwrap().action);
        }
        assert_eq!(
            actions,
            [
                "network-created",
                "network-updated",
                "network-updated",
                "network-renamed",
                "network-deleted"
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn bad_networks_are_refused_by_name() {
    everywhere(async |bed| {
        bed.host
            .state()
            .links
            .push(link("eth0", LinkKind::Physical, None));
        for (ask, code, text) in [
            (network("x", &[]), Code::InvalidArgument, "too short"),
            (
                network("a-name-too-long-1", &[]),
                Code::InvalidArgument,
                "too long",
            ),
            (
                network("a b", &[]),
                Code::InvalidArgument,
                "invalid characters",
            ),
            (network("eth0", &[]), Code::AlreadyExists, "already exists"),
            (
                network("br0", &[("what", "x")]),
                Code::InvalidArgument,
                "Unknown configuration key: what",
            ),
            (
                network("br0", &[("fan.type", "x")]),
                Code::Unimplemented,
                "fan.type",
            ),
            (
                network("br0", &[("ipv4.address", "10.0.0.1")]),
                Code::InvalidArgument,
                "ipv4.address",
            ),
            (
                network("br0", &[("dns.domain", "a\nb")]),
                Code::InvalidArgument,
                "control",
            ),
            (
                network("br0", &[("bridge.external_interfaces", "nope")]),
                Code::InvalidArgument,
                "\"nope\" does not exist",
            ),
        ] {
            let error = bed.create(ask).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(text), "{error}");
        }
        let mut ovn = network("br0", &[]);
        ovn.network.as_mut().unwrap().r#type = "ovn".into();
        assert_eq!(
            bed.create(ovn).await.unwrap_err().code(),
            Code::Unimplemented
        );

        bed.create(network("br0", &[])).await.unwrap();
        assert_eq!(
            bed.create(network("br0", &[])).await.unwrap_err().code(),
            Code::AlreadyExists
        );
        let mut dry = network("br2", &[]);
        dry.validate_only = true;
        assert!(bed.create(dry).await.unwrap().config["ipv6.address"].starts_with("fd42:"));
        assert_eq!(bed.host.state().networks.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_failed_creation_leaves_nothing_and_a_retry_gives_the_same() {
    everywhere(async |bed| {
        bed.host.state().failing = vec!["apply"];
        let mut ask = network("br0", &[]);
        ask.request_id = "r1".into();
        bed.create(ask.clone()).await.unwrap_err();
        assert!(bed.host.state().networks.is_empty());
        assert!(bed.app.get_network("default", "br0").await.is_err());
        bed.host.state().failing.clear();
        let first = bed.create(ask.clone()).await.unwrap();
        assert_eq!(bed.create(ask).await.unwrap(), first);
    })
    .await;
}

#[tokio::test]
async fn used_subnets_are_avoided() {
    everywhere(async |bed| {
        bed.host
            .state()
            .links
            .push(link("eth0", LinkKind::Physical, Some("10.0.0.0/9")));
        for n in 0..20 {
            let made = bed.create(network(&format!("br{n}"), &[])).await.unwrap();
            let second: u8 = made.config["ipv4.address"]
                .split('.')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
            assert!(second >= 128);
        }
        let plans = bed.host.state().networks.clone();
        let nets: Vec<_> = plans
            .values()
            .map(|p| p.ipv4.as_ref().unwrap().subnet)
            .collect();
        for (i, a) in nets.iter().enumerate() {
            assert!(nets[i + 1..].iter().all(|b| !a.contains(&b.network())));
        }
    })
    .await;
}

#[tokio::test]
async fn ports_hold_their_network() {
    everywhere(async |bed| {
        bed.create(network("br0", &[("ipv4.address", "10.5.5.1/24")]))
            .await
            .unwrap();
        let made = bed
            .port(port("br0", "c1", &[("name", "eth0")]))
            .await
            .unwrap();
        assert_eq!(made.kind(), types::port::Kind::Bridged);
        assert_eq!(
            (made.parent.as_str(), made.guest_name.as_str()),
            ("br0", "eth0")
        );
        assert_eq!(made.generation, 1);
        assert_eq!(bed.host.state().records.len(), 1);
        assert!(!bed.host.state().guards[&made.host_name].is_needed());
        bed.networks()
            .hold_network(proto::HoldNetworkRequest {
                name: NAME.into(),
                hold: Some(types::Hold {
                    holder: "projects/default/profiles/default".into(),
                    authority: "gateway".into(),
                    expire_time: String::new(),
                }),
            })
            .await
            .unwrap();
        let delete = || proto::DeleteNetworkRequest {
            name: NAME.into(),
            ..Default::default()
        };
        let held = bed.networks().delete_network(delete()).await.unwrap_err();
        assert_eq!(held.code(), Code::FailedPrecondition);
        let holders = berth_rpc::Error::from(held).holders;
        assert_eq!(
            holders,
            [
                "projects/default/instances/c1",
                "projects/default/profiles/default"
            ]
        );
        let list = bed
            .networks()
            .list_networks(proto::ListNetworksRequest {
                parent: "projects/default".into(),
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(list.networks[0].used_by, holders);

        bed.delete_port(&made.name).await.unwrap();
        assert_eq!(
            bed.delete_port(&made.name).await.unwrap_err().code(),
            Code::NotFound
        );
        assert!(bed.host.state().records.is_empty() && bed.host.state().guards.is_empty());
        bed.networks()
            .release_network(proto::ReleaseNetworkRequest {
                name: NAME.into(),
                holder: "projects/default/profiles/default".into(),
            })
            .await
            .unwrap();
        bed.networks().delete_network(delete()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_may_not_be_twice_on_a_network() {
    everywhere(async |bed| {
        bed.create(network("br0", &[("ipv4.address", "10.5.5.1/24")]))
            .await
            .unwrap();
        let config = [
            ("ipv4.address", "10.5.5.9"),
            ("hwaddr", "00:16:3e:00:00:09"),
            ("host_name", "vethnine"),
        ];
        let first = bed.port(port("br0", "c1", &config)).await.unwrap();
        assert_eq!(first.addresses, ["10.5.5.9"]);
        for (config, reason) in [
            (&config[..1], "ADDRESS_TAKEN"),
            (&config[1..2], "MAC_TAKEN"),
            (&config[2..], "HOST_NAME_TAKEN"),
        ] {
            let error = bed.port(port("br0", "c2", config)).await.unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists, "{error}");
            assert_eq!(berth_rpc::Error::from(error).reason, reason);
        }
        // Neither is a link's name taken that the host or a network has.
        let uplink = link("uplink0", LinkKind::Other, None);
        bed.host.state().links.push(uplink);
        for name in ["uplink0", "br0"] {
            let taken = bed.port(port("br0", "c2", &[("host_name", name)])).await;
            let error = berth_rpc::Error::from(taken.unwrap_err());
            assert_eq!(error.reason, "HOST_NAME_TAKEN", "{name}");
        }
        let mut same_name = port("br0", "c1", &[]);
        let error = bed.port(same_name.clone()).await.unwrap_err();
        assert_eq!(berth_rpc::Error::from(error).reason, "ALREADY_EXISTS");
        same_name.port_id = "other".into();
        same_name.spec.as_mut().unwrap().holder = "projects/default/instances/c9".into();
        let error = bed.port(same_name).await.unwrap_err();
        assert_eq!(berth_rpc::Error::from(error).reason, "DNS_NAME_TAKEN");
        // What failed left the first port as it was, and nothing else.
        assert_eq!(bed.host.state().guards.len(), 1);
        assert_eq!(bed.host.state().records.len(), 1);
        // Another project's guest of the same name has its project in its name.
        let mut other = port("br0", "c1", &[]);
        other.port_id = "p2".into();
        other.spec.as_mut().unwrap().holder = "projects/p2/instances/c1".into();
        bed.port(other).await.unwrap();
        let state = bed.host.state();
        assert!(
            state
                .records
                .values()
                .any(|r| r.hostname.as_deref() == Some("c1-p2"))
        );
    })
    .await;
}

#[tokio::test]
async fn bad_ports_are_refused_by_name() {
    everywhere(async |bed| {
        bed.host
            .state()
            .links
            .push(link("eth0", LinkKind::Physical, None));
        bed.create(network(
            "br0",
            &[
                ("ipv4.address", "10.5.5.1/24"),
                ("ipv6.address", "fd42::1/64"),
            ],
        ))
        .await
        .unwrap();
        for (segment, config, code, text) in [
            (
                "br0",
                &[("ipv4.address", "10.5.6.9")][..],
                Code::InvalidArgument,
                "10.5.5.0/24",
            ),
            (
                "br0",
                &[("ipv4.address", "10.5.5.1")],
                Code::InvalidArgument,
                "not a free address",
            ),
            (
                "br0",
                &[("ipv4.address", "10.5.5.255")],
                Code::InvalidArgument,
                "not a free address",
            ),
            (
                "br0",
                &[("ipv6.address", "fd42::9")],
                Code::InvalidArgument,
                "ipv6.dhcp.stateful",
            ),
            (
                "br0",
                &[("network", "br1")],
                Code::InvalidArgument,
                "network",
            ),
            (
                "br0",
                &[("network", "br0"), ("nictype", "bridged")],
                Code::InvalidArgument,
                "nictype",
            ),
            (
                "br0",
                &[("nictype", "p2p")],
                Code::InvalidArgument,
                "bridged",
            ),
            ("br0", &[("vlan", "7")], Code::Unimplemented, "vlan"),
            ("nope", &[], Code::NotFound, "nope"),
            ("-", &[], Code::InvalidArgument, "nictype"),
            ("-", &[("nictype", "routed")], Code::Unimplemented, "routed"),
            (
                "-",
                &[("nictype", "bridged")],
                Code::InvalidArgument,
                "parent",
            ),
            (
                "-",
                &[("nictype", "bridged"), ("parent", "eth0")],
                Code::InvalidArgument,
                "not a bridge",
            ),
            (
                "-",
                &[("nictype", "macvlan"), ("parent", "gone")],
                Code::FailedPrecondition,
                "gone",
            ),
        ] {
            let error = bed.port(port(segment, "c1", config)).await.unwrap_err();
            assert_eq!(error.code(), code, "{config:?}: {error}");
            assert!(error.message().contains(text), "{config:?}: {error}");
        }
        let mut nameless = port("br0", "c1", &[]);
        nameless.spec.as_mut().unwrap().hostname = "a,ignore\n".into();
        assert_eq!(
            bed.port(nameless).await.unwrap_err().code(),
            Code::InvalidArgument
        );
        assert!(bed.host.state().guards.is_empty() && bed.host.state().records.is_empty());
        // These are fine.
        let p2p = bed
            .port(port(
                "-",
                "c1",
                &[("nictype", "p2p"), ("ipv4.routes", "10.9.0.0/16")],
            ))
            .await
            .unwrap();
        assert_eq!((p2p.kind(), p2p.routes.len()), (types::port::Kind::P2p, 1));
        let macvlan = bed
            .port(port(
                "-",
                "c2",
                &[("nictype", "macvlan"), ("parent", "eth0")],
            ))
            .await
            .unwrap();
        assert!(macvlan.host_name.starts_with("mac") && macvlan.parent == "eth0");
        // A managed bridge as a parent is that network, leases and all.
        let old_style = [
            ("nictype", "bridged"),
            ("parent", "br0"),
            ("ipv4.address", "10.5.5.7"),
        ];
        let managed = bed.port(port("-", "c3", &old_style)).await.unwrap();
        assert_eq!(managed.addresses, ["10.5.5.7"]);
    })
    .await;
}

#[tokio::test]
async fn filtered_ports_get_addresses_that_stay() {
    everywhere(async |bed| {
        bed.create(network(
            "br0",
            &[("ipv4.address", "10.5.5.1/29"), ("ipv6.address", "none")],
        ))
        .await
        .unwrap();
        // Somebody has .2 by DHCP.
        bed.host.state().leases.insert(
            "br0".into(),
            vec![FileLease {
                expires: 0,
                mac: None,
                address: "10.5.5.2".parse().unwrap(),
                hostname: String::new(),
            }],
        );
        let filtering = [
            ("security.ipv4_filtering", "true"),
            ("security.ipv6_filtering", "true"),
        ];
        let mut given = Vec::new();
        for n in 3..=6 {
            let made = bed
                .port(port("br0", &format!("c{n}"), &filtering))
                .await
                .unwrap();
            let guard = bed.host.state().guards[&made.host_name].clone();
            assert_eq!(guard.ipv6, AddressFilter::Nothing);
            assert!(guard.mac.is_some());
            given.extend(made.addresses);
        }
        given.sort();
        assert_eq!(given, ["10.5.5.3", "10.5.5.4", "10.5.5.5", "10.5.5.6"]);
        let full = bed.port(port("br0", "c7", &filtering)).await.unwrap_err();
        assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
        // An update keeps the address, the link and the MAC.
        let before = bed
            .ports()
            .get_port(proto::GetPortRequest {
                name: format!("{NAME}/ports/c3-eth0"),
            })
            .await
            .unwrap()
            .into_inner();
        let spec = port(
            "br0",
            "c3",
            &[("security.ipv4_filtering", "true"), ("limits.max", "1Mbit")],
        )
        .spec;
        let after = bed
            .ports()
            .update_port(proto::UpdatePortRequest {
                name: before.name.clone(),
                spec,
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(after.addresses, before.addresses);
        assert_eq!(
            (&after.mac, &after.host_name),
            (&before.mac, &before.host_name)
        );
        assert_eq!((after.generation, after.egress_bps), (2, 1_000_000));
        assert_eq!(
            bed.host.state().guards[&after.host_name].ipv6,
            AddressFilter::Off
        );
        // The subnet cannot be taken from under static addresses.
        let error = bed
            .networks()
            .update_network(proto::UpdateNetworkRequest {
                network: Some(proto::Network {
                    name: NAME.into(),
                    config: map(&[("ipv4.address", "10.6.6.1/24")]),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .await
            .unwrap_err();
        assert_eq!(berth_rpc::Error::from(error).reason, "STATIC_ADDRESSES");
    })
    .await;
}

#[tokio::test]
async fn failures_undo_and_the_reconciler_repeats() {
    everywhere(async |bed| {
        bed.create(network("br0", &[("ipv4.address", "10.5.5.1/24")]))
            .await
            .unwrap();
        bed.host.state().failing = vec!["record"];
        bed.port(port("br0", "c1", &[])).await.unwrap_err();
        assert!(bed.host.state().guards.is_empty());
        bed.host.state().failing.clear();
        let mut ask = port("br0", "c1", &[("security.mac_filtering", "true")]);
        ask.request_id = "r1".into();
        let made = bed.port(ask.clone()).await.unwrap();
        assert_eq!(
            bed.port(ask).await.unwrap(),
            made,
            "a retry gets the same port"
        );
        // The host forgets everything, as after a reboot.
        *bed.host.state() = Default::default();
        bed.app.reconcile(true).await.unwrap();
        assert!(bed.host.state().networks.contains_key("br0"));
        assert!(bed.host.state().guards[&made.host_name].is_needed());
        assert_eq!(bed.host.state().records.len(), 1);
        bed.host.state().failing = vec!["apply"];
        bed.app.reconcile(false).await.unwrap();
        let view = bed.app.get_network("default", "br0").await.unwrap();
        assert!(!view.trouble.is_empty());
        bed.host.state().failing.clear();
        bed.app.reconcile(false).await.unwrap();
        assert!(
            bed.app
                .get_network("default", "br0")
                .await
                .unwrap()
                .trouble
                .is_empty()
        );
    })
    .await;
}

#[tokio::test]
async fn lists_have_pages_and_unmanaged_links() {
    everywhere(async |bed| {
        bed.host.state().links = vec![
            link("eth0", LinkKind::Physical, Some("192.0.2.7/24")),
            link("lo", LinkKind::Loopback, None),
        ];
        for n in 0..3 {
            bed.create(network(&format!("br{n}"), &[])).await.unwrap();
        }
        let mut names = Vec::new();
        let mut token = String::new();
        loop {
            let page = bed
                .networks()
                .list_networks(proto::ListNetworksRequest {
                    parent: "projects/default".into(),
                    page_size: 2,
                    page_token: token,
                    include_unmanaged: true,
                })
                .await
                .unwrap()
                .into_inner();
            assert!(page.networks.len() <= 2);
            names.extend(
                page.networks
                    .into_iter()
                    .map(|n| (n.name, n.r#type, n.managed)),
            );
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let last: Vec<_> = names
            .iter()
            .map(|(n, t, m)| (n.rsplit('/').next().unwrap(), t.as_str(), *m))
            .collect();
        assert_eq!(
            last,
            [
                ("br0", "bridge", true),
                ("br1", "bridge", true),
                ("br2", "bridge", true),
                ("eth0", "physical", false),
                ("lo", "loopback", false)
            ]
        );
        let state = bed
            .networks()
            .get_network_state(proto::GetNetworkStateRequest {
                name: "projects/default/networks/eth0".into(),
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(state.addresses[0].address, "192.0.2.7");
        assert_eq!(state.counters.unwrap().bytes_sent, 3);
        let elsewhere = bed
            .networks()
            .get_network(proto::GetNetworkRequest {
                name: "projects/p2/networks/br0".into(),
            })
            .await
            .unwrap_err();
        assert_eq!(elsewhere.code(), Code::NotFound);
    })
    .await;
}
