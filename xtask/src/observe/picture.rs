//! A page as a picture.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Lets headless Chromium show the page and writes what it looks like.
pub(super) async fn take(page: &str, file: &Path) -> Result<()> {
    let profile = tempfile::tempdir()?;
    let mut chromium = tokio::process::Command::new("chromium");
    chromium
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=2000,1420",
            // The page draws itself from answers that it waits for.
            "--virtual-time-budget=30000",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--screenshot={}", file.display()))
        .arg(page)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(300), chromium.output())
        .await
        .context("chromium takes too long")?
        .context("chromium")?;
    ensure!(
        output.status.success() && file.exists(),
        "chromium: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{page} is in {}", file.display());
    Ok(())
}
