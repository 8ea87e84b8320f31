//! Operations as LXD's clients see them, over [`berth_operations`]: durable ones are sagas, live
//! ones are websockets and what dies with this process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use berth_operations::Class;
use berth_operations::{New, Operation, Record, State};
use berth_rpc::Error;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::broadcast;

use crate::Gateway;
use crate::app::events::{Events, Kind};
use crate::error::{self, Failure};

/// The durable machinery.
pub type Durable = berth_operations::Operations<Gateway>;

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

    fn of(record: &Record) -> Self {
        match record.state {
            State::Pending => Self::Pending,
            State::Running => Self::Running,
            State::Unwinding if is_cancel(record) => Self::Cancelling,
            // To clients an operation that is being undone still runs.
            State::Unwinding => Self::Running,
            State::Succeeded => Self::Success,
            State::Failed => Self::Failure,
            State::Cancelled => Self::Cancelled,
        }
    }
}

fn is_cancel(record: &Record) -> bool {
    record
        .failure
        .as_ref()
        .is_some_and(|f| f.reason == "CANCELLED")
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
}

impl From<Record> for View {
    fn from(record: Record) -> Self {
        let status = Status::of(&record);
        // The failure is known while it is unwound, but final states alone have an `err`.
        let err = match record.failure {
            Some(failure) if status.is_final() => error::sentence(&Error::from(failure)),
            _ => String::new(),
        };
        let resources: Resources = record
            .resources
            .into_iter()
            .map(|(kind, names)| {
                let urls = names.iter().map(|name| url(&kind, name)).collect();
                (kind, urls)
            })
            .collect();
        Self {
            id: record.id,
            class: record.class,
            description: record.description,
            created_at: record.created_at,
            updated_at: record.updated_at,
            status: status.name(),
            status_code: status.code(),
            resources: (!resources.is_empty()).then_some(resources),
            metadata: (!record.metadata.is_empty()).then_some(record.metadata),
            may_cancel: record.may_cancel,
            err,
            location: "none",
            project: record.project,
        }
    }
}

/// 5.0.2's clients take the piece after the last slash for the name.
fn url(kind: &str, resource: &str) -> String {
    let name = resource.rsplit('/').next().unwrap_or(resource);
    format!("/1.0/{kind}/{name}")
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
    /// Resource names it works on, by kind.
    pub resources: BTreeMap<String, Vec<String>>,
    /// Known from the start.
    pub metadata: Option<Map<String, Value>>,
    /// Whether it may be cancelled.
    pub may_cancel: bool,
    /// A second start with the same id gives the first's operation; empty = never the same.
    pub request_id: String,
}

impl About {
    /// A task in a project.
    pub fn task(description: &str, project: &str) -> Self {
        Self {
            class: Class::Task,
            description: description.to_owned(),
            project: project.to_owned(),
            resources: BTreeMap::new(),
            metadata: None,
            may_cancel: false,
            request_id: String::new(),
        }
    }

    /// Names a resource: kind `instances` and name `c1` become `/1.0/instances/c1`.
    #[must_use]
    pub fn on(mut self, kind: &str, name: &str) -> Self {
        // `containers` is only another word of LXD's for the same collection.
        let collection = if kind == "containers" {
            "instances"
        } else {
            kind
        };
        let name = berth_rpc::names::encode_segment(name);
        let resource = format!("projects/{}/{collection}/{name}", self.project);
        self.resources
            .entry(kind.to_owned())
            .or_default()
            .push(resource);
        self
    }

    /// Names a container the two ways 5.0.2 does.
    #[must_use]
    pub fn on_container(self, name: &str) -> Self {
        self.on("containers", name).on("instances", name)
    }

    /// With the caller's id for its request.
    #[must_use]
    pub fn requested_as(mut self, request_id: &str) -> Self {
        request_id.clone_into(&mut self.request_id);
        self
    }

    fn new_as(self, verb: &str) -> New {
        New {
            class: self.class,
            verb: verb.to_owned(),
            description: self.description,
            project: self.project,
            resources: self.resources,
            metadata: self.metadata.unwrap_or_default(),
            may_cancel: self.may_cancel,
            request_id: self.request_id,
        }
    }
}

/// Streams that clients attach to a websocket operation.
pub trait Sockets: Send + Sync + std::fmt::Debug {
    /// Whether `secret` opens one of its streams; gives the stream's name (`0`, `1`, `control`).
    fn stream(&self, secret: &str) -> Option<String>;
    /// Takes a client's socket for a stream.
    fn attach(&self, stream: &str, socket: axum::extract::ws::WebSocket);
}

/// The worker's side of a live operation.
#[derive(Debug, Clone)]
pub struct Handle {
    operation: Operation,
}

impl Handle {
    /// UUID.
    pub fn id(&self) -> String {
        self.operation.id()
    }

    /// The view as it is.
    pub fn view(&self) -> View {
        self.operation.record().into()
    }

    /// Changes the metadata and tells listeners.
    pub fn update(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let mut more = Map::new();
        change(&mut more);
        self.operation.merge_metadata(more);
    }

    /// Returns when the client cancels.
    pub async fn cancelled(&self) {
        self.operation.cancelled().await;
    }
}

type SocketMap = Arc<Mutex<HashMap<String, Arc<dyn Sockets>>>>;

/// All operations of this server. Clones share them.
#[derive(Debug, Clone)]
pub struct Operations {
    durable: Arc<Durable>,
    sockets: SocketMap,
}

impl Operations {
    /// Over the durable machinery; tells `events` of every change from now on.
    pub fn new(durable: Arc<Durable>, events: Events) -> Self {
        tokio::spawn(announce(durable.subscribe(), events));
        Self {
            durable,
            sockets: Arc::default(),
        }
    }

    /// For the standard gRPC services.
    pub fn durable(&self) -> &Arc<Durable> {
        &self.durable
    }

    /// Writes a saga down and begins it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn start<P: Serialize>(
        &self,
        saga: &str,
        params: &P,
        about: About,
    ) -> Result<Operation, Error> {
        self.durable.start(saga, params, about.new_as(saga)).await
    }

    /// The same, and gives the operation as it runs.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn begin<P: Serialize>(
        &self,
        saga: &str,
        params: &P,
        about: About,
    ) -> Result<View, Failure> {
        Ok(self.start(saga, params, about).await?.record().into())
    }

    /// The same, and waits for its end: for changes that LXD answers synchronously.
    ///
    /// # Errors
    /// What made it fail, as if the owner had been called at once.
    pub async fn complete<P: Serialize>(
        &self,
        saga: &str,
        params: &P,
        about: About,
    ) -> Result<View, Failure> {
        let record = self.start(saga, params, about).await?.wait(None).await;
        match &record.failure {
            Some(failure) if record.state != State::Succeeded => {
                Err(Error::from(failure.clone()).into())
            }
            _ => Ok(record.into()),
        }
    }

    /// Runs work that dies with this process, and gives the operation as it runs.
    pub fn spawn<F, Fut>(&self, about: About, work: F) -> View
    where
        F: FnOnce(Handle) -> Fut + Send + 'static,
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
        F: FnOnce(Handle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let verb = about.description.to_lowercase().replace(' ', "_");
        let all = self.sockets.clone();
        // The work waits until its sockets can be found.
        let (ready, begin) = tokio::sync::oneshot::channel::<()>();
        let operation = self
            .durable
            .spawn(about.new_as(&verb), move |operation| async move {
                let id = operation.id();
                let _ = begin.await;
                let future = work(Handle { operation });
                // A panic must end the operation too, or its clients wait for ever.
                let result = tokio::spawn(future).await.unwrap_or_else(|error| {
                    tracing::error!(%error, "an operation's work panicked");
                    Err(Failure::internal("internal error"))
                });
                lock(&all).remove(&id);
                result.map_err(Error::from)
            });
        if let Some(sockets) = sockets {
            lock(&self.sockets).insert(operation.id(), sockets);
        }
        let view = operation.record().into();
        let _ = ready.send(());
        view
    }

    /// One operation.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, id: &str) -> Result<View, Failure> {
        Ok(self.find(id)?.record().into())
    }

    fn find(&self, id: &str) -> Result<Operation, Failure> {
        self.durable
            .get(id)
            .ok_or_else(|| Failure::not_found("Operation not found"))
    }

    /// All operations, oldest first.
    pub fn list(&self) -> Vec<View> {
        self.durable.list().into_iter().map(View::from).collect()
    }

    /// Resource names of instances that operations work on right now.
    pub fn busy_instances(&self) -> BTreeSet<String> {
        self.durable
            .list()
            .into_iter()
            .filter(|record| !record.state.is_final())
            .flat_map(|mut record| record.resources.remove("instances").unwrap_or_default())
            .collect()
    }

    /// Waits for the end; after `timeout` (none = for ever) gives it as it is then.
    ///
    /// # Errors
    /// 404.
    pub async fn wait(&self, id: &str, timeout: Option<Duration>) -> Result<View, Failure> {
        Ok(self.find(id)?.wait(timeout).await.into())
    }

    /// Asks a running operation to stop.
    ///
    /// # Errors
    /// 404, or 400 where it can't be cancelled.
    pub fn cancel(&self, id: &str) -> Result<(), Failure> {
        self.find(id)?;
        Ok(self.durable.cancel(id)?)
    }

    /// The streams of a websocket operation that runs.
    ///
    /// # Errors
    /// 404, or 400 where it has none or ended.
    pub fn sockets(&self, id: &str) -> Result<Arc<dyn Sockets>, Failure> {
        let operation = self.find(id)?;
        if operation.record().state.is_final() {
            return Err(Failure::bad_request("Operation isn't running"));
        }
        lock(&self.sockets)
            .get(id)
            .cloned()
            .ok_or_else(|| Failure::bad_request("Only websocket operations can be connected"))
    }
}

fn lock(sockets: &SocketMap) -> MutexGuard<'_, HashMap<String, Arc<dyn Sockets>>> {
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns changes into events. A step that begins changes nothing that clients see, so it is not told.
async fn announce(mut changes: broadcast::Receiver<Record>, events: Events) {
    let mut told: HashMap<String, View> = HashMap::new();
    loop {
        let record = match changes.recv().await {
            Ok(record) => record,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::error!(missed, "operation events were lost");
                continue;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let view = View::from(record);
        let same = told.get(&view.id).is_some_and(|before| {
            before.status_code == view.status_code
                && before.metadata == view.metadata
                && before.resources == view.resources
        });
        if same {
            continue;
        }
        match serde_json::to_value(&view) {
            Ok(metadata) => events.send(Kind::Operation, &view.project, metadata),
            Err(error) => tracing::error!(%error, "an operation could not be rendered"),
        }
        if view.status_code >= 200 {
            told.remove(&view.id);
        } else {
            told.insert(view.id.clone(), view);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn operations(events: Events) -> (Operations, berth_testkit::TestDatabase) {
        let database = berth_testkit::TestDatabase::sqlite();
        let store = database
            .open(&[berth_operations::MIGRATION])
            .await
            .expect("a store");
        let durable = Durable::new(store, "test", Vec::new());
        (Operations::new(durable, events), database)
    }

    #[tokio::test]
    async fn the_final_event_follows_the_last_update() {
        let events = Events::default();
        let mut listener = events.subscribe();
        let (operations, _database) = operations(events).await;
        let view = operations.spawn(
            About::task("Creating instance", "default").on_container("c1"),
            |handle| async move {
                handle.update(|m| {
                    m.insert("some_progress".into(), "1".into());
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
        let mut seen = Vec::new();
        while seen.last().is_none_or(|(code, _)| *code < 200) {
            let event = tokio::time::timeout(Duration::from_secs(5), listener.recv())
                .await
                .unwrap()
                .unwrap();
            let value: Value = serde_json::from_str(&event.text).unwrap();
            assert_eq!(value["project"], "default");
            let code = value["metadata"]["status_code"].as_u64().unwrap();
            seen.push((code, value["metadata"]["metadata"]["some_progress"].clone()));
        }
        assert_eq!(seen.last().unwrap(), &(200, Value::from("1")));
        assert!(seen.contains(&(103, Value::from("1"))));
        assert!(operations.get(&view.id).is_ok(), "still readable");
    }

    #[tokio::test]
    async fn only_what_may_be_cancelled_is() {
        let (operations, _database) = operations(Events::default()).await;
        let fixed = operations.spawn(About::task("x", "default"), |_| std::future::pending());
        assert_eq!(
            operations.cancel(&fixed.id).unwrap_err().status.as_u16(),
            400
        );
        let mut about = About::task("x", "default");
        about.may_cancel = true;
        let view = operations.spawn(about, |handle| async move {
            handle.cancelled().await;
            Err(Failure::internal("stopped"))
        });
        operations.cancel(&view.id).unwrap();
        let done = operations.wait(&view.id, None).await.unwrap();
        assert_eq!(done.status_code, 401);
    }

    #[tokio::test]
    async fn work_that_panics_ends_its_operation() {
        let (operations, _database) = operations(Events::default()).await;
        let view = operations.spawn(About::task("x", "default"), |_| async {
            panic!("on purpose");
        });
        let done = operations.wait(&view.id, None).await.unwrap();
        assert_eq!(done.status_code, 400);
        assert_eq!(done.err, "internal error");
    }
}
