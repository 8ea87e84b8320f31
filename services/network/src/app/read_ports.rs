use berth_rpc::{Error, names};

use super::App;
use crate::model::records::PortRecord;

impl App {
    /// One port.
    pub async fn get_port(&self, name: &names::Port) -> Result<PortRecord, Error> {
        self.store
            .port(&name.project, &name.network, &name.port)
            .await?
            .ok_or_else(|| Error::not_found("Port", name))
    }

    /// Ports below a network (`-`: those on unmanaged parents), by id, after `after`, one more
    /// than `limit` if there is more.
    pub async fn list_ports(
        &self,
        parent: &names::Network,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<PortRecord>, Error> {
        if parent.network != "-" {
            self.managed(&parent.project, &parent.network).await?;
        }
        Ok(self
            .store
            .ports()
            .await?
            .into_iter()
            .filter(|p| p.project == parent.project && p.segment == parent.network)
            .filter(|p| after.is_none_or(|a| p.id.as_str() > a))
            .take(limit + 1)
            .collect())
    }
}
