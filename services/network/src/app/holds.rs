use std::sync::Arc;

use berth_rpc::Error;

use super::{App, NetworkView};
use crate::model::records::{HoldRecord, NetworkRecord};

impl App {
    /// Writes down that something uses a network.
    pub async fn hold_network(
        self: Arc<Self>,
        (project, name): (String, String),
        hold: HoldRecord,
    ) -> Result<NetworkView, Error> {
        if hold.holder.is_empty() || hold.holder.chars().any(char::is_control) {
            return Err(Error::invalid(
                "hold.holder",
                "A hold needs a holder's name",
            ));
        }
        if !hold.expires.is_empty() {
            chrono::DateTime::parse_from_rfc3339(&hold.expires).map_err(|_| {
                Error::invalid("hold.expire_time", "expire_time is not a time of RFC 3339")
            })?;
        }
        // Against a deletion that has just found nobody.
        let own = self.lock_of(&name);
        let _own = own.lock().await;
        let record = self.managed(&project, &name).await?;
        self.store.put_hold(&record.uid, &hold).await?;
        self.view(record).await
    }

    /// Forgets a use; one that is not there is fine.
    pub async fn release_network(
        self: Arc<Self>,
        (project, name): (String, String),
        holder: &str,
    ) -> Result<NetworkView, Error> {
        let record = self.managed(&project, &name).await?;
        self.store.delete_hold(&record.uid, holder).await?;
        self.view(record).await
    }

    /// Resource names of all that uses a network.
    pub(super) async fn holders_of(&self, record: &NetworkRecord) -> Result<Vec<String>, Error> {
        let ports = self.store.ports_of(&record.uid).await?;
        let mut holders: Vec<String> = ports.into_iter().map(|p| p.spec.holder).collect();
        let holds = self.store.holds(&record.uid).await?;
        holders.extend(holds.into_iter().map(|h| h.holder));
        holders.sort();
        holders.dedup();
        Ok(holders)
    }
}
