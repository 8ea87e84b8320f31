//! After a start of the service: guests that run are taken over, ends that nobody saw are written down,
//! leftovers are removed. Safe to run twice.

use std::sync::Arc;
use std::time::Duration;

use super::start_instance::note_start;
use super::watch::Connected;
use super::{App, Run, Slot, event, lock};
use crate::Error;
use crate::model::limits;
use crate::model::record::Status;
use crate::model::value::CpuLimit;

/// Between questions to a monitor that does not answer.
const AGAIN: Duration = Duration::from_secs(1);

impl App {
    /// Takes over what runs. The number of guests taken over.
    pub async fn recover(self: &Arc<Self>) -> Result<usize, Error> {
        let slots = self.slots("-");
        let known = self.runtime.known().await.map_err(Error::internal)?;
        let mut tasks = tokio::task::JoinSet::new();
        for slot in &slots {
            let has_run_dir = known.contains(&slot.uid);
            if !has_run_dir && !slot.record().running {
                continue;
            }
            let (app, slot) = (self.clone(), slot.clone());
            tasks.spawn(async move { app.recover_one(&slot, has_run_dir).await });
        }
        let mut adopted = 0;
        while let Some(done) = tasks.join_next().await {
            adopted += usize::from(done.unwrap_or(false));
        }
        for uid in known
            .iter()
            .filter(|uid| !slots.iter().any(|s| s.uid == **uid))
        {
            self.remove_stray(uid).await;
        }
        self.unload_strays(&slots, &known).await;
        Ok(adopted)
    }

    /// Profiles of guests that no longer run; those of guests that this database does not know stay with them.
    async fn unload_strays(&self, slots: &[Arc<Slot>], run_dirs: &[String]) {
        let loaded = match self.apparmor.loaded().await {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(%error, "what AppArmor has loaded is not known");
                return;
            }
        };
        for uid in loaded {
            let slot = slots.iter().find(|slot| slot.uid == uid);
            let gone = match slot {
                Some(slot) => slot.run().status == Status::Stopped,
                None => !run_dirs.contains(&uid),
            };
            if gone {
                self.apparmor.unload(&uid).await;
            }
        }
    }

    /// True when the guest runs.
    async fn recover_one(self: &Arc<Self>, slot: &Arc<Slot>, has_run_dir: bool) -> bool {
        let connected = match has_run_dir {
            true => self.connect_guest(slot).await,
            false => Ok(None),
        };
        match self.recover_with(slot, connected).await {
            Ok(runs) => runs,
            Err(error) => {
                tracing::error!(uid = slot.uid, %error, "a monitor is there and does not answer");
                let message = "The instance's monitor does not answer".to_owned();
                let run = slot.run();
                slot.set_run(Run {
                    status: Status::Error,
                    message,
                    ..run
                });
                let (app, slot) = (self.clone(), slot.clone());
                tokio::spawn(async move { app.recover_later(&slot).await });
                false
            }
        }
    }

    /// A stuck monitor holds up nobody; it is asked again until it answers or is gone.
    async fn recover_later(self: Arc<Self>, slot: &Arc<Slot>) {
        loop {
            tokio::time::sleep(AGAIN).await;
            let connected = self.connect_guest(slot).await;
            if matches!(connected, Ok(None)) {
                slot.set_run(Run::stopped(slot.record().generation));
            }
            if self.recover_with(slot, connected).await.is_ok() {
                return;
            }
        }
    }

    async fn recover_with(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        connected: Result<Option<Connected>, Error>,
    ) -> Result<bool, Error> {
        match connected {
            Ok(Some((link, events, state))) => {
                let record = slot.record();
                let run = self.take_state(slot, &state);
                slot.set_unclaimed(run.base > record.generation);
                self.adopt_cpus(slot);
                slot.set_link(Some(link));
                if run.generation != record.generation || !record.running {
                    self.write_found(slot, &run).await;
                }
                self.spawn_watch(slot, events);
                Ok(true)
            }
            Ok(None) => {
                self.recover_end(slot).await;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A start or a reboot that happened and was not written down.
    async fn write_found(&self, slot: &Slot, run: &Run) {
        let action = match slot.record().running {
            true => "instance-restarted",
            false => "instance-started",
        };
        let event = event(action, &slot.record(), run.generation);
        let generation = run.generation;
        // Every change of the configuration went into the spec of the next run.
        let privileged = self.expand(&slot.record()).privileged();
        let written = self
            .commit(slot, Some(run.clone()), "", Some(event), |record| {
                note_start(record, generation, privileged);
                Ok(())
            })
            .await;
        if let Err(error) = written {
            tracing::error!(uid = slot.uid, %error, "a running guest was not written down");
        }
    }

    /// It is not there: its end was seen by nobody, or the host went down with it.
    async fn recover_end(self: &Arc<Self>, slot: &Arc<Slot>) {
        let ended = self.runtime.ended(&slot.uid).await;
        let record = slot.record();
        let booted = self.records.boot_id().await.ok().flatten();
        let booted = booted.unwrap_or_else(|| self.facts.boot_id.clone());
        let stopped_with_all = booted == super::host_shutdown::NO_BOOT;
        let host_went_down = booted != self.facts.boot_id;
        if record.running && (stopped_with_all || ended.is_none() && host_went_down) {
            // The host stopped, or all guests for it: `running` stays set, so that it is started again.
            if let Err(error) = self.runtime.clean(&slot.uid, true).await {
                tracing::warn!(uid = slot.uid, %error, "leftovers of before the boot stay");
            }
            return;
        }
        if record.running {
            self.ended(slot, ended).await;
        } else if let Err(error) = self.runtime.clean(&slot.uid, ended.is_none()).await {
            tracing::warn!(uid = slot.uid, %error, "leftovers of a run stay");
        }
    }

    fn adopt_cpus(&self, slot: &Slot) {
        let expanded = self.expand(&slot.record());
        let wanted = limits::cpu(&expanded);
        let mut cpus = lock(&self.cpus);
        match wanted {
            // Which ones it was given is in its cgroup; placing it anew comes to the same once it is balanced.
            Some(limit @ CpuLimit::Count(_)) | Some(limit @ CpuLimit::Set(_)) => {
                if let Err(why) = cpus.place(&slot.uid, Some(&limit)) {
                    tracing::warn!(uid = slot.uid, why, "limits.cpu of a running guest");
                }
            }
            None => cpus.release(&slot.uid),
        }
    }

    /// A run directory of no instance: a guest that runs is left alone and told of, since its record may be
    /// in a database that was put back; a dead one's leftovers are removed.
    async fn remove_stray(&self, uid: &str) {
        if self.runtime.connect(uid).await.is_ok() {
            tracing::warn!(
                uid,
                "a guest runs that this database does not know; it is left alone"
            );
            return;
        }
        if let Err(error) = self.runtime.clean(uid, true).await {
            tracing::warn!(uid, %error, "a stale run directory stays");
        }
    }
}
