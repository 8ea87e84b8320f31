//! What is measured of dnsmasq: whether it runs, how often it ended by itself, and its leases.

use std::sync::{Arc, LazyLock, Mutex, Weak};

use berth_server::metrics::{Counters, Labels, gauges};

use super::{Supervised, lock};

static RESTARTS: LazyLock<Counters> = LazyLock::new(|| {
    gauges(
        "berth_dnsmasq_up",
        "Whether a network's dnsmasq runs",
        None,
        || each(|one| i64::from(lock(&one.state).process.is_some())),
    );
    gauges(
        "berth_dhcp_leases",
        "Leases that a network's dnsmasq has given",
        None,
        || each(leases),
    );
    Counters::register(
        "berth_dnsmasq_restarts",
        "How often a network's dnsmasq ended by itself and was started again",
    )
});

static WATCHED: Mutex<Vec<Weak<Supervised>>> = Mutex::new(Vec::new());

fn labels(network: &str) -> Labels {
    vec![("network", network.to_owned())]
}

/// Measures this one for as long as it is supervised.
pub(super) fn watch(supervised: &Arc<Supervised>) {
    ended(&supervised.network, 0);
    let mut watched = lock(&WATCHED);
    watched.retain(|one| one.strong_count() > 0);
    watched.push(Arc::downgrade(supervised));
}

pub(super) fn ended(network: &str, times: u64) {
    RESTARTS.add(labels(network), times);
}

fn each(read: impl Fn(&Supervised) -> i64) -> Vec<(Labels, i64)> {
    let watched: Vec<Arc<Supervised>> = lock(&WATCHED).iter().filter_map(Weak::upgrade).collect();
    watched
        .iter()
        .filter(|one| !one.end.is_cancelled())
        .map(|one| (labels(&one.network), read(one)))
        .collect()
}

fn leases(one: &Supervised) -> i64 {
    // The file is not there before the first lease; `duid` is the server's own line.
    let text = std::fs::read_to_string(one.paths.leases()).unwrap_or_default();
    let lines = text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with("duid"));
    i64::try_from(lines.count()).unwrap_or(i64::MAX)
}
