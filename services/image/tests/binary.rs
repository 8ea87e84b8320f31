//! The binary itself: its flags, its socket, and being killed at the worst moments.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use berth_proto::image::{DeleteImageRequest, ListImagesRequest};
use common::*;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_berth-image");

/// Killed when dropped, by its own pid.
struct Running {
    child: Child,
    client: Client,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(dir: &Path, more: &str) -> std::path::PathBuf {
    let path = dir.join("image.toml");
    let text = format!(
        "{more}\n[server]\nlisten = [\"unix:{0}/image.sock\"]\nstate_dir = \"{0}/state\"\n",
        dir.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn start(dir: &Path, failpoints: &str) -> anyhow::Result<Running> {
    let config = configure(dir, "");
    let child = Command::new(BINARY)
        .arg("--config")
        .arg(config)
        .env("BERTH_FAILPOINTS", failpoints)
        .stderr(Stdio::from(
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(dir.join("log"))?,
        ))
        .spawn()?;
    let channel = berth_rpc::connect(&format!("unix:{}/image.sock", dir.display()))?;
    let mut running = Running {
        child,
        client: Client::new(channel),
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while list(&mut running.client).await.is_err() {
        anyhow::ensure!(Instant::now() < deadline, "it didn't start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(running)
}

async fn list(client: &mut Client) -> Result<usize, tonic::Status> {
    let request = ListImagesRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    Ok(client.list_images(request).await?.into_inner().images.len())
}

async fn import(
    client: &mut Client,
    upload: Upload,
) -> Result<berth_proto::image::Image, tonic::Status> {
    let answer = client
        .import_image(tokio_stream::iter(upload.messages()))
        .await?;
    Ok(answer.into_inner())
}

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

#[test]
fn its_flags_work() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&["--help"]).status.success());
    let good = configure(dir.path(), "max_image_bytes = 1000");
    let check = run(&["--check-config", "--config", good.to_str().unwrap()]);
    assert!(check.status.success(), "{check:?}");
    assert!(!dir.path().join("state").exists());
    let bad = configure(dir.path(), "max_image_byte = 1000");
    let check = run(&["--check-config", "--config", bad.to_str().unwrap()]);
    assert!(!check.status.success());
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(said.contains("max_image_byte"), "{said}");
    assert!(!run(&["--config", "/nonexistent/x.toml"]).status.success());
}

#[tokio::test]
async fn it_can_be_killed_at_any_step() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let upload = || {
        Upload::unified(gzip(&image_tar("killed")))
            .request_id("r")
            .alias("k")
    };
    let fingerprint = sha256(&[&upload().parts[0].1]);

    // (where it is killed, images after, blobs after, set aside after)
    for (point, images, blobs, aside) in [
        ("image.import.received", 0, 0, 0),
        ("image.import.placed", 0, 0, 1),
        ("image.import.committed", 1, 1, 1),
    ] {
        let mut running = start(dir.path(), &format!("{point}=crash")).await?;
        assert!(
            import(&mut running.client, upload()).await.is_err(),
            "{point}"
        );
        running.child.wait()?;
        drop(running);
        let mut running = start(dir.path(), "").await?;
        assert_eq!(list(&mut running.client).await?, images, "{point}");
        assert_eq!(files(&state.join("blobs")).len(), blobs, "{point}");
        assert_eq!(files(&state.join("set-aside")).len(), aside, "{point}");
        assert_eq!(files(&state.join("incoming")).len(), 0, "{point}");
    }
    // The request had its effect before the crash; a retry gets its answer.
    let mut running = start(dir.path(), "image.delete.committed=crash").await?;
    let image = import(&mut running.client, upload()).await?;
    assert_eq!(image.fingerprint, fingerprint);
    assert_eq!(image.aliases.len(), 1);
    let delete = || DeleteImageRequest {
        name: image.name.clone(),
        request_id: "d".into(),
        ..Default::default()
    };
    assert!(running.client.delete_image(delete()).await.is_err());
    running.child.wait()?;
    drop(running);
    let mut running = start(dir.path(), "").await?;
    running.client.delete_image(delete()).await?;
    assert_eq!(list(&mut running.client).await?, 0);
    assert_eq!(files(&state.join("blobs")).len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_failing_step_takes_back_what_was_done() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let points = "image.import.received=1*error;image.import.placed=1*error";
    let mut running = start(dir.path(), points).await?;
    let upload = || Upload::split(metadata_tar("f"), rootfs_tar("f")).alias("f");
    for _ in 0..2 {
        let error = import(&mut running.client, upload()).await.unwrap_err();
        assert_eq!(reason(&error), "FAILPOINT");
        assert_eq!(files(&state.join("blobs")), Vec::<String>::new());
        assert_eq!(files(&state.join("incoming")), Vec::<String>::new());
    }
    import(&mut running.client, upload()).await?;
    assert_eq!(files(&state.join("blobs")).len(), 2);

    let config = dir.path().join("image.toml");
    let purge = || run(&["--config", config.to_str().unwrap(), "purge"]);
    assert!(!purge().status.success(), "purged under a running service");
    assert_eq!(list(&mut running.client).await?, 1);
    drop(running);
    assert!(purge().status.success());
    assert!(purge().status.success());
    assert!(!state.join("blobs").exists());
    let mut running = start(dir.path(), "").await?;
    assert_eq!(list(&mut running.client).await?, 0);
    Ok(())
}
