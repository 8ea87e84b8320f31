//! Snapshots that are due are taken, and those that are over are removed: looked for once a minute.
//!
//! What was due while the gateway was away is not made up for, as cron does not. Each snapshot of a
//! minute, and each removal, has one request id, so that it happens once however often it is found.

use std::time::Duration;

use berth_proto::instance::instance::Status;
use berth_proto::instance::{Instance, InstanceView, ListSnapshotsRequest};
use berth_proto::storage::{self, Volume};
use berth_rpc::Error;
use berth_schedule::Schedule;
use chrono::{DateTime, DurationRound, Local, TimeDelta, Utc};

use crate::App;
use crate::app::sagas::instances::snapshots;
use crate::app::{instances, lists, time, volumes};

/// After a suspend or a slow round no more minutes than these are looked at again.
const CATCH_UP: i64 = 10;

/// Begins to look every minute, for as long as the process lives.
pub fn begin(app: &App) {
    let app = app.clone();
    tokio::spawn(async move {
        let mut seen = minute(Utc::now());
        loop {
            let now = Utc::now();
            let next = minute(now) + TimeDelta::minutes(1);
            let wait = (next - now).to_std().unwrap_or(Duration::from_secs(1));
            tokio::time::sleep(wait).await;
            let now = minute(Utc::now());
            let minutes = minutes_between(seen, now);
            seen = now;
            look(&app, &minutes).await;
        }
    });
}

fn minute(time: DateTime<Utc>) -> DateTime<Utc> {
    time.duration_trunc(TimeDelta::minutes(1)).unwrap_or(time)
}

/// Minutes after `seen` up to `now`; none when the clock was set back.
fn minutes_between(seen: DateTime<Utc>, now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let count = (now - seen).num_minutes().clamp(0, CATCH_UP);
    (0..count)
        .rev()
        .map(|back| now - TimeDelta::minutes(back))
        .collect()
}

/// Takes what is due in one of these minutes and removes what is over. A failure of one is logged
/// and keeps no other from its turn.
pub async fn look(app: &App, minutes: &[DateTime<Utc>]) {
    let (taken, removed, volumes_taken, volumes_removed) = tokio::join!(
        take_of_instances(app, minutes),
        remove_of_instances(app),
        take_of_volumes(app, minutes),
        remove_of_volumes(app),
    );
    for done in [taken, removed, volumes_taken, volumes_removed] {
        if let Err(error) = done {
            tracing::warn!(%error, "snapshots could not be looked over");
        }
    }
}

/// The first of these minutes in which one is due.
fn due(text: &str, subject: &str, minutes: &[DateTime<Utc>]) -> Option<DateTime<Utc>> {
    let schedule = match Schedule::parse(text) {
        Ok(schedule) => schedule,
        Err(why) => {
            tracing::warn!(subject, "a snapshot schedule is not understood: {why}");
            return None;
        }
    };
    let is_due = |minute: &&DateTime<Utc>| {
        let local = minute.with_timezone(&Local).naive_local();
        schedule.is_due(local, subject)
    };
    minutes.iter().find(is_due).copied()
}

async fn take_of_instances(app: &App, minutes: &[DateTime<Utc>]) -> Result<(), Error> {
    for instance in instances::list(app, "projects/-", InstanceView::Basic).await? {
        let config = &instance.expanded_config;
        let Some(schedule) = config.get("snapshots.schedule") else {
            continue;
        };
        let stopped_too = config
            .get("snapshots.schedule.stopped")
            .is_some_and(|value| matches!(value.as_str(), "true" | "1" | "yes" | "on"));
        if instance.status() == Status::Stopped && !stopped_too {
            continue;
        }
        if let Some(minute) = due(schedule, &instance.uid, minutes) {
            let request_id = format!("scheduled/{}/{}", instance.uid, minute.timestamp());
            take(app, &instance, &request_id).await;
        }
    }
    Ok(())
}

async fn take(app: &App, instance: &Instance, request_id: &str) {
    let begun = async {
        let snapshot = snapshots::Create {
            instance: instance.name.clone(),
            snapshot: String::new(),
            expire_time: instances::snapshot_expiry(instance)?,
            stateful: false,
        };
        instances::begin_snapshot(app, snapshot, request_id).await
    };
    if let Err(error) = begun.await {
        tracing::warn!(instance = %instance.name, %error, "a scheduled snapshot was not taken");
    }
}

/// Takes the snapshot of an instance that has one on each start.
///
/// # Errors
/// When the instance service is away.
pub async fn started(app: &App, name: &str) -> Result<(), Error> {
    let instance = instances::get(app, name, InstanceView::Basic).await?;
    let schedule = instance.expanded_config.get("snapshots.schedule");
    let at_start = schedule.is_some_and(|text| Schedule::parse(text).is_ok_and(|s| s.at_start()));
    if at_start {
        let request_id = format!("started/{}/{}", instance.uid, instance.generation);
        take(app, &instance, &request_id).await;
    }
    Ok(())
}

async fn remove_of_instances(app: &App) -> Result<(), Error> {
    let request = ListSnapshotsRequest {
        parent: "projects/-/instances/-".into(),
    };
    let all = app.owners.snapshots().list_snapshots(request).await?;
    let now = Utc::now();
    for snapshot in all.into_inner().snapshots {
        if !time::is_over(&snapshot.expire_time, now) {
            continue;
        }
        let Some((instance, name)) = snapshot.name.split_once("/snapshots/") else {
            continue;
        };
        // One that failed is tried again in the next minute.
        let request_id = format!("expired/{}/{}", snapshot.uid, minute(now).timestamp());
        let begun = instances::begin_delete_snapshot(app, instance, name, &request_id).await;
        if let Err(error) = begun {
            tracing::warn!(snapshot = %snapshot.name, %error, "an expired snapshot was not removed");
        }
    }
    Ok(())
}

async fn take_of_volumes(app: &App, minutes: &[DateTime<Utc>]) -> Result<(), Error> {
    for volume in lists::volumes(&app.owners, "projects/-/storagePools/-", "custom").await? {
        let Some(schedule) = volume.config.get("snapshots.schedule") else {
            continue;
        };
        if let Some(minute) = due(schedule, &volume.uid, minutes)
            && let Err(error) = take_of_volume(app, &volume, minute).await
        {
            tracing::warn!(volume = %volume.name, %error, "a scheduled snapshot was not taken");
        }
    }
    Ok(())
}

async fn take_of_volume(app: &App, volume: &Volume, minute: DateTime<Utc>) -> Result<(), Error> {
    let present = volumes::snapshots_of(&app.owners, &volume.name).await?;
    let name = volumes::next_snapshot_name(volume, &present)?;
    let expire_time = volumes::snapshot_expiry(volume)?;
    let request_id = format!("scheduled/{}/{}", volume.uid, minute.timestamp());
    volumes::create_snapshot(app, &volume.name, &name, &expire_time, &request_id).await?;
    Ok(())
}

async fn remove_of_volumes(app: &App) -> Result<(), Error> {
    let now = Utc::now();
    let all = volumes::snapshots_of(&app.owners, "projects/-/storagePools/-/custom/-").await?;
    for snapshot in all {
        if time::is_over(&snapshot.expire_time, now)
            && let Err(error) = remove_of_volume(app, &snapshot, now).await
        {
            tracing::warn!(snapshot = %snapshot.name, %error, "an expired snapshot was not removed");
        }
    }
    Ok(())
}

async fn remove_of_volume(
    app: &App,
    snapshot: &storage::Snapshot,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let Some((volume, name)) = snapshot.name.split_once("/snapshots/") else {
        return Ok(());
    };
    let request_id = format!("expired/{}/{}", snapshot.uid, minute(now).timestamp());
    volumes::delete_snapshot(app, volume, name, &request_id).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_looked_at_once() {
        let at = |minutes: i64| DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes);
        assert!(minutes_between(at(5), at(5)).is_empty());
        assert_eq!(minutes_between(at(5), at(7)), [at(6), at(7)]);
        assert!(minutes_between(at(7), at(5)).is_empty());
        assert_eq!(minutes_between(at(0), at(1000)).len(), 10);
        assert_eq!(minutes_between(at(0), at(1000)).last(), Some(&at(1000)));
        assert_eq!(minute(at(3) + TimeDelta::seconds(59)), at(3));
    }

    #[test]
    fn a_wrong_schedule_is_never_due() {
        let minutes = [DateTime::UNIX_EPOCH];
        assert_eq!(due("* * * * *", "c1", &minutes), Some(minutes[0]));
        assert_eq!(due("bogus", "c1", &minutes), None);
        assert_eq!(due("", "c1", &minutes), None);
        assert_eq!(due("* * * * *", "c1", &[]), None);
    }
}
