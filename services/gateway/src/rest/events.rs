//! `GET /1.0/events`: the event stream as a websocket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::envelope::Answer;
use super::query::Query;
use crate::App;
use crate::app::events::{Event, Kind};
use crate::error::Failure;

/// How often a silent listener is asked whether it is there.
const PING: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<App> {
    Router::new().route("/1.0/events", get(listen))
}

async fn listen(State(app): State<App>, query: Query, upgrade: WebSocketUpgrade) -> Answer {
    let kinds = kinds(query.get("type"))?;
    let project = (!query.all_projects).then_some(query.project);
    // Subscribed before the upgrade is answered: the client sends its request right after.
    let events = app.events.subscribe();
    Ok(upgrade
        .on_upgrade(move |socket| forward(socket, events, kinds, project))
        .into_response())
}

fn kinds(text: &str) -> Result<Vec<Kind>, Failure> {
    if text.is_empty() {
        return Ok(vec![Kind::Operation, Kind::Lifecycle, Kind::Logging]);
    }
    text.split(',')
        .map(|name| {
            Kind::parse(name).ok_or_else(|| {
                Failure::bad_request(format!("{name:?} isn't a supported event type"))
            })
        })
        .collect()
}

async fn forward(
    mut socket: WebSocket,
    mut events: broadcast::Receiver<Arc<Event>>,
    kinds: Vec<Kind>,
    project: Option<String>,
) {
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    loop {
        let message = tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    let wanted = kinds.contains(&event.kind)
                        && (event.project.is_empty()
                            || project.as_ref().is_none_or(|p| *p == event.project));
                    if !wanted {
                        continue;
                    }
                    Message::text(event.text.clone())
                }
                // It missed some: cut off, a client that waits for one of them must not hang.
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "an event listener is too slow");
                    return;
                }
                Err(RecvError::Closed) => return,
            },
            incoming = socket.recv() => match incoming {
                // Members of a cluster send events up; nobody else has anything to say.
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = ping.tick() => Message::Ping(Default::default()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_named() {
        assert_eq!(kinds("").unwrap().len(), 3);
        assert_eq!(kinds("operation,lifecycle").unwrap().len(), 2);
        let error = kinds("foo").unwrap_err();
        assert_eq!(error.status.as_u16(), 400);
        assert!(error.message.contains("\"foo\""));
    }
}
