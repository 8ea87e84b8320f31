//! What one instance's devices need made before the instance is committed, and removed after:
//! volumes and their holds, ports.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use berth_operations::for_each;
use berth_proto::instance::{Device, Instance, InstancePlan, NeededPort, NeededVolume};
use berth_proto::types::{Attachment, BlobRef, Hold, Port};
use berth_proto::{network, storage};
use berth_rpc::Error;
use serde::{Deserialize, Serialize};

use super::undo::{absent_is_fine, answer, may_have_happened, noted};
use super::{Context, carry};
use crate::app::wire::Wire;

/// Who may release what sagas hold.
pub(super) const AUTHORITY: &str = "gateway";

/// Ports and volumes of one instance that are made side by side.
const AT_ONCE: usize = 8;

/// nic options that a port does not get as config: it has fields for them, or no use.
const NOT_CONFIG: [&str; 5] = ["type", "network", "name", "hwaddr", "boot.priority"];

/// Where a root volume's contents come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// Nothing.
    Empty,
    /// An image.
    Image {
        /// Names the pool's cached volume.
        fingerprint: String,
        /// The image's parts.
        blobs: Vec<Wire<BlobRef>>,
    },
    /// A volume or a snapshot of one, by resource name.
    Copy {
        /// The source.
        of: String,
        /// Snapshots of an instance that come along, by name.
        #[serde(default)]
        snapshots: Vec<String>,
    },
}

/// Names of an instance, taken apart once.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) project: String,
    pub(super) instance: String,
}

impl Names {
    pub(super) fn parse(name: &str) -> Result<Self, Error> {
        let parsed = berth_rpc::names::Instance::parse("name", name)?;
        Ok(Self {
            project: parsed.project,
            instance: parsed.instance,
        })
    }

    /// The instance's resource name: the holder of all it uses.
    pub(super) fn holder(&self) -> String {
        format!("projects/{}/instances/{}", self.project, self.instance)
    }

    fn network(&self, short: &str) -> String {
        let short = if short.is_empty() { "-" } else { short };
        format!("projects/{}/networks/{short}", self.project)
    }

    pub(super) fn pool(&self, pool: &str) -> String {
        format!("projects/{}/storagePools/{pool}", self.project)
    }
}

/// A hold of an instance on what it uses.
pub(super) fn hold(holder: String) -> Hold {
    Hold {
        holder,
        authority: AUTHORITY.to_owned(),
        expire_time: String::new(),
    }
}

/// Collection of an instance's own volume.
fn collection(plan: &InstancePlan) -> &'static str {
    use berth_proto::instance::instance::Type;
    match plan.instance.as_ref().map(Instance::r#type) {
        Some(Type::VirtualMachine) => "virtualMachines",
        _ => "containers",
    }
}

/// Where a planned volume is or will be.
fn volume_name(names: &Names, plan: &InstancePlan, needed: &NeededVolume) -> String {
    let pool = names.pool(&needed.pool);
    if needed.root {
        format!("{pool}/{}/{}", collection(plan), names.instance)
    } else {
        format!("{pool}/custom/{}", needed.volume)
    }
}

/// Makes or holds one volume and gives its attachment.
async fn make_volume(
    ctx: &Context,
    names: &Names,
    plan: &InstancePlan,
    needed: &NeededVolume,
    contents: &Contents,
) -> Result<Attachment, Error> {
    use storage::create_volume_request::Source;
    let mut volumes = ctx.app.owners.volumes();
    let key = format!("volume.{}", needed.device);
    let volume = if needed.root {
        let source = match contents {
            Contents::Empty => Source::Empty(()),
            Contents::Image { fingerprint, blobs } => Source::Image(storage::ImageSource {
                fingerprint: fingerprint.clone(),
                blobs: blobs.iter().map(|b| b.0.clone()).collect(),
            }),
            Contents::Copy { of, .. } => Source::CopyOf(of.clone()),
        };
        let snapshots = match contents {
            Contents::Copy { snapshots, .. } => snapshots.len(),
            Contents::Empty | Contents::Image { .. } => 0,
        };
        let request = storage::CreateVolumeRequest {
            parent: names.pool(&needed.pool),
            collection: collection(plan).to_owned(),
            volume_id: names.instance.clone(),
            volume: Some(storage::Volume {
                config: needed.config.clone(),
                content_type: "filesystem".to_owned(),
                ..Default::default()
            }),
            source: Some(source),
            request_id: ctx.request_id_for(&needed.device),
            hold: Some(hold(names.holder())),
            with_snapshots: snapshots > 0,
            ..Default::default()
        };
        let mut create = async |request| answer(volumes.create_volume(request).await);
        let made = noted(ctx, &key, create(request.clone())).await;
        let volume = match (made, contents) {
            (Err(error), Contents::Image { fingerprint, blobs })
                if error.reason == carry::BLOB_ELSEWHERE =>
            {
                carry::image(ctx, names, &needed.pool, fingerprint, blobs).await?;
                noted(ctx, &key, create(request)).await?
            }
            (made, _) => made?,
        };
        if usize::try_from(volume.snapshot_count) != Ok(snapshots) {
            return Err(Error::aborted(
                "SNAPSHOTS_CHANGED",
                "The source's snapshots changed while it was being copied",
            ));
        }
        volume
    } else {
        let request = storage::HoldVolumeRequest {
            name: volume_name(names, plan, needed),
            hold: Some(hold(names.holder())),
        };
        let take = async { answer(volumes.hold_volume(request).await) };
        noted(ctx, &key, take).await?
    };
    volume.attachment.ok_or_else(|| {
        Error::internal(format!("volume {} came without an attachment", volume.name))
    })
}

/// Makes every volume of the plan; gives their attachments by device.
pub(super) async fn make_volumes(
    ctx: &Context,
    names: &Names,
    plan: &InstancePlan,
    contents: &Contents,
) -> Result<HashMap<String, Wire<Attachment>>, Error> {
    let made = Mutex::new(HashMap::new());
    for_each(plan.needed_volumes.clone(), AT_ONCE, |needed| {
        let made = &made;
        async move {
            let attachment = make_volume(ctx, names, plan, &needed, contents).await?;
            keep(made, &needed.device, attachment);
            Ok(())
        }
    })
    .await?;
    Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn keep<M>(made: &Mutex<HashMap<String, Wire<M>>>, device: &str, value: M) {
    made.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(device.to_owned(), Wire(value));
}

/// Takes back what [`make_volumes`] did.
pub(super) async fn unmake_volumes(
    ctx: &Context,
    names: &Names,
    plan: &InstancePlan,
) -> Result<(), Error> {
    for_each(plan.needed_volumes.clone(), AT_ONCE, |needed| async move {
        if !may_have_happened(ctx, &format!("volume.{}", needed.device))? {
            return Ok(());
        }
        let name = volume_name(names, plan, &needed);
        if needed.root {
            delete_volume(ctx, &name, &names.holder()).await
        } else {
            release_volume(ctx, &name, &names.holder()).await
        }
    })
    .await
}

/// Removes a volume together with one holder's hold.
pub(super) async fn delete_volume(ctx: &Context, name: &str, holder: &str) -> Result<(), Error> {
    let request = storage::DeleteVolumeRequest {
        name: name.to_owned(),
        allow_missing: true,
        holder: holder.to_owned(),
        request_id: ctx.request_id_for(name),
        ..Default::default()
    };
    absent_is_fine(answer(
        ctx.app.owners.volumes().delete_volume(request).await,
    ))
}

/// Releases one holder's hold; what is gone is released.
pub(super) async fn release_volume(ctx: &Context, name: &str, holder: &str) -> Result<(), Error> {
    let request = storage::ReleaseVolumeRequest {
        name: name.to_owned(),
        holder: holder.to_owned(),
    };
    absent_is_fine(answer(
        ctx.app.owners.volumes().release_volume(request).await,
    ))
}

fn port_config(options: &HashMap<String, String>) -> HashMap<String, String> {
    options
        .iter()
        .filter(|(key, _)| !NOT_CONFIG.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What to ask of a planned port.
fn spec(names: &Names, needed: &NeededPort) -> network::PortSpec {
    let hostname = match needed.hostname.as_str() {
        "" => &names.instance,
        given => given,
    };
    network::PortSpec {
        holder: names.holder(),
        hostname: hostname.to_owned(),
        mac: needed.mac.clone(),
        guest_name: needed.guest_name.clone(),
        config: port_config(&needed.config),
    }
}

/// What was asked of a port that an instance has.
pub(super) fn spec_of(names: &Names, port: &Port, device: &Device) -> network::PortSpec {
    network::PortSpec {
        holder: names.holder(),
        hostname: names.instance.clone(),
        mac: port.mac.clone(),
        guest_name: port.guest_name.clone(),
        config: port_config(&device.options),
    }
}

fn port_name(names: &Names, needed: &NeededPort) -> String {
    format!(
        "{}/ports/{}",
        names.network(&needed.network),
        needed.port_id
    )
}

/// Declares every new port of the plan and changes those that stay; gives both by device.
pub(super) async fn make_ports(
    ctx: &Context,
    names: &Names,
    plan: &InstancePlan,
) -> Result<HashMap<String, Wire<Port>>, Error> {
    let made = Mutex::new(HashMap::new());
    for_each(plan.needed_ports.clone(), AT_ONCE, |needed| {
        let made = &made;
        async move {
            let request = network::CreatePortRequest {
                parent: names.network(&needed.network),
                port_id: needed.port_id.clone(),
                spec: Some(spec(names, &needed)),
                request_id: ctx.request_id_for(&needed.device),
                validate_only: false,
            };
            let create = async { answer(ctx.app.owners.ports().create_port(request).await) };
            let port = noted(ctx, &format!("port.{}", needed.device), create).await?;
            keep(made, &needed.device, port);
            Ok(())
        }
    })
    .await?;
    for_each(plan.changed_ports.clone(), AT_ONCE, |needed| {
        let made = &made;
        async move {
            let update = update_port(ctx, port_name(names, &needed), spec(names, &needed));
            let port = noted(ctx, &format!("port.{}", needed.device), update).await?;
            keep(made, &needed.device, port);
            Ok(())
        }
    })
    .await?;
    Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Changes a port.
pub(super) async fn update_port(
    ctx: &Context,
    name: String,
    spec: network::PortSpec,
) -> Result<Port, Error> {
    let request = network::UpdatePortRequest {
        request_id: ctx.request_id_for(&name),
        name,
        spec: Some(spec),
    };
    answer(ctx.app.owners.ports().update_port(request).await)
}

/// Takes back what [`make_ports`] did; `before` is the instance as it was, for ports that changed.
pub(super) async fn unmake_ports(
    ctx: &Context,
    names: &Names,
    plan: &InstancePlan,
    before: Option<&Instance>,
) -> Result<(), Error> {
    for_each(plan.needed_ports.clone(), AT_ONCE, |needed| async move {
        if !may_have_happened(ctx, &format!("port.{}", needed.device))? {
            return Ok(());
        }
        delete_port(ctx, &port_name(names, &needed)).await
    })
    .await?;
    let Some(before) = before else { return Ok(()) };
    for_each(plan.changed_ports.clone(), AT_ONCE, |needed| async move {
        if !may_have_happened(ctx, &format!("port.{}", needed.device))? {
            return Ok(());
        }
        let (Some(port), Some(device)) = (
            before.ports.get(&needed.device),
            before.expanded_devices.get(&needed.device),
        ) else {
            return Ok(());
        };
        let spec = spec_of(names, port, device);
        absent_is_fine(update_port(ctx, port.name.clone(), spec).await)
    })
    .await
}

/// Removes a port; what is gone is removed.
pub(super) async fn delete_port(ctx: &Context, name: &str) -> Result<(), Error> {
    let request = network::DeletePortRequest {
        name: name.to_owned(),
        allow_missing: true,
        request_id: ctx.request_id_for(name),
    };
    absent_is_fine(answer(ctx.app.owners.ports().delete_port(request).await))
}

/// Removes or releases volumes that an instance had.
pub(super) async fn drop_volumes(
    ctx: &Context,
    holder: &str,
    attachments: Vec<Attachment>,
) -> Result<(), Error> {
    for_each(attachments, AT_ONCE, |attachment| async move {
        if attachment.volume.is_empty() {
            return Ok(());
        }
        if is_own(&attachment.volume) {
            delete_volume(ctx, &attachment.volume, holder).await
        } else {
            release_volume(ctx, &attachment.volume, holder).await
        }
    })
    .await
}

/// Whether a volume belongs to its instance rather than being held by it.
pub(super) fn is_own(volume: &str) -> bool {
    matches!(
        volume.split('/').nth(4),
        Some("containers" | "virtualMachines")
    )
}

/// Removes ports that an instance had.
pub(super) async fn drop_ports(ctx: &Context, ports: Vec<Port>) -> Result<(), Error> {
    for_each(ports, AT_ONCE, |port| async move {
        if port.name.is_empty() {
            return Ok(());
        }
        delete_port(ctx, &port.name).await
    })
    .await
}

/// Removes what a plan says is not wanted any more.
pub(super) async fn drop_surplus(
    ctx: &Context,
    names: &Names,
    plan: &InstancePlan,
) -> Result<(), Error> {
    let ports = plan
        .surplus_ports
        .iter()
        .filter_map(|surplus| surplus.port.clone())
        .collect();
    let volumes = plan
        .surplus_volumes
        .iter()
        .filter_map(|surplus| surplus.attachment.clone())
        .collect();
    let holder = names.holder();
    let (volumes, ports) =
        tokio::join!(drop_volumes(ctx, &holder, volumes), drop_ports(ctx, ports));
    volumes.and(ports)
}

/// Sets new quotas on volumes that stay; notes the old ones for undo.
pub(super) async fn change_volumes(ctx: &Context, plan: &InstancePlan) -> Result<(), Error> {
    for change in &plan.volume_changes {
        let key = format!("quota.{}", change.device);
        if ctx.output::<Wire<storage::Volume>>(&key)?.is_none() {
            let request = storage::GetVolumeRequest {
                name: change.volume.clone(),
            };
            let before = answer(ctx.app.owners.volumes().get_volume(request).await)?;
            ctx.put(&key, &Wire(before))?;
        }
        set_volume_config(ctx, &change.volume, change.config.clone()).await?;
    }
    Ok(())
}

/// Sets the old quotas again.
pub(super) async fn unchange_volumes(ctx: &Context, plan: &InstancePlan) -> Result<(), Error> {
    for change in &plan.volume_changes {
        let key = format!("quota.{}", change.device);
        let Some(Wire(before)) = ctx.output::<Wire<storage::Volume>>(&key)? else {
            continue;
        };
        let old = |key: &String| before.config.get(key).cloned().unwrap_or_default();
        let config = change
            .config
            .keys()
            .map(|key| (key.clone(), old(key)))
            .collect();
        absent_is_fine(set_volume_config(ctx, &change.volume, config).await)?;
    }
    Ok(())
}

/// Merges keys into a volume's config; an empty value unsets.
async fn set_volume_config(
    ctx: &Context,
    volume: &str,
    config: HashMap<String, String>,
) -> Result<(), Error> {
    let request = storage::UpdateVolumeRequest {
        update_mask: Some(prost_types::FieldMask {
            paths: config.keys().map(|key| format!("config.{key}")).collect(),
        }),
        volume: Some(storage::Volume {
            name: volume.to_owned(),
            config,
            ..Default::default()
        }),
        request_id: ctx.request_id_for(volume),
    };
    answer(ctx.app.owners.volumes().update_volume(request).await).map(drop)
}

/// The device that is an instance's root disk, and its attachment.
pub(crate) fn root(instance: &Instance) -> Result<(&String, &Attachment), Error> {
    instance
        .attachments
        .iter()
        .find(|(device, _)| {
            instance
                .expanded_devices
                .get(*device)
                .is_some_and(|d| d.options.get("path").is_some_and(|path| path == "/"))
        })
        .ok_or_else(|| {
            Error::precondition("NO_ROOT", format!("{} has no root disk", instance.name))
        })
}

/// Messages out of their wrappings.
pub(super) fn plain<M>(wrapped: HashMap<String, Wire<M>>) -> HashMap<String, M> {
    wrapped
        .into_iter()
        .map(|(key, value)| (key, value.0))
        .collect()
}
