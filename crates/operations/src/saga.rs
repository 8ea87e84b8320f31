use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use berth_rpc::Error;
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Operation;

/// What a step does. `A` is the application: clients, config.
pub type StepFn<A> =
    fn(StepContext<A>) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'static>>;

/// One step of a saga.
pub struct Step<A> {
    /// Unique in the saga; stored.
    pub name: &'static str,
    /// Forward. Idempotent under the step's request id.
    pub run: StepFn<A>,
    /// Back; `None` where there is nothing to undo.
    pub undo: Option<StepFn<A>>,
}

impl<A> Clone for Step<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Step<A> {}

impl<A> std::fmt::Debug for Step<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl<A> Step<A> {
    /// A step that leaves nothing behind.
    pub const fn new(name: &'static str, run: StepFn<A>) -> Self {
        Self {
            name,
            run,
            undo: None,
        }
    }

    /// A step with its undo.
    pub const fn with_undo(name: &'static str, run: StepFn<A>, undo: StepFn<A>) -> Self {
        Self {
            name,
            run,
            undo: Some(undo),
        }
    }
}

/// A change in steps. Stages follow one another; the steps of one run side by side.
#[derive(Debug)]
pub struct Saga<A> {
    /// Unique; stored.
    pub name: &'static str,
    /// Changes when steps change in a way that a stored half cannot be continued.
    pub version: u32,
    /// The steps.
    pub stages: Vec<Vec<Step<A>>>,
}

/// What a step gets.
pub struct StepContext<A> {
    /// The application.
    pub app: Arc<A>,
    /// The operation, for metadata and cancelling.
    pub operation: Operation,
    pub(crate) params: Arc<Value>,
    pub(crate) outputs: Arc<Mutex<Map<String, Value>>>,
    pub(crate) step: &'static str,
    pub(crate) undoing: bool,
}

impl<A> Clone for StepContext<A> {
    fn clone(&self) -> Self {
        Self {
            app: self.app.clone(),
            operation: self.operation.clone(),
            params: self.params.clone(),
            outputs: self.outputs.clone(),
            step: self.step,
            undoing: self.undoing,
        }
    }
}

impl<A> std::fmt::Debug for StepContext<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StepContext({} of {:?})", self.step, self.operation)
    }
}

impl<A> StepContext<A> {
    /// The saga's parameters.
    ///
    /// # Errors
    /// When they were stored by a release with other ones.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(self.params.as_ref())
            .map_err(|e| Error::internal_with("the operation's parameters can't be read", e))
    }

    /// What a step put out under `key`; `None` when it didn't run.
    pub fn output<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs
            .get(key)
            .map(|v| {
                T::deserialize(v).map_err(|e| {
                    Error::internal_with(format!("the operation's {key} can't be read"), e)
                })
            })
            .transpose()
    }

    /// The same where a step before must have put it out.
    pub fn require<T: DeserializeOwned>(&self, key: &str) -> Result<T, Error> {
        self.output(key)?
            .ok_or_else(|| Error::internal(format!("step {} needs {key}", self.step)))
    }

    /// Puts something out for later steps and for undo; stored with the stage.
    pub fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), Error> {
        let value = serde_json::to_value(value).map_err(Error::internal)?;
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.insert(key.to_owned(), value);
        Ok(())
    }

    /// Id under which owners recognise this step's calls; undo has another.
    pub fn request_id(&self) -> String {
        let id = self.operation.id();
        if self.undoing {
            format!("{id}/{}/undo", self.step)
        } else {
            format!("{id}/{}", self.step)
        }
    }

    /// The same for one of several targets of a step.
    pub fn request_id_for(&self, target: &str) -> String {
        format!("{}/{target}", self.request_id())
    }

    /// Name of the step.
    pub fn step(&self) -> &'static str {
        self.step
    }
}

/// Does something for many targets, at most `at_once` side by side; goes through all and then
/// fails with all failures in one sentence.
///
/// # Errors
/// When any target failed; the code is the first's.
pub async fn for_each<T, F>(
    targets: Vec<T>,
    at_once: usize,
    mut work: impl FnMut(T) -> F,
) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let results: Vec<Result<(), Error>> = futures::stream::iter(targets.into_iter().map(&mut work))
        .buffer_unordered(at_once.max(1))
        .collect()
        .await;
    let mut failures: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() {
        return Ok(());
    }
    let sentence = failures
        .iter()
        .map(|e| e.message.clone())
        .collect::<Vec<_>>()
        .join("; ");
    let mut first = failures.swap_remove(0);
    first.message = sentence;
    Err(first)
}
