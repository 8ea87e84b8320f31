//! The same verbs over `berth.gateway.v1`.

use berth_gateway::grpc::gateway_server;
use berth_proto::gateway::gateway_service_client::GatewayServiceClient;
use berth_proto::gateway::{
    ChangeInstanceStateRequest, CreateInstanceRequest, CreateNetworkRequest, CreatePoolRequest,
    DeleteImageRequest, DeleteInstanceRequest, DeleteNetworkRequest, DeletePoolRequest,
    GetInstanceRequest, UpdateProfileRequest, change_instance_state_request::Action,
    create_instance_request::Source,
};
use berth_proto::instance::instance::Status;
use berth_proto::instance::{self, Device, Profile};
use berth_proto::longrunning::operation::Result as End;
use berth_proto::longrunning::operations_client::OperationsClient;
use berth_proto::longrunning::{Operation, WaitOperationRequest};
use berth_proto::{network, storage};
use tonic::service::Routes;

use crate::client::Client;

struct Rpc {
    client: Client,
    gateway: GatewayServiceClient<berth_rpc::Channel>,
    operations: OperationsClient<berth_rpc::Channel>,
}

impl Rpc {
    async fn new() -> Self {
        let client = Client::new().await;
        let durable = client.app.operations.durable().clone();
        let routes = Routes::new(gateway_server(client.app.clone()))
            .add_service(berth_operations::longrunning_server(durable));
        let channel = berth_testkit::serve_in_memory(routes).await;
        Self {
            client,
            gateway: GatewayServiceClient::new(channel.clone()),
            operations: OperationsClient::new(channel),
        }
    }

    async fn end(&mut self, started: tonic::Response<Operation>) -> Result<(), String> {
        let request = WaitOperationRequest {
            name: started.into_inner().name,
            timeout: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
        };
        let operation = self
            .operations
            .wait_operation(request)
            .await
            .unwrap()
            .into_inner();
        assert!(operation.done);
        match operation.result {
            Some(End::Response(_)) => Ok(()),
            Some(End::Error(status)) => Err(status.message),
            None => panic!("done without a result"),
        }
    }

    async fn world(&mut self) {
        let pool = CreatePoolRequest {
            create: Some(storage::CreatePoolRequest {
                pool_id: "p1".into(),
                pool: Some(storage::Pool {
                    driver: "dir".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        };
        let started = self.gateway.create_pool(pool).await.unwrap();
        self.end(started).await.unwrap();
        let network = CreateNetworkRequest {
            create: Some(network::CreateNetworkRequest {
                parent: "projects/default".into(),
                network_id: "br0".into(),
                ..Default::default()
            }),
        };
        let started = self.gateway.create_network(network).await.unwrap();
        self.end(started).await.unwrap();
        let options = |of: &[(&str, &str)]| Device {
            options: of
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        };
        let profile = UpdateProfileRequest {
            update: Some(instance::UpdateProfileRequest {
                profile: Some(Profile {
                    name: "projects/default/profiles/default".into(),
                    devices: [
                        (
                            "root".to_owned(),
                            options(&[("type", "disk"), ("path", "/"), ("pool", "p1")]),
                        ),
                        (
                            "eth0".to_owned(),
                            options(&[("type", "nic"), ("network", "br0")]),
                        ),
                    ]
                    .into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        };
        let started = self.gateway.update_profile(profile).await.unwrap();
        self.end(started).await.unwrap();
    }
}

const C1: &str = "projects/default/instances/c1";

#[tokio::test]
async fn a_grpc_launch_and_its_end() {
    let mut rpc = Rpc::new().await;
    rpc.world().await;
    let fingerprint = rpc.client.bed.fakes.image.put(b"IMAGE one");
    let create = CreateInstanceRequest {
        parent: "projects/default".into(),
        instance_id: "c1".into(),
        default_profiles: true,
        source: Some(Source::ImageFingerprint(fingerprint[..8].to_owned())),
        start: true,
        request_id: "once".into(),
        ..Default::default()
    };
    let first = rpc.gateway.create_instance(create.clone()).await.unwrap();
    let again = rpc.gateway.create_instance(create).await.unwrap();
    assert_eq!(
        first.get_ref().name,
        again.get_ref().name,
        "one request, one operation"
    );
    rpc.end(first).await.unwrap();
    let get = GetInstanceRequest {
        name: C1.into(),
        ..Default::default()
    };
    let instance = rpc
        .gateway
        .get_instance(get.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(instance.status(), Status::Running);
    assert_eq!(instance.ports.len(), 1);

    let delete = DeleteInstanceRequest {
        name: C1.into(),
        force: false,
        request_id: String::new(),
    };
    let started = rpc.gateway.delete_instance(delete.clone()).await.unwrap();
    rpc.end(started).await.unwrap_err();
    let stop = ChangeInstanceStateRequest {
        name: C1.into(),
        action: Action::Stop.into(),
        force: true,
        timeout_seconds: -1,
        request_id: String::new(),
    };
    let started = rpc.gateway.change_instance_state(stop).await.unwrap();
    rpc.end(started).await.unwrap();
    let started = rpc.gateway.delete_instance(delete).await.unwrap();
    rpc.end(started).await.unwrap();
    assert_eq!(
        rpc.gateway.get_instance(get).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    assert!(rpc.client.bed.fakes.network.0.lock().ports.is_empty());

    let image = DeleteImageRequest {
        name: format!("projects/default/images/{fingerprint}"),
        request_id: String::new(),
    };
    let started = rpc.gateway.delete_image(image).await.unwrap();
    rpc.end(started).await.unwrap();
    // Its copy in the pool went along.
    assert!(rpc.client.bed.fakes.storage.0.lock().volumes.is_empty());
    let pool = DeletePoolRequest {
        name: "storagePools/p1".into(),
        request_id: String::new(),
    };
    let started = rpc.gateway.delete_pool(pool).await.unwrap();
    assert!(rpc.end(started).await.unwrap_err().contains("in use"));
    let network = DeleteNetworkRequest {
        name: "projects/default/networks/br0".into(),
        request_id: String::new(),
    };
    let started = rpc.gateway.delete_network(network).await.unwrap();
    assert!(rpc.end(started).await.unwrap_err().contains("in use"));
}

#[tokio::test]
async fn a_malformed_request_names_its_field() {
    let mut rpc = Rpc::new().await;
    let refused = |status: tonic::Status, field: &str| {
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        let error = berth_rpc::Error::from(status);
        assert_eq!(error.fields[0].field, field);
    };
    let status = rpc
        .gateway
        .create_instance(CreateInstanceRequest::default())
        .await;
    refused(status.unwrap_err(), "instance_id");
    let no_source = CreateInstanceRequest {
        parent: "projects/default".into(),
        instance_id: "c1".into(),
        ..Default::default()
    };
    refused(
        rpc.gateway.create_instance(no_source).await.unwrap_err(),
        "source",
    );
    let status = rpc
        .gateway
        .change_instance_state(ChangeInstanceStateRequest {
            name: C1.into(),
            ..Default::default()
        });
    refused(status.await.unwrap_err(), "action");
    let status = rpc
        .gateway
        .update_profile(UpdateProfileRequest::default())
        .await;
    refused(status.unwrap_err(), "update");
}
