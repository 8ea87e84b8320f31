//! The three suites that every saga passes: it fails at each step and leaves a clean slate; each
//! step runs twice and that is once; it crashes after each step and goes on.

#![allow(clippy::unwrap_used)]

mod bed;
mod cases;
mod fakes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::{Bed, run};
use berth_gateway::app::operations::About;
use berth_operations::{Fault, Phase, Record, State};
use cases::{Case, all};
use tokio::sync::Notify;

async fn arranged(case: &Case) -> Bed {
    let bed = Bed::new();
    let app = bed.begin().await;
    cases::world(&app, &bed.fakes).await;
    (case.arrange)(app.clone()).await;
    bed.kill(app).await;
    bed
}

/// What there is after the saga has simply run.
async fn outcome(case: &Case) -> (BTreeSet<String>, BTreeSet<String>) {
    let bed = arranged(case).await;
    let before = bed.fakes.inventory();
    let app = bed.begin().await;
    let record = run(&app, case.saga, &case.params).await;
    assert_eq!(
        record.state,
        State::Succeeded,
        "{}: {:?}",
        case.saga,
        record.failure
    );
    let after = bed.fakes.inventory();
    assert_ne!(
        before, after,
        "{} does nothing that could be seen",
        case.saga
    );
    (before, after)
}

async fn steps(case: &Case) -> Vec<&'static str> {
    let bed = Bed::new();
    let app = bed.open().await;
    let sagas = app.operations.durable().sagas();
    let saga = sagas.iter().find(|s| s.name == case.saga).unwrap();
    saga.stages.iter().flatten().map(|step| step.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_saga_has_a_case() {
    let bed = Bed::new();
    let app = bed.open().await;
    let known: BTreeSet<&str> = all().iter().map(|case| case.saga).collect();
    for saga in app.operations.durable().sagas() {
        assert!(known.contains(saga.name), "{} has no case", saga.name);
    }
}

/// Plans that are made again give other uids; which ones, doesn't matter.
fn without_uids(inventory: &BTreeSet<String>) -> BTreeSet<String> {
    let uid = regex::Regex::new("uid[0-9]+").unwrap();
    inventory
        .iter()
        .map(|thing| uid.replace_all(thing, "uid").into_owned())
        .collect()
}

fn compare(case: &Case, what: &str, now: &BTreeSet<String>, wanted: &BTreeSet<String>) {
    let (now, wanted) = (without_uids(now), without_uids(wanted));
    let more: Vec<_> = now.difference(&wanted).collect();
    let less: Vec<_> = wanted.difference(&now).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "{} {what}:\n more {more:#?}\n less {less:#?}",
        case.saga
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_at_each_step_leaves_a_clean_slate() {
    for case in all() {
        let (before, after) = outcome(&case).await;
        for step in steps(&case).await {
            for phase in [Phase::BeforeRun, Phase::AfterRun] {
                let bed = arranged(&case).await;
                let app = bed.begin().await;
                app.operations.durable().set_faults(move |probe| {
                    (probe.step == step && probe.phase == phase).then_some(Fault::Fail)
                });
                let record = run(&app, case.saga, &case.params).await;
                assert_eq!(record.state, State::Failed, "{} at {step}", case.saga);
                let now = bed.fakes.inventory();
                // There is no way back from a removal; then it has happened, and whole.
                if case.forward_only && without_uids(&now) == without_uids(&after) {
                    continue;
                }
                compare(&case, &format!("fails at {step} {phase:?}"), &now, &before);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_twice_is_once() {
    for case in all() {
        let (_, after) = outcome(&case).await;
        for step in steps(&case).await {
            let bed = arranged(&case).await;
            let app = bed.begin().await;
            app.operations.durable().set_faults(move |probe| {
                (probe.step == step && probe.phase == Phase::BeforeRun).then_some(Fault::Again)
            });
            let record = run(&app, case.saga, &case.params).await;
            assert_eq!(
                record.state,
                State::Succeeded,
                "{} with {step} twice: {:?}",
                case.saga,
                record.failure
            );
            let now = bed.fakes.inventory();
            compare(&case, &format!("with {step} twice"), &now, &after);
        }
    }
}

/// Runs until `halt` says so, kills the gateway there, and opens another that goes on.
async fn crashed(
    case: &Case,
    bed: &Bed,
    fault: impl Fn(&str, Phase) -> Option<Fault> + Send + Sync + 'static,
) -> Record {
    let app = bed.begin().await;
    let reached = Arc::new(Notify::new());
    let tell = reached.clone();
    app.operations.durable().set_faults(move |probe| {
        let fault = fault(probe.step, probe.phase);
        if fault == Some(Fault::Halt) {
            tell.notify_one();
        }
        fault
    });
    let operation = app
        .operations
        .start(case.saga, &case.params, About::task(case.saga, "default"))
        .await
        .unwrap();
    let id = operation.id();
    tokio::time::timeout(Duration::from_secs(10), reached.notified())
        .await
        .unwrap_or_else(|_| panic!("{} never got there: {:?}", case.saga, operation.record()));
    // Steps beside it end first or die with it.
    tokio::time::sleep(Duration::from_millis(10)).await;
    bed.kill(app).await;
    let app = bed.begin().await;
    let operation = app.operations.durable().find(&id).await.unwrap().unwrap();
    let record = operation.wait(Some(Duration::from_secs(10))).await;
    assert!(record.state.is_final(), "{} hangs after a crash", case.saga);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_each_step_is_gone_on_from() {
    for case in all() {
        let (_, after) = outcome(&case).await;
        for step in steps(&case).await {
            for phase in [Phase::BeforeRun, Phase::AfterRun] {
                let bed = arranged(&case).await;
                let record = crashed(&case, &bed, move |at, now| {
                    (at == step && now == phase).then_some(Fault::Halt)
                })
                .await;
                assert_eq!(
                    record.state,
                    State::Succeeded,
                    "{} crashed at {step} {phase:?}: {:?}",
                    case.saga,
                    record.failure
                );
                let now = bed.fakes.inventory();
                compare(&case, &format!("crashed at {step} {phase:?}"), &now, &after);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_unwinding_is_gone_on_from() {
    for case in all() {
        let (before, after) = outcome(&case).await;
        let steps = steps(&case).await;
        let last = *steps.last().unwrap();
        let bed = Bed::new();
        let app = bed.open().await;
        let sagas = app.operations.durable().sagas();
        let saga = sagas.iter().find(|s| s.name == case.saga).unwrap();
        let undoable: Vec<&'static str> = saga
            .stages
            .iter()
            .flatten()
            .filter(|step| step.undo.is_some())
            .map(|step| step.name)
            .collect();
        for step in undoable {
            for phase in [Phase::BeforeUndo, Phase::AfterUndo] {
                let bed = arranged(&case).await;
                let record = crashed(&case, &bed, move |at, now| {
                    if at == last && now == Phase::AfterRun {
                        return Some(Fault::Fail);
                    }
                    (at == step && now == phase).then_some(Fault::Halt)
                })
                .await;
                assert_eq!(record.state, State::Failed, "{}", case.saga);
                let now = bed.fakes.inventory();
                if case.forward_only && without_uids(&now) == without_uids(&after) {
                    continue;
                }
                compare(
                    &case,
                    &format!("crashed undoing {step} {phase:?}"),
                    &now,
                    &before,
                );
            }
        }
    }
}
