//! The REST client for tests that do not themselves run on an executor.

use std::path::Path;

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::runtime::Runtime;
use xtask::rest::{ApiError, Client, Exec, Reply};

/// Each request takes a connection of its own, since scenarios restart servers.
pub struct Rest {
    runtime: Runtime,
    client: Client,
}

impl Rest {
    pub fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
            client: Client::new(socket),
        }
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Value {
        match self.runtime.block_on(self.client.reconnect().get(path)) {
            Ok(metadata) => metadata,
            Err(error) => panic!("{error:#}"),
        }
    }

    pub fn try_get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.runtime.block_on(self.client.reconnect().get(path))
    }

    /// A change that must succeed; operations are waited for.
    #[track_caller]
    pub fn change(&mut self, method: Method, path: &str, body: Value) -> Value {
        match self.try_change(method, path, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{error:#}"),
        }
    }

    pub fn try_change(&mut self, method: Method, path: &str, body: Value) -> anyhow::Result<Value> {
        let body = (!body.is_null()).then_some(body);
        self.runtime
            .block_on(self.client.reconnect().change(method, path, body))
    }

    /// Starts an operation and returns its path without waiting.
    #[track_caller]
    pub fn begin(&mut self, method: Method, path: &str, body: Value) -> String {
        match self
            .runtime
            .block_on(self.client.reconnect().envelope(method, path, Some(body)))
        {
            Ok(envelope) => envelope["operation"].as_str().unwrap().to_owned(),
            Err(error) => panic!("{error:#}"),
        }
    }

    /// A change that the server must refuse, at once or as a failed operation.
    #[track_caller]
    pub fn refused(&mut self, method: Method, path: &str, body: Value) -> ApiError {
        match self.try_change(method.clone(), path, body) {
            Ok(answer) => panic!("{method} {path} was accepted: {answer}"),
            Err(error) => match error.downcast_ref::<ApiError>() {
                Some(refusal) => refusal.clone(),
                None => panic!("{method} {path}: no error envelope but {error:#}"),
            },
        }
    }

    #[track_caller]
    pub fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        match self.runtime.block_on(self.client.reconnect().send(
            method,
            path,
            headers,
            body.into(),
        )) {
            Ok(reply) => reply,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Uploads raw bytes as an image; the fingerprint, or the server's refusal.
    pub fn upload(&mut self, bytes: Vec<u8>) -> anyhow::Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), bytes)?;
        self.runtime
            .block_on(self.client.reconnect().upload_image(file.path()))
    }

    #[track_caller]
    pub fn exec(&mut self, instance: &str, command: &[&str]) -> Exec {
        match self
            .runtime
            .block_on(self.client.reconnect().exec(instance, command))
        {
            Ok(done) => done,
            Err(error) => panic!("{command:?} in {instance}: {error:#}"),
        }
    }

    /// Standard output of a command that must succeed, its last newline removed.
    #[track_caller]
    pub fn output(&mut self, instance: &str, command: &[&str]) -> String {
        let done = self.exec(instance, command);
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.code, 0, "{command:?} in {instance}: {stderr}");
        String::from_utf8_lossy(&done.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }
}
