//! A client of the REST API, without a socket.

#![allow(unreachable_pub)]

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use berth_gateway::{App, rest};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::bed::Bed;

/// A gateway and the owners behind it.
pub struct Client {
    pub bed: Bed,
    pub app: App,
}

/// An answer.
#[derive(Debug)]
pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Got {
    /// The envelope.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn metadata(&self) -> Value {
        self.json()["metadata"].clone()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Fails unless it is this error with this sentence, in LXD's envelope.
    pub fn refused(&self, status: u16, message: &str) {
        let text = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status.as_u16(), status, "{text}");
        let expected = format!(
            "{{\"type\":\"error\",\"status\":\"\",\"status_code\":0,\"operation\":\"\",\
             \"error_code\":{status},\"error\":{},\"metadata\":null}}\n",
            Value::from(message)
        );
        assert_eq!(text, expected);
        assert_eq!(self.header("x-content-type-options"), "nosniff");
    }

    /// 200 and `{}`.
    pub fn done(&self) {
        let text = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status, 200, "{text}");
        assert_eq!(
            text,
            "{\"type\":\"sync\",\"status\":\"Success\",\"status_code\":200,\"operation\":\"\",\
             \"error_code\":0,\"error\":\"\",\"metadata\":{}}\n"
        );
    }

    /// 201, null, and where.
    pub fn created(&self, location: &str) {
        let text = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status, 201, "{text}");
        assert_eq!(
            text,
            "{\"type\":\"sync\",\"status\":\"Success\",\"status_code\":200,\"operation\":\"\",\
             \"error_code\":0,\"error\":\"\",\"metadata\":null}\n"
        );
        assert_eq!(self.header("location"), location);
    }
}

impl Client {
    pub async fn new() -> Self {
        let bed = Bed::new();
        let app = bed.begin().await;
        Self { bed, app }
    }

    /// Over the same owners and database, as after a restart of the gateway.
    pub async fn restarted(self) -> Self {
        let Self { bed, app } = self;
        bed.kill(app).await;
        let app = bed.begin().await;
        Self { bed, app }
    }

    pub async fn send(&self, request: Request<Body>) -> Got {
        let response: Response = rest::router::router(self.app.clone())
            .oneshot(request)
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        Got {
            status: parts.status,
            headers: parts.headers,
            bytes: body.collect().await.unwrap().to_bytes().to_vec(),
        }
    }

    pub async fn get(&self, path: &str) -> Got {
        self.call("GET", path, "").await
    }

    /// With a JSON body.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Got {
        self.call_if(method, path, body, None).await
    }

    /// With If-Match.
    pub async fn call_if(&self, method: &str, path: &str, body: &str, etag: Option<&str>) -> Got {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap())
            .await
    }

    /// The operation that an answer names, at its end.
    pub async fn end_of(&self, started: &Got) -> Value {
        let text = String::from_utf8_lossy(&started.bytes);
        assert_eq!(started.status, 202, "{text}");
        let json = started.json();
        assert_eq!(json["type"], "async");
        assert_eq!(json["status_code"], 100);
        assert_eq!(
            started.header("location"),
            json["operation"].as_str().unwrap()
        );
        let path = format!("{}/wait?timeout=10", json["operation"].as_str().unwrap());
        let wait = tokio::time::timeout(Duration::from_secs(15), self.get(&path));
        wait.await.expect("an end").metadata()
    }
}
