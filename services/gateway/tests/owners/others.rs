use serde_json::json;

use crate::client::Client;

#[tokio::test]
async fn warnings_are_listed() {
    let client = Client::new().await;
    assert_eq!(client.get("/1.0/warnings").await.metadata(), json!([]));
    client
        .call("POST", "/1.0/networks", r#"{"name":"br0"}"#)
        .await
        .created("/1.0/networks/br0");
    let name = "projects/default/networks/br0";
    client
        .bed
        .fakes
        .network
        .0
        .lock()
        .networks
        .get_mut(name)
        .unwrap()
        .warnings = vec!["rule 7 of another firewall drops forwarded packets".into()];
    let found = client.get("/1.0/warnings?recursion=1").await.metadata();
    assert_eq!(found[0]["entity_url"], "/1.0/networks/br0");
    assert_eq!(found[0]["status"], "new");
    let url = client.get("/1.0/warnings").await.metadata()[0]
        .as_str()
        .unwrap()
        .to_owned();
    client
        .call("PUT", &url, r#"{"status":"acknowledged"}"#)
        .await
        .done();
    let one = client.get(&url).await.metadata();
    assert_eq!(
        (&one["status"], &one["count"]),
        (&json!("acknowledged"), &json!(3))
    );
    let client = client.restarted().await;
    let one = client.get(&url).await.metadata();
    assert_eq!(one["status"], "acknowledged", "it outlives the gateway");
    client
        .bed
        .fakes
        .network
        .0
        .lock()
        .networks
        .get_mut(name)
        .unwrap()
        .warnings
        .clear();
    client.get(&url).await.refused(404, "Warning not found");
    client
        .get("/1.0/warnings/x")
        .await
        .refused(404, "Warning not found");
}

#[tokio::test]
async fn only_the_default_project_is_there() {
    let client = Client::new().await;
    assert_eq!(
        client.get("/1.0/projects").await.metadata(),
        json!(["/1.0/projects/default"])
    );
    assert_eq!(
        client.get("/1.0/projects/default").await.metadata(),
        json!({"config": {"features.images": "true", "features.networks": "true",
            "features.profiles": "true", "features.storage.volumes": "true"},
            "description": "Default LXD project", "name": "default",
            "used_by": ["/1.0/profiles/default"]})
    );
    client
        .get("/1.0/projects/nope")
        .await
        .refused(404, "Project not found");
    let used = client.get("/1.0/projects/default/state").await.metadata();
    let unlimited = json!({"Limit": -1, "Usage": 0});
    assert_eq!(used["resources"]["instances"], unlimited);
    assert_eq!(used["resources"].as_object().unwrap().len(), 8);
    client
        .get("/1.0/projects/nope/state")
        .await
        .refused(404, "Project not found");
    client
        .call("DELETE", "/1.0/projects/default", "")
        .await
        .refused(403, "The 'default' project cannot be deleted");
    assert_eq!(
        client
            .call("POST", "/1.0/projects", r#"{"name":"x"}"#)
            .await
            .status,
        501
    );
    assert_eq!(client.get("/1.0/profiles?project=x").await.status, 404);
    assert_eq!(client.get("/1.0/storage-pools?target=m1").await.status, 400);
}

#[tokio::test]
async fn the_host_is_shown_as_far_as_it_is_told() {
    let client = Client::new().await;
    let shown = client.get("/1.0/resources").await.metadata();
    assert_eq!(shown["cpu"]["architecture"], "x86_64");
    assert!(shown["memory"]["total"].as_i64().unwrap() > 0);
    for kind in ["gpu", "network", "storage", "usb", "pci"] {
        assert_eq!(shown[kind]["total"], 0);
    }
}

#[tokio::test]
async fn no_cluster_and_no_certificates() {
    let client = Client::new().await;
    assert_eq!(
        client.get("/1.0/cluster").await.metadata(),
        json!({"server_name": "", "enabled": false, "member_config": []})
    );
    client
        .get("/1.0/cluster/members")
        .await
        .refused(500, "Server is not clustered");
    client
        .get("/1.0/cluster/groups")
        .await
        .refused(400, "This server is not clustered");
    assert_eq!(
        client
            .call("PUT", "/1.0/cluster", r#"{"enabled":true}"#)
            .await
            .status,
        501
    );
    assert_eq!(
        client.get("/1.0/certificates?recursion=1").await.metadata(),
        json!([])
    );
    client
        .get("/1.0/certificates/abc")
        .await
        .refused(404, "Certificate not found");
    assert_eq!(
        client.call("POST", "/1.0/certificates", "{}").await.status,
        501
    );
}
