//! The runner: order, undo, retries, cancelling, and going on after a crash.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_operations::{
    Fault, MIGRATION, New, Operations, Patience, Phase, Saga, State, Step, StepContext,
};
use berth_rpc::{Code, Error};
use berth_store::{DatabaseConfig, Store};

/// A world that steps put things into.
#[derive(Default)]
struct World {
    things: Mutex<BTreeSet<String>>,
    log: Mutex<Vec<String>>,
    away: Mutex<u32>,
}

type Context = StepContext<World>;

fn put(c: &Context, thing: &str) {
    c.app.things.lock().unwrap().insert(thing.to_owned());
    c.app
        .log
        .lock()
        .unwrap()
        .push(c.request_id().split_once('/').unwrap().1.to_owned());
}

fn take(c: &Context, thing: &str) {
    c.app.things.lock().unwrap().remove(thing);
    c.app
        .log
        .lock()
        .unwrap()
        .push(c.request_id().split_once('/').unwrap().1.to_owned());
}

fn saga(version: u32) -> Saga<World> {
    Saga {
        name: "build",
        version,
        stages: vec![
            vec![Step::with_undo(
                "a",
                |c| {
                    Box::pin(async move {
                        put(&c, "a");
                        c.put("name", &c.params::<String>()?)
                    })
                },
                |c| {
                    Box::pin(async move {
                        take(&c, "a");
                        Ok(())
                    })
                },
            )],
            vec![
                Step::with_undo(
                    "b",
                    |c| {
                        Box::pin(async move {
                            {
                                let mut away = c.app.away.lock().unwrap();
                                if *away > 0 {
                                    *away -= 1;
                                    return Err(Error::unavailable("b is away"));
                                }
                            }
                            put(&c, &format!("b-{}", c.require::<String>("name")?));
                            Ok(())
                        })
                    },
                    |c| {
                        Box::pin(async move {
                            if let Some(name) = c.output::<String>("name")? {
                                take(&c, &format!("b-{name}"));
                            }
                            Ok(())
                        })
                    },
                ),
                Step::with_undo(
                    "c",
                    |c| {
                        Box::pin(async move {
                            put(&c, "c");
                            Ok(())
                        })
                    },
                    |c| {
                        Box::pin(async move {
                            take(&c, "c");
                            Ok(())
                        })
                    },
                ),
            ],
            vec![Step::new("d", |c| {
                Box::pin(async move {
                    put(&c, "d");
                    Ok(())
                })
            })],
        ],
    }
}

struct Bed {
    dir: tempfile::TempDir,
    world: Arc<World>,
}

impl Bed {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            world: Arc::default(),
        }
    }

    async fn open(&self, version: u32) -> (Arc<Operations<World>>, Store) {
        let config = DatabaseConfig::file(self.dir.path().join("state.db"));
        let store = Store::open(&config, &[MIGRATION]).await.unwrap();
        let operations = Operations::new(store.clone(), "n1", vec![saga(version)]);
        operations.set_patience(Patience {
            forward: Duration::from_millis(300),
            longest_pause: Duration::from_millis(20),
        });
        (operations, store)
    }

    fn things(&self) -> Vec<String> {
        self.world.things.lock().unwrap().iter().cloned().collect()
    }
}

const ALL: [&str; 4] = ["a", "b-x", "c", "d"];

async fn finish(operations: &Arc<Operations<World>>) -> berth_operations::Record {
    let operation = operations
        .start("build", &"x", New::task("build", "Building"))
        .await
        .unwrap();
    operation.wait(Some(Duration::from_secs(5))).await
}

#[tokio::test]
async fn steps_run_in_order_and_each_has_its_own_request_id() {
    let bed = Bed::new();
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    let record = finish(&operations).await;
    assert_eq!(record.state, State::Succeeded);
    assert_eq!(bed.things(), ALL);
    let log = bed.world.log.lock().unwrap().clone();
    assert_eq!((log[0].as_str(), log[3].as_str()), ("a", "d"));
}

#[tokio::test]
async fn a_failure_at_any_step_leaves_a_clean_slate() {
    for step in ["a", "b", "c", "d"] {
        for phase in [Phase::BeforeRun, Phase::AfterRun] {
            // What `d` did has no undo, so only its failing before counts.
            if step == "d" && phase == Phase::AfterRun {
                continue;
            }
            let bed = Bed::new();
            let (operations, _store) = bed.open(1).await;
            operations.resume(&bed.world).await.unwrap();
            operations
                .set_faults(move |p| (p.step == step && p.phase == phase).then_some(Fault::Fail));
            let record = finish(&operations).await;
            assert_eq!(record.state, State::Failed, "{step} {phase:?}");
            assert_eq!(record.failure.unwrap().reason, "FAULT");
            assert!(
                bed.things().is_empty(),
                "{step} {phase:?}: {:?}",
                bed.things()
            );
        }
    }
}

#[tokio::test]
async fn each_step_twice_is_the_same_as_once() {
    let bed = Bed::new();
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    operations.set_faults(|p| (p.phase == Phase::BeforeRun).then_some(Fault::Again));
    assert_eq!(finish(&operations).await.state, State::Succeeded);
    assert_eq!(bed.things(), ALL);
}

#[tokio::test]
async fn after_a_crash_at_any_step_it_goes_on() {
    for step in ["a", "b", "c", "d"] {
        for phase in [Phase::BeforeRun, Phase::AfterRun] {
            let bed = Bed::new();
            let id = {
                let (operations, store) = bed.open(1).await;
                operations.resume(&bed.world).await.unwrap();
                operations.set_faults(move |p| {
                    (p.step == step && p.phase == phase).then_some(Fault::Halt)
                });
                let operation = operations
                    .start("build", &"x", New::task("build", "Building"))
                    .await
                    .unwrap();
                let record = operation.wait(Some(Duration::from_millis(100))).await;
                assert_eq!(record.state, State::Running);
                operations.halt().await;
                store.close().await;
                record.id
            };
            let (operations, _store) = bed.open(1).await;
            assert_eq!(operations.resume(&bed.world).await.unwrap(), 1);
            let operation = operations.get(&id).unwrap();
            let record = operation.wait(Some(Duration::from_secs(5))).await;
            assert_eq!(record.state, State::Succeeded, "{step} {phase:?}");
            assert_eq!(bed.things(), ALL);
        }
    }
}

#[tokio::test]
async fn a_crash_while_unwinding_goes_on_unwinding() {
    let bed = Bed::new();
    {
        let (operations, store) = bed.open(1).await;
        operations.resume(&bed.world).await.unwrap();
        operations.set_faults(|p| match (p.step, p.phase) {
            ("d", Phase::BeforeRun) => Some(Fault::Fail),
            ("b", Phase::BeforeUndo) => Some(Fault::Halt),
            _ => None,
        });
        let operation = operations
            .start("build", &"x", New::task("build", "Building"))
            .await
            .unwrap();
        let record = operation.wait(Some(Duration::from_millis(200))).await;
        assert_eq!(record.state, State::Unwinding);
        operations.halt().await;
        store.close().await;
    }
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    let id = operations.list()[0].id.clone();
    let record = operations
        .get(&id)
        .unwrap()
        .wait(Some(Duration::from_secs(5)))
        .await;
    assert_eq!(record.state, State::Failed);
    assert_eq!(record.failure.unwrap().reason, "FAULT");
    assert!(bed.things().is_empty());
}

#[tokio::test]
async fn one_of_another_release_is_unwound() {
    let bed = Bed::new();
    {
        let (operations, store) = bed.open(1).await;
        operations.resume(&bed.world).await.unwrap();
        operations.set_faults(|p| (p.step == "d").then_some(Fault::Halt));
        let operation = operations
            .start("build", &"x", New::task("build", "Building"))
            .await
            .unwrap();
        operation.wait(Some(Duration::from_millis(100))).await;
        operations.halt().await;
        store.close().await;
    }
    let (operations, _store) = bed.open(2).await;
    operations.resume(&bed.world).await.unwrap();
    let id = operations.list()[0].id.clone();
    let record = operations
        .get(&id)
        .unwrap()
        .wait(Some(Duration::from_secs(5)))
        .await;
    assert_eq!(record.state, State::Failed);
    assert_eq!(record.failure.unwrap().reason, "RELEASE_CHANGED");
    assert!(bed.things().is_empty());
}

#[tokio::test]
async fn a_service_that_is_away_is_waited_for_but_not_for_ever() {
    let bed = Bed::new();
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    *bed.world.away.lock().unwrap() = 2;
    assert_eq!(finish(&operations).await.state, State::Succeeded);
    *bed.world.away.lock().unwrap() = u32::MAX;
    let record = finish(&operations).await;
    assert_eq!(record.state, State::Failed);
    assert_eq!(record.failure.unwrap().message, "b is away");
}

#[tokio::test]
async fn cancelling_undoes_and_a_request_id_gives_the_same_operation() {
    let bed = Bed::new();
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    *bed.world.away.lock().unwrap() = u32::MAX;
    let mut new = New::task("build", "Building").cancellable();
    new.request_id = "r1".to_owned();
    let first = operations.start("build", &"x", new.clone()).await.unwrap();
    let second = operations.start("build", &"x", new).await.unwrap();
    assert_eq!(first.id(), second.id());
    operations.cancel(&first.id()).unwrap();
    let record = first.wait(Some(Duration::from_secs(5))).await;
    assert!(record.state.is_final());
    assert!(bed.things().is_empty());
    let error = operations.cancel(&first.id()).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
}

#[tokio::test]
async fn a_panic_is_a_failure() {
    let bed = Bed::new();
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    let spawned = operations.spawn(New::task("exec", "Executing"), |_| async {
        assert_eq!(1 + 1, 3, "arithmetic");
        Ok(())
    });
    let record = spawned.wait(Some(Duration::from_secs(5))).await;
    assert_eq!(record.state, State::Failed);
    let panicking = Saga::<World> {
        name: "panics",
        version: 1,
        stages: vec![vec![Step::with_undo(
            "p",
            |c| {
                Box::pin(async move {
                    put(&c, "p");
                    panic!("half-way")
                })
            },
            |c| {
                Box::pin(async move {
                    take(&c, "p");
                    Ok(())
                })
            },
        )]],
    };
    let dir = tempfile::tempdir().unwrap();
    let config = DatabaseConfig::file(dir.path().join("state.db"));
    let store = Store::open(&config, &[MIGRATION]).await.unwrap();
    let operations = Operations::new(store, "n1", vec![panicking]);
    operations.resume(&bed.world).await.unwrap();
    let operation = operations
        .start("panics", &"x", New::task("panics", "Panicking"))
        .await
        .unwrap();
    let record = operation.wait(Some(Duration::from_secs(5))).await;
    assert_eq!(record.state, State::Failed);
    assert!(bed.things().is_empty());
}

#[tokio::test]
async fn the_last_event_is_the_final_state() {
    let bed = Bed::new();
    let (operations, _store) = bed.open(1).await;
    operations.resume(&bed.world).await.unwrap();
    let mut events = operations.subscribe();
    let operation = operations.spawn(New::task("exec", "Executing"), |op| async move {
        op.set_metadata("return", 0);
        Ok(())
    });
    operation.wait(Some(Duration::from_secs(5))).await;
    let mut seen = Vec::new();
    while let Ok(record) = events.try_recv() {
        seen.push((record.state, record.metadata.contains_key("return")));
    }
    assert_eq!(seen.first().unwrap(), &(State::Pending, false));
    assert_eq!(seen.last().unwrap(), &(State::Succeeded, true));
}
