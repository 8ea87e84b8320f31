//! Operations as clients see them, durable (sagas) and live (websockets and what dies with us).

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::events::{Events, Kind};
use crate::app::time;
use crate::error::Failure;

/// How long a finished operation stays readable; LXD's clients read it again after its final event.
pub const KEEP_FINISHED: Duration = Duration::from_secs(30);

/// What kind of operation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Work.
    Task,
    /// Work that clients attach streams to.
    Websocket,
    /// A secret to be redeemed.
    Token,
}

/// LXD's status codes, as far as operations have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, not started.
    Pending,
    /// Under way.
    Running,
    /// Being undone on request.
    Cancelling,
    /// Done.
    Success,
    /// Not done; `err` says why.
    Failure,
    /// Undone on request.
    Cancelled,
}

impl Status {
    /// The number clients compare.
    pub fn code(self) -> u16 {
        match self {
            Self::Pending => 105,
            Self::Running => 103,
            Self::Cancelling => 104,
            Self::Success => 200,
            Self::Failure => 400,
            Self::Cancelled => 401,
        }
    }

    /// The word clients show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Cancelling => "Cancelling",
            Self::Success => "Success",
            Self::Failure => "Failure",
            Self::Cancelled => "Cancelled",
        }
    }

    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        self.code() >= 200
    }
}

/// Resources an operation works on: kind → URLs.
pub type Resources = BTreeMap<String, Vec<String>>;

/// An operation as the API renders it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// UUID.
    pub id: String,
    /// Task, websocket or token.
    pub class: Class,
    /// A few words, e.g. `Creating instance`.
    pub description: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; moves with the metadata.
    pub updated_at: String,
    /// Word for the code.
    pub status: &'static str,
    /// See [`Status::code`].
    pub status_code: u16,
    /// `null` where there are none, as LXD has it.
    pub resources: Option<Resources>,
    /// `null` until something is known.
    pub metadata: Option<Map<String, Value>>,
    /// Whether DELETE works.
    pub may_cancel: bool,
    /// Sentence of the failure.
    pub err: String,
    /// Always `none`: not clustered.
    pub location: &'static str,
    /// Not shown; events carry it.
    #[serde(skip)]
    pub project: String,
    #[serde(skip)]
    state: Status,
}

impl View {
    /// The status as a type.
    pub fn state(&self) -> Status {
        self.state
    }

    fn set(&mut self, state: Status) {
        self.state = state;
        self.status = state.name();
        self.status_code = state.code();
    }
}

/// What a new operation says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// Task, websocket or token.
    pub class: Class,
    /// A few words.
    pub description: String,
    /// Project of the request.
    pub project: String,
    /// What it works on.
    pub resources: Resources,
    /// Known from the start.
    pub metadata: Option<Map<String, Value>>,
    /// Whether it may be cancelled.
    pub may_cancel: bool,
}

impl About {
    /// A task in a project.
    pub fn task(description: &str, project: &str) -> Self {
        Self {
            class: Class::Task,
            description: description.to_owned(),
            project: project.to_owned(),
            resources: Resources::new(),
            metadata: None,
            may_cancel: false,
        }
    }

    /// Names a resource: kind `instances` and name `c1` become `/1.0/instances/c1`.
    #[must_use]
    pub fn on(mut self, kind: &str, name: &str) -> Self {
        self.resources
            .entry(kind.to_owned())
            .or_default()
            .push(format!("/1.0/{kind}/{}", berth_rpc::names::encode_segment(name)));
        self
    }

    /// Names a container the two ways 5.0.2 does.
    #[must_use]
    pub fn on_container(self, name: &str) -> Self {
        self.on("containers", name).on("instances", name)
    }
}

/// Streams that clients attach to a websocket operation.
pub trait Sockets: Send + Sync + std::fmt::Debug {
    /// Whether `secret` opens one of its streams; gives the stream's name (`0`, `1`, `control`).
    fn stream(&self, secret: &str) -> Option<String>;
    /// Takes a client's socket for a stream.
    fn attach(&self, stream: &str, socket: axum::extract::ws::WebSocket);
}

#[derive(Debug)]
struct Entry {
    view: Mutex<View>,
    changed: watch::Sender<u64>,
    cancel: CancellationToken,
    sockets: Option<Arc<dyn Sockets>>,
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, View> {
        // A panic while it was held left a whole view: every update is one assignment.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's side of an operation.
#[derive(Debug, Clone)]
pub struct Handle {
    entry: Arc<Entry>,
    operations: Operations,
}

impl Handle {
    /// UUID.
    pub fn id(&self) -> String {
        self.entry.lock().id.clone()
    }

    /// The view as it is.
    pub fn view(&self) -> View {
        self.entry.lock().clone()
    }

    /// Changes the metadata and tells listeners. Nothing after the end.
    pub fn update(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        self.change(|view| change(view.metadata.get_or_insert_default()), true);
    }

    /// Ends it; the first end counts.
    pub fn finish(&self, result: Result<(), String>) {
        self.change(
            |view| match result {
                Ok(()) => view.set(Status::Success),
                Err(sentence) if view.state == Status::Cancelling => {
                    view.set(Status::Cancelled);
                    view.err = sentence;
                }
                Err(sentence) => {
                    view.set(Status::Failure);
                    view.err = sentence;
                }
            },
            false,
        );
        self.operations.forget_later(self.id());
    }

    /// Fires when the client cancels.
    pub fn cancelled(&self) -> CancellationToken {
        self.entry.cancel.clone()
    }

    /// Marks it as running.
    pub fn started(&self) {
        self.change(|view| view.set(Status::Running), false);
    }

    fn change(&self, change: impl FnOnce(&mut View), touches: bool) {
        let mut view = self.entry.lock();
        if view.state.is_final() {
            return;
        }
        change(&mut view);
        if touches {
            view.updated_at = time::now();
        }
        // Sent under the lock: the final event must follow the last update.
        self.operations.announce(&view);
        drop(view);
        self.entry.changed.send_modify(|n| *n += 1);
    }
}

/// All operations of this server. Clones share them.
#[derive(Debug, Clone)]
pub struct Operations {
    entries: Arc<Mutex<HashMap<String, Arc<Entry>>>>,
    events: Events,
}

impl Operations {
    /// None yet.
    pub fn new(events: Events) -> Self {
        Self {
            entries: Arc::default(),
            events,
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, view: &View) {
        match serde_json::to_value(view) {
            Ok(metadata) => self.events.send(Kind::Operation, &view.project, metadata),
            Err(error) => tracing::error!(%error, "an operation could not be rendered"),
        }
    }

    /// Makes a pending operation under a new id.
    pub fn open(&self, about: About, sockets: Option<Arc<dyn Sockets>>) -> Handle {
        self.open_as(uuid::Uuid::now_v7().to_string(), about, sockets)
    }

    /// Makes a pending operation under an id that is already written down.
    pub fn open_as(&self, id: String, about: About, sockets: Option<Arc<dyn Sockets>>) -> Handle {
        let now = time::now();
        let entry = Arc::new(Entry {
            view: Mutex::new(View {
                id: id.clone(),
                class: about.class,
                description: about.description,
                created_at: now.clone(),
                updated_at: now,
                status: Status::Pending.name(),
                status_code: Status::Pending.code(),
                resources: (!about.resources.is_empty()).then_some(about.resources),
                metadata: about.metadata,
                may_cancel: about.may_cancel,
                err: String::new(),
                location: "none",
                project: about.project,
                state: Status::Pending,
            }),
            changed: watch::channel(0).0,
            cancel: CancellationToken::new(),
            sockets,
        });
        self.entries().insert(id, entry.clone());
        let handle = Handle {
            entry,
            operations: self.clone(),
        };
        self.announce(&handle.entry.lock());
        handle
    }

    /// Runs work that dies with this process, and gives the operation as it runs.
    pub fn spawn<F, Fut>(&self, about: About, work: F) -> View
    where
        F: FnOnce(Handle) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.spawn_with(about, None, work)
    }

    /// The same with streams to attach to.
    pub fn spawn_with<F, Fut>(
        &self,
        about: About,
        sockets: Option<Arc<dyn Sockets>>,
        work: F,
    ) -> View
    where
        F: FnOnce(Handle) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handle = self.open(about, sockets);
        handle.started();
        let view = handle.view();
        let future = work(handle.clone());
        tokio::spawn(async move {
            // A panic must end the operation too, or its clients wait for ever.
            let result = tokio::spawn(future).await.unwrap_or_else(|error| {
                tracing::error!(%error, "an operation's work panicked");
                Err(Failure::internal("internal error"))
            });
            handle.finish(result.map_err(|failure| failure.message));
        });
        view
    }

    /// One operation.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, id: &str) -> Result<View, Failure> {
        Ok(self.entry(id)?.lock().clone())
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Failure> {
        self.entries()
            .get(id)
            .cloned()
            .ok_or_else(|| Failure::not_found("Operation not found"))
    }

    /// All operations, oldest first.
    pub fn list(&self) -> Vec<View> {
        let entries: Vec<_> = self.entries().values().cloned().collect();
        let mut views: Vec<View> = entries.iter().map(|e| e.lock().clone()).collect();
        views.sort_by(|a, b| a.created_at.cmp(&b.created_at));
        views
    }

    /// Waits for the end; after `timeout` (none = for ever) gives it as it is then.
    ///
    /// # Errors
    /// 404.
    pub async fn wait(&self, id: &str, timeout: Option<Duration>) -> Result<View, Failure> {
        let entry = self.entry(id)?;
        let mut changed = entry.changed.subscribe();
        let end = async {
            loop {
                changed.borrow_and_update();
                if entry.lock().state.is_final() {
                    return;
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        match timeout {
            None => end.await,
            // Running out of time is an answer here, not an error.
            Some(limit) => drop(tokio::time::timeout(limit, end).await),
        }
        Ok(entry.lock().clone())
    }

    /// Changes of one operation as they come: the number grows with each.
    ///
    /// # Errors
    /// 404.
    pub fn watch(&self, id: &str) -> Result<watch::Receiver<u64>, Failure> {
        Ok(self.entry(id)?.changed.subscribe())
    }

    /// Asks a running operation to stop.
    ///
    /// # Errors
    /// 404, or 400 where it can't be cancelled.
    pub fn cancel(&self, id: &str) -> Result<(), Failure> {
        let entry = self.entry(id)?;
        let handle = Handle {
            entry: entry.clone(),
            operations: self.clone(),
        };
        let token = {
            let view = entry.lock();
            if view.state.is_final() {
                return Err(Failure::bad_request(
                    "Only running operations can be cancelled",
                ));
            }
            if !view.may_cancel && view.class != Class::Token {
                return Err(Failure::bad_request("This operation can't be cancelled"));
            }
            view.class == Class::Token
        };
        handle.change(|view| view.set(Status::Cancelling), false);
        entry.cancel.cancel();
        if token {
            handle.finish(Err(String::new()));
        }
        Ok(())
    }

    /// The streams of a websocket operation that runs.
    ///
    /// # Errors
    /// 404, or 400 where it has none or ended.
    pub fn sockets(&self, id: &str) -> Result<Arc<dyn Sockets>, Failure> {
        let entry = self.entry(id)?;
        if entry.lock().state.is_final() {
            return Err(Failure::bad_request("Operation isn't running"));
        }
        entry
            .sockets
            .clone()
            .ok_or_else(|| Failure::bad_request("Only websocket operations can be connected"))
    }

    fn forget_later(&self, id: String) {
        let entries = Arc::downgrade(&self.entries);
        tokio::spawn(async move {
            tokio::time::sleep(KEEP_FINISHED).await;
            if let Some(entries) = entries.upgrade() {
                entries
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_final_event_follows_the_last_update() {
        let events = Events::default();
        let mut listener = events.subscribe();
        let operations = Operations::new(events);
        let view = operations.spawn(
            About::task("Creating instance", "default").on_container("c1"),
            |handle| async move {
                handle.update(|m| {
                    m.insert("progress".into(), "1".into());
                });
                Ok(())
            },
        );
        assert_eq!(view.status_code, 103);
        assert_eq!(
            view.resources.as_ref().unwrap()["instances"],
            ["/1.0/instances/c1"]
        );
        let done = operations.wait(&view.id, None).await.unwrap();
        assert_eq!(done.status_code, 200);
        let codes: Vec<u64> = (0..4)
            .map(|_| {
                let event = listener.try_recv().unwrap();
                let value: Value = serde_json::from_str(&event.text).unwrap();
                assert_eq!(value["project"], "default");
                value["metadata"]["status_code"].as_u64().unwrap()
            })
            .collect();
        assert_eq!(codes, [105, 103, 103, 200]);
        assert!(operations.get(&view.id).is_ok(), "still readable");
    }

    #[tokio::test]
    async fn only_what_may_be_cancelled_is() {
        let operations = Operations::new(Events::default());
        let fixed = operations.open(About::task("x", "default"), None);
        assert_eq!(
            operations.cancel(&fixed.id()).unwrap_err().status.as_u16(),
            400
        );
        let mut about = About::task("x", "default");
        about.may_cancel = true;
        let view = operations.spawn(about, |handle| async move {
            handle.cancelled().cancelled().await;
            Err(Failure::internal("stopped"))
        });
        operations.cancel(&view.id).unwrap();
        let done = operations.wait(&view.id, None).await.unwrap();
        assert_eq!(done.status_code, 401);
    }

    #[tokio::test]
    async fn work_that_panics_ends_its_operation() {
        let operations = Operations::new(Events::default());
        let view = operations.spawn(About::task("x", "default"), |_| async {
            panic!("on purpose");
        });
        let done = operations.wait(&view.id, None).await.unwrap();
        assert_eq!(done.status_code, 400);
        assert_eq!(done.err, "internal error");
    }
}
