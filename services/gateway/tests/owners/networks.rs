use serde_json::json;

use crate::client::Client;

const NETWORKS: &str = "/1.0/networks";

#[tokio::test]
async fn networks_are_created_and_leases_listed() {
    let client = Client::new().await;
    let body = r#"{"name":"br0","config":{"ipv4.address":"10.0.0.1/24"}}"#;
    client
        .call("POST", NETWORKS, body)
        .await
        .created("/1.0/networks/br0");
    client
        .call("POST", NETWORKS, body)
        .await
        .refused(400, "The network already exists");
    for (body, why) in [
        (r#"{"name":""}"#, "No name provided"),
        (
            r#"{"name":"a/b"}"#,
            "Network interface contains invalid characters",
        ),
        (
            r#"{"name":"averyveryverylongname"}"#,
            "Network interface is too long (maximum 15 characters)",
        ),
        (r#"{"name":"br1","type":"foo"}"#, "Unknown driver"),
    ] {
        client.call("POST", NETWORKS, body).await.refused(400, why);
    }
    assert_eq!(
        client.get(NETWORKS).await.metadata(),
        json!(["/1.0/networks/br0", "/1.0/networks/lo"])
    );
    assert_eq!(
        client.get("/1.0/networks?recursion=1").await.metadata(),
        json!([
            {"config": {"ipv4.address": "10.0.0.1/24"}, "description": "", "name": "br0",
                "type": "bridge", "used_by": null, "managed": true, "status": "Created",
                "locations": ["none"]},
            {"config": {}, "description": "", "name": "lo", "type": "loopback", "used_by": [],
                "managed": false, "status": "", "locations": null}
        ])
    );
    let state = client.get("/1.0/networks/br0/state").await.metadata();
    assert_eq!(state["addresses"], json!([]));
    assert_eq!(state["counters"]["bytes_sent"], 0);
    assert_eq!(
        (&state["bond"], &state["mtu"]),
        (&json!(null), &json!(1500))
    );
    client
        .get("/1.0/networks/nope/state")
        .await
        .refused(404, "Network interface \"nope\" not found");
    let leases = client.get("/1.0/networks/br0/leases").await.metadata();
    assert_eq!(
        (&leases[0]["type"], &leases[0]["location"]),
        (&json!("gateway"), &json!(""))
    );
    assert_eq!(
        (&leases[1]["type"], &leases[1]["location"]),
        (&json!("dynamic"), &json!("none"))
    );
    client
        .get("/1.0/networks/lo/leases")
        .await
        .refused(404, "Network not found");

    let path = "/1.0/networks/br0";
    let etag = client.get(path).await.header("etag").to_owned();
    let put = r#"{"config":{"ipv4.address":"none"},"description":"d"}"#;
    client.call_if("PUT", path, put, Some(&etag)).await.done();
    assert_eq!(
        client.call_if("PUT", path, put, Some(&etag)).await.status,
        412
    );
    client
        .call("PATCH", path, r#"{"config":{"user.x":"y"}}"#)
        .await
        .done();
    let now = client.get(path).await.metadata();
    assert_eq!(
        now["config"],
        json!({"ipv4.address": "none", "user.x": "y"})
    );
    assert_eq!(now["description"], "d");
    client
        .call("PUT", "/1.0/networks/lo", "{}")
        .await
        .refused(404, "Network not found");
    client
        .call("POST", path, r#"{"name":"br2"}"#)
        .await
        .created("/1.0/networks/br2");
    client.call("DELETE", "/1.0/networks/br2", "").await.done();
    client
        .call("DELETE", "/1.0/networks/br2", "")
        .await
        .refused(404, "Network not found");
    client
        .get("/1.0/networks/-")
        .await
        .refused(404, "Network not found");
    assert_eq!(client.get("/1.0/networks/br0/forwards").await.status, 501);
}
