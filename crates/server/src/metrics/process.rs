//! This process, by procfs, when somebody looks.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Names are those of Prometheus's own client libraries.
#[derive(Debug)]
pub(super) struct Process {
    began: f64,
}

impl Default for Process {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            began: since.unwrap_or_default().as_secs_f64(),
        }
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_descriptors() -> Option<i64> {
    // The one that lists them is among them.
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(listed.saturating_sub(1)).ok()
}

fn descriptor_limit() -> Option<i64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.and_then(|n| i64::try_from(n).ok())
}

fn threads() -> Option<i64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?.count();
    i64::try_from(tasks).ok()
}

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[allow(
        clippy::cast_precision_loss,
        reason = "seconds of processor time are far below 2^53"
    )]
    let seconds = time.tv_sec as f64;
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds are below 10^9")]
    let rest = time.tv_nsec as f64 / 1e9;
    seconds + rest
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let cpu = ConstCounter::new(processor_seconds());
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "Processor time, user and system",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        let began = ConstGauge::new(self.began);
        began.encode(encoder.encode_descriptor(
            "process_start_time",
            "When the process began, since the epoch",
            Some(&Unit::Seconds),
            began.metric_type(),
        )?)?;
        for (name, help, unit, value) in [
            (
                "process_resident_memory",
                "Resident memory",
                Some(Unit::Bytes),
                resident_bytes(),
            ),
            (
                "process_open_fds",
                "Open descriptors",
                None,
                open_descriptors(),
            ),
            (
                "process_max_fds",
                "Descriptors that may be open",
                None,
                descriptor_limit(),
            ),
            ("process_threads", "Threads", None, threads()),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)?;
        }
        Ok(())
    }
}
