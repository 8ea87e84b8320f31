use serde_json::json;

use crate::client::Client;

const PROFILES: &str = "/1.0/profiles";

async fn with_pool_and_network() -> Client {
    let client = Client::new().await;
    let pool = r#"{"name":"p1","driver":"dir"}"#;
    client
        .call("POST", "/1.0/storage-pools", pool)
        .await
        .created("/1.0/storage-pools/p1");
    client
        .call("POST", "/1.0/networks", r#"{"name":"br0"}"#)
        .await
        .created("/1.0/networks/br0");
    client
}

#[tokio::test]
async fn profiles_name_their_users() {
    let client = with_pool_and_network().await;
    let body = json!({"name": "web", "config": {"limits.cpu": "2"}, "devices": {
        "root": {"type": "disk", "path": "/", "pool": "p1"},
        "eth0": {"type": "nic", "network": "br0"}}})
    .to_string();
    client
        .call("POST", PROFILES, &body)
        .await
        .created("/1.0/profiles/web");
    let conflict = client.call("POST", PROFILES, &body).await;
    conflict.refused(409, "The profile already exists");
    let shown = client.get("/1.0/profiles/web").await;
    assert_eq!(
        shown.metadata(),
        json!({"config": {"limits.cpu": "2"}, "description": "", "devices": {
            "root": {"type": "disk", "path": "/", "pool": "p1"},
            "eth0": {"type": "nic", "network": "br0"}}, "name": "web", "used_by": []})
    );
    // What it names tells of it, also after it failed to be made a second time.
    let used_by = |metadata: serde_json::Value| metadata["used_by"].clone();
    let pool = client.get("/1.0/storage-pools/p1").await.metadata();
    assert_eq!(used_by(pool), json!(["/1.0/profiles/web"]));
    let network = client.get("/1.0/networks/br0").await.metadata();
    assert_eq!(used_by(network), json!(["/1.0/profiles/web"]));
    client
        .call("DELETE", "/1.0/storage-pools/p1", "")
        .await
        .refused(400, "The storage pool is currently in use");
    client
        .call("DELETE", "/1.0/networks/br0", "")
        .await
        .refused(400, "The network is currently in use");
    client
        .call("POST", "/1.0/profiles/web", r#"{"name":"shop"}"#)
        .await
        .created("/1.0/profiles/shop");
    let pool = client.get("/1.0/storage-pools/p1").await.metadata();
    assert_eq!(used_by(pool), json!(["/1.0/profiles/shop"]));
    client
        .call("PUT", "/1.0/profiles/shop", r#"{"devices":{}}"#)
        .await
        .done();
    let network = client.get("/1.0/networks/br0").await.metadata();
    assert_eq!(used_by(network), json!(null));
    client.call("DELETE", "/1.0/profiles/shop", "").await.done();
    client
        .call("DELETE", "/1.0/profiles/shop", "")
        .await
        .refused(404, "Profile not found");
}

#[tokio::test]
async fn a_profile_may_name_what_comes_later() {
    let client = Client::new().await;
    let body = json!({"name": "early", "devices": {
        "root": {"type": "disk", "path": "/", "pool": "late"},
        "eth0": {"type": "nic", "nictype": "bridged", "parent": "br9"}}})
    .to_string();
    client
        .call("POST", PROFILES, &body)
        .await
        .created("/1.0/profiles/early");
    let pool = r#"{"name":"late","driver":"dir"}"#;
    client
        .call("POST", "/1.0/storage-pools", pool)
        .await
        .created("/1.0/storage-pools/late");
    client
        .call("POST", "/1.0/networks", r#"{"name":"br9"}"#)
        .await
        .created("/1.0/networks/br9");
    for path in ["/1.0/storage-pools/late", "/1.0/networks/br9"] {
        let used_by = client.get(path).await.metadata()["used_by"].clone();
        assert_eq!(used_by, json!(["/1.0/profiles/early"]), "{path}");
    }
}

#[tokio::test]
async fn patch_of_a_profile_merges_one_level() {
    let client = Client::new().await;
    let body = r#"{"name":"p","description":"d","config":{"user.a":"1","user.b":"2"},
        "devices":{"x":{"type":"none"},"y":{"type":"none"}}}"#;
    client
        .call("POST", PROFILES, body)
        .await
        .created("/1.0/profiles/p");
    let patch =
        r#"{"config":{"user.a":"","user.c":"3"},"devices":{"x":{"type":"nic","network":"n"}}}"#;
    client.call("PATCH", "/1.0/profiles/p", patch).await.done();
    let now = client.get("/1.0/profiles/p").await.metadata();
    assert_eq!(now["config"], json!({"user.b": "2", "user.c": "3"}));
    assert_eq!(
        now["devices"],
        json!({"x": {"type": "nic", "network": "n"}, "y": {"type": "none"}})
    );
    assert_eq!(now["description"], "d");
    let etag = client
        .get("/1.0/profiles/p")
        .await
        .header("etag")
        .to_owned();
    client
        .call_if(
            "PUT",
            "/1.0/profiles/p",
            r#"{"config":null,"devices":null}"#,
            Some(&etag),
        )
        .await
        .done();
    let stale = client
        .call_if("PUT", "/1.0/profiles/p", "{}", Some(&etag))
        .await;
    assert_eq!(stale.status, 412);
    let now = client.get("/1.0/profiles/p").await.metadata();
    assert_eq!(
        (&now["config"], &now["devices"]),
        (&json!({}), &json!({})),
        "never null"
    );
}

#[tokio::test]
async fn wrong_profiles_are_refused_in_lxds_words() {
    let client = Client::new().await;
    for (body, why) in [
        (r#"{"name":""}"#, "No name provided"),
        (r#"{"name":"a/b"}"#, "Profile names may not contain slashes"),
        (r#"{"name":".."}"#, "Invalid profile name \"..\""),
        (
            r#"{"name":"p2","config":{"foo":"bar"}}"#,
            "Unknown configuration key: foo",
        ),
    ] {
        client.call("POST", PROFILES, body).await.refused(400, why);
    }
    assert_eq!(client.call("POST", PROFILES, "{bad").await.status, 400);
    client
        .get("/1.0/profiles/nope")
        .await
        .refused(404, "Profile not found");
    client
        .call("PUT", "/1.0/profiles/nope", "{}")
        .await
        .refused(404, "Profile not found");
    client
        .call("DELETE", "/1.0/profiles/default", "")
        .await
        .refused(403, "The \"default\" profile cannot be deleted");
    client
        .call("POST", "/1.0/profiles/default", r#"{"name":"x"}"#)
        .await
        .refused(403, "The \"default\" profile cannot be renamed");
    client
        .call("DELETE", PROFILES, "")
        .await
        .refused(501, "not implemented");
    client
        .get("/1.0/profiles/a%2Fb")
        .await
        .refused(404, "Profile not found");
}
