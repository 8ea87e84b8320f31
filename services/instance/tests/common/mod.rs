//! A service over an in-memory channel, with guests that exist only in memory.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses its part"
)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_instance::app::{App, Settings};
use berth_instance::grpc;
use berth_instance::host::facts::Facts;
use berth_instance::runtime::fake::Fake;
use berth_instance::store::Records;
use berth_proto::instance as proto;
use berth_proto::instance::exec_service_client::ExecServiceClient;
use berth_proto::instance::file_service_client::FileServiceClient;
use berth_proto::instance::instance_service_client::InstanceServiceClient;
use berth_proto::instance::log_service_client::LogServiceClient;
use berth_proto::instance::profile_service_client::ProfileServiceClient;
use berth_proto::instance::snapshot_service_client::SnapshotServiceClient;
use berth_proto::types;
use berth_rpc::Channel;
use berth_testkit::TestDatabase;

pub const PROJECT: &str = "projects/default";

pub struct Service {
    pub app: Arc<App>,
    pub fake: Fake,
    pub instances: InstanceServiceClient<Channel>,
    pub snapshots: SnapshotServiceClient<Channel>,
    pub profiles: ProfileServiceClient<Channel>,
    pub execs: ExecServiceClient<Channel>,
    pub files: FileServiceClient<Channel>,
    pub logs: LogServiceClient<Channel>,
}

pub fn settings() -> Settings {
    Settings {
        id_base: 1_000_000,
        id_count: 655_360,
        id_length: 65_536,
        cgroup_parent: "berth-test".into(),
        unified_parent: None,
        host_mount_ns: None,
        lxcfs_dir: None,
        state_deadline: Duration::from_millis(100),
        autostart: true,
        autostart_parallel: 4,
        apparmor: false,
        apparmor_dir: std::env::temp_dir(),
    }
}

/// A service on this database and these guests; as after a restart when they are old.
pub async fn open(database: &TestDatabase, fake: &Fake) -> Service {
    open_with(database, fake, Facts::read().unwrap()).await
}

pub async fn open_with(database: &TestDatabase, fake: &Fake, facts: Facts) -> Service {
    let records = Records::open(&database.config, "node").await.unwrap();
    let runtime = Arc::new(fake.clone());
    let app = App::open(settings(), facts, records, runtime, grpc::ENCODE)
        .await
        .unwrap();
    app.recover().await.unwrap();
    app.autostart().await.unwrap();
    let channel = berth_testkit::serve_in_memory(grpc::router(app.clone())).await;
    Service {
        app,
        fake: fake.clone(),
        instances: InstanceServiceClient::new(channel.clone()),
        snapshots: SnapshotServiceClient::new(channel.clone()),
        profiles: ProfileServiceClient::new(channel.clone()),
        execs: ExecServiceClient::new(channel.clone()),
        files: FileServiceClient::new(channel.clone()),
        logs: LogServiceClient::new(channel),
    }
}

pub async fn new() -> (Service, TestDatabase) {
    let database = TestDatabase::sqlite();
    let fake = Fake::new(database.dir().to_owned());
    (open(&database, &fake).await, database)
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub fn device(options: &[(&str, &str)]) -> proto::Device {
    proto::Device {
        options: map(options),
    }
}

pub fn root() -> (String, proto::Device) {
    (
        "root".into(),
        device(&[("type", "disk"), ("path", "/"), ("pool", "default")]),
    )
}

pub fn nic() -> (String, proto::Device) {
    (
        "eth0".into(),
        device(&[("type", "nic"), ("network", "br0")]),
    )
}

pub fn attachment(name: &str, path: &Path) -> types::Attachment {
    types::Attachment {
        volume: format!("projects/default/storagePools/default/containers/{name}"),
        volume_uid: format!("v-{name}"),
        generation: 1,
        mounts: vec![types::attachment::Mount {
            source: Some(types::attachment::mount::Source::HostPath(
                path.display().to_string(),
            )),
            ownership: types::Ownership::Raw.into(),
            can_idmap: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn port(needed: &proto::NeededPort) -> types::Port {
    types::Port {
        name: format!(
            "projects/default/networks/{}/ports/{}",
            needed.network, needed.port_id
        ),
        kind: types::port::Kind::Bridged.into(),
        host_name: format!("veth{}", &needed.mac[9..].replace(':', "")),
        guest_name: needed.guest_name.clone(),
        mac: needed.mac.clone(),
        parent: "br0".into(),
        ..Default::default()
    }
}

impl Service {
    pub async fn plan(
        &mut self,
        name: &str,
        instance: proto::Instance,
    ) -> Result<proto::InstancePlan, tonic::Status> {
        let request = proto::PlanCreateInstanceRequest {
            parent: PROJECT.into(),
            instance_id: name.into(),
            default_profiles: instance.profiles.is_empty(),
            instance: Some(instance),
            ..Default::default()
        };
        Ok(self
            .instances
            .plan_create_instance(request)
            .await?
            .into_inner())
    }

    /// Does what the gateway does: plans, makes what is needed, commits.
    pub async fn create(
        &mut self,
        name: &str,
        instance: proto::Instance,
    ) -> Result<proto::Instance, tonic::Status> {
        let plan = self.plan(name, instance).await?;
        let request = commit(name, &plan);
        Ok(self.instances.create_instance(request).await?.into_inner())
    }

    /// An instance with a root disk and a nic.
    pub async fn simple(&mut self, name: &str) -> proto::Instance {
        let instance = proto::Instance {
            devices: [root(), nic()].into(),
            ..Default::default()
        };
        self.create(name, instance).await.unwrap()
    }

    pub async fn start(&mut self, name: &str) -> Result<proto::Instance, tonic::Status> {
        let request = proto::StartInstanceRequest {
            name: full(name),
            ..Default::default()
        };
        Ok(self.instances.start_instance(request).await?.into_inner())
    }

    pub async fn stop(
        &mut self,
        name: &str,
        force: bool,
    ) -> Result<proto::Instance, tonic::Status> {
        let request = proto::StopInstanceRequest {
            name: full(name),
            force,
            timeout_seconds: 1,
            ..Default::default()
        };
        Ok(self.instances.stop_instance(request).await?.into_inner())
    }

    pub async fn get(&mut self, name: &str) -> Result<proto::Instance, tonic::Status> {
        let view = proto::InstanceView::Full.into();
        let request = proto::GetInstanceRequest {
            name: full(name),
            view,
        };
        Ok(self.instances.get_instance(request).await?.into_inner())
    }

    /// PATCH of configuration keys.
    pub async fn set(
        &mut self,
        name: &str,
        pairs: &[(&str, &str)],
    ) -> Result<proto::Instance, tonic::Status> {
        let paths = pairs.iter().map(|(k, _)| format!("config.{k}")).collect();
        let request = proto::UpdateInstanceRequest {
            instance: Some(proto::Instance {
                name: full(name),
                config: map(pairs),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
            ..Default::default()
        };
        Ok(self.instances.update_instance(request).await?.into_inner())
    }

    /// Actions of all events so far.
    pub async fn actions(&self) -> Vec<String> {
        let events = self
            .app
            .records
            .store()
            .events_after(0, 1000)
            .await
            .unwrap();
        events.into_iter().map(|e| e.event.action).collect()
    }

    pub async fn wait_for(
        &mut self,
        name: &str,
        status: proto::instance::Status,
    ) -> proto::Instance {
        for _ in 0..400 {
            let instance = self.get(name).await.unwrap();
            if instance.status == status as i32 {
                return instance;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{name} did not become {status:?}: {:?}",
            self.get(name).await
        );
    }
}

pub fn commit(name: &str, plan: &proto::InstancePlan) -> proto::CreateInstanceRequest {
    proto::CreateInstanceRequest {
        parent: PROJECT.into(),
        instance_id: name.into(),
        instance: plan.instance.clone(),
        plan_etag: plan.plan_etag.clone(),
        attachments: plan
            .needed_volumes
            .iter()
            .map(|v| (v.device.clone(), attachment(name, Path::new("/pool/x"))))
            .collect(),
        ports: plan
            .needed_ports
            .iter()
            .map(|p| (p.device.clone(), port(p)))
            .collect(),
        ..Default::default()
    }
}

pub fn full(name: &str) -> String {
    format!("{PROJECT}/instances/{name}")
}

/// Reason of an error, as clients branch on it.
pub fn reason(status: &tonic::Status) -> String {
    berth_rpc::Error::from(status.clone()).reason
}
