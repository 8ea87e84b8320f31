//! Starting a guest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_monitor::protocol::Request;
use berth_monitor::protocol::StopHow as MonitorStop;
use berth_monitor::spec::Limits;
use berth_server::failpoint;

use super::stop_instance::forget_run_keys;
use super::{App, Run, Slot, View, event, lock, now};
use crate::Error;
use crate::host::device_node;
use crate::host::templates::Guest;
use crate::model::expand::Expanded;
use crate::model::record::{Instance, Status};
use crate::model::spec::{self, Host};
use crate::model::syscalls::Policy;
use crate::model::template::Trigger;
use crate::runtime::host::describe;
use crate::runtime::link::{Events, Link};
use crate::runtime::{Started, TemplateJob};

/// A guest that runs and is not committed yet.
struct Launched {
    started: Started,
    link: Link,
    events: Events,
}

impl App {
    /// Starts a stopped instance.
    pub async fn start(
        self: &Arc<Self>,
        project: &str,
        name: &str,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, name)?;
        let _busy = slot.begin("start").await?;
        match slot.run().status {
            Status::Stopped | Status::Error => {}
            Status::Frozen => {
                return Err(Error::precondition(
                    "FROZEN",
                    "The instance is frozen: unfreeze it",
                ));
            }
            _ if slot.claim() => {
                // It was started, and the service died before it said so.
                return self.commit(&slot, None, request_id, None, |_| Ok(())).await;
            }
            _ => {
                let why = "The instance is already running";
                return Err(Error::precondition("ALREADY_RUNNING", why));
            }
        }
        self.start_now(&slot, "instance-started", request_id).await
    }

    /// The start itself; the caller holds the slot.
    pub(super) async fn start_now(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        action: &str,
        request_id: &str,
    ) -> Result<View, Error> {
        if self.closing.load(Ordering::SeqCst) {
            let why = "The host is shutting down: no instance starts";
            return Err(Error::precondition("HOST_SHUTDOWN", why));
        }
        let before = slot.run();
        let generation = slot.record().generation + 1;
        slot.ask(None);
        slot.set_run(Run {
            status: Status::Starting,
            ..Run::stopped(generation)
        });
        let launched = match self.launch(slot, generation).await {
            Ok(launched) => launched,
            Err(error) => {
                lock(&self.cpus).release(&slot.uid);
                let message = error.message.clone();
                slot.set_run(Run {
                    message,
                    ..Run::stopped(before.generation)
                });
                return Err(error);
            }
        };
        let pid = launched.started.init_pid;
        let run = Run {
            status: Status::Running,
            pid,
            ..Run::stopped(generation)
        };
        match self.commit_start(slot, &run, action, request_id).await {
            Ok(view) => {
                slot.set_link(Some(launched.link));
                slot.set_run(run);
                self.spawn_watch(slot, launched.events);
                Ok(view)
            }
            Err(error) => {
                // Not committed is not started: a guest nobody knows of must not run.
                let kill = Request::Stop {
                    how: MonitorStop::Kill,
                };
                if let Err(kill) = launched.link.call(kill).await {
                    tracing::warn!(uid = slot.uid, %kill, "an uncommitted guest was not killed");
                }
                lock(&self.cpus).release(&slot.uid);
                slot.set_run(Run::stopped(before.generation));
                Err(error)
            }
        }
    }

    #[tracing::instrument(skip_all)]
    async fn launch(&self, slot: &Slot, generation: i64) -> Result<Launched, Error> {
        let record = slot.record();
        let expanded = self.expand(&record);
        failpoint::pass("instance.start.begin").await?;
        let limits = self.place_limits(&slot.uid, &expanded)?;
        let host = self.spec_host(&record, &expanded, limits).await?;
        let spec = spec::build(&record, &expanded, generation, host, &device_node)?;
        let triggers = [pending_trigger(&record), Some(Trigger::Start)];
        self.render_templates(&record, &expanded, triggers.into_iter().flatten().collect())
            .await?;
        failpoint::pass("instance.start.spawn").await?;
        let doing = format!("Failed to start instance {:?}", record.name);
        let started = self
            .runtime
            .start(spec)
            .await
            .map_err(|fault| describe(fault, &doing))?;
        failpoint::pass("instance.start.spawned").await?;
        let stream = self
            .runtime
            .connect(&slot.uid)
            .await
            .map_err(Error::internal)?;
        let (link, events, _greeting) = Link::open(stream);
        // Subscribed before anybody is told that it runs, so that no end is missed.
        link.call(Request::Subscribe)
            .await
            .map_err(|e| super::live::link_error(e, &doing))?;
        Ok(Launched {
            started,
            link,
            events,
        })
    }

    #[tracing::instrument(skip_all)]
    async fn commit_start(
        &self,
        slot: &Slot,
        run: &Run,
        action: &str,
        request_id: &str,
    ) -> Result<View, Error> {
        failpoint::pass("instance.start.commit").await?;
        let event = event(action, &slot.record(), run.generation);
        let privileged = self.expand(&slot.record()).privileged();
        self.commit(slot, Some(run.clone()), request_id, Some(event), |record| {
            note_start(record, run.generation, privileged);
            Ok(())
        })
        .await
    }

    /// The host's part of a spec.
    pub(super) async fn spec_host(
        &self,
        record: &Instance,
        expanded: &Expanded,
        limits: Limits,
    ) -> Result<Host, Error> {
        let dirs = self
            .runtime
            .directories(&record.uid)
            .await
            .map_err(Error::internal)?;
        let defaults = expanded
            .get("security.syscalls.deny_default")
            .and_then(crate::model::value::boolean)
            .unwrap_or(true);
        let confined_as = App::confined_as(&expanded.config);
        let apparmor_profile = self.apparmor.load(&record.uid, &confined_as).await?;
        let extra = expanded.get("security.syscalls.deny").unwrap_or_default();
        let mut denied = extra.to_owned();
        if apparmor_profile.is_some() && confined_as.restricts_mounts() {
            denied = format!("{}{denied}", crate::model::apparmor::BYPASSES);
        }
        let policy = Policy::new(defaults, &denied)
            .map_err(|why| Error::invalid("config.security.syscalls.deny", why))?;
        Ok(Host {
            run_dir: dirs.0,
            log_dir: dirs.1,
            host_mount_ns: self.settings.host_mount_ns.clone(),
            cgroup_parent: self.settings.cgroup_parent.clone(),
            unified_parent: self.settings.unified_parent.clone(),
            lxcfs_dir: self.lxcfs_dir(),
            limits,
            apparmor_profile,
            seccomp: Some(self.programs.get(&policy)?.as_ref().clone()),
            traceparent: berth_rpc::trace::current_traceparent(),
        })
    }

    /// lxcfs where it is mounted and answers; a guest without it sees the host's numbers.
    fn lxcfs_dir(&self) -> Option<String> {
        let dir = self.settings.lxcfs_dir.as_ref()?;
        match std::fs::metadata(dir.join("proc/meminfo")) {
            Ok(_) => Some(dir.to_string_lossy().into_owned()),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "lxcfs is away: guests see the host's CPUs and memory");
                None
            }
        }
    }

    /// Renders what is due. An image whose templates are known to hold nothing due costs no mount.
    #[tracing::instrument(skip_all)]
    pub(super) async fn render_templates(
        &self,
        record: &Instance,
        expanded: &Expanded,
        triggers: Vec<Trigger>,
    ) -> Result<(), Error> {
        let image = record.config.get("volatile.base_image").cloned();
        let known = image
            .as_ref()
            .and_then(|image| lock(&self.templates).get(image).cloned());
        let due = |when: &[String]| triggers.iter().any(|t| when.iter().any(|w| w == t.name()));
        if let Some(known) = &known
            && !known.values().any(|t| due(&t.when))
        {
            return Ok(());
        }
        let attachment = spec::root_attachment(record, expanded)?;
        let job = TemplateJob {
            attachment: spec::monitor_attachment("root", attachment, None, false)?,
            ids: super::files::stored_ids(record, expanded)?,
            known,
            triggers,
            guest: Guest {
                name: record.name.clone(),
                architecture: record.architecture.clone(),
                ephemeral: record.ephemeral,
                expanded: expanded.clone(),
            },
        };
        let templates = self.runtime.render_templates(job).await?;
        if let Some(image) = image {
            lock(&self.templates).insert(image, templates);
        }
        Ok(())
    }
}

/// What the first start after a creation, copy or rename renders.
fn pending_trigger(record: &Instance) -> Option<Trigger> {
    record
        .config
        .get("volatile.apply_template")
        .and_then(|text| Trigger::parse(text))
}

/// Whether the run under way is privileged. The configuration may say otherwise for the next one.
pub(super) fn runs_privileged(record: &Instance, expanded: &Expanded) -> bool {
    match record.config.get("volatile.idmap.current") {
        Some(map) if record.running => map == NO_IDMAP,
        _ => expanded.privileged(),
    }
}

const NO_IDMAP: &str = "[]";

/// What a started instance's record says.
pub(super) fn note_start(record: &mut Instance, generation: i64, privileged: bool) {
    forget_run_keys(record);
    record.generation = generation;
    record.running = true;
    record.last_used_time = now();
    record.config.remove("volatile.apply_template");
    let map = if privileged {
        NO_IDMAP.to_owned()
    } else {
        record.ids.volatile()
    };
    record
        .config
        .insert("volatile.last_state.power".to_owned(), "RUNNING".to_owned());
    record
        .config
        .insert("volatile.idmap.current".to_owned(), map.clone());
    record
        .config
        .insert("volatile.last_state.idmap".to_owned(), map);
    let names: Vec<(String, String)> = record
        .ports
        .iter()
        .filter(|(_, port)| !port.host_name.is_empty())
        .map(|(device, port)| {
            (
                format!("volatile.{device}.host_name"),
                port.host_name.clone(),
            )
        })
        .collect();
    record.config.extend(names);
}
