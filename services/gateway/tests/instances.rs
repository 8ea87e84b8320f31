//! Instances over REST, as 5.0.2's clients see them, with the owners in memory.

#![allow(clippy::unwrap_used)]

mod bed;
mod fakes;
mod wire;

use bed::Bed;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use wire::Client;

async fn client(bed: &Bed) -> Client {
    let app = bed.open().await;
    app.begin().await.unwrap();
    let client = Client::over(&app);
    client.arrange(&bed.fakes).await;
    client
}

async fn launched(bed: &Bed, name: &str) -> Client {
    let client = client(bed).await;
    client.create(name).await;
    let start = json!({"action": "start", "timeout": -1});
    client
        .done("PUT", &format!("/1.0/instances/{name}/state"), start)
        .await;
    client
}

#[tokio::test]
async fn answers_have_seven_keys_in_lxds_order() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let keys = |text: &str| -> Vec<usize> {
        [
            "type",
            "status",
            "status_code",
            "operation",
            "error_code",
            "error",
            "metadata",
        ]
        .iter()
        .map(|key| text.find(&format!("\"{key}\":")).unwrap())
        .collect()
    };
    for path in [
        "/",
        "/1.0",
        "/1.0/instances",
        "/1.0/instances/nope",
        "/1.0/nothing",
    ] {
        let answer = client.send("GET", path, Value::Null).await;
        let found = keys(&answer.text);
        assert!(found.is_sorted(), "{path}: {}", answer.text);
        if answer.status >= 400 {
            assert_eq!(answer.json["error_code"], answer.status, "{path}");
            assert_eq!(answer.json["status_code"], 0);
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
        }
        assert_eq!(answer.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn an_image_on_another_host_is_carried_to_storage_once() {
    let bed = Bed::new();
    let client = client(&bed).await;
    bed.fakes.storage.0.lock().apart = true;
    client.create("c1").await;
    client.create("c2").await;
    let state = bed.fakes.storage.0.lock();
    let received: Vec<_> = state.received.values().map(Vec::as_slice).collect();
    assert_eq!(received, [b"IMAGE bb"]);
}

#[tokio::test]
async fn why_an_image_could_not_be_carried_is_told() {
    let bed = Bed::new();
    let client = client(&bed).await;
    bed.fakes.storage.0.lock().apart = true;
    let fingerprint = bed.fakes.image.put(b"IMAGE lost");
    bed.fakes.image.0.lock().damaged = Some(fingerprint.clone());
    let body = json!({"name": "c1", "source": {"type": "image", "fingerprint": fingerprint}});
    let operation = client.run("POST", "/1.0/instances", body).await;
    assert_eq!(operation["status_code"], 400, "{operation}");
    // The sentence of an internal error is told to no user; that it is not storage's shows.
    assert!(
        !operation["err"].as_str().unwrap().contains("announced"),
        "{operation}"
    );
    let state = bed.fakes.storage.0.lock();
    assert!(state.volumes.is_empty(), "{:?}", state.volumes);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_in_lxds_words() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let cases = [
        ("GET", "/1.0/nothing", 404, "not found"),
        ("DELETE", "/1.0/instances", 501, "not implemented"),
        ("GET", "/1.0/instances/nope", 404, "Instance not found"),
        ("GET", "/1.0/operations/nope", 404, "Operation not found"),
        (
            "GET",
            "/1.0/instances?project=other",
            404,
            "Project not found",
        ),
        (
            "GET",
            "/1.0/instances?filter=name",
            500,
            "Invalid filter: clause has no operator",
        ),
        (
            "GET",
            "/1.0/instances/nope/state",
            404,
            "Instance not found",
        ),
        (
            "GET",
            "/1.0/instances/nope/snapshots",
            404,
            "Instance not found",
        ),
    ];
    for (method, path, status, message) in cases {
        let answer = client.send(method, path, Value::Null).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        assert_eq!(answer.json["error"], message, "{method} {path}");
    }
}

#[tokio::test]
async fn bad_creations_leave_nothing() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let before = bed.fakes.inventory();
    let image = json!({"type": "image", "alias": "bb"});
    let cases = [
        (json!({"name": "c1"}), 400, "Unknown source type "),
        (
            json!({"name": "c1", "source": {"type": "bogus"}}),
            400,
            "Unknown source type bogus",
        ),
        (
            json!({"name": "c1", "source": {"type": "image", "alias": "no"}}),
            404,
            "Image alias not found",
        ),
        (
            json!({"name": "c_1", "source": image}),
            400,
            "Invalid instance name: Name can only contain alphanumeric and hyphen characters",
        ),
        (
            json!({"name": "c1", "source": {"type": "copy", "source": "no"}}),
            404,
            "Failed to fetch instance \"no\" in project \"default\": Instance not found",
        ),
        (
            json!({"name": "c1", "source": {"type": "migration"}}),
            501,
            "migration between servers: not implemented",
        ),
        (
            json!({"name": "c1", "type": "virtual-machine", "source": {"type": "none"}}),
            501,
            "Virtual machines",
        ),
    ];
    for (body, status, message) in cases {
        let answer = client.send("POST", "/1.0/instances", body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert_eq!(answer.json["error"], message, "{body}");
    }
    let body = json!({"name": "c1", "config": {"bogus": "1"}, "source": image});
    let operation = client.run("POST", "/1.0/instances", body).await;
    assert_eq!(operation["status_code"], 400);
    assert_eq!(operation["err"], "Unknown configuration key: bogus");
    let answer = client.raw("POST", "/1.0/instances", "{bad").await;
    assert_eq!(answer.status, 400);
    assert_eq!(bed.fakes.inventory(), before);
}

#[tokio::test]
async fn a_launch_is_listed_with_its_state() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let before = bed.fakes.inventory();
    let body = json!({
        "name": "c1", "start": true, "config": {"user.a": null}, "devices": null, "profiles": null,
        "source": {"type": "image", "alias": "bb"}, "something": "else",
    });
    let operation = client.run("POST", "/1.0/instances", body).await;
    assert_eq!(operation["status_code"], 200, "{operation}");
    assert_eq!(
        operation["resources"]["instances"],
        json!(["/1.0/instances/c1"])
    );
    assert_eq!(
        operation["resources"]["containers"],
        json!(["/1.0/containers/c1"])
    );

    let list = client.get("/1.0/instances?recursion=2&filter=").await;
    let c1 = &list[0];
    assert_eq!(c1["status_code"], 103);
    assert_eq!(c1["state"]["status"], "Running");
    assert_eq!(c1["state"]["pid"], 42);
    assert_eq!(c1["profiles"], json!(["default"]));
    assert_eq!(c1["expanded_devices"]["root"]["pool"], "default");
    assert!(c1["snapshots"].is_null());
    assert_eq!(
        client.get("/1.0/instances").await,
        json!(["/1.0/instances/c1"])
    );
    assert_eq!(
        client.get("/1.0/containers").await,
        json!(["/1.0/containers/c1"])
    );
    assert_eq!(client.get("/1.0/virtual-machines").await, json!([]));
    assert_eq!(
        client
            .get("/1.0/instances?filter=status+eq+running+and+name+eq+c.")
            .await,
        json!(["/1.0/instances/c1"])
    );
    assert_eq!(
        client.get("/1.0/instances?filter=status+eq+stopped").await,
        json!([])
    );
    let full = client.get("/1.0/instances/c1?recursion=1").await;
    assert!(full["state"].is_object());

    let answer = client
        .send("DELETE", "/1.0/instances/c1", Value::Null)
        .await;
    assert_eq!(
        (answer.status, &answer.json["error"]),
        (400, &json!("Instance is running"))
    );
    let stop = json!({"action": "stop", "force": true});
    client.done("PUT", "/1.0/instances/c1/state", stop).await;
    client
        .done("DELETE", "/1.0/instances/c1", Value::Null)
        .await;
    assert_eq!(bed.fakes.inventory(), before, "nothing is left");
}

#[tokio::test]
async fn a_name_in_use_leaves_its_owner_alone() {
    let bed = Bed::new();
    let client = client(&bed).await;
    client.create("c1").await;
    let before = bed.fakes.inventory();
    let body = json!({"name": "c1", "source": {"type": "image", "alias": "bb"}});
    let operation = client.run("POST", "/1.0/instances", body).await;
    assert_eq!(operation["status_code"], 400);
    assert_eq!(bed.fakes.inventory(), before);
}

#[tokio::test]
async fn creations_of_one_name_at_once_leave_one_instance() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let body = json!({"name": "c1", "source": {"type": "image", "alias": "bb"}});
    let all = futures::future::join_all(
        (0..8).map(|_| client.run("POST", "/1.0/instances", body.clone())),
    )
    .await;
    let made = all.iter().filter(|o| o["status_code"] == 200).count();
    assert_eq!(made, 1, "{all:?}");
    let fakes = bed.fakes.inventory();
    let of_c1 = fakes
        .iter()
        .filter(|thing| thing.contains("/containers/c1 with"))
        .count();
    assert_eq!(of_c1, 1, "{fakes:#?}");
}

#[tokio::test]
async fn a_profile_that_changes_meanwhile_is_planned_again() {
    let bed = Bed::new();
    let client = client(&bed).await;
    bed.fakes.instance.0.lock().races = 2;
    client.create("c1").await;
    assert_eq!(bed.fakes.instance.0.lock().races, 0);
}

#[tokio::test]
async fn put_replaces_and_a_stale_etag_is_refused() {
    let bed = Bed::new();
    let client = client(&bed).await;
    client.create("c1").await;
    let answer = client.send("GET", "/1.0/instances/c1", Value::Null).await;
    let tag = answer.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.len() == 66, "{tag}");
    let mut body = answer.json["metadata"].clone();
    body["config"]["user.x"] = json!("1");
    let put = |tag: &str| client.send_if("PUT", "/1.0/instances/c1", tag.to_owned(), body.clone());
    assert_eq!(put("\"0000\"").await.status, 412);
    assert_eq!(put(&tag).await.status, 202);
    client.settled().await;
    let now = client.get("/1.0/instances/c1").await;
    assert_eq!(now["config"]["user.x"], "1");
    assert_eq!(put(&tag).await.status, 412, "it has changed since");
}

#[tokio::test]
async fn patch_merges_config_per_key() {
    let bed = Bed::new();
    let client = client(&bed).await;
    client.create("c1").await;
    let patch = |body: Value| client.send("PATCH", "/1.0/instances/c1", body);
    assert_eq!(
        patch(json!({"config": {"user.a": "1", "user.b": "2"}, "description": "x"}))
            .await
            .status,
        200
    );
    assert_eq!(patch(json!({"config": {"user.a": ""}})).await.status, 200);
    let now = client.get("/1.0/instances/c1").await;
    assert_eq!(now["config"]["user.b"], "2");
    assert_eq!(now["config"].get("user.a"), None);
    assert_eq!(now["description"], "x");
    assert_eq!(patch(json!({"restore": "s"})).await.status, 400);
    assert_eq!(patch(json!({"config": {"bogus": "1"}})).await.status, 400);
}

#[tokio::test]
async fn snapshots_are_made_renamed_expired_and_deleted() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    let before = bed.fakes.inventory();
    let path = "/1.0/instances/c1/snapshots";
    client.done("POST", path, json!({})).await;
    let expires = "2030-01-01T00:00:00Z";
    client
        .done("POST", path, json!({"name": "s1", "expires_at": expires}))
        .await;
    let never = json!({"name": "s2", "expires_at": "0001-01-01T00:00:00Z"});
    client.done("POST", path, never).await;
    let snap = |name: &str| format!("{path}/{name}");
    assert_eq!(client.get(path).await.as_array().unwrap().len(), 3);
    assert_eq!(client.get(&snap("s1")).await["expires_at"], expires);
    assert_eq!(
        client.get(&snap("s2")).await["expires_at"],
        "0001-01-01T00:00:00Z"
    );
    let twice = client.run("POST", path, json!({"name": "s1"})).await;
    assert_eq!(twice["status_code"], 400);
    client
        .done("POST", &snap("s1"), json!({"name": "s3"}))
        .await;
    client
        .done(
            "PUT",
            &snap("s3"),
            json!({"expires_at": "2031-01-01T00:00:00Z"}),
        )
        .await;
    assert_eq!(
        client.get(&snap("s3")).await["expires_at"],
        "2031-01-01T00:00:00Z"
    );
    assert_eq!(
        client.send("GET", &snap("s1"), Value::Null).await.status,
        404
    );
    for name in ["snap0", "s2", "s3"] {
        client.done("DELETE", &snap(name), Value::Null).await;
    }
    assert_eq!(bed.fakes.inventory(), before);
}

#[tokio::test]
async fn a_restore_brings_the_configuration_back_and_starts_again() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    client
        .done("POST", "/1.0/instances/c1/snapshots", json!({"name": "s1"}))
        .await;
    client
        .send(
            "PATCH",
            "/1.0/instances/c1",
            json!({"config": {"user.a": "1"}}),
        )
        .await;
    // All other fields arrive as zero values and mean nothing.
    let restore = json!({"restore": "c1/s1", "config": null, "devices": null, "profiles": null, "description": ""});
    client.done("PUT", "/1.0/instances/c1", restore).await;
    let now = client.get("/1.0/instances/c1").await;
    assert_eq!(now["config"].get("user.a"), None);
    assert_eq!(now["status"], "Running");
    assert_eq!(now["profiles"], json!(["default"]));
    let missing = client
        .run("PUT", "/1.0/instances/c1", json!({"restore": "no"}))
        .await;
    assert_eq!(missing["err"], "Snapshot c1/no does not exist");
}

#[tokio::test]
async fn a_copy_has_its_own_volume() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    let body = json!({"name": "c2", "source": {"type": "copy", "source": "c1"}});
    client.done("POST", "/1.0/instances", body).await;
    let all = bed.fakes.inventory();
    assert!(
        all.iter()
            .any(|thing| thing.contains("/containers/c2 with")),
        "{all:#?}"
    );
    client
        .done("POST", "/1.0/instances/c1/snapshots", json!({"name": "s1"}))
        .await;
    let snapshots = async |name: &str| {
        let path = format!("/1.0/instances/{name}/snapshots");
        let all = client.get(&path).await;
        all.as_array().unwrap().len()
    };
    let body = json!({"name": "c3", "source": {"type": "copy", "source": "c1"}});
    client.done("POST", "/1.0/instances", body).await;
    assert_eq!(snapshots("c3").await, 1, "snapshots come along");
    let body =
        json!({"name": "c4", "source": {"type": "copy", "source": "c1", "instance_only": true}});
    client.done("POST", "/1.0/instances", body).await;
    assert_eq!(snapshots("c4").await, 0);
    let body = json!({"name": "c5", "source": {"type": "copy", "source": "c1/s1"}});
    client.done("POST", "/1.0/instances", body).await;
    assert_eq!(snapshots("c5").await, 0);
    // A snapshot that storage has and the instance service does not know of: nothing is made.
    let before = bed.fakes.inventory();
    for stored in bed.fakes.storage.0.lock().volumes.values_mut() {
        if let Some((name, stray)) = stored.snapshots.first_key_value() {
            let (name, stray) = (format!("{name}-stray"), stray.clone());
            stored.snapshots.insert(name, stray);
        }
    }
    let with_stray = bed.fakes.inventory();
    assert_ne!(before, with_stray);
    let body = json!({"name": "c6", "source": {"type": "copy", "source": "c1"}});
    let failed = client.run("POST", "/1.0/instances", body).await;
    assert_eq!(failed["status_code"], 400, "{failed}");
    assert_eq!(bed.fakes.inventory(), with_stray);
}

#[tokio::test]
async fn snapshots_are_taken_when_due_and_removed_when_over() {
    use berth_gateway::app::scheduled;

    let bed = Bed::new();
    let app = bed.open().await;
    app.begin().await.unwrap();
    let client = Client::over(&app);
    client.arrange(&bed.fakes).await;
    client.create("c1").await;
    client.create("c2").await;
    let config = json!({"config": {
        "snapshots.schedule": "* * * * *",
        "snapshots.schedule.stopped": "true",
        "snapshots.pattern": "due-%d",
        "snapshots.expiry": "1d",
    }});
    client.send("PATCH", "/1.0/instances/c1", config).await;
    // This one is stopped, and says nothing of being taken all the same.
    let config = json!({"config": {"snapshots.schedule": "* * * * *"}});
    client.send("PATCH", "/1.0/instances/c2", config).await;
    let pool = "/1.0/storage-pools/default/volumes/custom";
    let volume = json!({"name": "v1", "config": {"snapshots.schedule": "* * * * *"}});
    assert_eq!(client.send("POST", pool, volume).await.status, 200);

    let minute = chrono::Utc::now();
    scheduled::look(&app, &[minute]).await;
    // The same minute again is the same snapshot.
    scheduled::look(&app, &[minute]).await;
    client.settled().await;
    let taken = client.get("/1.0/instances/c1/snapshots?recursion=1").await;
    assert_eq!(taken.as_array().unwrap().len(), 1, "{taken}");
    assert_eq!(taken[0]["name"], "due-0");
    let expires = taken[0]["expires_at"].as_str().unwrap();
    assert!(!expires.starts_with("0001"), "{expires}");
    assert_eq!(client.get("/1.0/instances/c2/snapshots").await, json!([]));
    let of_volume = client.get(&format!("{pool}/v1/snapshots")).await;
    assert_eq!(of_volume.as_array().unwrap().len(), 1, "{of_volume}");

    // Nothing is due and nothing over.
    scheduled::look(&app, &[]).await;
    client.settled().await;
    let path = "/1.0/instances/c1/snapshots/due-0";
    assert_eq!(client.get(path).await["name"], "due-0");
    let past = json!({"expires_at": "2020-01-01T00:00:00Z"});
    client.done("PUT", path, past.clone()).await;
    let of_volume = format!("{pool}/v1/snapshots/snap0");
    assert_eq!(client.send("PATCH", &of_volume, past).await.status, 200);
    scheduled::look(&app, &[]).await;
    client.settled().await;
    assert_eq!(client.send("GET", path, Value::Null).await.status, 404);
    assert_eq!(
        client.send("GET", &of_volume, Value::Null).await.status,
        404
    );
}

#[tokio::test]
async fn a_size_is_limits() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let body = |size: &str| {
        json!({"name": "c1", "instance_type": size, "source": {"type": "none"},
            "config": {"limits.cpu": "4"}})
    };
    let unknown = client
        .send("POST", "/1.0/instances", body("t2.micro"))
        .await;
    assert_eq!(unknown.status, 400);
    client.done("POST", "/1.0/instances", body("c1-m2")).await;
    let config = client.get("/1.0/instances/c1").await["config"].clone();
    assert_eq!(config["limits.memory"], "2048MB");
    assert_eq!(config["limits.cpu"], "4", "what is said counts");
}

#[tokio::test]
async fn a_rename_moves_everything() {
    let bed = Bed::new();
    let client = client(&bed).await;
    client.create("c1").await;
    client.create("c2").await;
    let rename = |name: &str| client.send("POST", "/1.0/instances/c1", json!({"name": name}));
    assert_eq!(rename("c2").await.status, 409);
    assert_eq!(rename("c_x").await.status, 400);
    client
        .done("POST", "/1.0/instances/c1", json!({"name": "c3"}))
        .await;
    let all = bed.fakes.inventory();
    let left: Vec<_> = all
        .iter()
        .filter(|t| t.contains("instances/c1") || t.contains("containers/c1"))
        .collect();
    assert!(left.is_empty(), "{left:#?}");
    client
        .done("DELETE", "/1.0/instances/c3", Value::Null)
        .await;
}

#[tokio::test]
async fn a_bulk_change_reaches_every_instance() {
    let bed = Bed::new();
    let client = client(&bed).await;
    for name in ["c1", "c2", "c3"] {
        client.create(name).await;
    }
    let bulk = |action: &str| json!({"state": {"action": action, "timeout": -1, "force": true}});
    let operation = client.run("PUT", "/1.0/instances", bulk("start")).await;
    assert_eq!(
        operation["resources"]["instances"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    client.done("PUT", "/1.0/instances", bulk("stop")).await;
    let list = client.get("/1.0/instances?recursion=1").await;
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .all(|i| i["status"] == "Stopped")
    );
    let answer = client.send("PUT", "/1.0/instances", bulk("dance")).await;
    assert_eq!(answer.json["error"], "Unknown action: 'dance'");
}

#[tokio::test]
async fn an_ephemeral_instance_goes_when_it_stops() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let before = bed.fakes.inventory();
    let body = json!({"name": "e1", "ephemeral": true, "start": true, "source": {"type": "image", "alias": "bb"}});
    client.done("POST", "/1.0/instances", body).await;
    // The gateway follows the owner's events from a moment after its start.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let stop = json!({"action": "stop", "force": true});
    client.done("PUT", "/1.0/instances/e1/state", stop).await;
    for _ in 0..100 {
        if bed.fakes.inventory() == before {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{:#?}", bed.fakes.inventory());
}

#[tokio::test]
async fn lifecycle_events_reach_listeners() {
    let bed = Bed::new();
    let client = client(&bed).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let mut events = client.websocket("/1.0/events?type=lifecycle").await;
    client.create("c1").await;
    let event = tokio::time::timeout(std::time::Duration::from_secs(5), events.next()).await;
    let event: Value =
        serde_json::from_str(event.unwrap().unwrap().unwrap().to_text().unwrap()).unwrap();
    assert_eq!(event["type"], "lifecycle");
    assert_eq!(event["metadata"]["action"], "instance-created");
    assert_eq!(event["metadata"]["source"], "/1.0/instances/c1");
    assert_eq!(event["project"], "default");
    assert_eq!(event["location"], "none");
    assert_eq!(
        client
            .send("GET", "/1.0/events?type=foo", Value::Null)
            .await
            .status
            / 100,
        4
    );
}

/// The flow of 5.0.2: listen, send, read once, and act on events until the final one.
#[tokio::test]
async fn lxcs_own_flow_never_hangs() {
    let bed = Bed::new();
    let client = client(&bed).await;
    for n in 0..20 {
        let mut events = client.websocket("/1.0/events?project=default").await;
        let body = json!({"name": format!("c{n}"), "source": {"type": "image", "alias": "bb"}});
        let answer = client.send("POST", "/1.0/instances", body).await;
        let id = answer.json["metadata"]["id"].as_str().unwrap().to_owned();
        assert_eq!(answer.json["metadata"]["status_code"], 103);
        assert_eq!(answer.header("location"), format!("/1.0/operations/{id}"));
        let read = client.get(&format!("/1.0/operations/{id}")).await;
        if read["status_code"].as_u64().unwrap() >= 200 {
            continue;
        }
        loop {
            let event =
                tokio::time::timeout(std::time::Duration::from_secs(10), events.next()).await;
            let event = event.unwrap().unwrap().unwrap();
            let event: Value = serde_json::from_str(event.to_text().unwrap()).unwrap();
            let about = &event["metadata"];
            if event["type"] == "operation"
                && about["id"] == id.as_str()
                && about["status_code"].as_u64() >= Some(200)
            {
                assert_eq!(about["status_code"], 200);
                break;
            }
        }
    }
}

async fn exec(client: &Client, body: Value) -> (String, serde_json::Map<String, Value>) {
    let answer = client.send("POST", "/1.0/instances/c1/exec", body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let operation = &answer.json["metadata"];
    assert_eq!(operation["class"], "websocket");
    let id = operation["id"].as_str().unwrap().to_owned();
    (
        id,
        operation["metadata"]["fds"].as_object().unwrap().clone(),
    )
}

async fn socket(
    client: &Client,
    id: &str,
    fds: &serde_json::Map<String, Value>,
    fd: &str,
) -> wire::Socket {
    let secret = fds[fd].as_str().unwrap();
    client
        .websocket(&format!("/1.0/operations/{id}/websocket?secret={secret}"))
        .await
}

/// Reads until the barrier.
async fn output(socket: &mut wire::Socket) -> String {
    let mut out = Vec::new();
    loop {
        let message = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next()).await;
        match message.unwrap() {
            Some(Ok(Message::Binary(data))) => out.extend_from_slice(&data),
            Some(Ok(Message::Text(text))) if text.is_empty() => {
                return String::from_utf8(out).unwrap();
            }
            Some(Ok(Message::Ping(_))) => {}
            other => panic!("{other:?} before the barrier; so far {out:?}"),
        }
    }
}

#[tokio::test]
async fn exec_carries_output_signals_and_the_exit_code() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    let body = json!({"command": ["cat"], "wait-for-websocket": true, "user": null, "group": null, "cwd": null});
    // Without control, as pylxd does it.
    let (id, fds) = exec(&client, body.clone()).await;
    assert_eq!(fds.len(), 4);
    let mut stdin = socket(&client, &id, &fds, "0").await;
    let mut stdout = socket(&client, &id, &fds, "1").await;
    let mut stderr = socket(&client, &id, &fds, "2").await;
    stdin
        .send(Message::binary("world".as_bytes().to_vec()))
        .await
        .unwrap();
    stdin.send(Message::text("")).await.unwrap();
    assert_eq!(output(&mut stdout).await, "hello world");
    assert_eq!(output(&mut stderr).await, "");
    let done = client.get(&format!("/1.0/operations/{id}/wait")).await;
    assert_eq!(done["metadata"]["return"], 7);
    assert_eq!(done["status_code"], 200);

    // With a terminal and a signal.
    let mut body = body;
    body["interactive"] = json!(true);
    let (id, fds) = exec(&client, body).await;
    assert_eq!(fds.len(), 2);
    let mut terminal = socket(&client, &id, &fds, "0").await;
    let mut control = socket(&client, &id, &fds, "control").await;
    control
        .send(Message::text(
            json!({"command": "signal", "signal": 15}).to_string(),
        ))
        .await
        .unwrap();
    assert_eq!(output(&mut terminal).await, "hello ");
    let done = client.get(&format!("/1.0/operations/{id}/wait")).await;
    assert_eq!(done["metadata"]["return"], 143);

    let wrong = client
        .send(
            "GET",
            &format!("/1.0/operations/{id}/websocket?secret=x"),
            Value::Null,
        )
        .await;
    assert!(wrong.status >= 400);
}

#[tokio::test]
async fn exec_goes_on_when_its_service_comes_back() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    *bed.fakes.guest.broken.lock().unwrap() = 2;
    let (id, fds) = exec(
        &client,
        json!({"command": ["cat"], "wait-for-websocket": true}),
    )
    .await;
    let mut stdin = socket(&client, &id, &fds, "0").await;
    let mut stdout = socket(&client, &id, &fds, "1").await;
    let _stderr = socket(&client, &id, &fds, "2").await;
    stdin
        .send(Message::binary(b"again".to_vec()))
        .await
        .unwrap();
    stdin.send(Message::text("")).await.unwrap();
    assert_eq!(
        output(&mut stdout).await,
        "hello again",
        "nothing twice, nothing lost"
    );
    let done = client.get(&format!("/1.0/operations/{id}/wait")).await;
    assert_eq!(done["metadata"]["return"], 7);
}

#[tokio::test]
async fn an_exec_that_nobody_attaches_to_never_starts() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    let (id, _) = exec(
        &client,
        json!({"command": ["cat"], "wait-for-websocket": true}),
    )
    .await;
    let done = client.get(&format!("/1.0/operations/{id}/wait")).await;
    assert_eq!(done["status_code"], 400);
    assert_eq!(done["err"], "Timed out waiting for websockets to connect");
    assert!(bed.fakes.guest.execs.lock().unwrap().is_empty());
}

#[tokio::test]
async fn exec_needs_a_running_instance() {
    let bed = Bed::new();
    let client = client(&bed).await;
    client.create("c1").await;
    let answer = client
        .send("POST", "/1.0/instances/c1/exec", json!({"command": ["sh"]}))
        .await;
    assert_eq!(
        (answer.status, &answer.json["error"]),
        (400, &json!("Instance is not running"))
    );
    let answer = client
        .send("POST", "/1.0/instances/c1/console", json!({}))
        .await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn files_go_both_ways() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    let at = |path: &str| format!("/1.0/instances/c1/files?path={path}");
    let push = |path: &str, headers: Vec<(&str, &str)>, data: &str| {
        let headers = headers
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        client.upload(at(path), headers, data.to_owned())
    };
    assert_eq!(
        push("/d", vec![("X-LXD-type", "directory")], "")
            .await
            .status,
        200
    );
    let modes = vec![
        ("X-LXD-mode", "0640"),
        ("X-LXD-uid", "5"),
        ("X-LXD-gid", "6"),
    ];
    assert_eq!(push("/d/f", modes, "hello").await.status, 200);
    assert_eq!(
        push("/d/f", vec![("X-LXD-write", "append")], " world")
            .await
            .status,
        200
    );
    assert_eq!(
        push("/d/l", vec![("X-LXD-type", "symlink")], "/d/f")
            .await
            .status,
        200
    );
    let file = client.send("GET", &at("d/f"), Value::Null).await;
    assert_eq!(file.text, "hello world");
    for (name, value) in [
        ("x-lxd-mode", "0640"),
        ("x-lxd-uid", "5"),
        ("x-lxd-gid", "6"),
        ("x-lxd-type", "file"),
        ("content-length", "11"),
        ("content-disposition", "inline;filename=f"),
        ("x-lxd-modified", "2026-01-01 00:00:00 +0000 UTC"),
    ] {
        assert_eq!(file.header(name), value, "{name}");
    }
    let directory = client.send("GET", &at("/d"), Value::Null).await;
    assert_eq!(directory.json["metadata"], json!(["f", "l"]));
    assert_eq!(directory.header("x-lxd-mode"), "0750");
    let link = client.send("GET", &at("/d/l"), Value::Null).await;
    assert_eq!(
        (link.text.as_str(), link.header("x-lxd-type")),
        ("/d/f", "symlink")
    );
    let head = client.send("HEAD", &at("/d/f"), Value::Null).await;
    assert_eq!(
        (head.status, head.text.as_str(), head.header("x-lxd-type")),
        (200, "", "file")
    );
    assert_eq!(
        client.send("DELETE", &at("/d/f"), Value::Null).await.status,
        200
    );
    assert_eq!(
        client.send("GET", &at("/d/f"), Value::Null).await.status,
        404
    );
    assert_eq!(
        client
            .send("GET", "/1.0/instances/c1/files", Value::Null)
            .await
            .json["error"],
        "Missing path argument"
    );
    assert_eq!(
        push("/x", vec![("X-LXD-type", "pipe")], "").await.status,
        400
    );
}

#[tokio::test]
async fn the_console_log_is_read_and_cleared() {
    let bed = Bed::new();
    let client = launched(&bed, "c1").await;
    bed.fakes.guest.say("booting\n");
    let log = |method: &'static str| client.send(method, "/1.0/instances/c1/console", Value::Null);
    assert_eq!(log("GET").await.text, "booting\n");
    assert_eq!(log("DELETE").await.status, 200);
    assert_eq!(log("GET").await.text, "");
    assert_eq!(
        client.get("/1.0/instances/c1/logs").await,
        json!(["/1.0/instances/c1/logs/console.log"])
    );
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let server = client.get("/1.0").await;
    assert_eq!(server["auth"], "trusted");
    assert_eq!(server["environment"]["server"], "lxd");
    assert_eq!(server["environment"]["server_version"], "5.0.2");
    assert_eq!(server["environment"]["server_clustered"], false);
    assert_eq!(
        server["environment"]["storage_supported_drivers"][0]["Name"],
        "dir"
    );
    assert_eq!(
        server["environment"]["storage_supported_drivers"][0]["Remote"],
        false
    );
    let announced: Vec<&str> = server["api_extensions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_str().unwrap())
        .collect();
    for never in [
        "storage_and_profile_operations",
        "storage_and_network_operations",
        "project_delete_operation",
    ] {
        assert!(!announced.contains(&never));
    }
    let refused = client
        .send(
            "PUT",
            "/1.0",
            json!({"config": {"core.https_address": ":8443"}}),
        )
        .await;
    assert_eq!(refused.status, 501);
    assert!(refused.text.contains("core.https_address"));
}

#[tokio::test]
async fn all_projects_and_a_project_exclude_one_another() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let answer = client
        .send(
            "GET",
            "/1.0/instances?all-projects=true&project=default",
            Value::Null,
        )
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        client.get("/1.0/instances?all-projects=true").await,
        json!([])
    );
}

/// `GET` with a body, any Host and any Origin, an upper-case key: what clients send.
#[tokio::test]
async fn odd_requests_are_answered() {
    let bed = Bed::new();
    let client = client(&bed).await;
    let answer = client.raw("GET", "/1.0", "\"\"").await;
    assert_eq!(answer.status, 200);
    let body =
        json!({"Name": "c1", "Profiles": ["default"], "Source": {"Type": "image", "Alias": "bb"}});
    client.done("POST", "/1.0/instances", body).await;
    assert_eq!(client.get("/1.0/instances/c%31").await["name"], "c1");
}
