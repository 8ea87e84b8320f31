//! InstanceService.

use std::pin::Pin;

use berth_proto::instance as proto;
use berth_proto::instance::instance_service_server::InstanceService;
use berth_proto::types;
use berth_rpc::mask::Mask;
use berth_rpc::{names, page};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Api, convert, instance_name, project_name, render};
use crate::Error;
use crate::app::{ImageFacts, InstanceUpdate, NewInstance, StopHow, View};
use crate::model::record::Writable;

type Answer<T> = Result<Response<T>, Status>;

fn writable(i: &mut proto::Instance) -> Result<Writable, Error> {
    let container = [proto::instance::Type::Container as i32, 0];
    if !container.contains(&i.r#type) {
        return Err(Error::unimplemented(
            "Virtual machines are not supported by this version",
        ));
    }
    if i.stateful {
        return Err(Error::unimplemented(
            "Stateful instances are not supported by this version",
        ));
    }
    Ok(Writable {
        description: std::mem::take(&mut i.description),
        architecture: std::mem::take(&mut i.architecture),
        ephemeral: i.ephemeral,
        config: std::mem::take(&mut i.config).into_iter().collect(),
        devices: convert::devices(std::mem::take(&mut i.devices)),
        profiles: std::mem::take(&mut i.profiles),
    })
}

fn copy_of(project: &str, name: &str) -> Result<Option<(String, Option<String>)>, Error> {
    if name.is_empty() {
        return Ok(None);
    }
    let (of, source) = match names::InstanceSnapshot::parse("copy_of", name) {
        Ok(n) => (n.project, (n.instance, Some(n.snapshot))),
        Err(_) => {
            let n = names::Instance::parse("copy_of", name)?;
            (n.project, (n.instance, None))
        }
    };
    if of != project {
        return Err(Error::unimplemented(
            "Copying from another project is not supported yet",
        ));
    }
    Ok(Some(source))
}

fn new_instance(request: proto::PlanCreateInstanceRequest) -> Result<NewInstance, Error> {
    let project = project_name("parent", &request.parent)?;
    let mut instance = request.instance.unwrap_or_default();
    Ok(NewInstance {
        copy_of: copy_of(&project, &request.copy_of)?,
        project,
        name: request.instance_id,
        uid: std::mem::take(&mut instance.uid),
        writable: writable(&mut instance)?,
        image: request.image.map(|i| ImageFacts {
            fingerprint: i.fingerprint,
            architecture: i.architecture,
            properties: i.properties.into_iter().collect(),
            profiles: i.profiles,
        }),
        default_profiles: request.default_profiles,
        snapshots_of: None,
    })
}

fn update(request: &mut proto::UpdateInstanceRequest) -> Result<InstanceUpdate, Error> {
    let mut instance = request.instance.take().unwrap_or_default();
    let (project, name) = instance_name("instance.name", &instance.name)?;
    Ok(InstanceUpdate {
        project,
        name,
        writable: writable(&mut instance)?,
        mask: Mask::from_proto(request.update_mask.as_ref()),
        etag: instance.etag,
    })
}

fn refuse_stateful(stateful: bool) -> Result<(), Error> {
    match stateful {
        true => Err(Error::unimplemented(
            "Stateful start and stop are not supported by this version",
        )),
        false => Ok(()),
    }
}

fn is_full(view: i32) -> bool {
    view == proto::InstanceView::Full as i32
}

fn cpu(c: &crate::host::facts::Cpu) -> proto::host::Cpu {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    proto::host::Cpu {
        id: number(c.id),
        socket: number(c.socket),
        die: number(c.die),
        core: number(c.core),
        thread: number(c.thread),
        numa_node: number(c.numa_node),
        online: c.online,
        isolated: c.isolated,
    }
}

fn rendered(view: View) -> proto::Instance {
    render::instance(&view)
}

#[tonic::async_trait]
impl InstanceService for Api {
    async fn plan_create_instance(
        &self,
        request: Request<proto::PlanCreateInstanceRequest>,
    ) -> Answer<proto::InstancePlan> {
        let plan = self.app.plan_create(new_instance(request.into_inner())?)?;
        Ok(Response::new(render::plan(plan)))
    }

    async fn create_instance(
        &self,
        request: Request<proto::CreateInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let project = project_name("parent", &r.parent)?;
        let mut instance = r.instance.unwrap_or_default();
        let new = NewInstance {
            name: r.instance_id,
            uid: std::mem::take(&mut instance.uid),
            writable: writable(&mut instance)?,
            snapshots_of: match copy_of(&project, &r.copy_snapshots_of)? {
                None => None,
                Some((instance, None)) => Some((instance, r.copy_snapshots)),
                Some((_, Some(_))) => {
                    let why = "Only an instance has snapshots";
                    return Err(Error::invalid("copy_snapshots_of", why).into());
                }
            },
            project,
            ..NewInstance::default()
        };
        let values = convert::values(r.attachments, r.ports)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            let created = app
                .create(new, &r.plan_etag, values, &r.template_trigger, &id)
                .await;
            created.map(rendered)
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn get_instance(
        &self,
        request: Request<proto::GetInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, name) = instance_name("name", &r.name)?;
        if is_full(r.view) {
            let (view, live) = self.app.get_state(&project, &name).await?;
            return Ok(Response::new(render::full_instance(&view, &live)));
        }
        let slot = self.app.slot(&project, &name)?;
        Ok(Response::new(rendered(self.app.view(&slot))))
    }

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Answer<proto::ListInstancesResponse> {
        let r = request.into_inner();
        let project = project_name("parent", &r.parent)?;
        let slots: Vec<_> = self
            .app
            .slots(&project)
            .into_iter()
            .map(|slot| (slot.record().resource(), slot))
            .collect();
        let (slots, next) =
            page::cut(slots, r.page_size, &r.page_token, |(name, _)| name.as_str())?;
        let slots: Vec<_> = slots.into_iter().map(|(_, slot)| slot).collect();
        let instances = if is_full(r.view) {
            let states = self.app.states(&slots).await;
            let both = slots.iter().zip(&states);
            both.map(|(slot, live)| render::full_instance(&self.app.view(slot), live))
                .collect()
        } else {
            slots
                .iter()
                .map(|slot| rendered(self.app.view(slot)))
                .collect()
        };
        Ok(Response::new(proto::ListInstancesResponse {
            instances,
            next_page_token: next,
        }))
    }

    async fn plan_update_instance(
        &self,
        request: Request<proto::UpdateInstanceRequest>,
    ) -> Answer<proto::InstancePlan> {
        let plan = self.app.plan_update(&update(&mut request.into_inner())?)?;
        Ok(Response::new(render::plan(plan)))
    }

    async fn update_instance(
        &self,
        request: Request<proto::UpdateInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let mut r = request.into_inner();
        let update = update(&mut r)?;
        let values = convert::values(r.attachments, r.ports)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            app.update(&update, &r.plan_etag, values, &id)
                .await
                .map(rendered)
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn rename_instance(
        &self,
        request: Request<proto::RenameInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, name) = instance_name("name", &r.name)?;
        let values = convert::values(r.attachments, r.ports)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            app.rename(&project, &name, &r.new_instance_id, values, &id)
                .await
                .map(rendered)
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn delete_instance(
        &self,
        request: Request<proto::DeleteInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, name) = instance_name("name", &r.name)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            app.delete(&project, &name, &r.etag, r.generation, &id)
                .await
                .map(rendered)
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn start_instance(
        &self,
        request: Request<proto::StartInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        refuse_stateful(r.stateful)?;
        let (project, name) = instance_name("name", &r.name)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move { app.start(&project, &name, &id).await.map(rendered) };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn stop_instance(
        &self,
        request: Request<proto::StopInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        refuse_stateful(r.stateful)?;
        let (project, name) = instance_name("name", &r.name)?;
        let how = StopHow {
            force: r.force,
            timeout_seconds: r.timeout_seconds,
        };
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move { app.stop(&project, &name, how, &id).await.map(rendered) };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn restart_instance(
        &self,
        request: Request<proto::RestartInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, name) = instance_name("name", &r.name)?;
        let how = StopHow {
            force: r.force,
            timeout_seconds: r.timeout_seconds,
        };
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move { app.restart(&project, &name, how, &id).await.map(rendered) };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn freeze_instance(
        &self,
        request: Request<proto::FreezeInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, name) = instance_name("name", &r.name)?;
        let lease = u32::try_from(r.lease_seconds)
            .map_err(|_| Error::invalid("lease_seconds", "It must not be negative"))?;
        let lease = Some(lease).filter(|s| *s > 0);
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move { app.freeze(&project, &name, lease, &id).await.map(rendered) };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn unfreeze_instance(
        &self,
        request: Request<proto::UnfreezeInstanceRequest>,
    ) -> Answer<proto::Instance> {
        let r = request.into_inner();
        let (project, name) = instance_name("name", &r.name)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move { app.unfreeze(&project, &name, &id).await.map(rendered) };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn get_instance_state(
        &self,
        request: Request<proto::GetInstanceStateRequest>,
    ) -> Answer<proto::InstanceState> {
        let (project, name) = instance_name("name", &request.into_inner().name)?;
        let (view, live) = self.app.get_state(&project, &name).await?;
        Ok(Response::new(render::state(&view, &live)))
    }

    async fn get_host(&self, _: Request<proto::GetHostRequest>) -> Answer<proto::Host> {
        let facts = &self.app.facts;
        let mut runtime_features = facts.runtime_features.clone();
        let confined = *self.app.apparmor.state() == crate::runtime::apparmor::State::On;
        runtime_features.insert("apparmor".to_owned(), confined.to_string());
        Ok(Response::new(proto::Host {
            hostname: facts.hostname.clone(),
            kernel: facts.kernel.clone(),
            kernel_version: facts.kernel_version.clone(),
            kernel_architecture: facts.kernel_architecture.clone(),
            architectures: facts.architectures.clone(),
            kernel_features: facts.kernel_features.clone().into_iter().collect(),
            runtime_features: runtime_features.into_iter().collect(),
            os_name: facts.os_name.clone(),
            os_version: facts.os_version.clone(),
            memory_total_bytes: i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX),
            cpu_count: i32::try_from(facts.cpus.len()).unwrap_or(i32::MAX),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            memory_used_bytes: i64::try_from(crate::host::facts::memory_used()).unwrap_or(i64::MAX),
            cpus: facts.topology.iter().map(cpu).collect(),
            cpu_vendor: facts.cpu_vendor.clone(),
            cpu_name: facts.cpu_name.clone(),
        }))
    }

    async fn stop_guests(
        &self,
        _: Request<proto::StopGuestsRequest>,
    ) -> Answer<proto::StopGuestsResponse> {
        let app = self.app.clone();
        // A caller that goes away does not end the shutdown half-way.
        let stopping = tokio::spawn(async move { app.stop_guests().await });
        let stopped = stopping.await.map_err(Error::internal)??;
        let count = |n| i32::try_from(n).unwrap_or(i32::MAX);
        Ok(Response::new(proto::StopGuestsResponse {
            stopped: count(stopped.in_time),
            killed: count(stopped.killed),
            left: stopped.left,
        }))
    }

    async fn start_guests(
        &self,
        _: Request<proto::StartGuestsRequest>,
    ) -> Answer<proto::StartGuestsResponse> {
        let app = self.app.clone();
        let starting = tokio::spawn(async move { app.start_guests().await });
        let started = starting.await.map_err(Error::internal)??;
        Ok(Response::new(proto::StartGuestsResponse {
            started: i32::try_from(started).unwrap_or(i32::MAX),
        }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<types::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<types::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let store = self.app.records.store().clone();
        Ok(Response::new(berth_server::watch_events(
            store,
            request.get_ref(),
        )))
    }
}
