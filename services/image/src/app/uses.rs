//! When images were last used. Kept in memory and written down together some seconds later: a
//! launch must not wait for a disk for it, and losing the last seconds in a crash harms nobody.

use super::App;
use crate::error::Error;
use crate::model::Fingerprint;
use crate::store;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Uses not written down yet.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pending: Mutex<BTreeMap<Fingerprint, i64>>,
    noted: Notify,
}

impl Uses {
    pub(super) fn note(&self, fingerprint: &Fingerprint, at: i64) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let last = pending.entry(fingerprint.clone()).or_insert(at);
        *last = at.max(*last);
        drop(pending);
        self.noted.notify_one();
    }

    pub(super) fn wake(&self) {
        self.noted.notify_one();
    }

    fn take(&self) -> BTreeMap<Fingerprint, i64> {
        std::mem::take(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes down what is pending. What fails is pending again.
pub(super) async fn flush(app: &App) -> Result<(), Error> {
    let pending = app.uses.take();
    if pending.is_empty() {
        return Ok(());
    }
    let written = async {
        let mut tx = app.store.begin().await?;
        store::record_uses(&mut tx, &pending).await?;
        tx.commit().await
    };
    if let Err(error) = written.await {
        for (fingerprint, at) in &pending {
            app.uses.note(fingerprint, *at);
        }
        return Err(error.into());
    }
    Ok(())
}

/// Flushes `after` the first use, for as long as the app lives. Nothing is written when idle.
pub(super) fn flush_in_background(app: &Arc<App>, after: Duration) {
    let uses = app.uses.clone();
    let app = Arc::downgrade(app);
    tokio::spawn(async move {
        loop {
            uses.noted.notified().await;
            if app.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(after).await;
            let Some(app) = app.upgrade() else { return };
            if let Err(error) = flush(&app).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "uses of images were not recorded");
            }
        }
    });
}
