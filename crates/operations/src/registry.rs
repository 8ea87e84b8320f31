use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use berth_rpc::Error;
use berth_store::Store;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::measure;
use crate::runner::{self, Fault, Probe};
use crate::table::{self, Stored};
use crate::{Failure, New, Operation, Record, Saga, State};

/// Events a slow listener may be behind.
const BACKLOG: usize = 4096;
/// How long a finished operation stays in memory; clients read it again after its last event.
const KEPT: Duration = Duration::from_secs(30);
/// How long a finished operation stays in the database.
const STORED: chrono::Duration = chrono::Duration::hours(24);

/// How long steps are tried again when a service is away.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Going forward; then the operation unwinds.
    pub forward: Duration,
    /// Between two tries at most.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            forward: Duration::from_secs(30),
            longest_pause: Duration::from_secs(2),
        }
    }
}

type Faults = dyn Fn(Probe<'_>) -> Option<Fault> + Send + Sync;

/// All operations of a gateway.
pub struct Operations<A> {
    pub(crate) store: Store,
    node: String,
    sagas: HashMap<&'static str, Arc<Saga<A>>>,
    app: OnceLock<Weak<A>>,
    live: Mutex<HashMap<String, Operation>>,
    events: broadcast::Sender<Record>,
    tasks: Mutex<JoinSet<()>>,
    patience: RwLock<Patience>,
    faults: RwLock<Option<Arc<Faults>>>,
}

impl<A> std::fmt::Debug for Operations<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operations")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl<A: Send + Sync + 'static> Operations<A> {
    /// The store's migrations must hold [`MIGRATION`](crate::MIGRATION).
    pub fn new(store: Store, node: impl Into<String>, sagas: Vec<Saga<A>>) -> Arc<Self> {
        sagas.iter().for_each(measure::expect);
        Arc::new(Self {
            store,
            node: node.into(),
            sagas: sagas.into_iter().map(|s| (s.name, Arc::new(s))).collect(),
            app: OnceLock::new(),
            live: Mutex::default(),
            events: broadcast::Sender::new(BACKLOG),
            tasks: Mutex::new(JoinSet::new()),
            patience: RwLock::default(),
            faults: RwLock::default(),
        })
    }

    /// Sets the application that steps get, and goes on with what a crash left unfinished.
    /// Gives the number of operations taken up.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn resume(self: &Arc<Self>, app: &Arc<A>) -> Result<usize, Error> {
        let _ = self.app.set(Arc::downgrade(app));
        let unfinished = table::unfinished(&self.store, &self.node).await?;
        let count = unfinished.len();
        for mut stored in unfinished {
            stored.attempt += 1;
            let operation = Operation::from_record(stored.record.clone(), self.events.clone());
            let Some(saga) = self.sagas.get(stored.saga.as_str()).cloned() else {
                self.give_up(operation, stored).await?;
                continue;
            };
            if i64::from(saga.version) != stored.saga_version {
                // Another release's: go back by the undo names, which sagas keep.
                stored.record.state = State::Unwinding;
                operation.change(|r| {
                    r.state = State::Unwinding;
                    r.failure.get_or_insert_with(|| Failure {
                        code: tonic::Code::Aborted as i32,
                        reason: "RELEASE_CHANGED".to_owned(),
                        message: "the operation was begun by another release".to_owned(),
                    });
                });
            }
            tracing::info!(
                operation = stored.record.id,
                saga = saga.name,
                "taken up again"
            );
            self.launch(app.clone(), saga, operation, stored);
        }
        let before = chrono::Utc::now() - STORED;
        let before = before.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        table::forget(&self.store, &before).await?;
        Ok(count)
    }

    /// No saga of this name: nothing here knows how to undo it.
    async fn give_up(&self, operation: Operation, mut stored: Stored) -> Result<(), Error> {
        tracing::error!(
            operation = stored.record.id,
            steps = ?stored.done_steps,
            "saga {} is not known to this release; what it did stays", stored.saga
        );
        let failure = Failure {
            code: tonic::Code::Unimplemented as i32,
            reason: "UNKNOWN_SAGA".to_owned(),
            message: format!("{} is not known to this release", stored.saga),
        };
        operation.finish(State::Failed, Some(failure));
        stored.record = operation.record();
        table::update(&self.store, &stored).await
    }

    /// Writes a saga down and begins it. The operation returned runs already.
    ///
    /// # Errors
    /// When there is no such saga or the database refuses.
    pub async fn start<P: Serialize>(
        self: &Arc<Self>,
        saga: &str,
        params: &P,
        new: New,
    ) -> Result<Operation, Error> {
        let app = self.app.get().and_then(Weak::upgrade);
        let app = app.ok_or_else(|| Error::unavailable("operations have not begun yet"))?;
        let saga = self
            .sagas
            .get(saga)
            .cloned()
            .ok_or_else(|| Error::internal(format!("no saga {saga}")))?;
        let id = if new.request_id.is_empty() {
            uuid::Uuid::new_v4()
        } else {
            let key = format!("{}/{}", saga.name, new.request_id);
            uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, key.as_bytes())
        }
        .to_string();
        let by_request = !new.request_id.is_empty();
        if by_request && let Some(there) = self.find(&id).await? {
            return Ok(there);
        }
        let operation = Operation::new(id.clone(), new, self.events.clone());
        operation.announce();
        operation.change(|r| r.state = State::Running);
        let stored = Stored {
            record: operation.record(),
            saga: saga.name.to_owned(),
            saga_version: i64::from(saga.version),
            attempt: 1,
            params: serde_json::to_value(params).map_err(Error::internal)?,
            outputs: serde_json::Map::new(),
            done_steps: Vec::new(),
            cancelled: false,
        };
        // Known before it is written, so that two starts of one request meet here or there.
        match table::insert(&self.store, &self.node, &stored).await {
            Ok(()) => {}
            Err(e) if by_request && e.code == berth_rpc::Code::AlreadyExists => {
                return self.find(&id).await?.ok_or(e);
            }
            Err(e) => return Err(e),
        }
        self.launch(app, saga, operation.clone(), stored);
        Ok(operation)
    }

    fn launch(
        self: &Arc<Self>,
        app: Arc<A>,
        saga: Arc<Saga<A>>,
        operation: Operation,
        stored: Stored,
    ) {
        self.lock_live().insert(operation.id(), operation.clone());
        let this = self.clone();
        self.spawn_task(async move {
            runner::run(this.clone(), app, saga, operation.clone(), stored).await;
            this.forget_later(&operation);
        });
    }

    /// An operation that lives with this process: its end is what `work` returns.
    pub fn spawn<F>(
        self: &Arc<Self>,
        new: New,
        work: impl FnOnce(Operation) -> F + Send + 'static,
    ) -> Operation
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let id = uuid::Uuid::new_v4().to_string();
        let operation = Operation::new(id.clone(), new, self.events.clone());
        self.lock_live().insert(id, operation.clone());
        operation.announce();
        operation.change(|r| r.state = State::Running);
        let this = self.clone();
        let running = operation.clone();
        let verb = operation.record().verb;
        // Of its own: the request that began it is answered long before the work is done.
        let span = tracing::info_span!(
            "operation",
            otel.name = format!("operation {verb}"),
            otel.status_code = tracing::field::Empty,
            berth.operation.id = operation.id(),
            berth.saga = verb,
            "error.type" = tracing::field::Empty,
        );
        let began = Instant::now();
        self.spawn_task(
            async move {
                let result = runner::guarded(work(running.clone())).await;
                let (state, failure) = match &result {
                    Ok(()) if running.is_cancelled() => (State::Cancelled, None),
                    Ok(()) => (State::Succeeded, None),
                    Err(error) => {
                        tracing::info!("{}: {}", running.record().verb, error.message);
                        let failure = Failure::from(error);
                        if running.is_cancelled() {
                            (State::Cancelled, Some(failure))
                        } else {
                            (State::Failed, Some(failure))
                        }
                    }
                };
                let span = tracing::Span::current();
                if let (State::Failed, Some(failure)) = (state, &failure) {
                    runner::failed(&span, &failure.reason);
                }
                measure::operation(&verb, state, began.elapsed(), &span);
                running.finish(state, failure);
                this.forget_later(&running);
            }
            .instrument(span),
        );
        operation
    }

    fn spawn_task(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn forget_later(self: &Arc<Self>, operation: &Operation) {
        let (this, id) = (Arc::downgrade(self), operation.id());
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(this) = this.upgrade() {
                this.lock_live().remove(&id);
            }
        });
    }

    fn lock_live(&self) -> MutexGuard<'_, HashMap<String, Operation>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A live or recently finished operation.
    pub fn get(&self, id: &str) -> Option<Operation> {
        self.lock_live().get(id).cloned()
    }

    /// The same, or one from the database.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn find(&self, id: &str) -> Result<Option<Operation>, Error> {
        if let Some(live) = self.get(id) {
            return Ok(Some(live));
        }
        let stored = table::get(&self.store, id).await?;
        Ok(stored.map(|s| Operation::from_record(s.record, self.events.clone())))
    }

    /// Live and recently finished ones, oldest first.
    pub fn list(&self) -> Vec<Record> {
        let mut all: Vec<Record> = self.lock_live().values().map(Operation::record).collect();
        all.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        all
    }

    /// The newest that the database knows, newest first.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn history(&self, limit: i64) -> Result<Vec<Record>, Error> {
        Ok(table::recent(&self.store, limit)
            .await?
            .into_iter()
            .map(|s| s.record)
            .collect())
    }

    /// Asks a running operation to stop.
    ///
    /// # Errors
    /// When there is none, it is over, or it can't be cancelled.
    pub fn cancel(&self, id: &str) -> Result<(), Error> {
        let operation = self
            .get(id)
            .ok_or_else(|| Error::not_found("Operation", id))?;
        let record = operation.record();
        if record.state.is_final() {
            return Err(Error::precondition(
                "NOT_RUNNING",
                "Only running operations can be cancelled",
            ));
        }
        if !record.may_cancel {
            return Err(Error::precondition(
                "NOT_CANCELLABLE",
                "This operation can't be cancelled",
            ));
        }
        operation.cancel();
        Ok(())
    }

    /// Forgets a finished one.
    ///
    /// # Errors
    /// When it still runs or the database refuses.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let operation = self
            .find(id)
            .await?
            .ok_or_else(|| Error::not_found("Operation", id))?;
        if !operation.record().state.is_final() {
            return Err(Error::precondition(
                "RUNNING",
                "The operation is still running",
            ));
        }
        table::delete(&self.store, id).await?;
        self.lock_live().remove(id);
        Ok(())
    }

    /// Every change of every operation, in order, each as it stood then.
    pub fn subscribe(&self) -> broadcast::Receiver<Record> {
        self.events.subscribe()
    }

    /// How long steps are retried.
    pub fn patience(&self) -> Patience {
        *self.patience.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how long steps are retried.
    pub fn set_patience(&self, patience: Patience) {
        *self
            .patience
            .write()
            .unwrap_or_else(PoisonError::into_inner) = patience;
    }

    /// For tests: what goes wrong where.
    pub fn set_faults(&self, faults: impl Fn(Probe<'_>) -> Option<Fault> + Send + Sync + 'static) {
        *self.faults.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(faults));
    }

    pub(crate) fn fault(&self, probe: Probe<'_>) -> Option<Fault> {
        let faults = self
            .faults
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        faults.and_then(|f| f(probe))
    }

    /// The sagas there are, for suites that go through all.
    pub fn sagas(&self) -> Vec<Arc<Saga<A>>> {
        let mut all: Vec<_> = self.sagas.values().cloned().collect();
        all.sort_by_key(|s| s.name);
        all
    }

    /// Drops what runs, as a kill would; the database keeps where it was.
    pub async fn halt(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}
