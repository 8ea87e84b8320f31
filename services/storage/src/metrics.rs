//! The pools' space, beside the metrics of calls.

use std::sync::{Arc, Weak};

use berth_server::metrics::{Labels, Unit, gauges};

use crate::app::{App, OpenPool};

/// Adds them to what `/metrics` shows.
pub fn register(app: &Arc<App>) {
    let bytes = |name, help, read: fn(&crate::host::fs::Space) -> u64| {
        let app = Arc::downgrade(app);
        gauges(name, help, Some(Unit::Bytes), move || {
            of_pools(&app, |pool| {
                let space = pool.driver.as_ref().ok()?.space().ok()?;
                i64::try_from(read(&space)).ok()
            })
        });
    };
    bytes("berth_pool_size", "Size of a pool", |s| s.total);
    bytes("berth_pool_used", "Space in use in a pool", |s| s.used);
    let app = Arc::downgrade(app);
    gauges(
        "berth_pool_up",
        "Whether a pool can be used",
        None,
        move || of_pools(&app, |pool| Some(i64::from(pool.driver.is_ok()))),
    );
}

fn of_pools(app: &Weak<App>, read: impl Fn(&OpenPool) -> Option<i64>) -> Vec<(Labels, i64)> {
    let pools = app.upgrade().map(|app| app.pools()).unwrap_or_default();
    pools
        .iter()
        .filter_map(|pool| Some((vec![("pool", pool.row.name.clone())], read(pool)?)))
        .collect()
}
