use berth_proto::storage as proto;
use berth_proto::storage::volume_service_server::VolumeService;
use berth_rpc::mask::Mask;
use berth_rpc::{Error, names};
use tonic::{Request, Response, Status};

use super::{Storage, convert, receive};
use crate::app::create_volume::{self, NewVolume};
use crate::app::delete_volume::{self, Deletion};
use crate::app::read::Within;
use crate::app::snapshots::{self, NewSnapshot};
use crate::app::update_volume::{self, VolumeChange};
use crate::app::{Ask, VolumeView, holds, image_cache, read, restore_volume};
use crate::model;
use crate::store::VolumeKey;

type Answer<M> = Result<Response<M>, Status>;

fn ask_volume(request_id: &str) -> Ask<VolumeView> {
    Ask {
        request_id: request_id.to_owned(),
        render: convert::volume_bytes,
    }
}

fn ask_nothing(request_id: &str) -> Ask<()> {
    Ask {
        request_id: request_id.to_owned(),
        render: convert::empty_bytes,
    }
}

/// Parses what a new volume is asked for.
fn new_volume(request: proto::CreateVolumeRequest) -> Result<NewVolume, Error> {
    let parent = names::ProjectPool::parse("parent", &request.parent)?;
    model::names::project("parent", &parent.project)?;
    if parent.project != names::DEFAULT_PROJECT {
        return Err(Error::not_found("Project", &parent.project));
    }
    model::names::collection("collection", &request.collection)?;
    model::names::volume("volume_id", &request.volume_id)?;
    let volume = request.volume.unwrap_or_default();
    if request.collection == "virtualMachines" {
        return Err(Error::unimplemented(
            "volumes of virtual machines are not supported by this build",
        ));
    }
    match volume.content_type.as_str() {
        "" | "filesystem" => {}
        "block" | "iso" => {
            return Err(Error::unimplemented(format!(
                "content_type {} is not supported by this build",
                volume.content_type
            )));
        }
        other => {
            return Err(Error::invalid(
                "volume.content_type",
                format!("Invalid content type {other:?}"),
            ));
        }
    }
    let hold = request
        .hold
        .map(|hold| convert::hold_from("hold", Some(hold)))
        .transpose()?;
    let mut config: model::config::Config = volume.config.into_iter().collect();
    config.retain(|_, value| !value.is_empty());
    Ok(NewVolume {
        pool: parent.pool,
        key: VolumeKey {
            project: parent.project,
            collection: request.collection,
            name: request.volume_id,
        },
        description: volume.description,
        config,
        source: convert::source_from(request.source, request.with_snapshots)?,
        hold,
        validate_only: request.validate_only,
    })
}

fn within(parent: &str, collection: String) -> Result<Within, Error> {
    let parent = names::ProjectPool::parse("parent", parent)?;
    if !collection.is_empty() {
        model::names::collection("collection", &collection)?;
    }
    Ok(Within {
        project: parent.project,
        pool: parent.pool,
        collection,
    })
}

#[tonic::async_trait]
impl VolumeService for Storage {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        let new = new_volume(request)?;
        let (app, ask) = (self.app.clone(), ask_volume(&id));
        let work = async move {
            let view = create_volume::create_volume(&app, new, ask).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(self.requests.run(&id, work).await?))
    }

    async fn import_image(
        &self,
        request: Request<tonic::Streaming<proto::ImportImageRequest>>,
    ) -> Answer<proto::Volume> {
        let mut stream = request.into_inner();
        let header = receive::header(&mut stream).await?;
        let parent = names::ProjectPool::parse("header.parent", &header.parent)?;
        let pool = self.app.pool(&parent.pool)?;
        let image = header.image.unwrap_or_default();
        let sizes = convert::announced_image(&image)?;
        let _turn = image_cache::turn(&self.app, &pool, &image.fingerprint).await;
        if let Some(view) = image_cache::view(&self.app, &pool, &image.fingerprint).await? {
            return Ok(Response::new(convert::volume(&view)));
        }
        let dir = self.app.incoming(&sizes)?;
        let files = receive::blobs(&mut stream, dir, &sizes).await?;
        let image = convert::received_image(image, files)?;
        let app = self.app.clone();
        let work = async move {
            let view = image_cache::import(&app, &pool, &image).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(
            self.requests.run(&header.request_id, work).await?,
        ))
    }

    async fn get_volume(&self, request: Request<proto::GetVolumeRequest>) -> Answer<proto::Volume> {
        let name = convert::volume_name("name", &request.get_ref().name)?;
        let view = read::get_volume(&self.app, &name).await?;
        Ok(Response::new(convert::volume(&view)))
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Answer<proto::ListVolumesResponse> {
        let request = request.into_inner();
        let within = within(&request.parent, request.collection)?;
        let (views, next_page_token) =
            read::list_volumes(&self.app, &within, request.page_size, &request.page_token).await?;
        Ok(Response::new(proto::ListVolumesResponse {
            volumes: views.iter().map(convert::volume).collect(),
            next_page_token,
        }))
    }

    async fn update_volume(
        &self,
        request: Request<proto::UpdateVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let request = request.into_inner();
        let volume = request.volume.unwrap_or_default();
        let change = VolumeChange {
            name: convert::volume_name("volume.name", &volume.name)?,
            description: volume.description,
            config: volume.config,
            mask: Mask::from_proto(request.update_mask.as_ref()),
            etag: volume.etag,
        };
        let (app, ask) = (self.app.clone(), ask_volume(&request.request_id));
        let work = async move {
            let view = update_volume::update_volume(&app, change, ask).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn rename_volume(
        &self,
        request: Request<proto::RenameVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let request = request.into_inner();
        let name = convert::volume_name("name", &request.name)?;
        let (app, ask) = (self.app.clone(), ask_volume(&request.request_id));
        let new_name = request.new_volume_id;
        let work = async move {
            let view = update_volume::rename_volume(&app, &name, &new_name, ask).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn delete_volume(&self, request: Request<proto::DeleteVolumeRequest>) -> Answer<()> {
        let request = request.into_inner();
        let what = Deletion {
            name: convert::volume_name("name", &request.name)?,
            etag: request.etag,
            allow_missing: request.allow_missing,
            holder: request.holder,
        };
        let (app, ask) = (self.app.clone(), ask_nothing(&request.request_id));
        let work = async move { delete_volume::delete_volume(&app, what, ask).await };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn create_snapshot(
        &self,
        request: Request<proto::CreateSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let request = request.into_inner();
        let snapshot = request.snapshot.unwrap_or_default();
        let new = NewSnapshot {
            volume: convert::volume_name("parent", &request.parent)?,
            name: request.snapshot_id,
            description: snapshot.description,
            expires_at: convert::time("snapshot.expire_time", &snapshot.expire_time)?,
        };
        let ask = Ask {
            request_id: request.request_id.clone(),
            render: convert::snapshot_bytes,
        };
        let app = self.app.clone();
        let work = async move {
            let view = snapshots::create_snapshot(&app, new, ask).await?;
            Ok(convert::snapshot(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Answer<proto::ListSnapshotsResponse> {
        let volume = convert::volume_names("parent", &request.get_ref().parent)?;
        let views = read::list_snapshots(&self.app, &volume).await?;
        Ok(Response::new(proto::ListSnapshotsResponse {
            snapshots: views.iter().map(convert::snapshot).collect(),
        }))
    }

    async fn update_snapshot(
        &self,
        request: Request<proto::UpdateSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let request = request.into_inner();
        let given = request.snapshot.unwrap_or_default();
        let (volume, name) = convert::snapshot_name("snapshot.name", &given.name)?;
        let expires_at = convert::time("snapshot.expire_time", &given.expire_time)?;
        let mask = Mask::from_proto(request.update_mask.as_ref());
        if let Mask::Paths(paths) = &mask
            && let Some(other) = paths
                .iter()
                .find(|p| !matches!(p.as_str(), "description" | "expire_time"))
        {
            let why = format!("only description and expire_time change, not {other:?}");
            return Err(Error::invalid("update_mask", why).into());
        }
        let description = mask.has("description").then_some(given.description);
        let expires_at = mask.has("expire_time").then_some(expires_at);
        let ask = Ask {
            request_id: request.request_id.clone(),
            render: convert::snapshot_bytes,
        };
        let app = self.app.clone();
        let work = async move {
            let view =
                snapshots::update_snapshot(&app, &volume, &name, description, expires_at, ask)
                    .await?;
            Ok(convert::snapshot(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn rename_snapshot(
        &self,
        request: Request<proto::RenameSnapshotRequest>,
    ) -> Answer<proto::Snapshot> {
        let request = request.into_inner();
        let (volume, name) = convert::snapshot_name("name", &request.name)?;
        let ask = Ask {
            request_id: request.request_id.clone(),
            render: convert::snapshot_bytes,
        };
        let (app, new) = (self.app.clone(), request.new_snapshot_id);
        let work = async move {
            let view = snapshots::rename_snapshot(&app, &volume, &name, &new, ask).await?;
            Ok(convert::snapshot(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn delete_snapshot(&self, request: Request<proto::DeleteSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        let (volume, name) = convert::snapshot_name("name", &request.name)?;
        let (app, ask) = (self.app.clone(), ask_nothing(&request.request_id));
        let missing = request.allow_missing;
        let work =
            async move { snapshots::delete_snapshot(&app, &volume, &name, missing, ask).await };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn restore_volume(
        &self,
        request: Request<proto::RestoreVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let request = request.into_inner();
        let name = convert::volume_name("name", &request.name)?;
        let (app, ask) = (self.app.clone(), ask_volume(&request.request_id));
        let snapshot = request.snapshot_id;
        let work = async move {
            let view = restore_volume::restore_volume(&app, &name, &snapshot, ask).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn batch_get_usage(
        &self,
        request: Request<proto::BatchGetUsageRequest>,
    ) -> Answer<proto::BatchGetUsageResponse> {
        let request = request.into_inner();
        let names = request
            .names
            .iter()
            .map(|name| convert::volume_name("names", name))
            .collect::<Result<Vec<_>, _>>()?;
        let parent = match request.parent.as_str() {
            "" if names.is_empty() => {
                return Err(Error::invalid("parent", "parent or names must be given").into());
            }
            "" => "projects/-/storagePools/-",
            parent => parent,
        };
        let within = within(parent, String::new())?;
        let usages = read::batch_usage(&self.app, &names, &within).await?;
        let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Response::new(proto::BatchGetUsageResponse {
            usages: usages
                .into_iter()
                .map(|usage| proto::batch_get_usage_response::Usage {
                    name: usage.name,
                    used_bytes: bytes(usage.used),
                    total_bytes: bytes(usage.total),
                })
                .collect(),
        }))
    }

    async fn hold_volume(
        &self,
        request: Request<proto::HoldVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let request = request.into_inner();
        let name = convert::volume_name("name", &request.name)?;
        let hold = convert::hold_from("hold", request.hold)?;
        let app = self.app.clone();
        let work = async move {
            let view = holds::hold_volume(&app, &name, &hold).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(self.requests.run("", work).await?))
    }

    async fn release_volume(
        &self,
        request: Request<proto::ReleaseVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let request = request.into_inner();
        let name = convert::volume_name("name", &request.name)?;
        let app = self.app.clone();
        let work = async move {
            let view = holds::release_volume(&app, &name, &request.holder).await?;
            Ok(convert::volume(&view))
        };
        Ok(Response::new(self.requests.run("", work).await?))
    }
}
