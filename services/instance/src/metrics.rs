//! The service's own metrics, beside those of its calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::app::App;
use crate::model::record::Status;

/// Counts instances when somebody looks, and never in between.
#[derive(Debug)]
struct Instances(Weak<App>);

impl Collector for Instances {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(app) = self.0.upgrade() else {
            return Ok(());
        };
        let mut counts: BTreeMap<&str, i64> = ["Running", "Stopped", "Frozen", "Error"]
            .into_iter()
            .map(|status| (status, 0))
            .collect();
        for slot in app.slots("-") {
            let status = match slot.run().status {
                Status::Starting | Status::Running | Status::Stopping => "Running",
                Status::Freezing | Status::Frozen => "Frozen",
                Status::Stopped => "Stopped",
                Status::Error => "Error",
            };
            *counts.entry(status).or_default() += 1;
        }
        let mut family = encoder.encode_descriptor(
            "berth_instance_apparmor",
            "Whether guests are confined by AppArmor: on, absent, off or unusable",
            None,
            MetricType::Gauge,
        )?;
        let labels = [("state", app.apparmor.state().word())];
        ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        let mut family = encoder.encode_descriptor(
            "berth_instances",
            "Instances by status",
            None,
            MetricType::Gauge,
        )?;
        for (status, count) in counts {
            let labels = [("status", status)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// How many monitors this service speaks to.
fn monitors(app: &Weak<App>) -> i64 {
    let slots = app.upgrade().map(|app| app.slots("-")).unwrap_or_default();
    let linked = slots.iter().filter(|slot| slot.link().is_some());
    i64::try_from(linked.count()).unwrap_or(i64::MAX)
}

/// Adds them to what `/metrics` shows.
pub fn register(app: &Arc<App>) {
    let instances = Instances(Arc::downgrade(app));
    berth_server::metrics::register(|registry| registry.register_collector(Box::new(instances)));
    let app = Arc::downgrade(app);
    berth_server::metrics::gauges(
        "berth_monitors",
        "Monitors of running instances that this service speaks to",
        None,
        move || vec![(Vec::new(), monitors(&app))],
    );
}
