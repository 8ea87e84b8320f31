//! The fake's snapshots' records.

use berth_proto::instance::instance::Status as Power;
use berth_proto::instance::snapshot_service_server::SnapshotService;
use berth_proto::instance::{self as pb, Instance, Snapshot};
use berth_rpc::Error;
use tonic::{Request, Response, Status};

use super::instance::{Fake, State};
use super::plan::expand;
use super::replay::last;

fn find(state: &State, name: &str) -> Result<Snapshot, Error> {
    state
        .snapshots
        .get(name)
        .cloned()
        .ok_or_else(|| Error::not_found("Snapshot", last(name)))
}

#[tonic::async_trait]
impl SnapshotService for Fake {
    async fn create_snapshot(
        &self,
        request: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        let id = if request.validate_only {
            String::new()
        } else {
            request.request_id.clone()
        };
        self.0.once(&id, |state| {
            let instance = state.find(&request.parent)?.clone();
            let mut snapshot = request.snapshot.unwrap_or_default();
            if snapshot.stateful {
                return Err(Error::unimplemented("Stateful snapshots are not supported"));
            }
            snapshot.name = format!("{}/snapshots/{}", request.parent, request.snapshot_id);
            if state.snapshots.contains_key(&snapshot.name) {
                return Err(Error::already_exists("Snapshot", &request.snapshot_id));
            }
            snapshot.config = instance.config;
            snapshot.devices = instance.devices;
            snapshot.profiles = instance.profiles;
            snapshot.architecture = instance.architecture;
            "2026-01-01T00:00:00Z".clone_into(&mut snapshot.create_time);
            if !request.validate_only {
                state
                    .snapshots
                    .insert(snapshot.name.clone(), snapshot.clone());
            }
            Ok(snapshot)
        })
    }

    async fn get_snapshot(
        &self,
        request: Request<pb::GetSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        self.0.with(|state| find(state, &request.get_ref().name))
    }

    async fn list_snapshots(
        &self,
        request: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsResponse>, Status> {
        self.0.with(|state| {
            if request.get_ref().parent == "projects/-/instances/-" {
                return Ok(pb::ListSnapshotsResponse {
                    snapshots: state.snapshots.values().cloned().collect(),
                });
            }
            let instance = state.shown(&request.get_ref().parent, true)?;
            Ok(pb::ListSnapshotsResponse {
                snapshots: instance.snapshots,
            })
        })
    }

    async fn update_snapshot(
        &self,
        request: Request<pb::UpdateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let new = request.snapshot.unwrap_or_default();
            let mut snapshot = find(state, &new.name)?;
            snapshot.expire_time = new.expire_time;
            state
                .snapshots
                .insert(snapshot.name.clone(), snapshot.clone());
            Ok(snapshot)
        })
    }

    async fn rename_snapshot(
        &self,
        request: Request<pb::RenameSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut snapshot = find(state, &request.name)?;
            let (parent, _) = request.name.rsplit_once('/').unwrap();
            let name = format!("{parent}/{}", request.new_snapshot_id);
            if state.snapshots.contains_key(&name) {
                return Err(Error::already_exists("Snapshot", &request.new_snapshot_id));
            }
            state.snapshots.remove(&request.name);
            snapshot.name = name;
            state
                .snapshots
                .insert(snapshot.name.clone(), snapshot.clone());
            Ok(snapshot)
        })
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if state.snapshots.remove(&request.name).is_none() && !request.allow_missing {
                return Err(Error::not_found("Snapshot", last(&request.name)));
            }
            Ok(())
        })
    }

    async fn restore_snapshot(
        &self,
        request: Request<pb::RestoreSnapshotRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        let id = if request.validate_only {
            String::new()
        } else {
            request.request_id.clone()
        };
        self.0.once(&id, |state| {
            let snapshot = find(
                state,
                &format!("{}/snapshots/{}", request.name, request.snapshot_id),
            )?;
            let mut instance = state.find(&request.name)?.clone();
            if instance.status() != Power::Stopped {
                return Err(Error::precondition(
                    "INSTANCE_RUNNING",
                    "Instance is running",
                ));
            }
            if request.validate_only {
                return state.shown(&request.name, false);
            }
            instance.config = snapshot.config;
            instance.devices = snapshot.devices;
            instance.profiles = snapshot.profiles;
            expand(&state.profiles, &mut instance)?;
            state.settle(instance, request.attachments, Default::default())
        })
    }
}
