use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use berth_rpc::{Code, Error, FieldViolation};
use berth_store::Store;
use prost::Message;
use tokio::sync::watch;
use tracing::Instrument;

/// An error that several waiters can have.
#[derive(Clone)]
struct SharedError {
    code: Code,
    reason: String,
    message: String,
    fields: Vec<FieldViolation>,
    holders: Vec<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl From<Error> for SharedError {
    fn from(e: Error) -> Self {
        Self {
            code: e.code,
            reason: e.reason,
            message: e.message,
            fields: e.fields,
            holders: e.holders,
            source: e.source.map(Arc::from),
        }
    }
}

impl From<SharedError> for Error {
    fn from(e: SharedError) -> Self {
        let mut error = Error::new(e.code, e.reason, e.message);
        error.fields = e.fields;
        error.holders = e.holders;
        error.source = e
            .source
            .map(|s| Box::new(s) as Box<dyn std::error::Error + Send + Sync>);
        error
    }
}

type Outcome = Option<Result<Vec<u8>, SharedError>>;

/// Mutating handlers on tasks of their own, so that a caller who goes away (tonic drops a
/// handler's future with its connection) leaves no half change, and a retry joins what runs.
#[derive(Clone)]
pub struct Requests {
    store: Store,
    running: Arc<Mutex<HashMap<String, watch::Receiver<Outcome>>>>,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Requests")
    }
}

impl Requests {
    /// Answers that were recorded with `Tx::finish_request` are given again from this store.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            running: Arc::default(),
        }
    }

    /// Runs `work` once per `request_id`; later callers join it, and after it has been recorded
    /// they get the recorded answer. An empty id runs without joining. Failures are not kept.
    ///
    /// # Errors
    /// What `work` fails with.
    pub async fn run<M, F>(&self, request_id: &str, work: F) -> Result<M, Error>
    where
        M: Message + Default + 'static,
        F: Future<Output = Result<M, Error>> + Send + 'static,
    {
        if !request_id.is_empty()
            && let Some(bytes) = self
                .store
                .finished_request(request_id)
                .await
                .map_err(Error::internal)?
        {
            return M::decode(bytes.as_slice()).map_err(Error::internal);
        }
        let (receiver, key) = self.start(request_id, work);
        let mut receiver = receiver;
        let outcome = receiver
            .wait_for(Option::is_some)
            .await
            .map(|o| o.clone())
            .map_err(|_| Error::internal("the handler ended without an answer"));
        if !key.is_empty() {
            self.lock().remove(&key);
        }
        match outcome? {
            Some(Ok(bytes)) => M::decode(bytes.as_slice()).map_err(Error::internal),
            Some(Err(error)) => Err(error.into()),
            None => Err(Error::internal("the handler ended without an answer")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Receiver<Outcome>>> {
        self.running
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn start<M, F>(&self, request_id: &str, work: F) -> (watch::Receiver<Outcome>, String)
    where
        M: Message + Default + 'static,
        F: Future<Output = Result<M, Error>> + Send + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        let key = request_id.to_owned();
        if !key.is_empty() {
            let mut running = self.lock();
            if let Some(there) = running.get(&key) {
                return (there.clone(), key);
            }
            running.insert(key.clone(), receiver.clone());
        }
        let this = self.clone();
        let done = key.clone();
        tokio::spawn(
            async move {
                let outcome = work
                    .await
                    .map(|m| m.encode_to_vec())
                    .map_err(SharedError::from);
                let _ = sender.send(Some(outcome));
                // Whoever joined holds a receiver of its own.
                if !done.is_empty() {
                    this.lock().remove(&done);
                }
            }
            .in_current_span(),
        );
        (receiver, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_store::DatabaseConfig;
    use std::sync::atomic::{AtomicU32, Ordering};

    async fn requests() -> (Requests, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let config = DatabaseConfig::file(dir.path().join("state.db"));
        (Requests::new(Store::open(&config, &[]).await.unwrap()), dir)
    }

    #[tokio::test]
    async fn work_goes_on_without_its_caller_and_a_retry_joins_it() {
        let (requests, _dir) = requests().await;
        let runs = Arc::new(AtomicU32::new(0));
        let (go, gate) = tokio::sync::oneshot::channel::<()>();
        let (store, counter) = (requests.store.clone(), runs.clone());
        let work = async move {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = gate.await;
            let mut tx = store.begin().await.map_err(Error::internal)?;
            let answer = "done".to_owned();
            tx.finish_request("r1", answer.encode_to_vec())
                .await
                .map_err(Error::internal)?;
            tx.commit().await.map_err(Error::internal)?;
            Ok(answer)
        };
        let first = tokio::spawn({
            let requests = requests.clone();
            async move { requests.run::<String, _>("r1", work).await }
        });
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        first.abort();
        let counter = runs.clone();
        let again = tokio::spawn({
            let requests = requests.clone();
            async move {
                requests
                    .run::<String, _>("r1", async move {
                        counter.fetch_add(1, Ordering::SeqCst);
                        Ok("second".to_owned())
                    })
                    .await
            }
        });
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        assert_eq!(again.await.unwrap().unwrap(), "done");
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        let kept = requests
            .run::<String, _>("r1", async { Ok("third".to_owned()) })
            .await;
        assert_eq!(kept.unwrap(), "done");
    }

    #[tokio::test]
    async fn a_failure_is_given_and_may_be_tried_again() {
        let (requests, _dir) = requests().await;
        let error = requests
            .run::<String, _>("r2", async { Err(Error::invalid("name", "bad name")) })
            .await
            .unwrap_err();
        assert_eq!(error.fields[0].field, "name");
        let ok = requests
            .run::<String, _>("r2", async { Ok("fine".to_owned()) })
            .await
            .unwrap();
        assert_eq!(ok, "fine");
    }
}
