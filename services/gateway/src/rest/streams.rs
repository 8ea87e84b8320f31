//! The websockets that clients attach to an exec or a console: secrets, arrival, control messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::WebSocket;
use rand::RngCore;
use serde::Deserialize;
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;

use crate::app::operations::Sockets;
use crate::error::Failure;

/// How long clients have to attach what is required.
pub(super) const ATTACH: Duration = Duration::from_secs(5);

/// How often a silent client is asked whether it is there.
pub(super) const PING: Duration = Duration::from_secs(10);

/// Streams of one operation: name → secret.
#[derive(Debug)]
pub(super) struct Streams {
    secrets: BTreeMap<&'static str, String>,
    /// Streams whose secret has done its work: it opens one socket.
    used: Mutex<BTreeSet<String>>,
    arrived: mpsc::UnboundedSender<(String, WebSocket)>,
}

/// Where the sockets arrive.
pub(super) type Arrivals = mpsc::UnboundedReceiver<(String, WebSocket)>;

impl Streams {
    /// One secret of 32 random bytes for each name.
    pub(super) fn new(names: &[&'static str]) -> (Self, Arrivals) {
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let secrets = names
            .iter()
            .map(|name| {
                let mut bytes = [0_u8; 32];
                rand::rng().fill_bytes(&mut bytes);
                (*name, hex::encode(bytes))
            })
            .collect();
        let used = Mutex::default();
        (
            Self {
                secrets,
                used,
                arrived,
            },
            arrivals,
        )
    }

    /// False when its secret was used before.
    fn claim(&self, stream: &str) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(stream.to_owned())
    }

    /// The `fds` of the operation's metadata; keys are strings.
    pub(super) fn fds(&self) -> Map<String, Value> {
        self.secrets
            .iter()
            .map(|(name, secret)| ((*name).to_owned(), secret.clone().into()))
            .collect()
    }
}

impl Sockets for Streams {
    fn stream(&self, secret: &str) -> Option<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.secrets
            .iter()
            .find(|(_, known)| bool::from(known.as_bytes().ct_eq(secret.as_bytes())))
            .map(|(name, _)| (*name).to_owned())
            .filter(|name| !used.contains(name))
    }

    fn attach(&self, stream: &str, socket: WebSocket) {
        if !self.claim(stream) {
            return;
        }
        // Where nobody waits any more the operation has ended, and the socket closes by itself.
        let _ = self.arrived.send((stream.to_owned(), socket));
    }
}

/// Waits until every stream of `required` is attached; others that came are there as well.
pub(super) async fn collect(
    arrivals: &mut Arrivals,
    required: &[&str],
) -> Result<HashMap<String, WebSocket>, Failure> {
    let mut sockets = HashMap::new();
    let all = async {
        while !required.iter().all(|name| sockets.contains_key(*name)) {
            match arrivals.recv().await {
                Some((name, socket)) => {
                    sockets.entry(name).or_insert(socket);
                }
                None => return Err(Failure::internal("Operation isn't running")),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(ATTACH, all).await {
        Ok(result) => result.map(|()| sockets),
        Err(_) => Err(Failure::bad_request(
            "Timed out waiting for websockets to connect",
        )),
    }
}

/// What clients say on the control stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Columns and rows.
    Resize(i32, i32),
    /// Signal number.
    Signal(i32),
}

impl Control {
    /// Reads a control message; what it does not know is `None`, as LXD ignores it.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Message {
            command: String,
            #[serde(default)]
            args: Option<HashMap<String, Value>>,
            #[serde(default)]
            signal: Option<i32>,
        }
        let message: Message = serde_json::from_slice(text).ok()?;
        match message.command.as_str() {
            "window-resize" => {
                let args = message.args?;
                let number = |key: &str| {
                    let value = args.get(key)?;
                    let n = match value {
                        Value::String(s) => s.parse().ok()?,
                        other => other.as_i64()?,
                    };
                    i32::try_from(n)
                        .ok()
                        .filter(|n: &i32| (1..=65_535).contains(n))
                };
                Some(Self::Resize(number("width")?, number("height")?))
            }
            "signal" => message.signal.map(Self::Signal),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_come_as_lxc_sends_them() {
        assert_eq!(
            Control::parse(
                br#"{"command":"window-resize","args":{"width":"80","height":"24"},"signal":0}"#
            ),
            Some(Control::Resize(80, 24))
        );
        assert_eq!(
            Control::parse(br#"{"command":"signal","signal":15,"args":null}"#),
            Some(Control::Signal(15))
        );
        assert_eq!(Control::parse(br#"{"command":"other"}"#), None);
        assert_eq!(Control::parse(b"nonsense"), None);
    }

    #[test]
    fn only_the_secret_opens_its_stream() {
        let (streams, _arrivals) = Streams::new(&["0", "control"]);
        let fds = streams.fds();
        let secret = fds["0"].as_str().unwrap();
        assert_eq!(secret.len(), 64);
        assert_eq!(streams.stream(secret).as_deref(), Some("0"));
        assert_eq!(streams.stream(&secret[1..]), None);
        assert_eq!(streams.stream(""), None);
        // Once.
        assert!(streams.claim("0"));
        assert!(!streams.claim("0"));
        assert_eq!(streams.stream(secret), None);
        assert!(streams.stream(fds["control"].as_str().unwrap()).is_some());
    }
}
