//! A client of the REST API over an in-memory connection: requests, operations, websockets.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use berth_gateway::App;
use berth_gateway::rest::router::router;
use berth_proto::instance::{Device, Profile};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tower::ServiceExt;

use crate::fakes::Fakes;

/// A websocket to the gateway.
pub type Socket = WebSocketStream<DuplexStream>;

#[derive(Clone)]
pub struct Client {
    router: axum::Router,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// Null where the body is no JSON.
    pub json: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    pub fn over(app: &App) -> Self {
        Self {
            router: router(app.clone()),
        }
    }

    /// A pool, a bridge, the default profile on both, and an image called `bb`.
    pub async fn arrange(&self, fakes: &Fakes) {
        let device = |options: &[(&str, &str)]| Device {
            options: options
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        };
        let fingerprint = fakes.image.put(b"IMAGE bb");
        let name = "projects/default/profiles/default".to_owned();
        let profile = Profile {
            name: name.clone(),
            devices: [
                (
                    "root".to_owned(),
                    device(&[("type", "disk"), ("path", "/"), ("pool", "default")]),
                ),
                (
                    "eth0".to_owned(),
                    device(&[("type", "nic"), ("network", "br0"), ("name", "eth0")]),
                ),
            ]
            .into(),
            ..Profile::default()
        };
        fakes.instance.0.lock().profiles.insert(name, profile);
        let made = self
            .send(
                "POST",
                "/1.0/storage-pools",
                json!({"name": "default", "driver": "dir"}),
            )
            .await;
        assert_eq!(made.status, 201, "{}", made.text);
        let made = self
            .send(
                "POST",
                "/1.0/networks",
                json!({"name": "br0", "type": "bridge"}),
            )
            .await;
        assert_eq!(made.status, 201, "{}", made.text);
        let alias = json!({"name": "bb", "target": fingerprint});
        let made = self.send("POST", "/1.0/images/aliases", alias).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }

    /// A stopped instance of the image.
    pub async fn create(&self, name: &str) {
        let body = json!({"name": name, "source": {"type": "image", "alias": "bb"}});
        self.done("POST", "/1.0/instances", body).await;
    }

    async fn request(&self, request: Request) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    /// A body as it is.
    pub async fn raw(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost:None")
            .body(Body::from(body.to_owned()))
            .unwrap();
        self.request(request).await
    }

    /// A JSON body, or none for null.
    pub async fn send(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.raw(method, path, &body).await
    }

    /// With If-Match.
    pub async fn send_if(&self, method: &str, path: &str, tag: String, body: Value) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("If-Match", tag)
            .body(Body::from(body.to_string()))
            .unwrap();
        self.request(request).await
    }

    /// With headers.
    pub async fn upload(
        &self,
        path: String,
        headers: Vec<(String, String)>,
        body: String,
    ) -> Answer {
        let mut request = Request::builder().method("POST").uri(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        self.request(request.body(Body::from(body)).unwrap()).await
    }

    /// The metadata of a GET that must work.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.send("GET", path, Value::Null).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json["metadata"].clone()
    }

    /// Begins an operation and gives it as it ended.
    pub async fn run(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.send(method, path, body).await;
        assert_eq!(answer.status, 202, "{method} {path}: {}", answer.text);
        let url = answer.json["operation"].as_str().unwrap().to_owned();
        self.get(&format!("{url}/wait?timeout=10")).await
    }

    /// The same for one that must work.
    pub async fn done(&self, method: &str, path: &str, body: Value) {
        let operation = self.run(method, path, body).await;
        assert_eq!(
            operation["status_code"], 200,
            "{method} {path}: {operation}"
        );
    }

    /// Waits until no operation runs.
    pub async fn settled(&self) {
        for _ in 0..500 {
            let all = self.get("/1.0/operations").await;
            if all.get("running").is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("operations keep running");
    }

    /// A websocket, over a connection of its own.
    pub async fn websocket(&self, path: &str) -> Socket {
        let (near, far) = tokio::io::duplex(1 << 16);
        let service = TowerToHyperService::new(self.router.clone());
        tokio::spawn(async move {
            let builder =
                hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            // The test ends it by dropping its side.
            let _ = builder
                .serve_connection_with_upgrades(TokioIo::new(far), service)
                .await;
        });
        let request = format!("ws://localhost{path}")
            .into_client_request()
            .unwrap();
        tokio_tungstenite::client_async(request, near)
            .await
            .unwrap()
            .0
    }
}
