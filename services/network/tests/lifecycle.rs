//! The real service on a real kernel over time: changes, crashes, other firewalls, the end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod bed;

use bed::{Bed, Guest, eventually, isolated, map, nft, run, world};
use berth_proto::network as proto;

const FILTERED: &[(&str, &str)] = &[
    ("security.mac_filtering", "true"),
    ("security.ipv4_filtering", "true"),
    ("security.ipv6_filtering", "true"),
];

const DOCKER: &str = "table ip filter {
  chain DOCKER-USER { counter return; }
  chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}";

#[test]
fn docker_in_either_order() {
    isolated("docker_in_either_order", async || {
        let bed = Bed::start().await;
        world();
        let before = bed.network("br0", &[]).await;
        assert!(before.warnings.is_empty());
        let c1 = Guest::plug("c1", &bed.port("br0", "c1", &[]).await);
        c1.dhcp().unwrap();
        assert!(c1.pings("192.0.2.2"));
        // Docker comes after the first network, and before the second.
        nft(DOCKER);
        eventually("egress beside Docker", async || c1.pings("192.0.2.2")).await;
        bed.network("br1", &[]).await;
        let c2 = Guest::plug("c2", &bed.port("br1", "c2", &[]).await);
        c2.dhcp().unwrap();
        assert!(c2.pings("192.0.2.2"));
        for name in ["br0", "br1"] {
            let warnings = bed.get(name).await.warnings;
            assert!(warnings.is_empty(), "{name}: {warnings:?}");
        }
        // Docker's own restart flushes its table; the accepts come back.
        nft("delete table ip filter");
        nft(DOCKER);
        eventually("egress after Docker's restart", async || {
            c1.pings("192.0.2.2")
        })
        .await;
        // A network that goes takes its rules along and leaves Docker's.
        bed.ports()
            .delete_port(proto::DeletePortRequest {
                name: "projects/default/networks/br1/ports/c2-eth0".into(),
                ..Default::default()
            })
            .await
            .unwrap();
        bed.networks()
            .delete_network(proto::DeleteNetworkRequest {
                name: "projects/default/networks/br1".into(),
                ..Default::default()
            })
            .await
            .unwrap();
        let rules = run("nft", &["list", "table", "ip", "filter"]);
        assert!(
            rules.contains("\"br0\"") && !rules.contains("\"br1\""),
            "{rules}"
        );
    });
}

#[test]
fn a_firewall_in_the_way_is_named() {
    isolated("a_firewall_in_the_way_is_named", async || {
        let bed = Bed::start().await;
        nft("table ip filter {
               chain FORWARD { type filter hook forward priority filter; policy drop; }
             }
             table inet firewalld {
               chain filter_INPUT { type filter hook input priority filter; policy accept;
                 ct state established accept; reject with icmpx admin-prohibited; }
             }");
        let network = bed.network("br0", &[]).await;
        let text = network.warnings.join("\n");
        assert!(
            text.contains("\"ip filter FORWARD\"") && text.contains("ufw route allow"),
            "{text}"
        );
        assert!(
            text.contains("filter_INPUT") && text.contains("firewall-cmd"),
            "{text}"
        );
        nft("add rule ip filter FORWARD iifname br0 accept");
        nft("insert rule inet firewalld filter_INPUT iifname br0 accept");
        eventually(
            "the warnings go once the bridge is let through",
            async || bed.get("br0").await.warnings.is_empty(),
        )
        .await;
    });
}

#[test]
fn the_service_may_die_and_dnsmasq_too() {
    isolated("the_service_may_die_and_dnsmasq_too", async || {
        let mut bed = Bed::start().await;
        bed.network("br0", &[("ipv4.address", "10.9.8.1/24")]).await;
        let port = bed.port("br0", "c1", FILTERED).await;
        let c1 = Guest::plug("c1", &port);
        let first = bed.dnsmasq("br0").unwrap();
        bed.kill();
        // While nobody is there guests are served, and kept from lying.
        assert_eq!(c1.dhcp().as_deref(), Some(port.addresses[0].as_str()));
        bed.serve(&[]).await;
        assert_eq!(
            bed.dnsmasq("br0"),
            Some(first),
            "it was found, not started again"
        );
        let rules = run("nft", &["list", "ruleset"]);
        assert!(rules.contains(&port.host_name));

        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::SIGKILL)
            .unwrap();
        eventually("dnsmasq is started again", async || {
            bed.dnsmasq("br0").is_some_and(|pid| pid != first)
        })
        .await;
        assert!(c1.dhcp().is_some());
        eventually("and is healthy", async || {
            bed.get("br0").await.warnings.is_empty()
        })
        .await;

        // What others removed comes back.
        nft("flush ruleset");
        eventually("rules come back", async || {
            let rules = run("nft", &["list", "ruleset"]);
            rules.contains(&port.host_name) && rules.contains("masquerade")
        })
        .await;
        run("ip", &["link", "del", "br0"]);
        eventually("the bridge comes back", async || {
            run("ip", &["-br", "addr"]).contains("10.9.8.1/24")
        })
        .await;
        eventually("with its guests", async || c1.pings("10.9.8.1")).await;
    });
}

#[test]
fn purge_leaves_no_trace() {
    isolated("purge_leaves_no_trace", async || {
        let links = run("ip", &["-br", "link"]);
        run("ip", &["link", "add", "other", "type", "bridge"]);
        run("ip", &["link", "del", "other"]);
        nft(DOCKER);
        let rules = run("nft", &["list", "ruleset"]);
        let mut bed = Bed::start().await;
        bed.network("br0", &[]).await;
        bed.network("br1", &[("ipv6.address", "none")]).await;
        bed.port("br0", "c1", FILTERED).await;
        let pids = [bed.dnsmasq("br0").unwrap(), bed.dnsmasq("br1").unwrap()];
        bed.kill();
        let output = bed.purge();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(run("ip", &["-br", "link"]), links);
        assert_eq!(run("nft", &["list", "ruleset"]), rules);
        for pid in pids {
            assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
        }
    });
}

#[test]
fn a_creation_that_fails_or_crashes_leaves_nothing_half_made() {
    isolated(
        "a_creation_that_fails_or_crashes_leaves_nothing_half_made",
        async || {
            let mut bed = Bed::start().await;
            let links = run("ip", &["-br", "link"]);
            let ask = |request: &str| proto::CreateNetworkRequest {
                parent: "projects/default".into(),
                network_id: "br0".into(),
                request_id: request.into(),
                ..Default::default()
            };
            let points = [
                "network.create.recorded",
                "network.apply.bridge",
                "network.apply.firewall",
                "network.dnsmasq.start",
                "network.create.applied",
            ];
            for point in points {
                bed.kill();
                bed.serve(&[("BERTH_FAILPOINTS", &format!("{point}=error@1"))])
                    .await;
                let failed = bed
                    .networks()
                    .create_network(ask(&format!("e-{point}")))
                    .await;
                assert!(failed.is_err(), "{point}");
                assert_eq!(run("ip", &["-br", "link"]), links, "{point}");
                assert!(
                    !run("nft", &["list", "ruleset"]).contains("bt.br0"),
                    "{point}"
                );
                let made = bed
                    .networks()
                    .create_network(ask(&format!("e-{point}")))
                    .await
                    .unwrap();
                assert_eq!(made.into_inner().status, "Created");
                delete(&bed).await;
                assert_eq!(run("ip", &["-br", "link"]), links, "{point}");

                bed.kill();
                bed.serve(&[("BERTH_FAILPOINTS", &format!("{point}=crash"))])
                    .await;
                let crashed = bed
                    .networks()
                    .create_network(ask(&format!("c-{point}")))
                    .await;
                assert!(crashed.is_err(), "{point}");
                bed.wait();
                bed.serve(&[]).await;
                // The same request finds what it began.
                let made = bed
                    .networks()
                    .create_network(ask(&format!("c-{point}")))
                    .await
                    .unwrap();
                assert_eq!(made.into_inner().status, "Created");
                delete(&bed).await;
                assert_eq!(run("ip", &["-br", "link"]), links, "{point}");
            }
        },
    );
}

#[test]
fn other_changes_that_crash_are_repeated_or_forgotten() {
    isolated(
        "other_changes_that_crash_are_repeated_or_forgotten",
        async || {
            let mut bed = Bed::start().await;
            bed.network("br0", &[("ipv4.address", "10.9.8.1/24")]).await;
            let ask = proto::CreatePortRequest {
                parent: "projects/default/networks/br0".into(),
                port_id: "p".into(),
                request_id: "p1".into(),
                spec: Some(proto::PortSpec {
                    holder: "projects/default/instances/c1".into(),
                    hostname: "c1".into(),
                    config: map(&[FILTERED, &[("host_name", "vethcrash")]].concat()),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let records = bed.dir.path().join("state/dnsmasq/br0/hosts.d");
            for point in ["network.port.armed", "network.port.recorded"] {
                bed.kill();
                bed.serve(&[("BERTH_FAILPOINTS", &format!("{point}=crash"))])
                    .await;
                bed.ports().create_port(ask.clone()).await.unwrap_err();
                bed.wait();
                assert!(run("nft", &["list", "ruleset"]).contains("vethcrash"));
                bed.serve(&[]).await;
                assert!(
                    !run("nft", &["list", "ruleset"]).contains("vethcrash"),
                    "{point}"
                );
                assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0, "{point}");
            }
            bed.ports().create_port(ask).await.unwrap();
            assert!(run("nft", &["list", "ruleset"]).contains("vethcrash"));
            bed.ports()
                .delete_port(proto::DeletePortRequest {
                    name: "projects/default/networks/br0/ports/p".into(),
                    ..Default::default()
                })
                .await
                .unwrap();

            let rename = proto::RenameNetworkRequest {
                name: "projects/default/networks/br0".into(),
                new_network_id: "br9".into(),
                ..Default::default()
            };
            for point in ["network.rename.removed", "network.apply.firewall"] {
                bed.kill();
                bed.serve(&[(
                    "BERTH_FAILPOINTS",
                    &format!("{point}=crash@1;network.apply.firewall=crash@2"),
                )])
                .await;
                bed.networks()
                    .rename_network(rename.clone())
                    .await
                    .unwrap_err();
                bed.wait();
                bed.serve(&[]).await;
                let links = run("ip", &["-br", "link"]);
                assert!(
                    links.contains("br0") && !links.contains("br9"),
                    "{point}: {links}"
                );
                let rules = run("nft", &["list", "ruleset"]);
                assert!(
                    rules.contains("bt.br0") && !rules.contains("bt.br9"),
                    "{point}"
                );
                assert!(bed.dnsmasq("br0").is_some() && bed.dnsmasq("br9").is_none());
            }
            bed.kill();
            bed.serve(&[("BERTH_FAILPOINTS", "network.delete.removed=crash")])
                .await;
            let gone = proto::DeleteNetworkRequest {
                name: "projects/default/networks/br0".into(),
                ..Default::default()
            };
            bed.networks().delete_network(gone).await.unwrap_err();
            bed.wait();
            bed.serve(&[]).await;
            assert!(run("ip", &["-br", "link"]).contains("br0"));
            delete(&bed).await;
            assert!(!run("ip", &["-br", "link"]).contains("br0"));
        },
    );
}

async fn delete(bed: &Bed) {
    bed.networks()
        .delete_network(proto::DeleteNetworkRequest {
            name: "projects/default/networks/br0".into(),
            ..Default::default()
        })
        .await
        .unwrap();
}

#[test]
fn a_link_of_somebody_else_is_left_alone() {
    isolated("a_link_of_somebody_else_is_left_alone", async || {
        let bed = Bed::start().await;
        run("ip", &["link", "add", "br0", "type", "bridge"]);
        let refused = bed
            .networks()
            .create_network(proto::CreateNetworkRequest {
                parent: "projects/default".into(),
                network_id: "br0".into(),
                ..Default::default()
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused}");
        run("ip", &["link", "show", "br0"]);
        // It can be a parent, and is listed with its state.
        let port = bed
            .port("-", "c1", &[("nictype", "bridged"), ("parent", "br0")])
            .await;
        assert_eq!(port.parent, "br0");
        let view = bed.get("br0").await;
        assert!(!view.managed && view.r#type == "bridge");
        assert_eq!(view.used_by, ["projects/default/instances/c1"]);
        let state = bed
            .networks()
            .get_network_state(proto::GetNetworkStateRequest {
                name: "projects/default/networks/br0".into(),
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(state.state, "down");
        assert!(state.bridge.unwrap().id.contains('.'));
    });
}

#[test]
fn updates_and_renames_are_live() {
    isolated("updates_and_renames_are_live", async || {
        let bed = Bed::start().await;
        bed.network("br0", &[("ipv4.address", "10.9.8.1/24")]).await;
        let network = |config: &[(&str, &str)]| proto::UpdateNetworkRequest {
            network: Some(proto::Network {
                name: "projects/default/networks/br0".into(),
                config: map(config),
                ..Default::default()
            }),
            ..Default::default()
        };
        let config = [
            ("ipv4.address", "10.7.7.1/24"),
            ("ipv4.routes", "10.70.0.0/16"),
            ("bridge.mtu", "1400"),
            ("ipv6.address", "none"),
        ];
        bed.networks()
            .update_network(network(&config))
            .await
            .unwrap();
        let addresses = run("ip", &["addr", "show", "br0"]);
        assert!(addresses.contains("10.7.7.1/24") && !addresses.contains("10.9.8.1"));
        assert!(
            addresses.contains("mtu 1400") && !addresses.contains("fd42"),
            "{addresses}"
        );
        assert!(run("ip", &["route"]).contains("10.70.0.0/16 dev br0"));
        assert!(!run("nft", &["list", "ruleset"]).contains("masquerade"));
        let c1 = Guest::plug("c1", &bed.port("br0", "c1", &[]).await);
        assert!(c1.dhcp().unwrap().starts_with("10.7.7."));
        assert!(
            bed.networks()
                .update_network(network(&[("ipv4.address", "10.0.0.0/24")]))
                .await
                .is_err()
        );

        let rename = proto::RenameNetworkRequest {
            name: "projects/default/networks/br0".into(),
            new_network_id: "br9".into(),
            ..Default::default()
        };
        let held = bed
            .networks()
            .rename_network(rename.clone())
            .await
            .unwrap_err();
        assert_eq!(held.code(), tonic::Code::FailedPrecondition);
        bed.ports()
            .delete_port(proto::DeletePortRequest {
                name: "projects/default/networks/br0/ports/c1-eth0".into(),
                ..Default::default()
            })
            .await
            .unwrap();
        bed.networks().rename_network(rename).await.unwrap();
        let links = run("ip", &["-br", "link"]);
        assert!(links.contains("br9") && !links.contains("br0"));
        assert!(bed.dnsmasq("br9").is_some() && bed.dnsmasq("br0").is_none());
    });
}
