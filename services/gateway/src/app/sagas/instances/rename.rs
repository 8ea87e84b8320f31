//! `rename_instance`: inspect → volume → holds → ports → record → old holds.
//!
//! Holders are resource names, so a rename moves every hold: the new one is taken first, the old
//! one released last, and at no time is anything unheld.

use std::collections::HashMap;

use berth_operations::{Saga, Step, for_each};
use berth_proto::instance::{Instance, RenameInstanceRequest};
use berth_proto::storage;
use berth_proto::types::{Attachment, Port};
use berth_rpc::Error;
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::devices::{self, Names};
use crate::app::sagas::undo::{absent_is_fine, answer, may_have_happened, noted};
use crate::app::wire::Wire;

/// Name of the saga.
pub const NAME: &str = "rename_instance";

/// Holds moved side by side.
const AT_ONCE: usize = 8;

/// What is renamed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Params {
    /// Resource name.
    pub name: String,
    /// New short name.
    pub new: String,
}

impl Params {
    fn old(&self) -> Result<Names, Error> {
        Names::parse(&self.name)
    }

    fn renamed(&self) -> Result<Names, Error> {
        Ok(Names {
            project: self.old()?.project,
            instance: self.new.clone(),
        })
    }
}

/// The saga.
pub fn saga() -> Saga<Gateway> {
    Saga {
        name: NAME,
        version: 1,
        stages: vec![
            vec![Step::new("inspect", |ctx| Box::pin(inspect(ctx)))],
            vec![Step::with_undo(
                "volume",
                |ctx| Box::pin(volume(ctx)),
                |ctx| Box::pin(undo_volume(ctx)),
            )],
            vec![Step::with_undo(
                "holds",
                |ctx| Box::pin(holds(ctx)),
                |ctx| Box::pin(undo_holds(ctx)),
            )],
            vec![Step::with_undo(
                "ports",
                |ctx| Box::pin(ports(ctx)),
                |ctx| Box::pin(undo_ports(ctx)),
            )],
            vec![Step::with_undo(
                "record",
                |ctx| Box::pin(record(ctx)),
                |ctx| Box::pin(undo_record(ctx)),
            )],
            vec![Step::with_undo(
                "old_holds",
                |ctx| Box::pin(old_holds(ctx)),
                |ctx| Box::pin(undo_old_holds(ctx)),
            )],
        ],
    }
}

async fn inspect(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let instance = super::read(&ctx, &params.name).await?;
    if instance.status() != berth_proto::instance::instance::Status::Stopped {
        return Err(Error::precondition(
            "INSTANCE_RUNNING",
            "Renaming of running container not allowed",
        ));
    }
    if super::read(&ctx, &params.renamed()?.holder()).await.is_ok() {
        return Err(Error::already_exists("Instance", &params.new));
    }
    ctx.put("instance", &Wire(instance))
}

fn inspected(ctx: &Context) -> Result<Instance, Error> {
    Ok(ctx.require::<Wire<Instance>>("instance")?.0)
}

/// The instance's own volumes by device, and what they are called after the rename.
fn own_volumes(instance: &Instance, new: &str) -> Vec<(String, String, String)> {
    instance
        .attachments
        .iter()
        .filter(|(_, a)| devices::is_own(&a.volume))
        .filter_map(|(device, a)| {
            let (parent, _) = a.volume.rsplit_once('/')?;
            Some((device.clone(), a.volume.clone(), format!("{parent}/{new}")))
        })
        .collect()
}

async fn rename_volume(ctx: &Context, from: &str, to: &str) -> Result<storage::Volume, Error> {
    let request = storage::RenameVolumeRequest {
        name: from.to_owned(),
        new_volume_id: to.rsplit('/').next().unwrap_or(to).to_owned(),
        request_id: ctx.request_id_for(from),
    };
    answer(ctx.app.owners.volumes().rename_volume(request).await)
}

async fn volume(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let mut attachments: HashMap<String, Wire<Attachment>> = HashMap::new();
    for (device, from, to) in own_volumes(&inspected(&ctx)?, &params.new) {
        let key = format!("volume.{device}");
        let volume = noted(&ctx, &key, rename_volume(&ctx, &from, &to)).await?;
        let attachment = volume.attachment.ok_or_else(|| {
            Error::internal(format!("volume {} came without an attachment", volume.name))
        })?;
        attachments.insert(device, Wire(attachment));
    }
    ctx.put("attachments", &attachments)
}

async fn undo_volume(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    for (device, from, to) in own_volumes(&inspected(&ctx)?, &params.new) {
        if may_have_happened(&ctx, &format!("volume.{device}"))? {
            absent_is_fine(rename_volume(&ctx, &to, &from).await)?;
        }
    }
    Ok(())
}

/// Volumes by the names they have between the volumes' rename and its undo.
fn held_volumes(instance: &Instance, new: &str) -> Vec<String> {
    instance
        .attachments
        .values()
        .filter(|a| !a.volume.is_empty())
        .map(|a| match a.volume.rsplit_once('/') {
            Some((parent, _)) if devices::is_own(&a.volume) => format!("{parent}/{new}"),
            _ => a.volume.clone(),
        })
        .collect()
}

async fn hold_all(ctx: &Context, params: &Params, holder: &str) -> Result<(), Error> {
    for_each(
        held_volumes(&inspected(ctx)?, &params.new),
        AT_ONCE,
        |name| async move {
            let request = storage::HoldVolumeRequest {
                name,
                hold: Some(devices::hold(holder.to_owned())),
            };
            answer(ctx.app.owners.volumes().hold_volume(request).await).map(drop)
        },
    )
    .await
}

async fn holds(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    hold_all(&ctx, &params, &params.renamed()?.holder()).await
}

async fn undo_holds(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    release_all(&ctx, &params, &params.renamed()?.holder()).await
}

async fn release_all(ctx: &Context, params: &Params, holder: &str) -> Result<(), Error> {
    for_each(
        held_volumes(&inspected(ctx)?, &params.new),
        AT_ONCE,
        |name| async move { devices::release_volume(ctx, &name, holder).await },
    )
    .await
}

/// Gives every port `names` as its holder and host name.
async fn hand_ports(ctx: &Context, names: &Names) -> Result<HashMap<String, Wire<Port>>, Error> {
    let instance = inspected(ctx)?;
    let mut ports = HashMap::new();
    for (device, port) in &instance.ports {
        let Some(options) = instance.expanded_devices.get(device) else {
            continue;
        };
        let spec = devices::spec_of(names, port, options);
        let key = format!("port.{device}");
        let update = devices::update_port(ctx, port.name.clone(), spec);
        ports.insert(device.clone(), Wire(noted(ctx, &key, update).await?));
    }
    Ok(ports)
}

async fn ports(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let ports = hand_ports(&ctx, &params.renamed()?).await?;
    ctx.put("ports", &ports)
}

async fn undo_ports(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    hand_ports(&ctx, &params.old()?).await.map(drop)
}

async fn record(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let attachments: HashMap<String, Wire<Attachment>> = ctx.require("attachments")?;
    let ports: HashMap<String, Wire<Port>> = ctx.require("ports")?;
    let request = RenameInstanceRequest {
        name: params.name.clone(),
        new_instance_id: params.new.clone(),
        attachments: devices::plain(attachments),
        ports: devices::plain(ports),
        request_id: ctx.request_id(),
    };
    let rename = async { answer(ctx.app.owners.instances().rename_instance(request).await) };
    noted(&ctx, "record", rename).await.map(drop)
}

async fn undo_record(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "record")? {
        return Ok(());
    }
    let params: Params = ctx.params()?;
    let before = inspected(&ctx)?;
    let own: Vec<String> = own_volumes(&before, &params.new)
        .into_iter()
        .map(|(device, ..)| device)
        .collect();
    let request = RenameInstanceRequest {
        name: params.renamed()?.holder(),
        new_instance_id: params.old()?.instance,
        attachments: before
            .attachments
            .into_iter()
            .filter(|(device, _)| own.contains(device))
            .collect(),
        ports: before.ports,
        request_id: ctx.request_id(),
    };
    absent_is_fine(answer(
        ctx.app.owners.instances().rename_instance(request).await,
    ))
}

async fn old_holds(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    release_all(&ctx, &params, &params.name).await
}

async fn undo_old_holds(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    hold_all(&ctx, &params, &params.name).await
}
