//! What instances' devices use of storage and network, made and removed as plans say.
//!
//! The owner of instances plans; here is made what a plan lacks, before the owner commits it, and
//! removed what it no longer needs, afterwards. Every change knows its way back: the devices as
//! they were are kept with the plan.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;

use berth_operations::for_each;
use berth_proto::instance::{
    Instance, InstancePlan, InstanceValues, NeededPort, NeededVolume, VolumeChange,
};
use berth_proto::network::{CreatePortRequest, DeletePortRequest, PortSpec, UpdatePortRequest};
use berth_proto::storage::{
    GetVolumeRequest, HoldVolumeRequest, ReleaseVolumeRequest, UpdateVolumeRequest, Volume,
};
use berth_proto::types::{Attachment, Hold, Port};
use berth_rpc::{Code, Error, names};
use serde::{Deserialize, Serialize};

use super::Context;
use super::undo::{absent_is_fine, answer};
use crate::app::wire::Wire;

/// Calls made side by side for one step.
const AT_ONCE: usize = 8;
/// nic options that a port does not get as config: it has fields for them, or no use.
const NOT_CONFIG: [&str; 5] = ["type", "network", "name", "hwaddr", "boot.priority"];

/// One instance's plan, and the instance before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// What is to become.
    pub plan: Wire<InstancePlan>,
    /// What is.
    pub before: Wire<Instance>,
}

/// Attachments and ports made for one instance, as they are written down.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Made {
    attachments: BTreeMap<String, Wire<Attachment>>,
    ports: BTreeMap<String, Wire<Port>>,
    /// Config of volumes as it was before this changed it, by resource name.
    volumes_before: BTreeMap<String, BTreeMap<String, String>>,
}

impl Made {
    /// The values for the owner's commit.
    pub fn values(self) -> InstanceValues {
        InstanceValues {
            attachments: self
                .attachments
                .into_iter()
                .map(|(device, Wire(attachment))| (device, attachment))
                .collect(),
            ports: self
                .ports
                .into_iter()
                .map(|(device, Wire(port))| (device, port))
                .collect(),
        }
    }
}

fn project_of(instance: &str) -> &str {
    instance.split('/').nth(1).unwrap_or(names::DEFAULT_PROJECT)
}

fn network_segment(network: &str) -> &str {
    // Ports on parents that are no network of ours.
    if network.is_empty() { "-" } else { network }
}

fn port_name(instance: &str, port: &NeededPort) -> String {
    names::Port::new(
        project_of(instance),
        network_segment(&port.network),
        &port.port_id,
    )
    .to_string()
}

fn custom_volume(instance: &str, volume: &NeededVolume) -> Result<String, Error> {
    if volume.root {
        return Err(Error::unimplemented(
            "Giving an instance another root volume is not supported",
        ));
    }
    Ok(
        names::Volume::new(project_of(instance), &volume.pool, "custom", &volume.volume)
            .to_string(),
    )
}

fn spec(instance: &str, port: &NeededPort) -> PortSpec {
    PortSpec {
        holder: instance.to_owned(),
        hostname: port.hostname.clone(),
        mac: port.mac.clone(),
        guest_name: port.guest_name.clone(),
        config: port.config.clone(),
    }
}

impl Change {
    fn instance(&self) -> &str {
        &self.before.0.name
    }

    /// Makes what the plan needs. What is there already is taken as it is, so twice is once.
    ///
    /// # Errors
    /// When an owner refuses; [`Change::unmake`] takes back what was made until then.
    pub async fn make(&self, ctx: &Context) -> Result<Made, Error> {
        let mut made = Made::default();
        for volume in &self.plan.0.needed_volumes {
            let name = custom_volume(self.instance(), volume)?;
            let held = self.hold(ctx, name).await?;
            let attachment = held.attachment.unwrap_or_default();
            made.attachments
                .insert(volume.device.clone(), Wire(attachment));
        }
        for port in &self.plan.0.needed_ports {
            let made_port = self.create_port(ctx, port).await?;
            made.ports.insert(port.device.clone(), Wire(made_port));
        }
        for port in &self.plan.0.changed_ports {
            let name = port_name(self.instance(), port);
            let changed = self
                .update_port(ctx, name, spec(self.instance(), port))
                .await?;
            made.ports.insert(port.device.clone(), Wire(changed));
        }
        for change in &self.plan.0.volume_changes {
            let before = resize(ctx, change).await?;
            made.volumes_before.insert(change.volume.clone(), before);
        }
        Ok(made)
    }

    /// Takes back what [`Change::make`] made, all or part of it.
    ///
    /// # Errors
    /// When an owner is away.
    pub async fn unmake(&self, ctx: &Context, made: Option<&Made>) -> Result<(), Error> {
        for volume in &self.plan.0.needed_volumes {
            if let Ok(name) = custom_volume(self.instance(), volume)
                && !self.used_before(&name)
            {
                self.release(ctx, name).await?;
            }
        }
        for port in &self.plan.0.needed_ports {
            let name = port_name(self.instance(), port);
            match self.port_before(&name) {
                // It was only changed.
                Some((device, old)) => self.change_back(ctx, device, old).await?,
                None => self.delete_port(ctx, name).await?,
            }
        }
        for port in &self.plan.0.changed_ports {
            if let Some((device, old)) = self.port_before(&port_name(self.instance(), port)) {
                self.change_back(ctx, device, old).await?;
            }
        }
        for (volume, config) in made.iter().flat_map(|made| &made.volumes_before) {
            let config = config.clone().into_iter().collect();
            set_config(ctx, volume.clone(), config).await?;
        }
        Ok(())
    }

    /// Removes what the committed plan no longer needs.
    ///
    /// # Errors
    /// When an owner is away.
    pub async fn remove_surplus(&self, ctx: &Context) -> Result<(), Error> {
        for surplus in &self.plan.0.surplus_volumes {
            let attachment = surplus.attachment.clone().unwrap_or_default();
            if !surplus.root && !self.needs_volume(&attachment.volume) {
                self.release(ctx, attachment.volume).await?;
            }
        }
        for surplus in &self.plan.0.surplus_ports {
            let port = surplus.port.clone().unwrap_or_default();
            if !self.needs_port(&port.name) {
                self.delete_port(ctx, port.name).await?;
            }
        }
        Ok(())
    }

    /// Makes again what [`Change::remove_surplus`] removed.
    ///
    /// # Errors
    /// When an owner refuses.
    pub async fn restore_surplus(&self, ctx: &Context) -> Result<(), Error> {
        for surplus in &self.plan.0.surplus_volumes {
            let attachment = surplus.attachment.clone().unwrap_or_default();
            if !surplus.root {
                self.hold(ctx, attachment.volume).await?;
            }
        }
        for surplus in &self.plan.0.surplus_ports {
            let port = surplus.port.clone().unwrap_or_default();
            if self.needs_port(&port.name) {
                continue;
            }
            let network = names::Port::parse("port", &port.name)?;
            let request = CreatePortRequest {
                parent: names::Network::new(&network.project, &network.network).to_string(),
                port_id: network.port,
                spec: Some(self.spec_before(&surplus.device, &port)),
                request_id: ctx.request_id_for(&port.name),
                validate_only: false,
            };
            match ctx.app.owners.ports().create_port(request).await {
                Ok(_) => {}
                // It had not been removed yet.
                Err(status) if status.code() == tonic::Code::AlreadyExists => {}
                Err(status) => return Err(status.into()),
            }
        }
        Ok(())
    }

    /// The values the instance had for what `plan` needs: for going back to `before`.
    pub fn values_before(&self, plan: &InstancePlan) -> InstanceValues {
        let attachments = plan
            .needed_volumes
            .iter()
            .filter_map(|v| {
                Some((
                    v.device.clone(),
                    self.before.0.attachments.get(&v.device)?.clone(),
                ))
            })
            .collect::<HashMap<String, Attachment>>();
        let ports = plan
            .needed_ports
            .iter()
            .chain(&plan.changed_ports)
            .filter_map(|p| {
                Some((
                    p.device.clone(),
                    self.before.0.ports.get(&p.device)?.clone(),
                ))
            })
            .collect::<HashMap<String, Port>>();
        InstanceValues { attachments, ports }
    }

    fn used_before(&self, volume: &str) -> bool {
        self.before
            .0
            .attachments
            .values()
            .any(|a| a.volume == volume)
    }

    fn port_before(&self, name: &str) -> Option<(&str, &Port)> {
        let (device, port) = self
            .before
            .0
            .ports
            .iter()
            .find(|(_, port)| port.name == name)?;
        Some((device, port))
    }

    fn needs_volume(&self, name: &str) -> bool {
        self.plan
            .0
            .needed_volumes
            .iter()
            .any(|volume| custom_volume(self.instance(), volume).is_ok_and(|n| n == name))
    }

    fn needs_port(&self, name: &str) -> bool {
        self.plan
            .0
            .needed_ports
            .iter()
            .any(|port| port_name(self.instance(), port) == name)
    }

    fn spec_before(&self, device: &str, port: &Port) -> PortSpec {
        let options = self.before.0.expanded_devices.get(device);
        let config = options
            .into_iter()
            .flat_map(|device| &device.options)
            .filter(|(key, value)| {
                !NOT_CONFIG.contains(&key.as_str())
                    && !key.starts_with("user.")
                    && !value.is_empty()
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        PortSpec {
            holder: self.instance().to_owned(),
            hostname: self
                .instance()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            mac: port.mac.clone(),
            guest_name: port.guest_name.clone(),
            config,
        }
    }

    async fn change_back(&self, ctx: &Context, device: &str, old: &Port) -> Result<(), Error> {
        let spec = self.spec_before(device, old);
        self.update_port(ctx, old.name.clone(), spec).await?;
        Ok(())
    }

    async fn create_port(&self, ctx: &Context, port: &NeededPort) -> Result<Port, Error> {
        let name = port_name(self.instance(), port);
        if self.port_before(&name).is_some() {
            // Same place, other link: the port stays the same one and changes.
            let spec = spec(self.instance(), port);
            return self.update_port(ctx, name, spec).await;
        }
        let parent =
            names::Network::new(project_of(self.instance()), network_segment(&port.network));
        let made = ctx
            .app
            .owners
            .ports()
            .create_port(CreatePortRequest {
                parent: parent.to_string(),
                port_id: port.port_id.clone(),
                spec: Some(spec(self.instance(), port)),
                request_id: ctx.request_id_for(&name),
                validate_only: false,
            })
            .await?;
        Ok(made.into_inner())
    }

    async fn update_port(
        &self,
        ctx: &Context,
        name: String,
        spec: PortSpec,
    ) -> Result<Port, Error> {
        let request_id = ctx.request_id_for(&name);
        let changed = ctx
            .app
            .owners
            .ports()
            .update_port(UpdatePortRequest {
                name,
                spec: Some(spec),
                request_id,
            })
            .await?;
        Ok(changed.into_inner())
    }

    async fn delete_port(&self, ctx: &Context, name: String) -> Result<(), Error> {
        let request_id = ctx.request_id_for(&name);
        ctx.app
            .owners
            .ports()
            .delete_port(DeletePortRequest {
                name,
                allow_missing: true,
                request_id,
            })
            .await?;
        Ok(())
    }

    async fn hold(&self, ctx: &Context, name: String) -> Result<Volume, Error> {
        let held = ctx
            .app
            .owners
            .volumes()
            .hold_volume(HoldVolumeRequest {
                name,
                hold: Some(Hold {
                    holder: self.instance().to_owned(),
                    authority: "gateway".into(),
                    expire_time: String::new(),
                }),
            })
            .await?;
        Ok(held.into_inner())
    }

    async fn release(&self, ctx: &Context, name: String) -> Result<(), Error> {
        let released = ctx
            .app
            .owners
            .volumes()
            .release_volume(ReleaseVolumeRequest {
                name,
                holder: self.instance().to_owned(),
            })
            .await;
        absent_is_fine(answer(released))
    }
}

/// Sets what a plan changes in a volume's config; gives the config as it was.
async fn resize(ctx: &Context, change: &VolumeChange) -> Result<BTreeMap<String, String>, Error> {
    let volume = ctx
        .app
        .owners
        .volumes()
        .get_volume(GetVolumeRequest {
            name: change.volume.clone(),
        })
        .await?
        .into_inner();
    let before: BTreeMap<String, String> = volume.config.clone().into_iter().collect();
    let mut config = volume.config;
    // The root disk's options are the volume's: one that is gone is unset.
    config.remove("size");
    config.extend(change.config.clone());
    config.retain(|_, value| !value.is_empty());
    set_config(ctx, change.volume.clone(), config).await?;
    // A second run finds its own work; what counts is what the first one found.
    let found: Option<BTreeMap<String, String>> =
        ctx.output(&format!("before {}", change.volume))?;
    if let Some(found) = found {
        return Ok(found);
    }
    ctx.put(&format!("before {}", change.volume), &before)?;
    Ok(before)
}

async fn set_config(
    ctx: &Context,
    name: String,
    config: HashMap<String, String>,
) -> Result<(), Error> {
    let request_id = ctx.request_id_for(&name);
    let set = ctx
        .app
        .owners
        .volumes()
        .update_volume(UpdateVolumeRequest {
            volume: Some(Volume {
                name,
                config,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["config".into()],
            }),
            request_id,
        })
        .await;
    match set.map_err(Error::from) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context("the root disk's size")),
    }
}

/// Does one thing for many changes side by side.
///
/// # Errors
/// All failures in one sentence.
pub async fn each<F, Fut>(ctx: &Context, changes: Vec<Change>, mut work: F) -> Result<(), Error>
where
    F: FnMut(Context, Change) -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    for_each(changes, AT_ONCE, |change| work(ctx.clone(), change)).await
}

/// Whether the plan was overtaken by another change, so that planning again may work.
pub fn is_stale(error: &Error) -> bool {
    error.code == Code::Aborted && error.reason != "ETAG_MISMATCH"
}
