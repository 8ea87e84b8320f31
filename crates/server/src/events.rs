use std::pin::Pin;
use std::sync::LazyLock;

use berth_proto::types;
use berth_rpc::Error;
use berth_store::{EventRecord, Store};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Events sent at once to a watcher that catches up.
const BATCH: i64 = 256;

/// Cancelled when this process has been asked to end.
pub(crate) fn stopping() -> &'static CancellationToken {
    static STOPPING: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);
    &STOPPING
}

/// The stream behind every service's `WatchEvents`: the outbox after a sequence, then on.
/// A watcher of another epoch gets everything that is kept.
pub fn watch_events(
    store: Store,
    request: &types::WatchEventsRequest,
) -> Pin<Box<dyn Stream<Item = Result<types::Event, Status>> + Send>> {
    let mut watch = store.watch_events();
    let newest = *watch.borrow_and_update();
    let mut after = if request.after_epoch.is_empty() {
        newest
    } else if request.after_epoch == store.epoch() {
        request.after_sequence
    } else {
        0
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let events = match store.events_after(after, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    let _ = sender.send(Err(Error::internal(error).into())).await;
                    return;
                }
            };
            for event in events {
                after = event.sequence;
                if sender
                    .send(Ok(to_proto(store.epoch(), event)))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            if *watch.borrow_and_update() > after {
                continue;
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
                // A watch never ends by itself: the service's end would wait for it in vain.
                () = stopping().cancelled() => return,
            }
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

fn to_proto(epoch: &str, record: EventRecord) -> types::Event {
    types::Event {
        epoch: epoch.to_owned(),
        sequence: record.sequence,
        time: record.time,
        action: record.event.action,
        resource: record.event.resource,
        project: record.event.project,
        generation: record.event.generation,
        attributes: record.event.attributes.into_iter().collect(),
        traceparent: record.event.traceparent,
    }
}
