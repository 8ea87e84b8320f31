//! The seven-key envelope, in LXD's order, and the answers that carry it.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, ETAG, LOCATION};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::app::operations::View;
use crate::error::Failure;

/// What handlers return.
pub type Answer = Result<Response, Failure>;

/// Every key is always there; clients decode into fixed structs.
#[derive(Debug, Serialize)]
struct Envelope<'a, T: Serialize> {
    r#type: &'a str,
    status: &'a str,
    status_code: u16,
    operation: &'a str,
    error_code: u16,
    error: &'a str,
    metadata: T,
}

fn render<T: Serialize>(status: StatusCode, envelope: &Envelope<'_, T>) -> Response {
    let mut body = match serde_json::to_vec(envelope) {
        Ok(body) => body,
        Err(error) => {
            // Only maps with keys that are no strings fail, and there are none.
            tracing::error!(%error, "an answer could not be rendered");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    body.push(b'\n');
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn envelope<T: Serialize>(metadata: T) -> Envelope<'static, T> {
    Envelope {
        r#type: "sync",
        status: "Success",
        status_code: 200,
        operation: "",
        error_code: 0,
        error: "",
        metadata,
    }
}

/// 200 with `metadata`.
pub fn sync(metadata: impl Serialize) -> Response {
    render(StatusCode::OK, &envelope(metadata))
}

/// 200 with `metadata` and the ETag of its writable part (64 hex, unquoted here).
pub fn sync_etag(metadata: impl Serialize, etag: &str) -> Response {
    let mut response = sync(metadata);
    if let Ok(value) = HeaderValue::try_from(format!("\"{etag}\"")) {
        response.headers_mut().insert(ETAG, value);
    }
    response
}

/// 200 with `{}`: done, and nothing to tell.
pub fn empty() -> Response {
    sync(Map::<String, Value>::new())
}

/// 201 with the new thing's URL.
pub fn created(location: &str) -> Response {
    let mut response = render(StatusCode::CREATED, &envelope(Value::Null));
    set_header(&mut response, LOCATION, location);
    response
}

/// 202 with an operation that runs.
pub fn operation(view: &View) -> Response {
    let url = format!("/1.0/operations/{}", view.id);
    let mut response = render(
        StatusCode::ACCEPTED,
        &Envelope {
            r#type: "async",
            status: "Operation created",
            status_code: 100,
            operation: &url,
            error_code: 0,
            error: "",
            metadata: view,
        },
    );
    set_header(&mut response, LOCATION, &url);
    response
}

/// Sets a header whose value was made of a checked name.
pub fn set_header(response: &mut Response, name: HeaderName, value: &str) {
    match HeaderValue::try_from(value) {
        Ok(value) => {
            response.headers_mut().insert(name, value);
        }
        Err(error) => tracing::warn!(%error, %name, "a header's value cannot be sent"),
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = render(
            self.status,
            &Envelope {
                r#type: "error",
                status: "",
                status_code: 0,
                operation: "",
                error_code: self.status.as_u16(),
                error: &self.message,
                metadata: Value::Null,
            },
        );
        response.headers_mut().insert(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        );
        response
    }
}
