//! What the service reads and writes on the host itself, beside the monitors.

pub mod cgroup;
pub mod facts;
pub mod files;
pub mod ids;
pub mod logs;
pub mod rootfs;
pub mod templates;

use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;

use berth_monitor::spec::NodeKind;

/// What device is at a path of the host.
pub fn device_node(path: &str) -> Option<(NodeKind, u32, u32)> {
    let meta = std::fs::metadata(path).ok()?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => NodeKind::Char,
        t if t.is_block_device() => NodeKind::Block,
        _ => return None,
    };
    let device = meta.st_rdev();
    Some((kind, libc::major(device), libc::minor(device)))
}

/// Runs blocking work on a thread of its own: work that changes its thread's credentials must not
/// share one.
pub async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("guest-files".to_owned())
        .spawn(move || {
            // Nobody waits any more when the call was cancelled.
            let _ = sender.send(work());
        })?;
    receiver
        .await
        .map_err(|_| std::io::Error::other("the thread for a guest's files died"))
}
