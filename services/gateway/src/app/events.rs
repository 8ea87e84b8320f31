//! The clients' event stream: one hub, any number of listeners.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

/// Events a slow listener may be behind before it is cut off: it would otherwise wait for an
/// operation's end that it never hears of.
const BACKLOG: usize = 8192;

/// Kinds of events, in LXD's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An operation changed.
    Operation,
    /// Something happened to a thing.
    Lifecycle,
    /// A line of the server's log.
    Logging,
}

impl Kind {
    /// As clients spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::Lifecycle => "lifecycle",
            Self::Logging => "logging",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Operation, Self::Lifecycle, Self::Logging]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// One event, rendered once for all listeners.
#[derive(Debug)]
pub struct Event {
    /// What it is about.
    pub kind: Kind,
    /// Empty = of no project; reaches every listener.
    pub project: String,
    /// The JSON text.
    pub text: String,
}

/// The hub. Clones share it.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
        }
    }
}

impl Events {
    /// Everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// Sends `metadata` as an event of `kind`.
    pub fn send(&self, kind: Kind, project: &str, metadata: Value) {
        // Nothing to render where nobody listens: this is on the path of every launch.
        if self.sender.receiver_count() == 0 {
            return;
        }
        let mut event = Map::new();
        event.insert("type".into(), kind.name().into());
        event.insert("timestamp".into(), crate::app::time::now().into());
        event.insert("metadata".into(), metadata);
        event.insert("location".into(), "none".into());
        if !project.is_empty() {
            event.insert("project".into(), project.into());
        }
        // An error only says that the last listener left meanwhile.
        let _ = self.sender.send(Arc::new(Event {
            kind,
            project: project.to_owned(),
            text: Value::Object(event).to_string(),
        }));
    }

    /// A lifecycle event: `source` is the thing's URL.
    pub fn lifecycle(&self, project: &str, action: &str, source: &str, context: Option<Value>) {
        let mut metadata = Map::new();
        metadata.insert("action".into(), action.into());
        metadata.insert("source".into(), source.into());
        if let Some(context) = context {
            metadata.insert("context".into(), context);
        }
        metadata.insert(
            "requestor".into(),
            json!({"username": "root", "protocol": "unix", "address": "@"}),
        );
        self.send(Kind::Lifecycle, project, Value::Object(metadata));
    }

    /// A line of the log of what this server does; LXD's clients decode `context` as strings only.
    pub fn log(&self, level: &str, message: &str, context: Map<String, Value>) {
        self.send(
            Kind::Logging,
            "",
            json!({"message": message, "level": level, "context": context}),
        );
    }
}
