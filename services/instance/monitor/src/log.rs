//! The monitor's own log: `monitor.log`, one line an event, bounded.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

static FILE: OnceLock<File> = OnceLock::new();

/// A log longer than this is emptied: the latest run matters, and nothing rotates it.
const LONGEST: u64 = 1 << 20;

/// From now on lines go to this file.
pub(crate) fn to(file: File) {
    // A second call keeps the first file: there is one log per process.
    let _ = FILE.set(file);
}

/// Writes a line. A full disk must not stop a guest, so failures are dropped.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let Some(mut file) = FILE.get() else { return };
    if file.metadata().is_ok_and(|m| m.len() > LONGEST) {
        let _ = file.set_len(0);
    }
    let now = crate::sys::now_ms();
    let _ = file.write_all(format!("{}.{:03} {text}\n", now / 1000, now % 1000).as_bytes());
}
