//! What waits to be sent: never more than a fixed number, and each loss is counted.
//!
//! The SDK's own batch processors are bounded too but keep the number of what they dropped to
//! themselves. Here everything that was let in and is not yet settled counts against the bound, also
//! what is on its way; so the SDK's queue behind it is never full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{Either, select};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord,
};
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use tokio::runtime::Handle;

use crate::metrics::{Outcome, sent};

/// The places of one signal's queue.
#[derive(Debug)]
pub(super) struct Queue {
    signal: &'static str,
    endpoint: String,
    places: usize,
    taken: AtomicUsize,
    away: AtomicBool,
    closed: AtomicBool,
}

impl Queue {
    pub(super) fn new(signal: &'static str, endpoint: &str, places: usize) -> Arc<Self> {
        Arc::new(Self {
            signal,
            endpoint: endpoint.to_owned(),
            places,
            taken: AtomicUsize::new(0),
            away: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Takes a place; where there is none, the item is lost and counted.
    fn admit(&self) -> bool {
        let free = |taken| (taken < self.places).then_some(taken + 1);
        let admitted = !self.closed.load(Ordering::Relaxed)
            && self
                .taken
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, free)
                .is_ok();
        if !admitted {
            sent(self.signal, Outcome::Dropped, 1);
        }
        admitted
    }

    fn settle(&self, items: usize, result: Result<(), String>) {
        self.taken.fetch_sub(items, Ordering::AcqRel);
        self.note(items, result);
    }

    /// Counts what became of `items`, and says once when the collector goes and when it is back.
    pub(super) fn note(&self, items: usize, result: Result<(), String>) {
        match result {
            Ok(()) => {
                sent(self.signal, Outcome::Exported, items);
                if self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!(signal = self.signal, "the collector takes telemetry again");
                }
            }
            Err(error) => {
                sent(self.signal, Outcome::Failed, items);
                if !self.away.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        signal = self.signal,
                        endpoint = self.endpoint,
                        "the collector does not take telemetry: {error}"
                    );
                }
            }
        }
    }
}

/// Waits for an export, but not for ever: the exporter's own time limit does not hold while it
/// connects.
async fn in_time(
    runtime: &Handle,
    limit: Duration,
    export: impl Future<Output = OTelSdkResult>,
) -> Result<(), String> {
    let over = {
        let _entered = runtime.enter();
        tokio::time::sleep(limit)
    };
    match select(Box::pin(export), Box::pin(over)).await {
        Either::Left((result, _)) => result.map_err(|e| e.to_string()),
        Either::Right(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// An exporter whose results are counted and which never waits longer than `limit`.
#[derive(Debug)]
pub(super) struct Counted<E> {
    pub(super) inner: E,
    pub(super) queue: Arc<Queue>,
    pub(super) limit: Duration,
    pub(super) runtime: Handle,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let items = batch.len();
        let result = in_time(&self.runtime, self.limit, self.inner.export(batch)).await;
        self.queue.settle(items, result);
        // It has been counted and told; the SDK would only tell it once more.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Counted<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let items = batch.iter().count();
        let result = in_time(&self.runtime, self.limit, self.inner.export(batch)).await;
        self.queue.settle(items, result);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A batch processor behind a [`Queue`].
#[derive(Debug)]
pub(super) struct Bounded<P> {
    pub(super) inner: P,
    pub(super) queue: Arc<Queue>,
}

impl SpanProcessor for Bounded<BatchSpanProcessor> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.queue.admit() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.closed.store(true, Ordering::Relaxed);
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl LogProcessor for Bounded<BatchLogProcessor> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.queue.admit() {
            self.inner.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.closed.store(true, Ordering::Relaxed);
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
