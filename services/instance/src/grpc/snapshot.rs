//! SnapshotService.

use berth_proto::instance as proto;
use berth_proto::instance::snapshot_service_server::SnapshotService;
use berth_rpc::mask::Mask;
use berth_rpc::names;
use tonic::{Request, Response, Status};

use super::{Api, convert, instance_name, render};
use crate::Error;
use crate::app::{NewSnapshot, View};
use crate::model::record::Snapshot;

type Answer<T> = Result<Response<T>, Status>;

fn name(name: &str) -> Result<names::InstanceSnapshot, Error> {
    names::InstanceSnapshot::parse("name", name)
}

fn rendered((view, snapshot): (View, Snapshot)) -> proto::Snapshot {
    render::snapshot(&view.record, &snapshot)
}

#[tonic::async_trait]
impl SnapshotService for Api {
    async fn create_snapshot(
        &self,
        request: Request<proto::CreateSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let r = request.into_inner();
        let (project, instance) = instance_name("parent", &r.parent)?;
        let given = r.snapshot.unwrap_or_default();
        if given.stateful {
            return Err(Error::unimplemented("Stateful snapshots are not supported yet").into());
        }
        let new = NewSnapshot {
            name: r.snapshot_id,
            description: given.description,
            expire_time: render::parse_time("snapshot.expire_time", &given.expire_time)?,
        };
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            let only = r.validate_only;
            app.create_snapshot(&project, &instance, new, only, &id)
                .await
                .map(rendered)
        };
        // A check has no answer worth keeping, and the change that follows it may bear the same id.
        let id = if r.validate_only {
            ""
        } else {
            r.request_id.as_str()
        };
        Ok(Response::new(self.requests.run(id, work).await?))
    }

    async fn get_snapshot(
        &self,
        request: Request<proto::GetSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let n = name(&request.into_inner().name)?;
        let found = self.app.snapshot(&n.project, &n.instance, &n.snapshot)?;
        Ok(Response::new(rendered(found)))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Answer<proto::ListSnapshotsResponse> {
        let (project, instance) = instance_name("parent", &request.into_inner().parent)?;
        let slots = match (project.as_str(), instance.as_str()) {
            (_, "-") => self.app.slots(&project),
            ("-", name) => {
                let mut slots = self.app.slots("-");
                slots.retain(|slot| slot.record().name == name);
                slots
            }
            _ => vec![self.app.slot(&project, &instance)?],
        };
        let snapshots = slots
            .iter()
            .flat_map(|slot| {
                let record = slot.record();
                let snapshots = slot.snapshots();
                let rendered = snapshots.iter().map(|s| render::snapshot(&record, s));
                rendered.collect::<Vec<_>>()
            })
            .collect();
        Ok(Response::new(proto::ListSnapshotsResponse { snapshots }))
    }

    async fn update_snapshot(
        &self,
        request: Request<proto::UpdateSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let r = request.into_inner();
        let given = r.snapshot.unwrap_or_default();
        let n = name(&given.name)?;
        if let Mask::Paths(paths) = Mask::from_proto(r.update_mask.as_ref())
            && let Some(other) = paths.iter().find(|p| *p != "expire_time")
        {
            let why = format!("Only expire_time of a snapshot changes, not {other:?}");
            return Err(Error::invalid("update_mask", why).into());
        }
        let expire = render::parse_time("snapshot.expire_time", &given.expire_time)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            let (project, instance, etag) = (&n.project, &n.instance, &given.etag);
            app.set_snapshot_expiry(project, instance, &n.snapshot, expire, etag, &id)
                .await
                .map(rendered)
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn rename_snapshot(
        &self,
        request: Request<proto::RenameSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let r = request.into_inner();
        let n = name(&r.name)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            app.rename_snapshot(
                &n.project,
                &n.instance,
                &n.snapshot,
                &r.new_snapshot_id,
                &id,
            )
            .await
            .map(rendered)
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn delete_snapshot(&self, request: Request<proto::DeleteSnapshotRequest>) -> Answer<()> {
        let r = request.into_inner();
        let n = name(&r.name)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            app.delete_snapshot(&n.project, &n.instance, &n.snapshot, r.allow_missing, &id)
                .await
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn restore_snapshot(
        &self,
        request: Request<proto::RestoreSnapshotRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, instance) = instance_name("name", &r.name)?;
        let values = convert::values(r.attachments, Default::default())?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            let (snapshot, only) = (&r.snapshot_id, r.validate_only);
            app.restore_snapshot(&project, &instance, snapshot, values.attachments, only, &id)
                .await
                .map(|view| render::instance(&view))
        };
        let id = if r.validate_only {
            ""
        } else {
            r.request_id.as_str()
        };
        Ok(Response::new(self.requests.run(id, work).await?))
    }
}
