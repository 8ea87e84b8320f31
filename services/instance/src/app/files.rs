//! Files of a guest, running or stopped.

use std::fs::File;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::App;
use super::start_instance::runs_privileged;
use crate::Error;
use crate::host::files::{self, Header, NewFile};
use crate::host::ids::IdView;
use crate::host::{on_own_thread, rootfs};
use crate::model::attachment::Ownership;
use crate::model::expand::Expanded;
use crate::model::record::Instance;
use crate::model::spec;
use crate::runtime::Place;

/// Bytes read or written at once.
const CHUNK: usize = 64 << 10;

/// An opened path: what is there, and a file's bytes as they are read.
#[derive(Debug)]
pub struct FileReader {
    pub header: Header,
    pub data: mpsc::Receiver<Result<Bytes, Error>>,
}

/// How the ids stored in the instance's volume look when it is mounted as it is.
pub(super) fn stored_ids(record: &Instance, expanded: &Expanded) -> Result<IdView, Error> {
    let attachment = spec::root_attachment(record, expanded)?;
    let shifted = attachment
        .mounts
        .first()
        .is_some_and(|m| m.ownership == Ownership::Shifted);
    Ok(match shifted && !expanded.privileged() {
        true => IdView::Mapped(spec::idmap(record, false)),
        false => IdView::Same,
    })
}

impl App {
    async fn guest_root(&self, project: &str, name: &str) -> Result<rootfs::GuestRoot, Error> {
        let slot = self.slot(project, name)?;
        let record = slot.record();
        let expanded = self.expand(&record);
        let place = if slot.run().status.is_active() {
            let ids = match runs_privileged(&record, &expanded) {
                true => IdView::Same,
                false => IdView::Mapped(spec::idmap(&record, false)),
            };
            Place::Running {
                uid: slot.uid.clone(),
                ids,
            }
        } else {
            let attachment = spec::root_attachment(&record, &expanded)?;
            Place::Stopped {
                attachment: spec::monitor_attachment("root", attachment, None, false)?,
                ids: stored_ids(&record, &expanded)?,
            }
        };
        self.runtime.root(place).await
    }

    /// Looks at a path; a file's data follows unless `head_only`.
    pub async fn get_file(
        &self,
        project: &str,
        name: &str,
        path: String,
        head_only: bool,
    ) -> Result<FileReader, Error> {
        let root = self.guest_root(project, name).await?;
        let (sender, data) = mpsc::channel(4);
        let (opened, answer) = oneshot::channel();
        tokio::task::spawn_blocking(move || match files::get(&root, &path) {
            Err(error) => drop(opened.send(Err(error))),
            Ok((header, file)) => {
                // Nobody waits any more when the call was cancelled.
                let _ = opened.send(Ok(header));
                if let Some(file) = file.filter(|_| !head_only) {
                    send_file(file, &path, &sender);
                }
            }
        });
        let header = answer.await.map_err(Error::internal)??;
        Ok(FileReader { header, data })
    }

    /// Makes what `new` says and fills a file with what comes from `data`.
    pub async fn put_file(
        &self,
        project: &str,
        name: &str,
        new: NewFile,
        mut data: mpsc::Receiver<Result<Bytes, Error>>,
    ) -> Result<(), Error> {
        let root = self.guest_root(project, name).await?;
        let done = on_own_thread(move || -> Result<(), Error> {
            let file = files::put(&root, &new)?;
            let Some(mut file) = file else { return Ok(()) };
            while let Some(bytes) = data.blocking_recv() {
                files::write(&mut file, &bytes?, &new.path)?;
            }
            Ok(())
        });
        done.await.map_err(Error::internal)?
    }

    pub async fn delete_file(&self, project: &str, name: &str, path: String) -> Result<(), Error> {
        let root = self.guest_root(project, name).await?;
        let done = on_own_thread(move || files::delete(&root, &path));
        done.await.map_err(Error::internal)?
    }
}

fn send_file(mut file: File, path: &str, sender: &mpsc::Sender<Result<Bytes, Error>>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let item = match files::read(&mut file, &mut buffer, path) {
            Ok(0) => return,
            Ok(read) => Ok(Bytes::copy_from_slice(&buffer[..read])),
            Err(error) => Err(error),
        };
        let last = item.is_err();
        if sender.blocking_send(item).is_err() || last {
            return;
        }
    }
}
