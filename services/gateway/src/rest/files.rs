//! `/1.0/instances/{name}/files`: bytes go straight through, nothing is kept here.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use berth_proto::instance::get_file_response::Message as Got;
use berth_proto::instance::put_file_request::{Header, Message as Put};
use berth_proto::instance::{
    DeleteFileRequest, FileHeader, GetFileRequest, GetFileResponse, PutFileRequest,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::envelope::{self, Answer, set_header};
use super::instances::resource;
use super::query::Query;
use super::refused;
use crate::App;
use crate::clients::upload::Complete;
use crate::error::Failure;

/// Most that goes in one message.
const CHUNK: usize = 256 << 10;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(
            &format!("{prefix}/{{name}}/files"),
            get(read).head(head).post(write).delete(remove),
        )
        .route(&format!("{prefix}/{{name}}/sftp"), refused("SFTP"))
}

/// The `path` parameter, made absolute.
fn path(query: &Query) -> Result<String, Failure> {
    match query.get("path") {
        "" => Err(Failure::bad_request("Missing path argument")),
        path if path.starts_with('/') => Ok(path.to_owned()),
        path => Ok(format!("/{path}")),
    }
}

async fn open(
    app: &App,
    name: String,
    path: String,
    head_only: bool,
) -> Result<(FileHeader, Streaming<GetFileResponse>), Failure> {
    let request = GetFileRequest {
        name,
        path,
        head_only,
    };
    let mut stream = app.owners.files().get_file(request).await?.into_inner();
    match stream.message().await?.and_then(|m| m.message) {
        Some(Got::Header(header)) => Ok((header, stream)),
        _ => Err(Failure::internal("the instance service sent no file")),
    }
}

async fn head(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let (header, _) = open(&app, resource(&query, &name)?, path(&query)?, true).await?;
    let mut response = Response::new(Body::empty());
    describe(&mut response, &header);
    Ok(response)
}

async fn read(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let path = path(&query)?;
    let (header, stream) = open(&app, resource(&query, &name)?, path.clone(), false).await?;
    let mut response = match header.r#type.as_str() {
        "directory" => envelope::sync(&header.entries),
        "symlink" => download(
            &path,
            Some(header.target.len() as u64),
            Body::from(header.target.clone()),
        ),
        _ => {
            let bytes = stream.map(|answer| match answer?.message {
                Some(Got::Data(data)) => Ok(data),
                _ => Err(tonic::Status::internal("a second header in a file")),
            });
            // Files of /proc say 0 and have something to read all the same.
            let size = u64::try_from(header.size_bytes)
                .ok()
                .filter(|size| *size > 0);
            download(&path, size, Body::from_stream(bytes))
        }
    };
    describe(&mut response, &header);
    Ok(response)
}

fn download(path: &str, size: Option<u64>, body: Body) -> Response {
    let mut response = Response::new(body);
    set_header(&mut response, CONTENT_TYPE, "application/octet-stream");
    if let Some(size) = size {
        set_header(&mut response, CONTENT_LENGTH, &size.to_string());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    // A header holds no control characters; the name is only a hint.
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let disposition = format!("inline;filename={name}");
    set_header(&mut response, CONTENT_DISPOSITION, &disposition);
    response
}

/// The `X-LXD-*` headers. The mode has a leading 0, without which clients read it as decimal.
fn describe(response: &mut Response, header: &FileHeader) {
    let mut set = |name: &'static str, value: &str| {
        set_header(response, HeaderName::from_static(name), value);
    };
    set("x-lxd-uid", &header.uid.to_string());
    set("x-lxd-gid", &header.gid.to_string());
    set("x-lxd-mode", &format!("{:04o}", header.mode & 0o7777));
    set("x-lxd-type", &header.r#type);
    if let Ok(time) = DateTime::parse_from_rfc3339(&header.modify_time) {
        let time = time.with_timezone(&Utc);
        set(
            "x-lxd-modified",
            &time.format("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        );
    }
}

/// What the request's headers ask for.
#[derive(Debug)]
struct Wanted {
    kind: String,
    write: String,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let text = |name: &str| -> &str {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let number = |name: &str| match text(name) {
            "" => Ok(None),
            value => base0(value)
                .map(Some)
                .ok_or_else(|| Failure::bad_request(format!("{name}: {value:?} is no number"))),
        };
        let kind = match text("x-lxd-type") {
            "" => "file",
            kind @ ("file" | "directory" | "symlink") => kind,
            other => return Err(Failure::bad_request(format!("Bad file type: {other}"))),
        };
        let write = match text("x-lxd-write") {
            "" => "overwrite",
            write @ ("overwrite" | "append") => write,
            other => {
                return Err(Failure::bad_request(format!(
                    "Bad file write mode: {other}"
                )));
            }
        };
        Ok(Self {
            kind: kind.to_owned(),
            write: write.to_owned(),
            uid: number("x-lxd-uid")?,
            gid: number("x-lxd-gid")?,
            mode: number("x-lxd-mode")?,
        })
    }
}

/// A number as Go reads it with base 0: `0644` is octal, `644` decimal.
fn base0(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = if let Some(rest) = lower.strip_prefix("0x") {
        (rest, 16)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (rest, 8)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (rest, 2)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (&lower[1..], 8)
    } else {
        (lower.as_str(), 10)
    };
    u32::from_str_radix(digits, radix).ok()
}

async fn write(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let wanted = Wanted::of(&headers)?;
    let mut header = Header {
        name: resource(&query, &name)?,
        path: path(&query)?,
        r#type: wanted.kind.clone(),
        write: wanted.write,
        uid: wanted.uid,
        gid: wanted.gid,
        mode: wanted.mode,
        symlink_target: String::new(),
    };
    let url = format!("/1.0/instances/{name}/files");
    let context = serde_json::json!({"file-destination": header.path, "path": header.path});
    let contents = if wanted.kind == "file" {
        Some(body)
    } else {
        let text = axum::body::to_bytes(body, 64 << 10)
            .await
            .map_err(|e| Failure::bad_request(e.to_string()))?;
        if wanted.kind == "symlink" {
            header.symlink_target = String::from_utf8(text.to_vec())
                .map_err(|_| Failure::bad_request("the symlink's target is not UTF-8"))?;
        }
        None
    };
    let (sender, receiver) = mpsc::channel(4);
    let complete = Complete::default();
    let mut files = app.owners.file_upload(complete.clone());
    let feed = async move {
        let sent = feed(header, contents, &sender).await;
        if sent.is_ok() {
            complete.declare();
        }
        sent
    };
    let (fed, put) = tokio::join!(feed, files.put_file(ReceiverStream::new(receiver)));
    // The owner's complaint explains why feeding it ended early, and not the other way round.
    match (fed, put) {
        (Err(Failed::Client(failure)), _) => return Err(failure),
        (_, put) => put?,
    };
    app.events
        .lifecycle(&query.project, "instance-file-pushed", &url, Some(context));
    Ok(envelope::empty())
}

/// Why feeding an upload ended before its end.
enum Failed {
    /// The client went away or sent nonsense.
    Client(Failure),
    /// The owner takes no more; its answer says why.
    Owner,
}

async fn feed(
    header: Header,
    contents: Option<Body>,
    sender: &mpsc::Sender<PutFileRequest>,
) -> Result<(), Failed> {
    let send = |message| async move {
        let request = PutFileRequest {
            message: Some(message),
        };
        sender.send(request).await.map_err(|_| Failed::Owner)
    };
    send(Put::Header(header)).await?;
    let Some(body) = contents else { return Ok(()) };
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let mut chunk: Bytes = chunk.map_err(|error| {
            Failed::Client(Failure::bad_request(format!(
                "the upload broke off: {error}"
            )))
        })?;
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(CHUNK));
            send(Put::Data(part)).await?;
        }
    }
    Ok(())
}

async fn remove(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let path = path(&query)?;
    let request = DeleteFileRequest {
        name: resource(&query, &name)?,
        path: path.clone(),
    };
    app.owners.files().delete_file(request).await?;
    app.events.lifecycle(
        &query.project,
        "instance-file-deleted",
        &format!("/1.0/instances/{name}/files"),
        Some(serde_json::json!({"path": path})),
    );
    Ok(envelope::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_go_reads_them() {
        assert_eq!(base0("0644"), Some(0o644));
        assert_eq!(base0("644"), Some(644));
        assert_eq!(base0("0o755"), Some(0o755));
        assert_eq!(base0("0"), Some(0));
        assert_eq!(base0("x"), None);
    }
}
