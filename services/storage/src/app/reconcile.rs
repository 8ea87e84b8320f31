//! Closes the gap between rows and disks: at start, and later whenever there is reason to look.
//! Safe to run twice, and beside running requests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_rpc::Error;

use super::locks::{self, Want};
use super::{App, OpenPool, blocking, delete_pool, event};
use crate::driver::{Driver, Found, Place};
use crate::model::config;
use crate::store::{PoolRow, PoolState, SnapshotRow, Tombstone, VolumeFilter, VolumeRow, failed};

/// What is to be done with something found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It is what a row says.
    Keep,
    /// Its row is committed; only the name is still the staging one.
    Publish(Place),
    /// Nobody was ever told of it, or it was deleted or replaced.
    Remove,
    /// Not known: never deleted.
    SetAside,
}

/// What the rows say of one pool.
#[derive(Default)]
struct Known {
    /// Generation by volume.
    volumes: HashMap<String, i64>,
    snapshots: HashSet<String>,
    buried: HashSet<String>,
    busy: HashSet<String>,
}

impl Known {
    fn judge(&self, found: &Found) -> Verdict {
        let Some(place) = &found.place else {
            return Verdict::SetAside;
        };
        let uid = &place.uid;
        if self.busy.contains(uid) {
            return Verdict::Keep;
        }
        let generation = match found.area {
            crate::driver::Area::Volumes => self.volumes.get(uid).copied(),
            crate::driver::Area::Snapshots => self.snapshots.contains(uid).then_some(0),
        };
        match generation {
            Some(now) if now == place.generation && place.staged => {
                Verdict::Publish(place.published())
            }
            Some(now) if now == place.generation => Verdict::Keep,
            // A restore that wasn't committed, or what a committed one replaced.
            Some(_) => Verdict::Remove,
            None if place.staged || self.buried.contains(uid) => Verdict::Remove,
            None => Verdict::SetAside,
        }
    }
}

/// Opens pools, finishes what a crash interrupted, and puts limits back into force.
pub(super) async fn at_start(app: &Arc<App>) -> Result<(), Error> {
    let rows = PoolRow::all(&mut app.store.read(), &app.node)
        .await
        .map_err(failed)?;
    for row in rows {
        if row.state != PoolState::Created {
            finish_removal(app, &row).await;
            continue;
        }
        let pool = delete_pool::reopen(app, row).await;
        if pool.driver.is_ok()
            && let Err(error) = pool_round(app, &pool, true).await
        {
            tracing::error!(pool = pool.row.name, %error, "the pool was not checked");
            app.mark_untidy();
        }
    }
    Ok(())
}

/// A pool whose making or removal a crash interrupted.
pub(super) async fn finish_removal(app: &Arc<App>, row: &PoolRow) {
    tracing::info!(
        pool = row.name,
        "removing what an interrupted change of the pool left"
    );
    let setup = row.setup();
    let opened = match row.state {
        PoolState::Deleting => blocking(move || crate::driver::open(&setup)).await.ok(),
        PoolState::Creating | PoolState::Created => None,
    };
    let done = async {
        delete_pool::unmake(app, row, opened).await?;
        let mut tx = app.begin().await?;
        PoolRow::delete(&mut tx, &row.uid).await.map_err(failed)?;
        if row.state == PoolState::Deleting {
            tx.emit(event("storage-pool-deleted", row.resource(), ""))
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    };
    if let Err(error) = done.await {
        tracing::error!(pool = row.name, %error, "the pool's rest stays until the next start");
    }
}

/// Ends what an earlier try at making or removing the pool called `name` left undone. True when
/// there was something. The caller holds the pool's lock, and the pool isn't in use.
pub(super) async fn finish_interrupted(app: &Arc<App>, name: &str) -> Result<bool, Error> {
    let rows = PoolRow::all(&mut app.store.read(), &app.node)
        .await
        .map_err(failed)?;
    let unfinished = |row: &&PoolRow| row.name == name && row.state != PoolState::Created;
    let Some(row) = rows.iter().find(unfinished) else {
        return Ok(false);
    };
    finish_removal(app, row).await;
    Ok(true)
}

/// Looks round now and then. A service where nothing was deleted and no pool is away does nothing.
pub async fn run(app: Arc<App>, every: Duration) {
    let mut ticks = tokio::time::interval(every.max(Duration::from_secs(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let untidy = app.untidy.swap(false, Ordering::AcqRel);
        for pool in app.pools() {
            if pool.driver.is_err() {
                try_again(&app, &pool).await;
            } else if untidy && let Err(error) = pool_round(&app, &pool, false).await {
                tracing::warn!(pool = pool.row.name, %error, "looking after the pool");
                app.mark_untidy();
            }
        }
        if untidy && let Err(error) = forget_requests(&app).await {
            tracing::warn!(%error, "forgetting old requests");
        }
    }
}

async fn forget_requests(app: &App) -> Result<(), Error> {
    let day = chrono::Utc::now() - chrono::TimeDelta::days(1);
    let before = day.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let mut tx = app.begin().await?;
    tx.forget_requests(&before).await.map_err(failed)?;
    tx.commit().await.map_err(failed)
}

async fn try_again(app: &Arc<App>, pool: &OpenPool) {
    let _held = app
        .locks
        .take([(locks::pool(&pool.row.name), Want::Write)])
        .await;
    // It may have been deleted while we waited.
    let Ok(now) = app.pool(&pool.row.name) else {
        return;
    };
    if now.driver.is_err() && now.row.uid == pool.row.uid {
        let pool = delete_pool::reopen(app, now.row.clone()).await;
        if pool.driver.is_ok() {
            tracing::info!(pool = pool.row.name, "the storage pool is usable again");
            if let Err(error) = pool_round(app, &pool, true).await {
                tracing::warn!(pool = pool.row.name, %error, "looking after the pool");
            }
        }
    }
}

/// One look at one pool. The order of reading matters: first the disk, then who is at work, then
/// the rows. What was at work and is done by the third step has its rows by then.
pub async fn pool_round(app: &Arc<App>, pool: &OpenPool, first: bool) -> Result<(), Error> {
    let driver = pool.driver()?;
    let look = driver.clone();
    let entries = blocking(move || look.entries()).await?;
    let busy = entries
        .iter()
        .filter_map(|f| f.place.as_ref())
        .filter(|p| app.is_building(&p.uid))
        .map(|p| p.uid.clone())
        .collect();
    let mut db = app.store.read();
    let filter = VolumeFilter {
        pool: Some(pool.row.uid.clone()),
        ..VolumeFilter::default()
    };
    let buried = Tombstone::of(&mut db, &pool.row.uid)
        .await
        .map_err(failed)?;
    let snapshots = SnapshotRow::uids_in_pool(&mut db, &pool.row.uid)
        .await
        .map_err(failed)?;
    let volumes = VolumeRow::list(&mut db, &filter).await.map_err(failed)?;
    let known = Known {
        volumes: volumes
            .iter()
            .map(|v| (v.uid.clone(), v.generation))
            .collect(),
        snapshots: snapshots.into_iter().collect(),
        buried: buried.iter().map(|t| t.uid.clone()).collect(),
        busy,
    };
    if first {
        warn_of_lost(&pool.row.name, &volumes, &entries);
    }
    let name = pool.row.name.clone();
    let flush = !buried.is_empty();
    let again = driver.clone();
    blocking(move || {
        tidy(
            driver.as_ref(),
            &name,
            &entries,
            &known,
            &volumes,
            first,
            flush,
        )
    })
    .await?;
    if flush {
        // Only what is gone for sure: something may have been made anew since the first look.
        let left: HashSet<String> = blocking(move || again.entries())
            .await?
            .into_iter()
            .filter_map(|found| found.place)
            .map(|place| place.uid)
            .collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            buried.into_iter().partition(|t| left.contains(&t.uid));
        if !kept.is_empty() {
            app.mark_untidy();
        }
        let mut tx = app.begin().await?;
        Tombstone::forget(&mut tx, &gone).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
    }
    Ok(())
}

fn warn_of_lost(pool: &str, volumes: &[VolumeRow], entries: &[Found]) {
    let there: HashSet<&str> = entries
        .iter()
        .filter_map(|f| f.place.as_ref())
        .map(|p| p.uid.as_str())
        .collect();
    for volume in volumes.iter().filter(|v| !there.contains(v.uid.as_str())) {
        tracing::error!(
            volume = volume.resource(pool),
            "the volume's contents are gone"
        );
    }
}

fn tidy(
    driver: &dyn Driver,
    pool: &str,
    entries: &[Found],
    known: &Known,
    volumes: &[VolumeRow],
    first: bool,
    flush: bool,
) -> crate::error::Result<()> {
    for found in entries {
        match known.judge(found) {
            Verdict::Keep => {}
            Verdict::Publish(place) => {
                tracing::info!(pool, volume = place.uid, "finishing an interrupted change");
                driver.publish(&place)?;
            }
            Verdict::Remove => {
                tracing::info!(pool, name = found.name, "removing what a change left");
                driver.remove(found.area, &found.name)?;
            }
            Verdict::SetAside => {
                let to = driver.set_aside(found.area, &found.name)?;
                tracing::warn!(
                    pool,
                    name = found.name,
                    to,
                    "not known, so it was set aside"
                );
            }
        }
    }
    if first {
        // A crash may have come between a limit and its row; the row is right.
        for volume in volumes {
            let limit = config::limit(&volume.config);
            if limit.is_some()
                && let Err(error) = driver.set_limit(&volume.place(), volume.quota_id, limit)
            {
                tracing::warn!(pool, volume = volume.key.name, %error, "limit not in force");
            }
        }
    }
    let live = volumes.iter().map(|v| v.quota_id).collect();
    driver.collect_quotas(&live)?;
    if flush {
        driver.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Area;

    const UID: &str = "0199c0de-0000-7000-8000-000000000001";
    const OTHER: &str = "0199c0de-0000-7000-8000-000000000002";

    fn found(area: Area, name: &str) -> Found {
        Found {
            area,
            name: name.to_owned(),
            place: Place::parse(area, name),
        }
    }

    #[test]
    fn every_leftover_has_its_verdict() {
        let mut known = Known::default();
        known.volumes.insert(UID.to_owned(), 3);
        let judge = |known: &Known, name: &str| known.judge(&found(Area::Volumes, name));
        assert_eq!(judge(&known, &format!("{UID}.3")), Verdict::Keep);
        assert_eq!(judge(&known, &format!("{UID}.2")), Verdict::Remove);
        assert_eq!(judge(&known, &format!("{UID}.4")), Verdict::Remove);
        assert_eq!(
            judge(&known, &format!("staging-{UID}.3")),
            Verdict::Publish(Place::volume(UID, 3))
        );
        assert_eq!(
            judge(&known, &format!("staging-{OTHER}.1")),
            Verdict::Remove
        );
        assert_eq!(judge(&known, &format!("{OTHER}.1")), Verdict::SetAside);
        assert_eq!(judge(&known, "holiday-pictures"), Verdict::SetAside);
        assert_eq!(judge(&known, "staging-holiday"), Verdict::SetAside);
        known.buried.insert(OTHER.to_owned());
        assert_eq!(judge(&known, &format!("{OTHER}.1")), Verdict::Remove);
        known.busy.insert(OTHER.to_owned());
        assert_eq!(judge(&known, &format!("staging-{OTHER}.1")), Verdict::Keep);
        let snapshot = found(Area::Snapshots, &format!("{UID}.0"));
        assert_eq!(known.judge(&snapshot), Verdict::SetAside);
        known.snapshots.insert(UID.to_owned());
        assert_eq!(known.judge(&snapshot), Verdict::Keep);
    }
}
