//! Log files, and the console's log.

use std::fs::File;

use berth_monitor::protocol::Request;
use bytes::Bytes;

use super::App;
use super::live::link_error;
use crate::Error;
use crate::host::logs;

/// Bytes of a stopped guest's console log that are given.
const CONSOLE_MAX: u64 = 4 << 20;

fn fail(name: &str, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found("Log file", name),
        _ => Error::internal(error),
    }
}

impl App {
    pub fn list_logs(&self, project: &str, name: &str) -> Result<Vec<String>, Error> {
        let slot = self.slot(project, name)?;
        logs::list(&self.runtime.log_dir(&slot.uid)).map_err(Error::internal)
    }

    pub fn open_log(&self, project: &str, name: &str, file: &str) -> Result<File, Error> {
        let slot = self.slot(project, name)?;
        logs::open(&self.runtime.log_dir(&slot.uid), file).map_err(|e| fail(file, e))
    }

    /// The logs that the monitor writes are not deleted, as LXD's own are not.
    pub fn delete_log(&self, project: &str, name: &str, file: &str) -> Result<(), Error> {
        let slot = self.slot(project, name)?;
        if matches!(file, "lxc.log" | "monitor.log" | "console.log") {
            let why = format!("Only log files of execs can be deleted, not {file:?}");
            return Err(Error::invalid("file", why));
        }
        logs::remove(&self.runtime.log_dir(&slot.uid), file).map_err(|e| fail(file, e))
    }

    /// What the console said lately: the ring of a running guest, the file of a stopped one.
    pub async fn console_log(&self, project: &str, name: &str) -> Result<Bytes, Error> {
        let slot = self.slot(project, name)?;
        if let Some(link) = slot.link() {
            let asked = link.call(Request::GetConsoleLog).await;
            return asked
                .map(|(_, log)| log)
                .map_err(|e| link_error(e, "Reading the console log"));
        }
        let dir = self.runtime.log_dir(&slot.uid);
        let read = tokio::task::spawn_blocking(move || read_tail(&dir)).await;
        read.map_err(Error::internal)?.map_err(Error::internal)
    }

    pub async fn clear_console_log(&self, project: &str, name: &str) -> Result<(), Error> {
        let slot = self.slot(project, name)?;
        match slot.link() {
            Some(link) => link
                .done(Request::ClearConsoleLog)
                .await
                .map_err(|e| link_error(e, "Clearing the console log")),
            None => logs::truncate(&self.runtime.log_dir(&slot.uid), "console.log")
                .map_err(Error::internal),
        }
    }
}

fn read_tail(dir: &std::path::Path) -> std::io::Result<Bytes> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match logs::open(dir, "console.log") {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Bytes::new()),
        file => file?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_MAX)))?;
    let mut text = Vec::new();
    file.take(CONSOLE_MAX).read_to_end(&mut text)?;
    Ok(Bytes::from(text))
}
