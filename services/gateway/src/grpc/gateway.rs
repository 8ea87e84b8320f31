//! `berth.gateway.v1.GatewayService`: the same sagas that REST begins.

use berth_operations::{Operation, to_proto};
use berth_proto::gateway as pb;
use berth_proto::gateway::gateway_service_server::GatewayService;
use berth_proto::image::GetImageRequest;
use berth_proto::instance::{GetInstanceRequest, Instance, InstanceView, ListInstancesRequest};
use berth_proto::longrunning::Operation as Reply;
use berth_rpc::{Error, names};
use serde::Serialize;
use tonic::{Request, Response, Status};

use super::create;
use crate::App;
use crate::app::operations::About;
use crate::app::sagas::instances as sagas;
use crate::app::sagas::{
    images as image_sagas, networks as network_sagas, pools as pool_sagas,
    profiles as profile_sagas,
};
use crate::app::wire::Wire;
use crate::app::{images, networks, pools, profiles};

/// The service.
#[derive(Debug, Clone)]
pub struct Gateway {
    app: App,
}

impl Gateway {
    /// Over the application that REST uses as well.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn begin<P: Serialize>(
        &self,
        saga: &str,
        params: &P,
        about: About,
    ) -> Result<Response<Reply>, Status> {
        let operation: Operation = self.app.operations.start(saga, params, about).await?;
        Ok(Response::new(to_proto(&operation.record())))
    }

    async fn begin_on(
        &self,
        saga: &str,
        params: &impl Serialize,
        (what, name, request_id): (&str, &names::Instance, &str),
    ) -> Result<Response<Reply>, Status> {
        let about = About::task(what, &name.project)
            .on_container(&name.instance)
            .requested_as(request_id);
        self.begin(saga, params, about).await
    }
}

fn project(field: &str, parent: &str) -> Result<String, Error> {
    Ok(names::Project::parse(field, parent)?.project)
}

fn required(field: &str, value: &str) -> Result<(), Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, format!("{field} is required")));
    }
    Ok(())
}

fn no_dry_run(validate_only: bool) -> Result<(), Error> {
    if validate_only {
        return Err(Error::unimplemented(
            "validate_only is not supported here; ask the owner of the resource",
        ));
    }
    Ok(())
}

#[tonic::async_trait]
impl GatewayService for Gateway {
    async fn create_instance(
        &self,
        request: Request<pb::CreateInstanceRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        required("instance_id", &request.instance_id)?;
        let operation = create::begin(&self.app, request).await?;
        Ok(Response::new(to_proto(&operation.record())))
    }

    async fn get_instance(
        &self,
        request: Request<pb::GetInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        names::Instance::parse("name", &request.name)?;
        self.app
            .owners
            .instances()
            .get_instance(GetInstanceRequest {
                name: request.name,
                view: request.view,
            })
            .await
    }

    async fn list_instances(
        &self,
        request: Request<pb::ListInstancesRequest>,
    ) -> Result<Response<pb::ListInstancesResponse>, Status> {
        let request = request.into_inner();
        let view = match request.view() {
            InstanceView::Unspecified => InstanceView::Basic,
            view => view,
        };
        let page = self
            .app
            .owners
            .instances()
            .list_instances(ListInstancesRequest {
                parent: request.parent,
                view: view.into(),
                page_size: request.page_size,
                page_token: request.page_token,
            })
            .await?
            .into_inner();
        Ok(Response::new(pb::ListInstancesResponse {
            instances: page.instances,
            next_page_token: page.next_page_token,
        }))
    }

    async fn update_instance(
        &self,
        request: Request<pb::UpdateInstanceRequest>,
    ) -> Result<Response<Reply>, Status> {
        let update = request
            .into_inner()
            .update
            .ok_or_else(|| Error::invalid("update", "update is required"))?;
        let instance = update.instance.as_ref().map_or("", |i| i.name.as_str());
        let name = names::Instance::parse("update.instance.name", instance)?;
        if !update.plan_etag.is_empty()
            || !update.attachments.is_empty()
            || !update.ports.is_empty()
        {
            return Err(Error::invalid(
                "update.plan_etag",
                "the gateway plans by itself: plan_etag, attachments and ports must be empty",
            )
            .into());
        }
        let request_id = update.request_id.clone();
        let params = sagas::update::Params {
            update: Wire(update),
        };
        self.begin_on(
            sagas::update::NAME,
            &params,
            ("Updating instance", &name, &request_id),
        )
        .await
    }

    async fn rename_instance(
        &self,
        request: Request<pb::RenameInstanceRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let name = names::Instance::parse("name", &request.name)?;
        required("new_instance_id", &request.new_instance_id)?;
        let params = sagas::rename::Params {
            name: request.name,
            new: request.new_instance_id,
        };
        self.begin_on(
            sagas::rename::NAME,
            &params,
            ("Renaming instance", &name, &request.request_id),
        )
        .await
    }

    async fn delete_instance(
        &self,
        request: Request<pb::DeleteInstanceRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let name = names::Instance::parse("name", &request.name)?;
        let params = sagas::delete::Params {
            name: request.name,
            force: request.force,
            generation: 0,
        };
        self.begin_on(
            sagas::delete::NAME,
            &params,
            ("Deleting instance", &name, &request.request_id),
        )
        .await
    }

    async fn change_instance_state(
        &self,
        request: Request<pb::ChangeInstanceStateRequest>,
    ) -> Result<Response<Reply>, Status> {
        use pb::change_instance_state_request::Action as Asked;
        use sagas::state::{Action, Change};

        let request = request.into_inner();
        let name = names::Instance::parse("name", &request.name)?;
        let action = match request.action() {
            Asked::Start => Action::Start,
            Asked::Stop => Action::Stop,
            Asked::Restart => Action::Restart,
            Asked::Freeze => Action::Freeze,
            Asked::Unfreeze => Action::Unfreeze,
            Asked::Unspecified => {
                return Err(Error::invalid("action", "action is required").into());
            }
        };
        let params = sagas::state::Params {
            name: request.name,
            change: Change {
                action,
                force: request.force,
                timeout: request.timeout_seconds,
                stateful: false,
            },
        };
        self.begin_on(
            sagas::state::NAME,
            &params,
            (action.description(), &name, &request.request_id),
        )
        .await
    }

    async fn create_snapshot(
        &self,
        request: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let name = names::Instance::parse("parent", &request.parent)?;
        required("snapshot_id", &request.snapshot_id)?;
        let params = sagas::snapshots::Create {
            instance: request.parent,
            snapshot: request.snapshot_id,
            expire_time: request.expire_time,
            stateful: false,
        };
        self.begin_on(
            sagas::snapshots::CREATE,
            &params,
            ("Snapshotting instance", &name, &request.request_id),
        )
        .await
    }

    async fn restore_snapshot(
        &self,
        request: Request<pb::RestoreSnapshotRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let name = names::Instance::parse("name", &request.name)?;
        required("snapshot_id", &request.snapshot_id)?;
        let params = sagas::restore::Params {
            instance: request.name,
            snapshot: request.snapshot_id,
        };
        self.begin_on(
            sagas::restore::NAME,
            &params,
            ("Restoring snapshot", &name, &request.request_id),
        )
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let snapshot = names::InstanceSnapshot::parse("name", &request.name)?;
        let name = names::Instance::new(snapshot.project, snapshot.instance);
        let params = sagas::snapshots::Delete {
            instance: name.to_string(),
            snapshot: snapshot.snapshot,
        };
        self.begin_on(
            sagas::snapshots::DELETE,
            &params,
            ("Deleting snapshot", &name, &request.request_id),
        )
        .await
    }

    async fn update_profile(
        &self,
        request: Request<pb::UpdateProfileRequest>,
    ) -> Result<Response<Reply>, Status> {
        let update = request
            .into_inner()
            .update
            .ok_or_else(|| Error::invalid("update", "update is required"))?;
        if !update.plan_etag.is_empty() || !update.instances.is_empty() {
            return Err(Error::invalid(
                "update.plan_etag",
                "the gateway plans by itself: plan_etag and instances must be empty",
            )
            .into());
        }
        let profile = update.profile.unwrap_or_default();
        let name = names::Profile::parse("update.profile.name", &profile.name)?;
        let params = profiles::change(&self.app, profile, update.update_mask.as_ref()).await?;
        let about = profiles::about_update(&name.project, &update.request_id);
        self.begin(profile_sagas::UPDATE, &params, about).await
    }

    async fn delete_image(
        &self,
        request: Request<pb::DeleteImageRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let name = names::Image::parse("name", &request.name)?;
        // A prefix may not mean another image by the time the operation runs.
        let image = self
            .app
            .owners
            .images()
            .get_image(GetImageRequest { name: request.name })
            .await?
            .into_inner();
        let params = images::deletion(&name.project, &image.fingerprint);
        let about = images::about_delete(&name.project, &image.fingerprint, &request.request_id);
        self.begin(image_sagas::DELETE, &params, about).await
    }

    async fn create_pool(
        &self,
        request: Request<pb::CreatePoolRequest>,
    ) -> Result<Response<Reply>, Status> {
        let create = request
            .into_inner()
            .create
            .ok_or_else(|| Error::invalid("create", "create is required"))?;
        no_dry_run(create.validate_only)?;
        required("create.pool_id", &create.pool_id)?;
        let mut pool = create.pool.unwrap_or_default();
        pool.name = names::Pool::new(create.pool_id).to_string();
        let about = pools::about_create(names::DEFAULT_PROJECT, &create.request_id);
        let params = pools::creation(pool);
        self.begin(pool_sagas::CREATE, &params, about).await
    }

    async fn delete_pool(
        &self,
        request: Request<pb::DeletePoolRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        names::Pool::parse("name", &request.name)?;
        let about = pools::about_delete(names::DEFAULT_PROJECT, &request.request_id);
        let params = pool_sagas::Delete { name: request.name };
        self.begin(pool_sagas::DELETE, &params, about).await
    }

    async fn create_network(
        &self,
        request: Request<pb::CreateNetworkRequest>,
    ) -> Result<Response<Reply>, Status> {
        let create = request
            .into_inner()
            .create
            .ok_or_else(|| Error::invalid("create", "create is required"))?;
        no_dry_run(create.validate_only)?;
        required("create.network_id", &create.network_id)?;
        let project = project("create.parent", &create.parent)?;
        let mut network = create.network.unwrap_or_default();
        network.name = names::Network::new(&project, create.network_id).to_string();
        if network.r#type.is_empty() {
            "bridge".clone_into(&mut network.r#type);
        }
        let about = networks::about_create(&project, &create.request_id);
        let params = networks::creation(&project, network);
        self.begin(network_sagas::CREATE, &params, about).await
    }

    async fn delete_network(
        &self,
        request: Request<pb::DeleteNetworkRequest>,
    ) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        let name = names::Network::parse("name", &request.name)?;
        let about = networks::about_delete(&name.project, &request.request_id);
        let params = network_sagas::Delete { name: request.name };
        self.begin(network_sagas::DELETE, &params, about).await
    }
}
