use std::sync::Arc;

use berth_rpc::Error;
use berth_server::failpoint;

use super::{App, event, plan_of};

impl App {
    /// Removes a network that nobody uses.
    pub async fn delete_network(
        self: Arc<Self>,
        (project, name): (String, String),
        etag: String,
        request_id: String,
    ) -> Result<(), Error> {
        let own = self.lock_of(&name);
        let _own = own.lock().await;
        let record = self.managed(&project, &name).await?;
        if !etag.is_empty() && etag != record.etag() {
            return Err(Error::etag_mismatch(format!("Network {name:?}")));
        }
        let holders = self.holders_of(&record).await?;
        if !holders.is_empty() {
            return Err(Error::held(format!("Network {name:?}"), holders));
        }
        // The row goes last: a crash in between leaves a network that is made again and can be
        // deleted again, not a bridge that nobody knows.
        self.host.remove(&plan_of(&record)?).await?;
        failpoint::pass("network.delete.removed").await?;
        let told = event("network-deleted", &record);
        self.store
            .delete_network(&record.uid, Some(told), &request_id)
            .await?;
        super::lock(&self.troubles).remove(&record.uid);
        Ok(())
    }
}
