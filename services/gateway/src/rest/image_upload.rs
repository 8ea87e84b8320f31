//! `POST /1.0/images`: takes an image's bytes as they come and hands them on. Nothing is kept here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::response::Response;
use berth_proto::image::import_image_request::{Chunk, Header, Message};
use berth_proto::types::blob_ref::Part;
use bytes::Bytes;
use futures::StreamExt;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use super::body;
use super::envelope::{self, Answer};
use super::query::{self, Query};
use crate::App;
use crate::app::images::{self, Upload};
use crate::error::Failure;

/// A split image's metadata up to this size waits for the name of the rootfs, which comes after it
/// and belongs into the header.
const MAX_WAITING: usize = 1 << 20;
/// Bytes that may come without a part beginning: the parser keeps them until one does.
const MAX_BETWEEN: u64 = 4 << 20;
/// Largest JSON request.
const MAX_JSON: usize = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Post {
    source: Source,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    r#type: String,
    mode: String,
}

/// Handler.
pub(super) async fn create(State(app): State<App>, query: Query, request: Request) -> Answer {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    if kind.starts_with("multipart/") {
        return split(&app, &query, request).await;
    }
    let headers = request.headers().clone();
    let mut stream = request.into_body().into_data_stream();
    let first = loop {
        match stream.next().await {
            Some(Ok(bytes)) if bytes.is_empty() => {}
            Some(Ok(bytes)) => break bytes,
            Some(Err(error)) => return Err(broken(error)),
            None => break Bytes::new(),
        }
    };
    // No archive begins with a brace, and clients do not all say that they send JSON.
    let json = kind.starts_with("application/json") || first.trim_ascii_start().starts_with(b"{");
    if json {
        let mut text = first.to_vec();
        while let Some(more) = stream.next().await {
            text.extend_from_slice(&more.map_err(broken)?);
            if text.len() > MAX_JSON {
                return Err(Failure::bad_request("the request's JSON is too large"));
            }
        }
        return by_name(&body::parse(&text)?);
    }
    let header = header(&headers, &query)?;
    let fingerprint = header.expected_fingerprint.clone();
    let upload = Upload::begin(&app);
    let feed = async {
        upload.send(Message::Header(header)).await;
        upload.send_chunk(Part::Unified, first).await;
        while let Some(bytes) = stream.next().await {
            upload
                .send_chunk(Part::Unified, bytes.map_err(broken)?)
                .await;
        }
        Ok(())
    };
    let fed = feed.await;
    finish(&app, &query, upload, fed, &fingerprint).await
}

async fn split(app: &App, query: &Query, request: Request) -> Answer {
    let headers = request.headers().clone();
    let mut header = header(&headers, query)?;
    header.split = true;
    let fingerprint = header.expected_fingerprint.clone();
    let (request, allowance) = bounded(request);
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|error| Failure::bad_request(error.body_text()))?;
    let upload = Upload::begin(app);
    let fed = feed_parts(&mut parts, &allowance, header, &upload).await;
    finish(app, query, upload, fed, &fingerprint).await
}

/// Bytes that may still be read; without bound while a part's contents pass through.
struct Allowance(Arc<AtomicU64>);

impl Allowance {
    /// The next part, whose beginning must come soon.
    async fn next<'p>(
        &self,
        parts: &'p mut Multipart,
    ) -> Result<Option<axum::extract::multipart::Field<'p>>, Failure> {
        self.0.store(MAX_BETWEEN, Ordering::Relaxed);
        let next = parts.next_field().await;
        self.0.store(u64::MAX, Ordering::Relaxed);
        next.map_err(|error| Failure::bad_request(error.body_text()))
    }
}

fn bounded(request: Request) -> (Request, Allowance) {
    let left = Arc::new(AtomicU64::new(MAX_BETWEEN));
    let allowance = Allowance(left.clone());
    let request = request.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |chunk| {
            let chunk = chunk?;
            let now = left.load(Ordering::Relaxed);
            let rest = now.checked_sub(chunk.len() as u64).ok_or_else(|| {
                axum::Error::new(std::io::Error::other("a part's header is too long"))
            })?;
            if now != u64::MAX {
                left.store(rest, Ordering::Relaxed);
            }
            Ok::<_, axum::Error>(chunk)
        }))
    });
    (request, allowance)
}

async fn feed_parts(
    parts: &mut Multipart,
    allowance: &Allowance,
    mut header: Header,
    upload: &Upload,
) -> Result<(), Failure> {
    let wrong =
        |error: axum::extract::multipart::MultipartError| Failure::bad_request(error.body_text());
    let mut metadata = allowance
        .next(parts)
        .await?
        .filter(|field| field.name() == Some("metadata"))
        .ok_or_else(|| Failure::bad_request("Invalid multipart image: \"metadata\" comes first"))?;
    let metadata_name = metadata.file_name().unwrap_or_default().to_owned();
    let mut waiting = Vec::new();
    let mut sent = None;
    while let Some(bytes) = metadata.chunk().await.map_err(wrong)? {
        if sent.is_none() && waiting.len() + bytes.len() > MAX_WAITING {
            if header.filename.is_empty() {
                header.filename.clone_from(&metadata_name);
            }
            upload.send(Message::Header(header.clone())).await;
            upload
                .send_chunk(Part::Metadata, std::mem::take(&mut waiting).into())
                .await;
            sent = Some(());
        }
        if sent.is_some() {
            upload.send_chunk(Part::Metadata, bytes).await;
        } else {
            waiting.extend_from_slice(&bytes);
        }
    }
    drop(metadata);
    let mut rootfs =
        parts.next_field().await.map_err(wrong)?.ok_or_else(|| {
            Failure::bad_request("Invalid multipart image: \"rootfs\" is missing")
        })?;
    match rootfs.name() {
        Some("rootfs") => {}
        Some("rootfs.img") => {
            return Err(Failure::unsupported("virtual-machine images (rootfs.img)"));
        }
        _ => return Err(Failure::bad_request("Invalid multipart image")),
    }
    if sent.is_none() {
        // LXD keeps the rootfs' name, whatever the client called the image.
        if let Some(name) = rootfs.file_name() {
            name.clone_into(&mut header.filename);
        }
        upload.send(Message::Header(header)).await;
        upload.send_chunk(Part::Metadata, waiting.into()).await;
    }
    while let Some(bytes) = rootfs.chunk().await.map_err(wrong)? {
        upload.send_chunk(Part::Rootfs, bytes).await;
    }
    drop(rootfs);
    match allowance.next(parts).await? {
        None => Ok(()),
        Some(_) => Err(Failure::bad_request(
            "Invalid multipart image: more than metadata and rootfs",
        )),
    }
}

/// The bytes are in, or will never be: an operation says what came of them.
async fn finish(
    app: &App,
    query: &Query,
    upload: Upload,
    fed: Result<(), Failure>,
    fingerprint: &str,
) -> Result<Response, Failure> {
    let imported = match fed {
        Ok(()) => upload.finish(fingerprint).await,
        Err(failure) => {
            upload.abort().await;
            Err(failure)
        }
    };
    let view = images::imported(app, &query.project, imported);
    Ok(envelope::operation(&view))
}

fn header(headers: &HeaderMap, query: &Query) -> Result<Header, Failure> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if !text("x-lxd-secret").is_empty() {
        return Err(Failure::unsupported("an upload with X-LXD-secret"));
    }
    let properties: HashMap<String, String> = query::pairs(text("x-lxd-properties"))?
        .into_iter()
        .collect();
    let mut profiles: Vec<String> = query::pairs(text("x-lxd-profiles"))?
        .into_iter()
        .filter(|(key, _)| key == "profile")
        .map(|(_, name)| name)
        .collect();
    if profiles.is_empty() {
        profiles.push("default".to_owned());
    }
    let public = matches!(
        text("x-lxd-public").to_ascii_lowercase().as_str(),
        "true" | "1" | "yes" | "on"
    );
    Ok(Header {
        parent: query.parent(),
        public,
        filename: text("x-lxd-filename").to_owned(),
        properties,
        profiles,
        expected_fingerprint: text("x-lxd-fingerprint").to_owned(),
        request_id: crate::app::request_id(),
        ..Header::default()
    })
}

/// Sources that name where to get an image instead of bringing it.
fn by_name(post: &Post) -> Answer {
    let source = &post.source;
    let what = match (source.r#type.as_str(), source.mode.as_str()) {
        ("instance" | "container" | "virtual-machine" | "snapshot", _) => {
            "making an image of an instance (source.type)"
        }
        ("url", _) => "downloading an image from a URL (source.type)",
        ("image", "push") | ("", "push") => "receiving an image by push (source.mode)",
        ("image", _) => "copying an image from another server (source.type)",
        _ => return Err(Failure::internal("Invalid images JSON")),
    };
    Err(Failure::unsupported(what))
}

fn broken(error: axum::Error) -> Failure {
    Failure::bad_request(format!("the image's bytes ended early: {error}"))
}

impl Upload {
    /// Bytes of a part, in pieces the image service takes.
    async fn send_chunk(&self, part: Part, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(images::CHUNK));
            self.send(Message::Chunk(Chunk {
                part: part.into(),
                data,
            }))
            .await;
        }
    }
}
