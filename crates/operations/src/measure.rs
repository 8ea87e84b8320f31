//! Durations of operations and of their steps.

use std::sync::LazyLock;
use std::time::Duration;

use berth_server::metrics::{Counters, Durations, OPERATION_BUCKETS};
use prometheus_client::encoding::EncodeLabelSet;

use crate::{Saga, State};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OperationLabels {
    saga: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabels {
    saga: &'static str,
    step: &'static str,
    direction: &'static str,
    result: &'static str,
}

struct Measures {
    operations: Durations<OperationLabels>,
    steps: Durations<StepLabels>,
    undo_failures: Counters,
}

static MEASURES: LazyLock<Measures> = LazyLock::new(|| Measures {
    operations: Durations::register(
        "berth_operation_duration",
        "Operations that ended, from when this process took them up",
        OPERATION_BUCKETS,
    ),
    steps: Durations::register(
        "berth_operation_step_duration",
        "Steps of operations, forward and back, with their retries",
        OPERATION_BUCKETS,
    ),
    undo_failures: Counters::register(
        "berth_operation_undo_failures",
        "Steps that could not be undone; something may be left of them",
    ),
});

/// Makes failures known before the first of them, so that alerts see it as an increase.
pub(crate) fn expect<A>(saga: &Saga<A>) {
    MEASURES.operations.expect(&OperationLabels {
        saga: saga.name.to_owned(),
        result: State::Failed.as_str(),
    });
    for step in saga.stages.iter().flatten().filter(|s| s.undo.is_some()) {
        undo_failures(saga.name, step.name, 0);
    }
}

fn undo_failures(saga: &str, step: &str, number: u64) {
    let labels = vec![("saga", saga.to_owned()), ("step", step.to_owned())];
    MEASURES.undo_failures.add(labels, number);
}

pub(crate) fn operation(saga: &str, state: State, took: Duration, span: &tracing::Span) {
    let labels = OperationLabels {
        saga: saga.to_owned(),
        result: state.as_str(),
    };
    MEASURES.operations.observe(&labels, took, span);
}

pub(crate) fn step(
    saga: &'static str,
    step: &'static str,
    undoing: bool,
    worked: bool,
    took: Duration,
    span: &tracing::Span,
) {
    let labels = StepLabels {
        saga,
        step,
        direction: if undoing { "undo" } else { "run" },
        result: if worked { "succeeded" } else { "failed" },
    };
    MEASURES.steps.observe(&labels, took, span);
    if undoing && !worked {
        undo_failures(saga, step, 1);
    }
}
