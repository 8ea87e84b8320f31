//! The store on both databases. PostgreSQL runs where BERTH_TEST_POSTGRES names a server.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use berth_store::{DatabaseConfig, Durability, Event, Fetch, Migration, Store, StoreError, args};

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "create_things",
    sql: "CREATE TABLE things (id TEXT PRIMARY KEY, size BIGINT, live BOOLEAN NOT NULL, raw BYTEA);",
}];

struct Case {
    config: DatabaseConfig,
    _dir: tempfile::TempDir,
    schema: Option<(String, String)>,
}

async fn cases() -> Vec<Case> {
    let dir = tempfile::tempdir().unwrap();
    let mut cases = vec![Case {
        config: DatabaseConfig::file(dir.path().join("state.db")),
        _dir: dir,
        schema: None,
    }];
    if let Ok(url) = std::env::var("BERTH_TEST_POSTGRES") {
        let schema = format!("t{}", uuid::Uuid::new_v4().simple());
        let admin = Store::open(
            &DatabaseConfig {
                url: url.clone(),
                durability: Durability::Full,
            },
            &[],
        )
        .await
        .unwrap();
        let mut tx = admin.begin().await.unwrap();
        tx.execute(&format!("CREATE SCHEMA {schema}"), args![])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let separator = if url.contains('?') { '&' } else { '?' };
        cases.push(Case {
            config: DatabaseConfig {
                url: format!("{url}{separator}options=-csearch_path%3D{schema}"),
                durability: Durability::Full,
            },
            _dir: tempfile::tempdir().unwrap(),
            schema: Some((url, schema)),
        });
    } else {
        println!("PostgreSQL skipped: BERTH_TEST_POSTGRES is not set");
    }
    cases
}

async fn drop_schema(case: &Case) {
    if let Some((url, schema)) = &case.schema {
        let config = DatabaseConfig {
            url: url.clone(),
            durability: Durability::Full,
        };
        let admin = Store::open(&config, &[]).await.unwrap();
        let mut tx = admin.begin().await.unwrap();
        tx.execute(&format!("DROP SCHEMA {schema} CASCADE"), args![])
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn values_come_back_as_they_went() {
    for case in cases().await {
        let store = Store::open(&case.config, MIGRATIONS).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        tx.execute(
            "INSERT INTO things (id, size, live, raw) VALUES ($1, $2, $3, $4), ($5, $6, $7, $8)",
            args![
                "a",
                7_i64,
                true,
                vec![0_u8, 255],
                "b",
                None::<i64>,
                false,
                None::<Vec<u8>>
            ],
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
        let rows = store
            .read()
            .fetch_all("SELECT * FROM things ORDER BY id", args![])
            .await
            .unwrap();
        assert_eq!(rows[0].text("id").unwrap(), "a");
        assert_eq!(rows[0].i64("size").unwrap(), 7);
        assert!(rows[0].bool("live").unwrap());
        assert_eq!(rows[0].bytes("raw").unwrap(), [0, 255]);
        assert_eq!(rows[1].opt_i64("size").unwrap(), None);
        assert_eq!(rows[1].opt_bytes("raw").unwrap(), None);
        assert!(rows[1].text("nothing").is_err());
        let count = store
            .read()
            .fetch_one("SELECT COUNT(*) AS n FROM things", args![])
            .await
            .unwrap();
        assert_eq!(count.i64("n").unwrap(), 2);
        drop_schema(&case).await;
    }
}

#[tokio::test]
async fn a_dropped_transaction_changes_nothing_and_a_taken_key_says_so() {
    for case in cases().await {
        let store = Store::open(&case.config, MIGRATIONS).await.unwrap();
        let insert = "INSERT INTO things (id, live) VALUES ($1, $2)";
        let mut tx = store.begin().await.unwrap();
        tx.execute(insert, args!["a", true]).await.unwrap();
        tx.emit(Event {
            action: "thing-created".into(),
            ..Event::default()
        })
        .await
        .unwrap();
        drop(tx);
        assert!(store.events_after(0, 10).await.unwrap().is_empty());
        let mut tx = store.begin().await.unwrap();
        tx.execute(insert, args!["a", true]).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let error = tx.execute(insert, args!["a", true]).await.unwrap_err();
        assert!(matches!(error, StoreError::Unique(_)), "{error:?}");
        drop(tx);
        drop_schema(&case).await;
    }
}

#[tokio::test]
async fn events_are_in_order_and_wake_watchers() {
    for case in cases().await {
        let store = Store::open(&case.config, MIGRATIONS).await.unwrap();
        let mut watch = store.watch_events();
        for i in 0..3 {
            let mut tx = store.begin().await.unwrap();
            tx.emit(Event {
                action: format!("a{i}"),
                ..Event::default()
            })
            .await
            .unwrap();
            tx.commit().await.unwrap();
        }
        watch.changed().await.unwrap();
        let events = store.events_after(1, 10).await.unwrap();
        let seen: Vec<_> = events
            .iter()
            .map(|e| (e.sequence, e.event.action.as_str()))
            .collect();
        assert_eq!(seen, [(2, "a1"), (3, "a2")]);
        drop_schema(&case).await;
    }
}

#[tokio::test]
async fn it_opens_again_with_what_was_committed_and_its_epoch() {
    for case in cases().await {
        let store = Store::open(&case.config, MIGRATIONS).await.unwrap();
        let epoch = store.epoch().to_owned();
        let mut tx = store.begin().await.unwrap();
        tx.finish_request("op/step", b"answer".to_vec())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        store.close().await;
        drop(store);
        let store = Store::open(&case.config, MIGRATIONS).await.unwrap();
        assert_eq!(store.epoch(), epoch);
        assert_eq!(
            store.finished_request("op/step").await.unwrap().unwrap(),
            b"answer"
        );
        assert!(store.finished_request("other").await.unwrap().is_none());
        store.close().await;
        drop_schema(&case).await;
    }
}

#[tokio::test]
async fn a_second_process_and_a_changed_migration_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = DatabaseConfig::file(dir.path().join("state.db"));
    let store = Store::open(&config, MIGRATIONS).await.unwrap();
    let error = Store::open(&config, MIGRATIONS).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error:?}");
    store.close().await;
    drop(store);
    let changed = [Migration {
        sql: "CREATE TABLE other (id TEXT);",
        ..MIGRATIONS[0]
    }];
    let error = Store::open(&config, &changed).await.unwrap_err();
    assert!(
        matches!(error, StoreError::MigrationChanged { version: 1, .. }),
        "{error:?}"
    );
}
