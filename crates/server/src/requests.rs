use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex};

use berth_rpc::{Code, Error, FieldViolation};
use berth_store::Store;
use prost::Message;
use tokio::sync::watch;
use tracing::Instrument;

use crate::metrics::Counters;

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
        let mut receiver = self.start(request_id, work);
        let outcome = receiver
            .wait_for(Option::is_some)
            .await
            .map(|o| o.clone())
            .map_err(|_| Error::internal("the handler ended without an answer"));
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

    /// Only whoever is in `running` looks for a recorded answer: looking before would miss one that
    /// is recorded between the look and the start.
    async fn once<M: Message>(
        &self,
        request_id: &str,
        work: impl Future<Output = Result<M, Error>>,
    ) -> Result<Vec<u8>, Error> {
        if !request_id.is_empty()
            && let Some(answer) = self
                .store
                .finished_request(request_id)
                .await
                .map_err(Error::internal)?
        {
            again("answered");
            return Ok(answer);
        }
        Ok(work.await?.encode_to_vec())
    }

    fn start<M, F>(&self, request_id: &str, work: F) -> watch::Receiver<Outcome>
    where
        M: Message + Default + 'static,
        F: Future<Output = Result<M, Error>> + Send + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        if !request_id.is_empty() {
            let mut running = self.lock();
            if let Some(there) = running.get(request_id) {
                again("joined");
                return there.clone();
            }
            running.insert(request_id.to_owned(), receiver.clone());
        }
        let place = Place {
            requests: self.clone(),
            request_id: request_id.to_owned(),
        };
        tokio::spawn(
            async move {
                let outcome = place.requests.once(&place.request_id, work).await;
                let _ = sender.send(Some(outcome.map_err(SharedError::from)));
            }
            .in_current_span(),
        );
        receiver
    }
}

/// Counts a request that came again: it joined the one under way, or was given its answer.
fn again(how: &str) {
    static AGAIN: LazyLock<Counters> = LazyLock::new(|| {
        Counters::register(
            "berth_requests_repeated",
            "Requests that came again under the same request_id",
        )
    });
    AGAIN.add(vec![("how", how.to_owned())], 1);
}

/// A request's place among those that run; given back also when its work panics.
struct Place {
    requests: Requests,
    request_id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.request_id.is_empty() {
            self.requests.lock().remove(&self.request_id);
        }
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

    #[tokio::test(flavor = "multi_thread")]
    async fn callers_that_come_while_it_ends_get_its_answer() {
        let (requests, _dir) = requests().await;
        for round in 0..100 {
            let runs = Arc::new(AtomicU32::new(0));
            let callers = (0..4).map(|_| {
                let (requests, runs) = (requests.clone(), runs.clone());
                tokio::spawn(async move {
                    let id = format!("round-{round}");
                    let (store, key) = (requests.store.clone(), id.clone());
                    let work = async move {
                        let run = runs.fetch_add(1, Ordering::SeqCst);
                        let answer = format!("run {run}");
                        let mut tx = store.begin().await.map_err(Error::internal)?;
                        tx.finish_request(&key, answer.encode_to_vec())
                            .await
                            .map_err(Error::internal)?;
                        tx.commit().await.map_err(Error::internal)?;
                        Ok(answer)
                    };
                    requests.run::<String, _>(&id, work).await.unwrap()
                })
            });
            for answer in futures::future::join_all(callers).await {
                assert_eq!(answer.unwrap(), "run 0");
            }
        }
    }

    #[tokio::test]
    async fn a_panic_answers_and_does_not_block_a_retry() {
        let (requests, _dir) = requests().await;
        let error = requests
            .run::<String, _>("r3", async {
                assert_eq!(1 + 1, 3, "arithmetic");
                Ok(String::new())
            })
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::Internal);
        let ok = requests
            .run::<String, _>("r3", async { Ok("fine".to_owned()) })
            .await;
        assert_eq!(ok.unwrap(), "fine");
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
