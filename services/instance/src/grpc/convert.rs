//! Values of storage and network, from the wire and back. Both directions, no logic.

use std::collections::{BTreeMap, HashMap};

use berth_proto::{instance as proto, types};

use crate::Error;
use crate::app::Values;
use crate::model::attachment::{Attachment, Mount, Ownership, Port, PortKind, Source};
use crate::model::record::Devices;

pub fn devices(devices: HashMap<String, proto::Device>) -> Devices {
    devices
        .into_iter()
        .map(|(name, d)| (name, d.options.into_iter().collect()))
        .collect()
}

pub fn devices_proto(devices: &Devices) -> HashMap<String, proto::Device> {
    let options = |d: &BTreeMap<String, String>| d.clone().into_iter().collect();
    devices
        .iter()
        .map(|(name, d)| {
            (
                name.clone(),
                proto::Device {
                    options: options(d),
                },
            )
        })
        .collect()
}

pub fn values(
    attachments: HashMap<String, types::Attachment>,
    ports: HashMap<String, types::Port>,
) -> Result<Values, Error> {
    let attachments = attachments.into_iter().map(|(name, a)| {
        let converted = attachment(&format!("attachments.{name}"), a)?;
        Ok((name, converted))
    });
    let ports = ports.into_iter().map(|(name, p)| {
        let converted = port(&format!("ports.{name}"), p)?;
        Ok((name, converted))
    });
    Ok(Values {
        attachments: attachments.collect::<Result<_, Error>>()?,
        ports: ports.collect::<Result<_, Error>>()?,
    })
}

pub fn attachment(field: &str, a: types::Attachment) -> Result<Attachment, Error> {
    if a.block.is_some() {
        return Err(Error::unimplemented(format!(
            "{field}: block volumes are not supported yet"
        )));
    }
    let mounts = a
        .mounts
        .into_iter()
        .map(|m| mount(field, m))
        .collect::<Result<_, Error>>()?;
    Ok(Attachment {
        volume: a.volume,
        volume_uid: a.volume_uid,
        generation: a.generation,
        mounts,
        needs_freeze: a.needs_freeze,
    })
}

fn mount(field: &str, m: types::attachment::Mount) -> Result<Mount, Error> {
    use types::attachment::mount::Source as Wire;
    let source = match m.source {
        Some(Wire::Device(d)) => Source::Device {
            path: d.path,
            diskseq: d.diskseq,
        },
        Some(Wire::HostPath(path)) => Source::HostPath(path),
        Some(Wire::Dataset(name)) => Source::Dataset(name),
        Some(Wire::Remote(r)) => Source::Remote {
            url: r.url,
            options: r.options.into_iter().collect(),
        },
        None => {
            return Err(Error::invalid(
                field,
                format!("{field}: a mount has no source"),
            ));
        }
    };
    let ownership = match types::Ownership::try_from(m.ownership) {
        Ok(types::Ownership::Raw) => Ownership::Raw,
        Ok(types::Ownership::Shifted) => Ownership::Shifted,
        Ok(types::Ownership::Unmapped) => Ownership::Unmapped,
        _ => {
            return Err(Error::invalid(
                field,
                format!("{field}: a mount's ownership is not known"),
            ));
        }
    };
    let attr = m.attr.unwrap_or_default();
    Ok(Mount {
        source,
        fs_type: m.fs_type,
        fs_options: m.fs_options,
        subpath: m.subpath,
        read_only: attr.read_only,
        nosuid: attr.nosuid,
        nodev: attr.nodev,
        noexec: attr.noexec,
        fs_uuid: m.fs_uuid,
        ownership,
        can_idmap: m.can_idmap,
        target: m.target,
    })
}

pub fn attachment_proto(a: &Attachment) -> types::Attachment {
    types::Attachment {
        volume: a.volume.clone(),
        volume_uid: a.volume_uid.clone(),
        generation: a.generation,
        mounts: a.mounts.iter().map(mount_proto).collect(),
        block: None,
        needs_freeze: a.needs_freeze,
    }
}

fn mount_proto(m: &Mount) -> types::attachment::Mount {
    use types::attachment::mount::Source as Wire;
    let source = match &m.source {
        Source::Device { path, diskseq } => Wire::Device(types::attachment::Device {
            path: path.clone(),
            diskseq: *diskseq,
        }),
        Source::HostPath(path) => Wire::HostPath(path.clone()),
        Source::Dataset(name) => Wire::Dataset(name.clone()),
        Source::Remote { url, options } => Wire::Remote(types::attachment::Remote {
            url: url.clone(),
            options: options.clone().into_iter().collect(),
        }),
    };
    let ownership = match m.ownership {
        Ownership::Raw => types::Ownership::Raw,
        Ownership::Shifted => types::Ownership::Shifted,
        Ownership::Unmapped => types::Ownership::Unmapped,
    };
    types::attachment::Mount {
        source: Some(source),
        fs_type: m.fs_type.clone(),
        fs_options: m.fs_options.clone(),
        subpath: m.subpath.clone(),
        attr: Some(types::MountAttr {
            read_only: m.read_only,
            nosuid: m.nosuid,
            nodev: m.nodev,
            noexec: m.noexec,
        }),
        fs_uuid: m.fs_uuid.clone(),
        ownership: ownership.into(),
        can_idmap: m.can_idmap,
        target: m.target.clone(),
    }
}

pub fn port(field: &str, p: types::Port) -> Result<Port, Error> {
    use types::port::Kind;
    let kind = match Kind::try_from(p.kind) {
        Ok(Kind::Bridged) => PortKind::Bridged,
        Ok(Kind::P2p) => PortKind::P2p,
        Ok(Kind::Routed) => PortKind::Routed,
        Ok(Kind::Macvlan) => PortKind::Macvlan,
        Ok(Kind::Ipvlan) => PortKind::Ipvlan,
        Ok(Kind::Physical) => PortKind::Physical,
        Ok(Kind::Vf) => PortKind::Vf,
        Ok(Kind::Tap) => PortKind::Tap,
        _ => {
            return Err(Error::invalid(
                field,
                format!("{field}: the port's kind is not known"),
            ));
        }
    };
    let mtu = u32::try_from(p.mtu)
        .map_err(|_| Error::invalid(field, format!("{field}: the mtu is negative")))?;
    Ok(Port {
        name: p.name,
        uid: p.uid,
        kind,
        host_name: p.host_name,
        guest_name: p.guest_name,
        mac: p.mac,
        mtu,
        parent: p.parent,
        addresses: p.addresses,
        routes: p.routes,
        ingress_bps: p.ingress_bps,
        egress_bps: p.egress_bps,
        host_mac: p.host_mac,
        generation: p.generation,
        holder: p.holder,
    })
}

pub fn port_proto(p: &Port) -> types::Port {
    use types::port::Kind;
    let kind = match p.kind {
        PortKind::Bridged => Kind::Bridged,
        PortKind::P2p => Kind::P2p,
        PortKind::Routed => Kind::Routed,
        PortKind::Macvlan => Kind::Macvlan,
        PortKind::Ipvlan => Kind::Ipvlan,
        PortKind::Physical => Kind::Physical,
        PortKind::Vf => Kind::Vf,
        PortKind::Tap => Kind::Tap,
    };
    types::Port {
        name: p.name.clone(),
        uid: p.uid.clone(),
        kind: kind.into(),
        host_name: p.host_name.clone(),
        guest_name: p.guest_name.clone(),
        mac: p.mac.clone(),
        mtu: i32::try_from(p.mtu).unwrap_or(i32::MAX),
        parent: p.parent.clone(),
        addresses: p.addresses.clone(),
        routes: p.routes.clone(),
        ingress_bps: p.ingress_bps,
        egress_bps: p.egress_bps,
        host_mac: p.host_mac.clone(),
        generation: p.generation,
        holder: p.holder.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_wire_both_ways() {
        let wire = types::Attachment {
            volume: "projects/p/storagePools/s/containers/c".into(),
            mounts: vec![types::attachment::Mount {
                source: Some(types::attachment::mount::Source::Device(
                    types::attachment::Device {
                        path: "/dev/loop0".into(),
                        diskseq: 9,
                    },
                )),
                attr: Some(types::MountAttr {
                    nodev: true,
                    ..Default::default()
                }),
                ownership: types::Ownership::Raw.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let there = attachment("a", wire.clone()).unwrap();
        assert_eq!(attachment_proto(&there), wire);
        let wire = types::Port {
            kind: types::port::Kind::P2p.into(),
            mtu: 9000,
            ..Default::default()
        };
        assert_eq!(port_proto(&port("p", wire.clone()).unwrap()), wire);
    }

    #[test]
    fn half_values_are_refused() {
        let mount = types::attachment::Mount::default();
        let wire = types::Attachment {
            mounts: vec![mount],
            ..Default::default()
        };
        assert!(attachment("a", wire).is_err());
        assert!(port("p", types::Port::default()).is_err());
        let block = types::Attachment {
            block: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(
            attachment("a", block).unwrap_err().code,
            crate::Code::Unimplemented
        );
    }
}
