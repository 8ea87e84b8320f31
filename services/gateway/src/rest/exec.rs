//! `POST /1.0/instances/{name}/exec`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use berth_proto::instance::instance::Status;
use berth_proto::instance::{CreateExecRequest, GetInstanceRequest, Instance, InstanceView};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::{self, Json};
use super::envelope::{self, Answer};
use super::exec_bridge::{self, Terminal};
use super::query::Query;
use super::streams::Streams;
use crate::App;
use crate::app::operations::{About, Class};
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new().route(&format!("{prefix}/{{name}}/exec"), post(exec))
}

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Body {
    #[serde(deserialize_with = "body::list")]
    command: Vec<String>,
    wait_for_websocket: bool,
    interactive: bool,
    #[serde(deserialize_with = "body::config")]
    environment: BTreeMap<String, String>,
    width: i32,
    height: i32,
    record_output: bool,
    user: Option<u32>,
    group: Option<u32>,
    cwd: Option<String>,
}

async fn exec(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    Json(body): Json<Body>,
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
    match instance.status() {
        Status::Running => {}
        Status::Frozen => return Err(Failure::bad_request("Instance is frozen")),
        _ => return Err(Failure::bad_request("Instance is not running")),
    }
    if body.command.is_empty() {
        return Err(Failure::bad_request("command must not be empty"));
    }
    if body.record_output && body.wait_for_websocket {
        return Err(Failure::bad_request(
            "Cannot use record-output in combination with wait-for-websocket",
        ));
    }
    if body.record_output {
        return Err(Failure::unsupported("record-output"));
    }
    if body.interactive && !body.wait_for_websocket {
        return Err(Failure::bad_request(
            "an interactive command needs wait-for-websocket",
        ));
    }
    let environment = environment(&instance, &body);
    let request = CreateExecRequest {
        parent: resource,
        command: body.command.clone(),
        environment: environment.clone().into_iter().collect(),
        cwd: body.cwd.clone().unwrap_or_default(),
        user: body.user,
        group: body.group,
        interactive: body.interactive,
        width: body.width,
        height: body.height,
        no_stdin: !body.wait_for_websocket,
        linger_seconds: 0,
        exec_id: String::new(),
    };
    let mut metadata: Map<String, Value> = Map::new();
    metadata.insert("command".into(), json!(body.command));
    metadata.insert("environment".into(), json!(environment));
    metadata.insert("interactive".into(), body.interactive.into());
    let mut about = About::task("Executing command", &query.project).on_container(&name);
    let source = format!("/1.0/instances/{name}");
    app.events.lifecycle(
        &query.project,
        "instance-exec",
        &source,
        Some(json!({"command": body.command})),
    );
    let owners = app.owners.clone();
    if !body.wait_for_websocket {
        about.metadata = Some(metadata);
        let view = app.operations.spawn(about, move |handle| {
            exec_bridge::run_unattended(owners, request, handle)
        });
        return Ok(envelope::operation(&view));
    }
    about.class = Class::Websocket;
    let terminal = if body.interactive {
        Terminal::Pty
    } else {
        Terminal::Pipes
    };
    let (streams, arrivals) = Streams::new(terminal.streams());
    metadata.insert("fds".into(), Value::Object(streams.fds()));
    about.metadata = Some(metadata);
    let view = app
        .operations
        .spawn_with(about, Some(Arc::new(streams)), move |handle| {
            exec_bridge::run(owners, request, terminal, arrivals, handle)
        });
    Ok(envelope::operation(&view))
}

/// The instance's `environment.*`, then the request's, then what LXD adds where they are silent.
fn environment(instance: &Instance, body: &Body) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = instance
        .expanded_config
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("environment.")?, value)))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    environment.extend(body.environment.clone());
    let mut add = |key: &str, value: &str| {
        environment
            .entry(key.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    add(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    if body.user.unwrap_or(0) == 0 {
        add("HOME", "/root");
        add("USER", "root");
    }
    add("LANG", "C.UTF-8");
    environment
}
