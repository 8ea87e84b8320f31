//! The instance service in memory: records and their runs. Plans, snapshots and profiles are beside it.

use std::collections::{BTreeMap, HashMap};

use berth_proto::instance::instance::Status as Run;
use berth_proto::instance::instance_service_server::InstanceService;
use berth_proto::instance::{self as pb, Instance, InstancePlan, Profile, Snapshot};
use berth_proto::types::{Attachment, Event, Port, WatchEventsRequest};
use berth_rpc::Error;
use berth_rpc::mask::Mask;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

use super::plan::{self, expand, instance_etag};
use super::replay::{Replaying, last, no};

#[derive(Debug)]
pub struct State {
    pub instances: BTreeMap<String, Instance>,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub profiles: BTreeMap<String, Profile>,
    /// Grows with every change; plans are over it.
    pub changes: u64,
    /// This many commits lose against a change that happens just before them.
    pub races: usize,
    made: u64,
    events: broadcast::Sender<Event>,
    sequence: i64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            instances: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            profiles: BTreeMap::new(),
            changes: 0,
            races: 0,
            made: 0,
            events: broadcast::channel(256).0,
            sequence: 0,
        }
    }
}

#[derive(Debug, Default)]
pub struct Fake(pub Replaying<State>);

impl State {
    pub fn find(&self, name: &str) -> Result<&Instance, Error> {
        self.instances
            .get(name)
            .ok_or_else(|| Error::not_found("Instance", last(name)))
    }

    /// As a read gives it.
    pub fn shown(&self, name: &str, full: bool) -> Result<Instance, Error> {
        let mut instance = self.find(name)?.clone();
        expand(&self.profiles, &mut instance)?;
        let prefix = format!("{name}/snapshots/");
        let snapshots: Vec<Snapshot> = self
            .snapshots
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix))
            .map(|(_, snapshot)| snapshot.clone())
            .collect();
        instance.snapshot_count = i32::try_from(snapshots.len()).unwrap();
        if full {
            instance.snapshots = snapshots;
            instance.state = Some(pb::InstanceState {
                status: instance.status,
                pid: i64::from(instance.status() == Run::Running) * 42,
                memory: Some(pb::instance_state::Memory {
                    usage_bytes: 4096,
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
        instance.etag = instance_etag(&instance);
        Ok(instance)
    }

    pub fn plan_etag(&self) -> String {
        format!("plan-{}", self.changes)
    }

    pub fn check_plan(&mut self, etag: &str) -> Result<(), Error> {
        if self.races > 0 {
            self.races -= 1;
            self.changes += 1;
        }
        if etag.is_empty() || etag == self.plan_etag() {
            return Ok(());
        }
        Err(Error::aborted(
            "PLAN_STALE",
            "What the plan depends on was changed meanwhile",
        ))
    }

    /// Keeps an expanded instance with what was made for it; drops what its devices need no more.
    pub fn settle(
        &mut self,
        mut instance: Instance,
        attachments: HashMap<String, Attachment>,
        ports: HashMap<String, Port>,
    ) -> Result<Instance, Error> {
        instance.attachments.extend(attachments);
        instance.ports.extend(ports);
        let devices = &instance.expanded_devices;
        let kind = |name: &String, kind: &str| {
            devices
                .get(name)
                .is_some_and(|d| d.options.get("type").is_some_and(|t| t == kind))
        };
        instance.attachments.retain(|name, _| kind(name, "disk"));
        instance.ports.retain(|name, _| kind(name, "nic"));
        for (name, device) in devices {
            let pooled = device.options.get("pool").is_some_and(|p| !p.is_empty());
            if kind(name, "disk") && pooled && !instance.attachments.contains_key(name) {
                return Err(Error::invalid(
                    format!("attachments.{name}"),
                    "it is missing",
                ));
            }
            if kind(name, "nic") && !instance.ports.contains_key(name) {
                return Err(Error::invalid(format!("ports.{name}"), "it is missing"));
            }
        }
        self.changes += 1;
        let name = instance.name.clone();
        self.instances.insert(name.clone(), instance);
        self.shown(&name, false)
    }

    /// The instance that an update asks for, expanded.
    fn updated(&self, request: &pb::UpdateInstanceRequest) -> Result<Instance, Error> {
        let asked = request.instance.clone().unwrap_or_default();
        let before = self.shown(&asked.name, false)?;
        if !asked.etag.is_empty() && asked.etag != before.etag {
            return Err(Error::etag_mismatch(last(&asked.name)));
        }
        let mask = Mask::from_proto(request.update_mask.as_ref());
        let mut after = self.find(&asked.name)?.clone();
        let config: BTreeMap<_, _> = before.config.into_iter().collect();
        after.config = mask
            .merge_map("config", &config, &asked.config, String::is_empty)
            .into_iter()
            .collect();
        let devices: BTreeMap<_, _> = before.devices.into_iter().collect();
        after.devices = mask
            .merge_map("devices", &devices, &asked.devices, |d| {
                d.options.is_empty()
            })
            .into_iter()
            .collect();
        if mask.has("profiles") {
            after.profiles = asked.profiles;
        }
        if mask.has("description") {
            after.description = asked.description;
        }
        if mask.has("ephemeral") {
            after.ephemeral = asked.ephemeral;
        }
        check(&after)?;
        expand(&self.profiles, &mut after)?;
        Ok(after)
    }

    fn tell(&mut self, action: &str, instance: &Instance) {
        self.sequence += 1;
        // Nobody may be listening.
        let _ = self.events.send(Event {
            epoch: "1".to_owned(),
            sequence: self.sequence,
            action: action.to_owned(),
            resource: instance.name.clone(),
            project: "default".to_owned(),
            generation: instance.generation,
            ..Event::default()
        });
    }

    fn run(&mut self, name: &str, to: Run, action: &str) -> Result<Instance, Error> {
        let mut instance = self.find(name)?.clone();
        instance.set_status(to);
        if action == "instance-started" {
            instance.generation += 1;
            instance.last_used_time = "2026-01-02T00:00:00Z".to_owned();
        }
        self.instances.insert(name.to_owned(), instance.clone());
        self.tell(action, &instance);
        self.shown(name, false)
    }
}

fn check(instance: &Instance) -> Result<(), Error> {
    match instance.config.keys().find(|key| !key.contains('.')) {
        Some(key) => Err(Error::invalid(
            format!("config.{key}"),
            format!("Unknown configuration key: {key}"),
        )),
        None => Ok(()),
    }
}

#[tonic::async_trait]
impl InstanceService for Fake {
    /// The host's affair: the gateway never asks for it.
    async fn stop_guests(
        &self,
        _: Request<pb::StopGuestsRequest>,
    ) -> Result<Response<pb::StopGuestsResponse>, Status> {
        Err(Status::unimplemented("the gateway stops no guests"))
    }

    async fn start_guests(
        &self,
        _: Request<pb::StartGuestsRequest>,
    ) -> Result<Response<pb::StartGuestsResponse>, Status> {
        Err(Status::unimplemented("the gateway starts no guests"))
    }

    async fn plan_create_instance(
        &self,
        request: Request<pb::PlanCreateInstanceRequest>,
    ) -> Result<Response<InstancePlan>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let name = format!("{}/instances/{}", request.parent, request.instance_id);
            if state.instances.contains_key(&name) {
                return Err(Error::already_exists("Instance", &request.instance_id));
            }
            let mut instance = request.instance.unwrap_or_default();
            instance.name = name;
            if instance.uid.is_empty() {
                state.made += 1;
                instance.uid = format!("uid{}", state.made);
            }
            if !request.copy_of.is_empty() {
                let source = request
                    .copy_of
                    .split("/snapshots/")
                    .next()
                    .unwrap_or_default();
                let source = state.find(source)?.clone();
                for (key, value) in source.config {
                    instance.config.entry(key).or_insert(value);
                }
                if request.default_profiles {
                    instance.profiles = source.profiles;
                }
            } else if request.default_profiles {
                instance.profiles = vec!["default".to_owned()];
            }
            if let Some(image) = request.image {
                instance
                    .config
                    .insert("volatile.base_image".to_owned(), image.fingerprint);
                for (key, value) in image.properties {
                    instance.config.insert(format!("image.{key}"), value);
                }
                instance.architecture = image.architecture;
            }
            check(&instance)?;
            expand(&state.profiles, &mut instance)?;
            plan::plan(None, instance, state.plan_etag())
        })
    }

    async fn create_instance(
        &self,
        request: Request<pb::CreateInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.0.once(&id, |state| {
            let name = format!("{}/instances/{}", request.parent, request.instance_id);
            if state.instances.contains_key(&name) {
                return Err(Error::already_exists("Instance", &request.instance_id));
            }
            state.check_plan(&request.plan_etag)?;
            let mut instance = request.instance.unwrap_or_default();
            instance.name = name;
            expand(&state.profiles, &mut instance)?;
            instance.set_status(Run::Stopped);
            instance.create_time = "2026-01-01T00:00:00Z".to_owned();
            instance.last_used_time = "1970-01-01T00:00:00Z".to_owned();
            instance.set_type(pb::instance::Type::Container);
            for id in &request.copy_snapshots {
                let from = format!("{}/snapshots/{id}", request.copy_snapshots_of);
                let mut copy = state
                    .snapshots
                    .get(&from)
                    .cloned()
                    .ok_or_else(|| Error::not_found("Snapshot", id))?;
                copy.name = format!("{}/snapshots/{id}", instance.name);
                state.snapshots.insert(copy.name.clone(), copy);
            }
            let made = state.settle(instance, request.attachments, request.ports)?;
            state.tell("instance-created", &made);
            Ok(made)
        })
    }

    async fn get_instance(
        &self,
        request: Request<pb::GetInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        let full = request.view() == pb::InstanceView::Full;
        self.0.with(|state| state.shown(&request.name, full))
    }

    async fn list_instances(
        &self,
        request: Request<pb::ListInstancesRequest>,
    ) -> Result<Response<pb::ListInstancesResponse>, Status> {
        let full = request.get_ref().view() == pb::InstanceView::Full;
        self.0.with(|state| {
            let all = state.instances.keys().map(|name| state.shown(name, full));
            Ok(pb::ListInstancesResponse {
                instances: all.collect::<Result<_, _>>()?,
                next_page_token: String::new(),
            })
        })
    }

    async fn plan_update_instance(
        &self,
        request: Request<pb::UpdateInstanceRequest>,
    ) -> Result<Response<InstancePlan>, Status> {
        self.0.with(|state| {
            let after = state.updated(request.get_ref())?;
            let before = state.shown(&after.name, false)?;
            plan::plan(Some(&before), after, state.plan_etag())
        })
    }

    async fn update_instance(
        &self,
        request: Request<pb::UpdateInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.0.once(&id, |state| {
            let after = state.updated(&request)?;
            state.check_plan(&request.plan_etag)?;
            let settled = state.settle(after, request.attachments, request.ports)?;
            state.tell("instance-updated", &settled);
            Ok(settled)
        })
    }

    async fn rename_instance(
        &self,
        request: Request<pb::RenameInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.0.once(&id, |state| {
            let (parent, _) = request.name.rsplit_once('/').unwrap();
            let new = format!("{parent}/{}", request.new_instance_id);
            if state.instances.contains_key(&new) {
                return Err(Error::already_exists("Instance", &request.new_instance_id));
            }
            let mut instance = state.shown(&request.name, true)?;
            if instance.status() != Run::Stopped {
                return Err(Error::precondition(
                    "INSTANCE_RUNNING",
                    "Instance is running",
                ));
            }
            for mut snapshot in std::mem::take(&mut instance.snapshots) {
                state.snapshots.remove(&snapshot.name);
                snapshot.name = format!("{new}/snapshots/{}", last(&snapshot.name));
                state.snapshots.insert(snapshot.name.clone(), snapshot);
            }
            state.instances.remove(&request.name);
            instance.name = new;
            let renamed = state.settle(instance, request.attachments, request.ports)?;
            state.tell("instance-renamed", &renamed);
            Ok(renamed)
        })
    }

    async fn delete_instance(
        &self,
        request: Request<pb::DeleteInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.0.once(&id, |state| {
            let instance = state.shown(&request.name, false)?;
            if instance.status() != Run::Stopped {
                return Err(Error::precondition(
                    "INSTANCE_RUNNING",
                    "Instance is running",
                ));
            }
            if request.generation != 0 && request.generation != instance.generation {
                return Err(Error::precondition("OTHER_RUN", "the instance ran again"));
            }
            state.changes += 1;
            state.instances.remove(&request.name);
            let prefix = format!("{}/snapshots/", request.name);
            state.snapshots.retain(|name, _| !name.starts_with(&prefix));
            state.tell("instance-deleted", &instance);
            Ok(instance)
        })
    }

    async fn start_instance(
        &self,
        request: Request<pb::StartInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if state.find(&request.name)?.status() == Run::Running {
                return Err(Error::precondition(
                    "RUNNING",
                    "The instance is already running",
                ));
            }
            state.run(&request.name, Run::Running, "instance-started")
        })
    }

    async fn stop_instance(
        &self,
        request: Request<pb::StopInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if state.find(&request.name)?.status() == Run::Stopped {
                return Err(Error::precondition(
                    "STOPPED",
                    "The instance is already stopped",
                ));
            }
            state.run(&request.name, Run::Stopped, "instance-stopped")
        })
    }

    async fn restart_instance(
        &self,
        request: Request<pb::RestartInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            state.run(&request.name, Run::Running, "instance-started")
        })
    }

    async fn freeze_instance(
        &self,
        request: Request<pb::FreezeInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if state.find(&request.name)?.status() != Run::Running {
                return Err(Error::precondition(
                    "STOPPED",
                    "The container isn't running",
                ));
            }
            state.run(&request.name, Run::Frozen, "instance-paused")
        })
    }

    async fn unfreeze_instance(
        &self,
        request: Request<pb::UnfreezeInstanceRequest>,
    ) -> Result<Response<Instance>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if state.find(&request.name)?.status() != Run::Frozen {
                return Err(Error::precondition(
                    "NOT_FROZEN",
                    "The container isn't frozen",
                ));
            }
            state.run(&request.name, Run::Running, "instance-resumed")
        })
    }

    async fn get_instance_state(
        &self,
        _: Request<pb::GetInstanceStateRequest>,
    ) -> Result<Response<pb::InstanceState>, Status> {
        no("instance state of its own")
    }

    async fn get_host(&self, _: Request<pb::GetHostRequest>) -> Result<Response<pb::Host>, Status> {
        Ok(Response::new(pb::Host {
            hostname: "fake".to_owned(),
            kernel: "Linux".to_owned(),
            kernel_version: "6.18.0".to_owned(),
            kernel_architecture: "x86_64".to_owned(),
            architectures: vec!["x86_64".to_owned(), "i686".to_owned()],
            os_name: "Debian GNU/Linux".to_owned(),
            os_version: "12".to_owned(),
            memory_total_bytes: 1 << 30,
            memory_used_bytes: 1 << 20,
            cpu_count: 2,
            kernel_features: HashMap::from([("idmapped_mounts".to_owned(), "true".to_owned())]),
            runtime_features: HashMap::from([("pidfd".to_owned(), "true".to_owned())]),
            ..pb::Host::default()
        }))
    }

    type WatchEventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let receiver = self.0.lock().events.subscribe();
        let events = tokio_stream::wrappers::BroadcastStream::new(receiver)
            .filter_map(|event| async move { event.ok().map(Ok) });
        Ok(Response::new(Box::pin(events)))
    }
}

/// What there is, for comparing. Runs count: a restore must leave a guest running that ran.
pub fn inventory(fake: &Fake) -> Vec<String> {
    let state = fake.0.lock();
    let sorted =
        |map: &HashMap<String, String>| format!("{:?}", map.iter().collect::<BTreeMap<_, _>>());
    let instances = state.instances.values().map(|i| {
        let volumes: BTreeMap<_, _> = i.attachments.iter().map(|(d, a)| (d, &a.volume)).collect();
        let ports: BTreeMap<_, _> = i.ports.iter().map(|(d, p)| (d, &p.name)).collect();
        format!(
            "{} {} {} {volumes:?} {ports:?} {:?}",
            i.name,
            i.status().as_str_name(),
            sorted(&i.config),
            i.profiles
        )
    });
    let snapshots = state
        .snapshots
        .values()
        .map(|s| format!("{} {}", s.name, s.expire_time));
    let profiles = state.profiles.values().map(|p| {
        let devices: BTreeMap<_, _> = p
            .devices
            .iter()
            .map(|(n, d)| (n, sorted(&d.options)))
            .collect();
        format!("{} {} {devices:?}", p.name, sorted(&p.config))
    });
    instances.chain(snapshots).chain(profiles).collect()
}
