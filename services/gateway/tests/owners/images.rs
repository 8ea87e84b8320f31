use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::client::{Client, Got};

async fn upload(client: &Client, bytes: &'static [u8], headers: &[(&str, &str)]) -> Got {
    let mut request = Request::builder()
        .method("POST")
        .uri("/1.0/images")
        .header("content-type", "application/octet-stream");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // In pieces, as a socket gives them.
    let pieces = bytes
        .chunks(4)
        .map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
    let body = Body::from_stream(futures::stream::iter(pieces.collect::<Vec<_>>()));
    client.send(request.body(body).unwrap()).await
}

#[tokio::test]
async fn images_and_aliases() {
    let client = Client::new().await;
    let started = upload(
        &client,
        b"IMAGE unified",
        &[
            ("X-LXD-filename", "busy.tar.gz"),
            ("X-LXD-properties", "a=b%20c&d=e"),
            ("X-LXD-public", "1"),
        ],
    )
    .await;
    let operation = client.end_of(&started).await;
    let fingerprint = hex::encode(Sha256::digest(b"IMAGE unified"));
    assert_eq!(operation["status_code"], 200);
    assert_eq!(operation["description"], "Downloading image");
    assert_eq!(operation["resources"], json!(null));
    assert_eq!(
        operation["metadata"],
        json!({"fingerprint": fingerprint, "size": "13"})
    );

    let refresh = format!("/1.0/images/{fingerprint}/refresh");
    let started = client.call("POST", &refresh, "").await;
    let refreshed = client.end_of(&started).await;
    assert_eq!(refreshed["status"], "Failure");
    let why = refreshed["err"].as_str().unwrap();
    assert!(why.ends_with("Image source not found"), "{why}");
    client
        .call("POST", "/1.0/images/ffff/refresh", "")
        .await
        .refused(404, "Image not found");

    let short = format!("/1.0/images/{}", &fingerprint[..8]);
    let got = client.get(&short).await;
    assert_eq!(
        got.metadata(),
        json!({"auto_update": false, "properties": {"a": "b c", "d": "e", "os": "Busy"},
            "public": true, "expires_at": "1970-01-01T00:00:00Z", "profiles": ["default"],
            "aliases": [], "architecture": "x86_64", "cached": false, "filename": "busy.tar.gz",
            "fingerprint": fingerprint, "size": 13, "type": "container",
            "created_at": "2023-11-14T22:13:20Z", "last_used_at": "0001-01-01T00:00:00Z",
            "uploaded_at": "2026-01-01T00:00:00Z"})
    );
    let list = client.get("/1.0/images?filter=").await.metadata();
    assert_eq!(list, json!([format!("/1.0/images/{fingerprint}")]));
    let busy = client
        .get("/1.0/images?recursion=1&filter=properties.os+eq+busy")
        .await;
    assert_eq!(busy.metadata()[0]["fingerprint"], fingerprint.as_str());
    let none = client
        .get("/1.0/images?filter=properties.os+eq+debian")
        .await;
    assert_eq!(none.metadata(), json!([]));
    client
        .get("/1.0/images?filter=garbage")
        .await
        .refused(500, "Invalid filter: clause has no operator");

    let alias =
        json!({"name": "a/b", "target": &fingerprint[..12], "description": "d"}).to_string();
    client
        .call("POST", "/1.0/images/aliases", &alias)
        .await
        .created("/1.0/images/aliases/a%252Fb");
    client
        .call("POST", "/1.0/images/aliases", &alias)
        .await
        .refused(409, "Alias \"a/b\" already exists");
    client
        .call("POST", "/1.0/images/aliases", r#"{"name":"c"}"#)
        .await
        .refused(400, "name and target are required");
    client
        .call(
            "POST",
            "/1.0/images/aliases",
            r#"{"name":"c","target":"ffff"}"#,
        )
        .await
        .refused(404, "Image not found");
    let expected =
        json!({"description": "d", "target": fingerprint, "name": "a/b", "type": "container"});
    for path in ["/1.0/images/aliases/a%2Fb", "/1.0/images/aliases/a/b"] {
        assert_eq!(client.get(path).await.metadata(), expected);
    }
    let aliases = client.get(&short).await.metadata()["aliases"].clone();
    assert_eq!(aliases, json!([{"name": "a/b", "description": "d"}]));
    client
        .call("POST", "/1.0/images/aliases/a%2Fb", r#"{"name":"c"}"#)
        .await
        .created("/1.0/images/aliases/c");
    client
        .call("PATCH", "/1.0/images/aliases/c", r#"{"description":"e"}"#)
        .await
        .done();
    assert_eq!(
        client.get("/1.0/images/aliases/c").await.metadata()["description"],
        "e"
    );
    client
        .call("PUT", "/1.0/images/aliases/c", "{}")
        .await
        .refused(400, "The target field is required");
    client
        .call("DELETE", "/1.0/images/aliases/c", "")
        .await
        .done();
    client
        .call("DELETE", "/1.0/images/aliases/c", "")
        .await
        .refused(404, "Image alias not found");

    let deleted = client.call("DELETE", &short, "").await;
    let operation = client.end_of(&deleted).await;
    assert_eq!(operation["status"], "Success");
    assert_eq!(
        operation["resources"],
        json!({"images": [format!("/1.0/images/{fingerprint}")]})
    );
    client.get(&short).await.refused(404, "Image not found");
    client
        .get("/1.0/images/zz")
        .await
        .refused(404, "Image not found");
}

#[tokio::test]
async fn a_bad_upload_is_an_operation_that_fails() {
    let client = Client::new().await;
    let fail = async |got: Got| {
        let operation = client.end_of(&got).await;
        assert_eq!(operation["status_code"], 400);
        operation["err"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        fail(upload(&client, b"garbage", &[]).await).await,
        "Unsupported compression"
    );
    let wrong = upload(&client, b"IMAGE x", &[("X-LXD-fingerprint", "abcd")]).await;
    assert_eq!(fail(wrong).await, "fingerprints don't match");
    client.end_of(&upload(&client, b"IMAGE x", &[]).await).await;
    let again = upload(&client, b"IMAGE x", &[]).await;
    assert_eq!(
        fail(again).await,
        "Image with same fingerprint already exists"
    );
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_no_image() {
    let client = Client::new().await;
    // What came until then would be a whole image by itself.
    let pieces = vec![
        Ok(Bytes::from("IMAGE begun")),
        Err(std::io::Error::other("the client went away")),
    ];
    let request = Request::post("/1.0/images")
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(futures::stream::iter(pieces)))
        .unwrap();
    let operation = client.end_of(&client.send(request).await).await;
    assert_eq!(operation["status_code"], 400, "{operation}");
    for _ in 0..100 {
        if client.bed.fakes.image.0.lock().broken == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let state = client.bed.fakes.image.0.lock();
    assert_eq!(state.broken, 1, "the service never heard that it broke off");
    assert!(state.images.is_empty());
}

fn multipart(parts: &[(&str, &str, &str)]) -> Request<Body> {
    let mut body = String::new();
    for (name, filename, bytes) in parts {
        body.push_str(&format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{filename}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n{bytes}\r\n"
        ));
    }
    body.push_str("--XX--\r\n");
    Request::post("/1.0/images")
        .header("content-type", "multipart/form-data; boundary=XX")
        .header("X-LXD-filename", "meta.tar.xz")
        .body(Body::from(body))
        .unwrap()
}

#[tokio::test]
async fn a_split_image_goes_both_ways() {
    let client = Client::new().await;
    let parts = [
        ("metadata", "meta.tar.xz", "IMAGE meta"),
        ("rootfs", "root.squashfs", "and root"),
    ];
    let operation = client.end_of(&client.send(multipart(&parts)).await).await;
    let fingerprint = hex::encode(Sha256::digest(b"IMAGE metaand root"));
    assert_eq!(
        operation["metadata"]["fingerprint"],
        fingerprint.as_str(),
        "{operation}"
    );
    let image = client
        .get(&format!("/1.0/images/{fingerprint}"))
        .await
        .metadata();
    assert_eq!(image["filename"], "root.squashfs");

    let got = client
        .get(&format!("/1.0/images/{fingerprint}/export"))
        .await;
    let kind = got.header("content-type").to_owned();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let part = |name: &str, filename: &str, bytes: &str| {
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; \
             filename=\"{filename}\"\r\nContent-Type: application/octet-stream\r\n\r\n{bytes}\r\n"
        )
    };
    let expected = format!(
        "{}{}--{boundary}--\r\n",
        part(
            "metadata",
            &format!("meta-{fingerprint}.tar.xz"),
            "IMAGE meta"
        ),
        part("rootfs", &format!("{fingerprint}.squashfs"), "and root"),
    );
    assert_eq!(String::from_utf8(got.bytes).unwrap(), expected);
    let backwards = [parts[1], parts[0]];
    let operation = client
        .end_of(&client.send(multipart(&backwards)).await)
        .await;
    assert_eq!(operation["status_code"], 400);
    let vm = [parts[0], ("rootfs.img", "disk.qcow2", "QFI")];
    let operation = client.end_of(&client.send(multipart(&vm)).await).await;
    assert!(
        operation["err"].as_str().unwrap().contains("rootfs.img"),
        "{operation}"
    );
    assert_eq!(client.bed.fakes.image.0.lock().images.len(), 1);
}

/// The parser keeps a header until it ends: one that does not must not fill the memory.
#[tokio::test]
async fn a_part_whose_header_never_ends_is_refused() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let client = Client::new().await;
    for start in ["--XX\r\nContent-Disposition: ", "no boundary at all "] {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let endless = std::iter::once(Bytes::from(start)).chain(
            std::iter::repeat_with(move || {
                count.fetch_add(1, Ordering::Relaxed);
                Bytes::from(vec![b'a'; 64 << 10])
            })
            .take(1024),
        );
        let body = Body::from_stream(futures::stream::iter(endless.map(Ok::<_, std::io::Error>)));
        let request = Request::post("/1.0/images")
            .header("content-type", "multipart/form-data; boundary=XX")
            .body(body)
            .unwrap();
        let operation = client.end_of(&client.send(request).await).await;
        assert_eq!(operation["status_code"], 400, "{operation}");
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < 100, "{taken} pieces of 64 KiB were taken");
    }
    assert!(client.bed.fakes.image.0.lock().images.is_empty());
}

#[tokio::test]
async fn a_unified_image_is_exported_as_it_is() {
    let client = Client::new().await;
    let fingerprint = client.bed.fakes.image.put(b"IMAGE bytes");
    let got = client
        .get(&format!("/1.0/images/{}/export", &fingerprint[..6]))
        .await;
    assert_eq!(got.bytes, b"IMAGE bytes");
    assert_eq!(got.header("content-length"), "11");
    assert_eq!(got.header("content-type"), "application/octet-stream");
    assert_eq!(
        got.header("content-disposition"),
        format!("inline;filename={fingerprint}.tar.gz")
    );
    client
        .get("/1.0/images/ffff/export")
        .await
        .refused(404, "Image not found");
}

#[tokio::test]
async fn an_image_is_changed_under_its_etag() {
    let client = Client::new().await;
    let fingerprint = client.bed.fakes.image.put(b"IMAGE bytes");
    let path = format!("/1.0/images/{fingerprint}");
    let etag = client.get(&path).await.header("etag").to_owned();
    client
        .call_if("PUT", &path, r#"{"properties":{"x":"y"}}"#, Some(&etag))
        .await
        .done();
    client
        .call("PATCH", &path, r#"{"properties":{"z":"y"},"public":true}"#)
        .await
        .done();
    let image = client.get(&path).await.metadata();
    assert_eq!(image["properties"], json!({"x": "y", "z": "y"}));
    assert_eq!(
        (&image["public"], &image["profiles"]),
        (&json!(true), &json!(["default"]))
    );
    let stale = client.call_if("PUT", &path, "{}", Some(&etag)).await;
    assert_eq!(stale.status, 412);
    client
        .call("PUT", &path, r#"{"expires_at":"tomorrow"}"#)
        .await
        .json()["error"]
        .as_str()
        .unwrap()
        .contains("tomorrow")
        .then_some(())
        .unwrap();
}

#[tokio::test]
async fn what_is_not_done_is_refused_by_name() {
    let client = Client::new().await;
    for (body, named) in [
        (
            r#"{"source":{"type":"instance","name":"c1"}}"#,
            "source.type",
        ),
        (r#"{"source":{"type":"url","url":"https://x"}}"#, "URL"),
        (
            r#"{"source":{"type":"image","mode":"pull"}}"#,
            "another server",
        ),
        (r#"{"source":{"mode":"push"}}"#, "push"),
    ] {
        let got = client.call("POST", "/1.0/images", body).await;
        assert_eq!(got.status, 501, "{body}");
        let error = got.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(named), "{error}");
    }
    client
        .call("POST", "/1.0/images", r#"{"source":{"type":"foo"}}"#)
        .await
        .refused(500, "Invalid images JSON");
    let fingerprint = client.bed.fakes.image.put(b"IMAGE bytes");
    let path = format!("/1.0/images/{fingerprint}/secret");
    assert_eq!(client.call("POST", &path, "").await.status, 501);
}
