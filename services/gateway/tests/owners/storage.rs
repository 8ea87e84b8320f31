use serde_json::json;

use crate::client::Client;

const POOLS: &str = "/1.0/storage-pools";
const CUSTOM: &str = "/1.0/storage-pools/p1/volumes/custom";

#[tokio::test]
async fn pools_and_volumes_are_listed() {
    let client = Client::new().await;
    let body = r#"{"name":"p1","driver":"dir","config":{"source":"/srv"}}"#;
    client
        .call("POST", POOLS, body)
        .await
        .created("/1.0/storage-pools/p1");
    client.call("POST", POOLS, body).await.refused(
        409,
        "The storage pool already exists: The record already exists",
    );
    for (body, why) in [
        (r#"{"name":"","driver":"dir"}"#, "No name provided"),
        (
            r#"{"name":"a/b","driver":"dir"}"#,
            "Storage pool names may not contain slashes",
        ),
        (r#"{"name":"x"}"#, "No driver provided"),
        (r#"{"name":"x","driver":"foo"}"#, "Unknown driver"),
    ] {
        client.call("POST", POOLS, body).await.refused(400, why);
    }
    let shown = json!({"config": {"source": "/srv"}, "description": "", "name": "p1",
        "driver": "dir", "used_by": null, "status": "Created", "locations": ["none"]});
    assert_eq!(
        client.get(POOLS).await.metadata(),
        json!(["/1.0/storage-pools/p1"])
    );
    let list = client.get("/1.0/storage-pools?recursion=1").await;
    assert_eq!(list.metadata(), json!([shown]));
    // Byte for byte, the order of keys too.
    assert!(String::from_utf8(list.bytes).unwrap().ends_with(
        "\"metadata\":[{\"config\":{\"source\":\"/srv\"},\"description\":\"\",\"name\":\"p1\",\
         \"driver\":\"dir\",\"used_by\":null,\"status\":\"Created\",\"locations\":[\"none\"]}]}\n"
    ));
    client
        .get("/1.0/storage-pools/nope")
        .await
        .refused(404, "Storage pool not found");
    let resources = client
        .get("/1.0/storage-pools/p1/resources")
        .await
        .metadata();
    assert_eq!(
        resources,
        json!({"space": {"used": 1, "total": 2}, "inodes": {"used": 3, "total": 4}})
    );

    client
        .call("POST", CUSTOM, r#"{"name":"v1","config":{"user.a":"b"}}"#)
        .await
        .done();
    client
        .call(
            "POST",
            "/1.0/storage-pools/p1/volumes",
            r#"{"name":"v1","type":"custom"}"#,
        )
        .await
        .refused(409, "Volume by that name already exists");
    client
        .call("POST", CUSTOM, r#"{"name":"a/b"}"#)
        .await
        .refused(400, "Storage volume names may not contain slashes");
    client
        .call(
            "POST",
            "/1.0/storage-pools/p1/volumes/container",
            r#"{"name":"x"}"#,
        )
        .await
        .refused(
            400,
            "Currently not allowed to create storage volumes of type \"container\"",
        );
    let volume = json!({"config": {"user.a": "b"}, "description": "", "name": "v1",
        "type": "custom", "used_by": [], "location": "none", "content_type": "filesystem",
        "project": "default", "created_at": "0001-01-01T00:00:00Z"});
    assert_eq!(client.get(&format!("{CUSTOM}/v1")).await.metadata(), volume);
    let all = client.get("/1.0/storage-pools/p1/volumes").await.metadata();
    assert_eq!(all, json!([format!("{CUSTOM}/v1")]));
    client
        .get("/1.0/storage-pools/p1/volumes/foo")
        .await
        .refused(400, "Invalid storage volume type name");
    client
        .get(&format!("{CUSTOM}/nope"))
        .await
        .refused(404, "Storage pool volume not found");
    client
        .get("/1.0/storage-pools/nope/volumes/custom/v1")
        .await
        .refused(404, "Storage pool not found");
    let state = client.get(&format!("{CUSTOM}/v1/state")).await.metadata();
    assert_eq!(state, json!({"usage": {"used": 4096, "total": 0}}));

    let started = client
        .call("POST", &format!("{CUSTOM}/v1/snapshots"), "{}")
        .await;
    let operation = client.end_of(&started).await;
    assert_eq!(operation["description"], "Creating storage volume snapshot");
    let resources = json!({"storage_volumes": ["/1.0/storage_volumes/v1"]});
    assert_eq!(operation["resources"], resources);
    let listed = client
        .get("/1.0/storage-pools/p1/volumes?recursion=1")
        .await
        .metadata();
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].clone())
        .collect();
    assert_eq!(names, ["v1", "v1/snap0"]);
    let urls = client
        .get(&format!("{CUSTOM}/v1/snapshots"))
        .await
        .metadata();
    assert_eq!(urls, json!([format!("{CUSTOM}/v1/snapshots/snap0")]));
    let one = client
        .get(&format!("{CUSTOM}/v1/snapshots/snap0"))
        .await
        .metadata();
    assert_eq!(
        (&one["name"], &one["expires_at"]),
        (&json!("snap0"), &json!("0001-01-01T00:00:00Z"))
    );
    let path = format!("{CUSTOM}/v1/snapshots/snap0");
    let started = client.call("POST", &path, r#"{"name":"s2"}"#).await;
    assert_eq!(client.end_of(&started).await["status"], "Success");
    client
        .call(
            "PUT",
            &format!("{CUSTOM}/v1"),
            r#"{"restore":"s2","config":null}"#,
        )
        .await
        .done();
    let kept = client.get(&format!("{CUSTOM}/v1")).await.metadata();
    assert_eq!(
        kept["config"],
        json!({"user.a": "b"}),
        "a restore is no replacement"
    );
    let started = client
        .call("DELETE", &format!("{CUSTOM}/v1/snapshots/s2"), "")
        .await;
    assert_eq!(client.end_of(&started).await["status"], "Success");
    client
        .call("DELETE", &format!("{CUSTOM}/v1/snapshots/s2"), "")
        .await
        .refused(404, "Storage pool volume snapshot not found");
}

#[tokio::test]
async fn volumes_are_renamed_copied_and_deleted() {
    let client = Client::new().await;
    client
        .call("POST", POOLS, r#"{"name":"p1","driver":"dir"}"#)
        .await
        .created("/1.0/storage-pools/p1");
    client.call("POST", CUSTOM, r#"{"name":"v1"}"#).await.done();
    client
        .call("POST", &format!("{CUSTOM}/v1"), r#"{"name":"v2"}"#)
        .await
        .created("/1.0/storage-pools/p1/volumes/custom/v2");
    let copy = r#"{"name":"v3","source":{"type":"copy","name":"v2","pool":"p1"}}"#;
    let started = client.call("POST", CUSTOM, copy).await;
    let operation = client.end_of(&started).await;
    assert_eq!(operation["status"], "Success", "{operation}");
    let missing = r#"{"name":"v4","source":{"type":"copy","name":"nope"}}"#;
    let operation = client
        .end_of(&client.call("POST", CUSTOM, missing).await)
        .await;
    assert_eq!(operation["status"], "Failure");
    client
        .call("DELETE", "/1.0/storage-pools/p1", "")
        .await
        .refused(400, "The storage pool is currently in use");
    for name in ["v2", "v3"] {
        client
            .call("DELETE", &format!("{CUSTOM}/{name}"), "")
            .await
            .done();
    }
    client
        .call("DELETE", &format!("{CUSTOM}/v2"), "")
        .await
        .refused(404, "Storage pool volume not found");
    client
        .call("DELETE", "/1.0/storage-pools/p1", "")
        .await
        .done();
    client
        .call("DELETE", "/1.0/storage-pools/p1", "")
        .await
        .refused(404, "Storage pool not found");
}

#[tokio::test]
async fn a_change_needs_the_etag_that_was_read() {
    let client = Client::new().await;
    client
        .call("POST", POOLS, r#"{"name":"p1","driver":"dir"}"#)
        .await
        .created("/1.0/storage-pools/p1");
    client.call("POST", CUSTOM, r#"{"name":"v1"}"#).await.done();
    for path in ["/1.0/storage-pools/p1".to_owned(), format!("{CUSTOM}/v1")] {
        let etag = client.get(&path).await.header("etag").to_owned();
        assert_eq!(etag.len(), 66, "64 hex in quotes");
        let body = r#"{"config":{"user.x":"y"},"description":"d"}"#;
        client.call_if("PUT", &path, body, Some(&etag)).await.done();
        let stale = client.call_if("PUT", &path, body, Some(&etag)).await;
        assert_eq!(stale.status, 412);
        client
            .call("PATCH", &path, r#"{"config":{"user.z":"1","user.x":""}}"#)
            .await
            .done();
        let now = client.get(&path).await.metadata();
        assert_eq!(
            (&now["config"], &now["description"]),
            (&json!({"user.z": "1"}), &json!("d"))
        );
    }
}

#[tokio::test]
async fn volumes_of_others_are_left_alone() {
    let client = Client::new().await;
    client
        .call("POST", POOLS, r#"{"name":"p1","driver":"dir"}"#)
        .await
        .created("/1.0/storage-pools/p1");
    let container = "/1.0/storage-pools/p1/volumes/container/c1";
    client.call("DELETE", container, "").await.refused(
        400,
        "Storage volumes of type \"container\" cannot be deleted with the storage API",
    );
    let renamed = client.call("POST", container, r#"{"name":"c2"}"#).await;
    assert_eq!(renamed.status, 400);
    client.call("POST", CUSTOM, r#"{"name":"v1"}"#).await.done();
    let migrated = client
        .call("POST", &format!("{CUSTOM}/v1"), r#"{"migration":true}"#)
        .await;
    assert_eq!(migrated.status, 501);
    let backup = client.get(&format!("{CUSTOM}/v1/backups")).await;
    assert_eq!(backup.status, 501);
}

#[tokio::test]
async fn a_volume_moves_to_another_pool() {
    let client = Client::new().await;
    for pool in ["p1", "p2"] {
        let body = format!(r#"{{"name":"{pool}","driver":"dir"}}"#);
        client
            .call("POST", POOLS, &body)
            .await
            .created(&format!("{POOLS}/{pool}"));
    }
    client
        .call("POST", CUSTOM, r#"{"name":"v1","config":{"user.a":"b"}}"#)
        .await
        .done();
    let snapshot = client
        .call("POST", &format!("{CUSTOM}/v1/snapshots"), "{}")
        .await;
    client.end_of(&snapshot).await;
    // Stock clients name the member that a volume's location says.
    let path = format!("{CUSTOM}/v1?target=none");
    let started = client
        .call("POST", &path, r#"{"name":"v9","pool":"p2"}"#)
        .await;
    let operation = client.end_of(&started).await;
    assert_eq!(operation["status"], "Success", "{operation}");
    client
        .get(&format!("{CUSTOM}/v1"))
        .await
        .refused(404, "Storage pool volume not found");
    let there = "/1.0/storage-pools/p2/volumes/custom/v9";
    assert_eq!(
        client.get(there).await.metadata()["config"],
        json!({"user.a": "b"})
    );
    let snapshots = client.get(&format!("{there}/snapshots")).await.metadata();
    assert_eq!(snapshots.as_array().unwrap().len(), 1);
    let started = client
        .call("POST", there, r#"{"name":"v9","pool":"nope"}"#)
        .await;
    assert_eq!(client.end_of(&started).await["status"], "Failure");
    assert_eq!(client.get(there).await.status, 200);
}

#[tokio::test]
async fn volumes_are_filtered() {
    let client = Client::new().await;
    client
        .call("POST", POOLS, r#"{"name":"p1","driver":"dir"}"#)
        .await
        .created("/1.0/storage-pools/p1");
    for name in ["v1", "v2"] {
        client
            .call("POST", CUSTOM, &format!(r#"{{"name":"{name}"}}"#))
            .await
            .done();
    }
    let found = |query: &str| client_get(&client, query.to_owned());
    let one = found("recursion=1&filter=name+eq+v2").await;
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(one[0]["name"], "v2");
    let all = found("recursion=1&all-projects=true").await;
    assert_eq!(all[1]["project"], "default");
}

async fn client_get(client: &Client, query: String) -> serde_json::Value {
    client
        .get(&format!("/1.0/storage-pools/p1/volumes?{query}"))
        .await
        .metadata()
}

#[tokio::test]
async fn the_copy_of_an_image_can_be_dropped() {
    use berth_proto::storage::{CreateVolumeRequest, ImageSource, create_volume_request::Source};

    let client = Client::new().await;
    client
        .call("POST", POOLS, r#"{"name":"p1","driver":"dir"}"#)
        .await
        .created("/1.0/storage-pools/p1");
    let request = CreateVolumeRequest {
        parent: "projects/default/storagePools/p1".into(),
        collection: "containers".into(),
        volume_id: "c1".into(),
        source: Some(Source::Image(ImageSource {
            fingerprint: "abcd".into(),
            blobs: Vec::new(),
        })),
        ..CreateVolumeRequest::default()
    };
    client
        .app
        .owners
        .volumes()
        .create_volume(request)
        .await
        .unwrap();
    let images = "/1.0/storage-pools/p1/volumes/image";
    assert_eq!(
        client.get(images).await.metadata(),
        json!([format!("{images}/abcd")])
    );
    let pool = client.get("/1.0/storage-pools/p1").await.metadata();
    assert_eq!(
        pool["used_by"],
        json!(["/1.0/images/abcd", "/1.0/instances/c1"])
    );
    client
        .call("DELETE", &format!("{images}/abcd"), "")
        .await
        .done();
    assert_eq!(client.get(images).await.metadata(), json!([]));
}
