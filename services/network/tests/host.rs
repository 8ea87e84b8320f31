//! The real service on a real kernel: bridges, DHCP, DNS, NAT and filters, looked at by packets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod bed;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bed::frames::{self, Watcher};
use bed::{Bed, Guest, eventually, isolated, isolated_ignored, map, run, world};
use berth_proto::network as proto;

const FILTERED: &[(&str, &str)] = &[
    ("security.mac_filtering", "true"),
    ("security.ipv4_filtering", "true"),
    ("security.ipv6_filtering", "true"),
];

#[test]
fn guests_get_addresses_names_and_a_way_out() {
    isolated("guests_get_addresses_names_and_a_way_out", async || {
        let bed = Bed::start().await;
        let network = bed.network("br0", &[]).await;
        assert!(network.config["ipv4.address"].starts_with("10."));
        assert!(network.config["ipv6.address"].starts_with("fd42:"));
        assert_eq!(network.config["ipv4.nat"], "true");
        let gateway = network.config["ipv4.address"]
            .split('/')
            .next()
            .unwrap()
            .to_owned();
        world();
        let one = bed.port("br0", "c1", &[]).await;
        assert!(one.mac.starts_with("00:16:3e:") && one.host_name.starts_with("veth"));
        let c1 = Guest::plug("c1", &one);
        let fixed = gateway.trim_end_matches(".1").to_owned() + ".77";
        let two = bed.port("br0", "c2", &[("ipv4.address", &fixed)]).await;
        assert_eq!(two.addresses, std::slice::from_ref(&fixed));
        let c2 = Guest::plug("c2", &two);

        let dynamic = c1.dhcp().expect("c1 gets an address");
        assert_eq!(c2.dhcp().as_deref(), Some(fixed.as_str()));
        assert!(c1.pings(&fixed), "guests reach each other");
        assert!(c1.pings("192.0.2.2"), "NAT leads out");

        for (name, address) in [
            ("c2.lxd", &fixed),
            ("c1.lxd", &dynamic),
            ("_gateway.lxd", &gateway),
        ] {
            let answer = c1.run("busybox", &["nslookup", "-type=a", name, &gateway]);
            assert!(answer.contains(address.as_str()), "{name}: {answer}");
        }
        // SLAAC from the router advertisement.
        eventually("c1 has an IPv6 address", async || {
            c1.run(
                "ip",
                &["-6", "addr", "show", "dev", "eth0", "scope", "global"],
            )
            .contains("fd42")
        })
        .await;

        let leases = bed
            .networks()
            .list_leases(proto::ListLeasesRequest {
                parent: "projects/default/networks/br0".into(),
            })
            .await
            .unwrap()
            .into_inner()
            .leases;
        let kind = |address: &str| {
            let lease = leases.iter().find(|l| l.address == address);
            lease.map(|l| (l.r#type.as_str(), l.hostname.as_str(), l.project.as_str()))
        };
        assert_eq!(kind(&dynamic), Some(("dynamic", "c1", "default")));
        assert_eq!(kind(&fixed), Some(("static", "c2", "default")));
        assert_eq!(kind(&gateway), Some(("gateway", "br0.gw", "")));
        let warnings = bed.get("br0").await.warnings;
        assert!(warnings.is_empty(), "{warnings:?}");

        // dnsmasq is not root.
        let pid = bed.dnsmasq("br0").unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
        assert!(!uid.contains("\t0\t"), "{uid}");
        // Nor can it replace what root reads and writes: its configuration, pid file and records.
        use std::os::unix::fs::MetadataExt;
        let dir = bed.dir.path().join("state/dnsmasq/br0");
        for path in [dir.clone(), dir.join("hosts.d")] {
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!(
                (meta.uid(), meta.mode() & 0o022),
                (0, 0),
                "{}",
                path.display()
            );
        }

        // A deleted port gives its lease back.
        bed.ports()
            .delete_port(proto::DeletePortRequest {
                name: one.name.clone(),
                ..Default::default()
            })
            .await
            .unwrap();
        let file = bed.dir.path().join("state/dnsmasq/br0/leases");
        eventually("the lease is given back", async || {
            !std::fs::read_to_string(&file).unwrap().contains(&dynamic)
        })
        .await;
    });
}

/// Frames that a guest must not send, each with a mark.
fn lies(own: frames::Mac, address: Ipv4Addr, gateway: Ipv4Addr) -> Vec<(&'static str, Vec<u8>)> {
    use frames::{arp, dhcp_discover, ethernet, icmp6, neighbour_advertisement, udp4};
    let other: frames::Mac = [2, 0xde, 0xad, 0, 0, 1];
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let link_local = {
        let mut o = [0_u8; 16];
        o[0] = 0xfe;
        o[1] = 0x80;
        o[8..].copy_from_slice(&[
            own[0] ^ 2,
            own[1],
            own[2],
            0xff,
            0xfe,
            own[3],
            own[4],
            own[5],
        ]);
        Ipv6Addr::from(o)
    };
    let stranger: Ipv6Addr = "fe80::1234".parse().unwrap();
    let na = neighbour_advertisement;
    let mut vlan = vec![0, 5, 8, 0];
    vlan.extend_from_slice(&[0; 40]);
    vec![
        ("mac", ethernet(other, 0x88b5, &[0; 50], b"MARK-mac-01")),
        ("arp-mac", arp(own, other, address, b"MARK-arp-02")),
        ("arp-ip", arp(own, own, gateway, b"MARK-arp-03")),
        (
            "ip",
            udp4(
                own,
                (gateway, 5),
                (Ipv4Addr::BROADCAST, 6),
                b"",
                b"MARK-ip4-04",
            ),
        ),
        (
            "dhcp-server",
            udp4(
                own,
                (address, 67),
                (Ipv4Addr::BROADCAST, 68),
                b"",
                b"MARK-dhc-05",
            ),
        ),
        ("dhcp-chaddr", dhcp_discover(own, other, b"MARK-dhc-06")),
        (
            "na-target",
            icmp6(own, link_local, all, &na(stranger, own), false, 7),
        ),
        (
            "na-mac",
            icmp6(own, link_local, all, &na(link_local, other), false, 8),
        ),
        (
            "na-hidden",
            icmp6(own, link_local, all, &na(stranger, other), true, 9),
        ),
        (
            "ra",
            icmp6(
                own,
                link_local,
                all,
                &frames::router_advertisement(),
                false,
                10,
            ),
        ),
        (
            "ip6",
            icmp6(own, stranger, all, &[128, 0, 0, 0, 0, 0, 0, 0], false, 11),
        ),
        ("vlan", ethernet(own, 0x8100, &vlan, b"MARK-vla-12")),
    ]
}

#[test]
fn lies_are_dropped_from_the_first_packet_on() {
    isolated("lies_are_dropped_from_the_first_packet_on", async || {
        let bed = Bed::start().await;
        let network = bed.network("br0", &[("ipv4.address", "10.9.8.1/24")]).await;
        let gateway: Ipv4Addr = "10.9.8.1".parse().unwrap();
        let watcher = bed.port("br0", "watcher", &[]).await;
        Guest::plug("watcher", &watcher);
        let seen = Watcher::new("watcher");

        // Without filters they arrive, or the test could not fail.
        let open = bed.port("br0", "open", &[]).await;
        Guest::plug("open", &open);
        for (name, frame) in lies(frames::mac(&open.mac), Ipv4Addr::new(10, 9, 8, 50), gateway) {
            frames::send("open", &frame);
            assert!(
                seen.sees(frames::mark(&frame), Duration::from_secs(2)),
                "unfiltered {name}"
            );
        }

        let port = bed.port("br0", "evil", FILTERED).await;
        let address: Ipv4Addr = port.addresses[0].parse().unwrap();
        let own = frames::mac(&port.mac);
        let evil = Guest::plug("evil", &port);
        for (name, frame) in lies(own, address, gateway) {
            frames::send("evil", &frame);
            assert!(
                !seen.sees(frames::mark(&frame), Duration::from_millis(150)),
                "{name} got through"
            );
        }
        // The bridge has not learnt the address it lied about.
        let fdb = run("bridge", &["fdb", "show", "br", "br0"]);
        assert!(
            !fdb.lines()
                .any(|l| l.contains("02:de:ad:00:00:01") && l.contains(&port.host_name)),
            "{fdb}"
        );
        // What is true goes through.
        let honest = frames::arp(own, own, address, b"MARK-tru-00");
        frames::send("evil", &honest);
        assert!(
            seen.sees(frames::mark(&honest), Duration::from_secs(2)),
            "an honest ARP"
        );
        assert_eq!(evil.dhcp(), Some(address.to_string()));
        assert!(evil.pings("10.9.8.1"));
        let v6 = network.config["ipv6.address"].split('/').next().unwrap();
        eventually("an honest IPv6", async || evil.pings(v6)).await;
        assert!(run("nft", &["list", "ruleset"]).contains("table bridge bt"));

        // Changed live: filters off, the lies pass; the port's elements are gone with it.
        let update = |config: &[(&str, &str)]| proto::UpdatePortRequest {
            name: port.name.clone(),
            spec: Some(proto::PortSpec {
                holder: port.holder.clone(),
                hostname: "evil".into(),
                config: map(config),
                ..Default::default()
            }),
            ..Default::default()
        };
        bed.ports().update_port(update(&[])).await.unwrap();
        let lie = frames::arp(own, own, gateway, b"MARK-now-20");
        frames::send("evil", &lie);
        assert!(
            seen.sees(frames::mark(&lie), Duration::from_secs(2)),
            "filters are off"
        );
        bed.ports().update_port(update(FILTERED)).await.unwrap();
        let lie = frames::arp(own, own, gateway, b"MARK-now-21");
        frames::send("evil", &lie);
        assert!(
            !seen.sees(frames::mark(&lie), Duration::from_millis(150)),
            "filters are on"
        );
        bed.ports()
            .delete_port(proto::DeletePortRequest {
                name: port.name.clone(),
                ..Default::default()
            })
            .await
            .unwrap();
        let rules = run("nft", &["list", "ruleset"]);
        assert!(!rules.contains(&port.host_name), "{rules}");
    });
}

#[test]
fn isolated_ports_and_blocked_families() {
    isolated("isolated_ports_and_blocked_families", async || {
        let bed = Bed::start().await;
        bed.network("br0", &[("ipv4.address", "10.9.8.1/24")]).await;
        let isolation = [("security.port_isolation", "true")];
        let a = Guest::plug("a", &bed.port("br0", "a", &isolation).await);
        let b = Guest::plug("b", &bed.port("br0", "b", &isolation).await);
        let c = Guest::plug("c", &bed.port("br0", "c", &[]).await);
        let (at_b, at_c) = (b.dhcp().unwrap(), c.dhcp().unwrap());
        a.dhcp().unwrap();
        assert!(a.pings("10.9.8.1") && a.pings(&at_c));
        assert!(!a.pings(&at_b), "isolated guests reach each other");

        let none = [
            ("ipv4.address", "none"),
            ("security.ipv4_filtering", "true"),
        ];
        let d = Guest::plug("d", &bed.port("br0", "d", &none).await);
        d.run("ip", &["addr", "add", "10.9.8.99/24", "dev", "eth0"]);
        assert!(!d.pings("10.9.8.1"), "IPv4 is blocked");
    });
}

#[test]
fn limits_hold_in_both_directions() {
    isolated("limits_hold_in_both_directions", async || {
        let bed = Bed::start().await;
        bed.network("br0", &[("ipv4.address", "10.9.8.1/24")]).await;
        let limits = [("limits.ingress", "8Mbit"), ("limits.egress", "4Mbit")];
        let port = bed.port("br0", "c1", &limits).await;
        assert_eq!((port.ingress_bps, port.egress_bps), (8_000_000, 4_000_000));
        Guest::plug("c1", &port);
        eventually("the kernel announced the link", async || {
            run("tc", &["qdisc", "show", "dev", &port.host_name]).contains("tbf")
        })
        .await;
        let tc = run("tc", &["qdisc", "show", "dev", &port.host_name]);
        assert!(tc.contains("rate 8Mbit"), "{tc}");
        let rules = run("nft", &["list", "ruleset"]);
        assert!(rules.contains("rate over 500000 bytes/second"), "{rules}");

        // Packets count: 2 MB in a moment, of which a tenth of a second's worth may pass.
        let before = received("br0");
        let frame = frames::ethernet(frames::mac(&port.mac), 0x88b5, &[7; 1400], b"MARK-lim-00");
        frames::inside("c1", move || {
            let socket = frames::packet_socket("eth0");
            for _ in 0..1500 {
                nix::unistd::write(&socket, &frame).unwrap();
            }
        });
        let passed = received("br0") - before;
        assert!(
            passed < 1_000_000 && passed > 50_000,
            "{passed} bytes passed"
        );
    });
}

fn received(link: &str) -> u64 {
    let json = run("ip", &["-s", "-j", "link", "show", link]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    value[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
}

#[test]
fn stateful_ipv6_and_links_without_a_bridge() {
    isolated("stateful_ipv6_and_links_without_a_bridge", async || {
        let bed = Bed::start().await;
        bed.network(
            "br0",
            &[
                ("ipv4.address", "none"),
                ("ipv6.address", "fd42:1:2:3::1/64"),
                ("ipv6.dhcp.stateful", "true"),
                ("ipv6.dhcp.ranges", "fd42:1:2:3::100-fd42:1:2:3::1ff"),
            ],
        )
        .await;
        // Its address is chosen from the range, leased by MAC, and the only one it may use.
        let port = bed.port("br0", "c1", FILTERED).await;
        assert_eq!(port.addresses, ["fd42:1:2:3::100"]);
        let c1 = Guest::plug("c1", &port);
        c1.run(
            "ip",
            &["addr", "add", "fd42:1:2:3::100/64", "dev", "eth0", "nodad"],
        );
        c1.run(
            "ip",
            &["addr", "add", "fd42:1:2:3::666/64", "dev", "eth0", "nodad"],
        );
        let ping = |from: &str| {
            let args = ["-c", "1", "-W", "1", "-I", from, "fd42:1:2:3::1"];
            c1.try_run("busybox", &[&["ping"][..], &args].concat())
                .status
                .success()
        };
        eventually("its own address works", async || ping("fd42:1:2:3::100")).await;
        assert!(!ping("fd42:1:2:3::666"), "another address does not");
        let records = bed
            .dir
            .path()
            .join("state/dnsmasq/br0/hosts.d")
            .join(&port.uid);
        assert!(
            std::fs::read_to_string(records)
                .unwrap()
                .contains("[fd42:1:2:3::100]")
        );

        let limits = [("nictype", "p2p"), ("limits.max", "4Mbit")];
        let p2p = bed.port("-", "c2", &limits).await;
        Guest::plug("c2", &p2p);
        let before = received(&p2p.host_name);
        let frame = frames::ethernet(frames::mac(&p2p.mac), 0x88b5, &[7; 1400], b"MARK-p2p-00");
        frames::inside("c2", move || {
            nix::unistd::write(frames::packet_socket("eth0"), &frame).unwrap();
        });
        assert!(received(&p2p.host_name) > before);
        assert!(run("nft", &["list", "table", "inet", "bt"]).contains(&p2p.host_name));
        eventually("shaped towards the guest", async || {
            run("tc", &["qdisc", "show", "dev", &p2p.host_name]).contains("rate 4Mbit")
        })
        .await;
    });
}

/// Not a check: tells what a port costs. Run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_port_costs() {
    isolated_ignored("what_a_port_costs", async || {
        let bed = Bed::start().await;
        bed.network("br0", &[]).await;
        let mut ports = bed.ports();
        for (what, config) in [("plain", &[][..]), ("filtered", FILTERED)] {
            let mut took = Vec::new();
            for n in 0..100 {
                let ask = proto::CreatePortRequest {
                    parent: "projects/default/networks/br0".into(),
                    port_id: format!("{what}{n}"),
                    spec: Some(proto::PortSpec {
                        holder: format!("projects/default/instances/{what}{n}"),
                        hostname: format!("{what}{n}"),
                        config: map(config),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let start = std::time::Instant::now();
                ports.create_port(ask).await.unwrap();
                took.push(start.elapsed());
            }
            took.sort();
            println!("{what}: median {:?}, 95th {:?}", took[50], took[95]);
        }
        let mut took = Vec::new();
        for n in 0..100 {
            let name = format!("projects/default/networks/br0/ports/filtered{n}");
            let ask = proto::DeletePortRequest {
                name,
                ..Default::default()
            };
            let start = std::time::Instant::now();
            ports.delete_port(ask).await.unwrap();
            took.push(start.elapsed());
        }
        took.sort();
        println!("delete: median {:?}, 95th {:?}", took[50], took[95]);
    });
}
