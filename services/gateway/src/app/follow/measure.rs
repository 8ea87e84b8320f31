//! Whether the owners are followed, and how late their events come.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_proto::types::Event;
use berth_server::metrics::{Durations, OPERATION_BUCKETS, gauges};
use prometheus_client::encoding::EncodeLabelSet;

use super::{OWNERS, Owner};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OwnerLabels {
    owner: Owner,
}

static FOLLOWED: [AtomicBool; OWNERS.len()] = [const { AtomicBool::new(false) }; OWNERS.len()];

static LAG: LazyLock<Durations<OwnerLabels>> = LazyLock::new(|| {
    gauges(
        "berth_owner_followed",
        "Whether an owner's events are listened to",
        None,
        || {
            OWNERS
                .into_iter()
                .map(|owner| {
                    let followed = FOLLOWED[owner as usize].load(Ordering::Relaxed);
                    (vec![("owner", format!("{owner:?}"))], i64::from(followed))
                })
                .collect()
        },
    );
    Durations::register(
        "berth_event_lag",
        "From an owner's event to its arrival here",
        OPERATION_BUCKETS,
    )
});

pub(super) fn install() {
    LazyLock::force(&LAG);
}

pub(super) fn followed(owner: Owner, now: bool) {
    FOLLOWED[owner as usize].store(now, Ordering::Relaxed);
}

pub(super) fn arrived(owner: Owner, event: &Event) {
    let Ok(told) = chrono::DateTime::parse_from_rfc3339(&event.time) else {
        return;
    };
    // Clocks of two hosts may differ: an event from the future is one that came at once.
    let lag = chrono::Utc::now().signed_duration_since(told);
    let lag = lag.to_std().unwrap_or(Duration::ZERO);
    LAG.observe(&OwnerLabels { owner }, lag, &tracing::Span::none());
}
