//! `/1.0/instances/{name}/console`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use berth_proto::instance::instance::Status;
use berth_proto::instance::stream_console_request::{self, Attach, Resize};
use berth_proto::instance::{
    ClearConsoleLogRequest, GetConsoleLogRequest, GetInstanceRequest, InstanceView,
    StreamConsoleRequest,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::Map;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::body::Json;
use super::envelope::{self, Answer};
use super::query::Query;
use super::streams::{self, Arrivals, Control, PING, Streams};
use crate::App;
use crate::app::operations::{About, Class};
use crate::clients::Owners;
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new().route(
        &format!("{prefix}/{{name}}/console"),
        post(attach).get(log).delete(clear),
    )
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct AttachBody {
    width: i32,
    height: i32,
    r#type: String,
}

async fn attach(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    Json(body): Json<AttachBody>,
) -> Answer {
    let resource = format!("{}/instances/{name}", query.parent());
    let instance = app
        .owners
        .instances()
        .get_instance(GetInstanceRequest {
            name: resource.clone(),
            view: InstanceView::Basic.into(),
        })
        .await?
        .into_inner();
    match body.r#type.as_str() {
        "" | "console" => {}
        "vga" => {
            return Err(Failure::bad_request(
                "VGA console is only supported by virtual machines",
            ));
        }
        other => {
            return Err(Failure::bad_request(format!(
                "Unknown console type {other:?}"
            )));
        }
    }
    match instance.status() {
        Status::Running => {}
        Status::Frozen => return Err(Failure::bad_request("Instance is frozen")),
        _ => return Err(Failure::bad_request("Instance is not running")),
    }
    let (streams, arrivals) = Streams::new(&["0", "control"]);
    let mut about = About::task("Showing console", &query.project).on_container(&name);
    about.class = Class::Websocket;
    let mut metadata = Map::new();
    metadata.insert("fds".into(), streams.fds().into());
    about.metadata = Some(metadata);
    app.events.lifecycle(
        &query.project,
        "instance-console",
        &format!("/1.0/instances/{name}"),
        Some(serde_json::json!({"type": "console"})),
    );
    let first = Attach {
        name: resource,
        width: body.width,
        height: body.height,
        force: false,
    };
    let owners = app.owners.clone();
    let view = app
        .operations
        .spawn_with(about, Some(Arc::new(streams)), move |_| {
            bridge(owners, first, arrivals)
        });
    Ok(envelope::operation(&view))
}

/// Carries both directions until the client leaves or the guest ends.
async fn bridge(owners: Owners, first: Attach, mut arrivals: Arrivals) -> Result<(), Failure> {
    let mut sockets = streams::collect(&mut arrivals, &["0", "control"]).await?;
    let (Some(terminal), Some(control)) = (sockets.remove("0"), sockets.remove("control")) else {
        return Err(Failure::internal("the console's streams are not attached"));
    };
    let (sender, receiver) = mpsc::channel(64);
    let request = |message| StreamConsoleRequest {
        message: Some(message),
    };
    // There is room: nothing was sent before.
    let _ = sender
        .send(request(stream_console_request::Message::Attach(first)))
        .await;
    let mut responses = owners
        .consoles()
        .stream_console(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let (mut sink, mut source) = terminal.split();
    let output = async {
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        loop {
            let message = tokio::select! {
                response = responses.message() => match response? {
                    Some(response) => Message::Binary(response.data),
                    None => break,
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                break;
            }
        }
        Ok::<_, Failure>(())
    };
    let input = async {
        while let Some(Ok(message)) = source.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) if text.is_empty() => break,
                Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let data = request(stream_console_request::Message::Data(data));
            if sender.send(data).await.is_err() {
                break;
            }
        }
    };
    let result = tokio::select! {
        result = output => result,
        () = input => Ok(()),
        () = control_until_closed(control, sender.clone()) => Ok(()),
    };
    // The client waits for the barrier before it restores its terminal.
    let _ = sink.send(Message::text("")).await;
    let _ = sink.send(Message::Close(None)).await;
    result
}

/// Closing control is how clients detach.
async fn control_until_closed(mut control: WebSocket, sender: mpsc::Sender<StreamConsoleRequest>) {
    while let Some(Ok(message)) = control.recv().await {
        let parsed = match &message {
            Message::Text(text) => Control::parse(text.as_bytes()),
            Message::Binary(data) => Control::parse(data),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => None,
        };
        if let Some(Control::Resize(width, height)) = parsed {
            let resize = StreamConsoleRequest {
                message: Some(stream_console_request::Message::Resize(Resize {
                    width,
                    height,
                })),
            };
            if sender.send(resize).await.is_err() {
                return;
            }
        }
    }
}

async fn log(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let log = app
        .owners
        .consoles()
        .get_console_log(GetConsoleLogRequest {
            name: format!("{}/instances/{name}", query.parent()),
        })
        .await?
        .into_inner();
    Ok(octets(Body::from(log.data)))
}

async fn clear(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    app.owners
        .consoles()
        .clear_console_log(ClearConsoleLogRequest {
            name: format!("{}/instances/{name}", query.parent()),
        })
        .await?;
    app.events.lifecycle(
        &query.project,
        "instance-console-reset",
        &format!("/1.0/instances/{name}"),
        None,
    );
    Ok(envelope::empty())
}

/// Raw bytes.
pub(super) fn octets(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/octet-stream")], body).into_response()
}
