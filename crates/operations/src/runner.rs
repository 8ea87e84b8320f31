//! Runs one saga: forward, or back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_rpc::{Code, Error};
use futures::FutureExt;
use futures::future::join_all;
use serde_json::{Map, Value};
use tracing::Instrument;

use crate::measure;
use crate::registry::Operations;
use crate::table::{self, Stored};
use crate::{Failure, Operation, Saga, State, Step, StepContext};

/// A place in a saga's run, shown to a test's probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe<'a> {
    /// Saga's name.
    pub saga: &'a str,
    /// Step's name.
    pub step: &'a str,
    /// Where in the step.
    pub phase: Phase,
}

/// Where in a step a probe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before `run`.
    BeforeRun,
    /// After `run` worked, before that is written down.
    AfterRun,
    /// Before `undo`.
    BeforeUndo,
    /// After `undo` worked.
    AfterUndo,
}

/// What a probe makes happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step fails.
    Fail,
    /// The step's function is called again.
    Again,
    /// The runner stops as if its process had been killed.
    Halt,
}

struct Run<A> {
    began: Instant,
    operations: Arc<Operations<A>>,
    app: Arc<A>,
    saga: Arc<Saga<A>>,
    operation: Operation,
    outputs: Arc<Mutex<Map<String, Value>>>,
    params: Arc<Value>,
    stored: Stored,
}

/// Takes a stored operation to its end.
pub(crate) async fn run<A: Send + Sync + 'static>(
    operations: Arc<Operations<A>>,
    app: Arc<A>,
    saga: Arc<Saga<A>>,
    operation: Operation,
    stored: Stored,
) {
    let record = operation.record();
    let span = tracing::info_span!(
        "operation",
        otel.name = format!("operation {}", record.verb),
        otel.status_code = tracing::field::Empty,
        berth.operation.id = record.id,
        berth.saga = saga.name,
        "error.type" = tracing::field::Empty,
        trace_id = tracing::field::Empty,
    );
    berth_rpc::trace::continue_from_text(&span, &record.traceparent);
    if let Some(id) = span.in_scope(berth_rpc::trace::current_trace_id) {
        span.record("trace_id", id);
    }
    let mut run = Run {
        began: Instant::now(),
        outputs: Arc::new(Mutex::new(stored.outputs.clone())),
        params: Arc::new(stored.params.clone()),
        operations,
        app,
        saga,
        operation,
        stored,
    };
    async move {
        if run.stored.record.state != State::Unwinding {
            match run.forward().await {
                Ok(()) => return run.end(State::Succeeded, None).await,
                Err(error) => run.turn(&error).await,
            }
        }
        run.back().await;
    }
    .instrument(span)
    .await;
}

impl<A: Send + Sync + 'static> Run<A> {
    fn context(&self, step: &'static str, undoing: bool) -> StepContext<A> {
        StepContext {
            app: self.app.clone(),
            operation: self.operation.clone(),
            params: self.params.clone(),
            outputs: self.outputs.clone(),
            step,
            undoing,
        }
    }

    async fn forward(&mut self) -> Result<(), Error> {
        let saga = self.saga.clone();
        let last = saga.stages.len();
        for (number, stage) in saga.stages.iter().enumerate() {
            let todo: Vec<Step<A>> = stage
                .iter()
                .filter(|s| !self.stored.done_steps.iter().any(|d| d == s.name))
                .copied()
                .collect();
            if todo.is_empty() {
                continue;
            }
            if self.operation.is_cancelled() {
                return Err(Error::new(
                    Code::Cancelled,
                    "CANCELLED",
                    "the operation was cancelled",
                ));
            }
            let names: Vec<&str> = todo.iter().map(|s| s.name).collect();
            self.operation.change(|r| r.step = names.join("+"));
            let results = join_all(todo.iter().map(|step| self.one(*step, Phase::BeforeRun))).await;
            // What failed may have happened half, so it is undone too.
            self.stored
                .done_steps
                .extend(names.iter().map(|n| (*n).to_owned()));
            results.into_iter().collect::<Result<Vec<()>, Error>>()?;
            // The last stage is written down with the end.
            if number + 1 < last {
                self.save().await?;
            }
        }
        Ok(())
    }

    /// Goes over from forward to back.
    async fn turn(&mut self, error: &Error) {
        tracing::warn!(
            code = ?error.code, reason = %error.reason,
            cause = error.source.as_ref().map(|s| s.to_string()).unwrap_or_default(),
            "{}: {}", self.saga.name, error.message
        );
        self.stored.cancelled = error.code == Code::Cancelled && self.operation.is_cancelled();
        let failure = Failure::from(error);
        self.operation.change(|r| {
            r.failure = Some(failure);
            r.may_cancel = false;
            r.state = State::Unwinding;
        });
        self.save_stubbornly().await;
    }

    async fn back(&mut self) {
        let steps: Vec<Step<A>> = self.saga.stages.iter().flatten().copied().collect();
        let mut left = self.stored.done_steps.clone();
        while let Some(name) = left.last().cloned() {
            let undo = steps.iter().find(|s| s.name == name && s.undo.is_some());
            if let Some(step) = undo {
                self.operation.change(|r| r.step = format!("undo {name}"));
                if let Err(error) = self.one(*step, Phase::BeforeUndo).await {
                    tracing::error!(
                        cause = error
                            .source
                            .as_ref()
                            .map(|s| s.to_string())
                            .unwrap_or_default(),
                        "undo of {name} failed, going on: {}",
                        error.message
                    );
                }
            }
            left.pop();
            self.stored.done_steps.clone_from(&left);
            if !left.is_empty() && undo.is_some() {
                self.save_stubbornly().await;
            }
        }
        let state = if self.stored.cancelled {
            State::Cancelled
        } else {
            State::Failed
        };
        let failure = self.operation.record().failure;
        self.end(state, failure).await;
    }

    /// One step, forward or back, with its retries.
    async fn one(&self, step: Step<A>, phase: Phase) -> Result<(), Error> {
        let undoing = phase == Phase::BeforeUndo;
        let after = if undoing {
            Phase::AfterUndo
        } else {
            Phase::AfterRun
        };
        let name = if undoing {
            format!("undo {}", step.name)
        } else {
            step.name.to_owned()
        };
        let span = tracing::info_span!(
            "step",
            otel.name = name,
            otel.status_code = tracing::field::Empty,
            berth.saga = self.saga.name,
            berth.step = step.name,
            "error.type" = tracing::field::Empty,
        );
        let began = Instant::now();
        let result = async {
            let mut pause = Duration::from_millis(20);
            loop {
                let error = match self.attempt(step, phase, after).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                let patience = self.operations.patience();
                let over = !undoing
                    && (began.elapsed() > patience.forward || self.operation.is_cancelled());
                if !error.is_transient() || over {
                    return Err(error);
                }
                tracing::info!("trying again in {pause:?}: {}", error.message);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(patience.longest_pause);
            }
        }
        .instrument(span.clone())
        .await;
        if let Err(error) = &result {
            failed(&span, &error.reason);
        }
        measure::step(
            self.saga.name,
            step.name,
            undoing,
            result.is_ok(),
            began.elapsed(),
            &span,
        );
        result
    }

    async fn attempt(&self, step: Step<A>, phase: Phase, after: Phase) -> Result<(), Error> {
        let undoing = phase == Phase::BeforeUndo;
        let function = if undoing {
            step.undo.unwrap_or(step.run)
        } else {
            step.run
        };
        let saga = self.saga.name;
        let direction = if undoing { "undo" } else { "run" };
        berth_server::failpoint::pass(&format!("saga.{saga}.{}.{direction}", step.name)).await?;
        let mut again = self.probe(step, phase).await?;
        loop {
            guarded(function(self.context(step.name, undoing))).await?;
            if !again {
                break;
            }
            again = false;
        }
        let point = format!("saga.{saga}.{}.{direction}.done", step.name);
        berth_server::failpoint::pass(&point).await?;
        self.probe(step, after).await?;
        Ok(())
    }

    /// True when the step is to be called once more.
    async fn probe(&self, step: Step<A>, phase: Phase) -> Result<bool, Error> {
        let probe = Probe {
            saga: self.saga.name,
            step: step.name,
            phase,
        };
        match self.operations.fault(probe) {
            None => Ok(false),
            Some(Fault::Again) => Ok(true),
            Some(Fault::Fail) => Err(Error::new(Code::Internal, "FAULT", "a test made it fail")),
            Some(Fault::Halt) => std::future::pending().await,
        }
    }

    fn collect(&mut self) {
        self.stored.record = self.operation.record();
        self.stored.outputs = self
            .outputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
    }

    async fn save(&mut self) -> Result<(), Error> {
        self.collect();
        table::update(&self.operations.store, &self.stored).await
    }

    /// While unwinding there is nobody left to give an error to.
    async fn save_stubbornly(&mut self) {
        let mut pause = Duration::from_millis(50);
        while let Err(error) = self.save().await {
            tracing::error!(
                cause = error
                    .source
                    .as_ref()
                    .map(|s| s.to_string())
                    .unwrap_or_default(),
                "the operation can't be written down: {}",
                error.message
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn end(&mut self, state: State, failure: Option<Failure>) {
        self.collect();
        self.stored.record.state = state;
        self.stored.record.failure.clone_from(&failure);
        self.stored.record.may_cancel = false;
        if let Err(error) = table::update(&self.operations.store, &self.stored).await {
            // The steps are done; a restart would find them done again.
            tracing::error!(
                "the operation's end can't be written down: {}",
                error.message
            );
        }
        // One line for each operation, with its id and trace: where a search through the logs begins.
        tracing::info!("{} {state:?}", self.saga.name);
        let span = tracing::Span::current();
        if state == State::Failed {
            let reason = failure.as_ref().map_or("UNKNOWN", |f| f.reason.as_str());
            failed(&span, reason);
        }
        measure::operation(self.saga.name, state, self.began.elapsed(), &span);
        self.operation.finish(state, failure);
    }
}

pub(crate) fn failed(span: &tracing::Span, reason: &str) {
    span.record("error.type", reason);
    span.record("otel.status_code", "ERROR");
}

/// A step that panics fails; without this its operation would never end.
pub(crate) async fn guarded(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match std::panic::AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default();
            Err(Error::internal(format!("a panic: {text}")))
        }
    }
}
