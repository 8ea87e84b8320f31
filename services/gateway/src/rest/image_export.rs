//! `GET /1.0/images/{fingerprint}/export`: an image's bytes, as they come from the image service.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use berth_proto::image::export_image_response::{Message, PartHeader};
use berth_proto::image::{ExportImageRequest, ExportImageResponse};
use berth_proto::types::blob_ref::Part;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};

use super::envelope::{Answer, set_header};
use super::images;
use super::query::Query;
use crate::App;
use crate::error::Failure;

/// Handler.
pub(super) async fn export(
    State(app): State<App>,
    Path(fingerprint): Path<String>,
    query: Query,
) -> Answer {
    if !query.get("secret").is_empty() {
        return Err(Failure::unsupported("an image's secret"));
    }
    let image = images::read(&app, &query, &fingerprint).await?;
    let mut stream = app
        .owners
        .images()
        .export_image(ExportImageRequest { name: image.name })
        .await?
        .into_inner();
    let first = match stream.message().await?.and_then(|answer| answer.message) {
        Some(Message::Part(part)) => part,
        _ => return Err(Failure::internal("the image service sent no image")),
    };
    Ok(if first.part() == Part::Unified {
        whole(&first, stream)
    } else {
        parts(first, stream)
    })
}

/// A unified image is the body itself.
fn whole(
    part: &PartHeader,
    stream: impl Stream<Item = Result<ExportImageResponse, tonic::Status>> + Send + 'static,
) -> Response {
    let body = stream.map(|answer| match answer?.message {
        Some(Message::Data(data)) => Ok(data),
        _ => Err(tonic::Status::internal("a second part in a unified image")),
    });
    let mut response = Response::new(Body::from_stream(body));
    set_header(&mut response, CONTENT_TYPE, "application/octet-stream");
    set_header(&mut response, CONTENT_LENGTH, &part.size_bytes.to_string());
    let disposition = format!("inline;filename={}", part.filename);
    set_header(&mut response, CONTENT_DISPOSITION, &disposition);
    response
}

/// A split image is `metadata` and `rootfs`, one after the other.
fn parts(
    first: PartHeader,
    stream: impl Stream<Item = Result<ExportImageResponse, tonic::Status>> + Send + 'static,
) -> Response {
    let boundary = hex::encode(rand::random::<[u8; 30]>());
    let opening = {
        let boundary = boundary.clone();
        move |part: &PartHeader, begin: &str| {
            let name = if part.part() == Part::Metadata {
                "metadata"
            } else {
                "rootfs"
            };
            Bytes::from(format!(
                "{begin}--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; \
                 filename=\"{}\"\r\nContent-Type: application/octet-stream\r\n\r\n",
                part.filename.replace(['"', '\r', '\n'], "_")
            ))
        }
    };
    let head = opening(&first, "");
    let rest = stream.map_ok(move |answer| match answer.message {
        Some(Message::Part(part)) => opening(&part, "\r\n"),
        Some(Message::Data(data)) => data,
        None => Bytes::new(),
    });
    let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let body = futures::stream::once(async { Ok(head) })
        .chain(rest)
        .chain(futures::stream::once(async { Ok(tail) }));
    let mut response = Response::new(Body::from_stream(body));
    let kind = format!("multipart/form-data; boundary={boundary}");
    set_header(&mut response, CONTENT_TYPE, &kind);
    response
}
