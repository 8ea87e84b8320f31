use std::sync::Arc;

use berth_rpc::{Error, names};

use super::{App, plan_of};
use crate::model::records::PortRecord;

impl App {
    /// Forgets a port; its filters go, its lease is given back.
    pub async fn delete_port(
        self: Arc<Self>,
        name: names::Port,
        allow_missing: bool,
        request_id: String,
    ) -> Result<(), Error> {
        let _ports = self.ports.read().await;
        let seen = match self.get_port(&name).await {
            Err(e) if allow_missing && e.code == berth_rpc::Code::NotFound => return Ok(()),
            other => other?,
        };
        let own = self.lock_of(if seen.parent.is_empty() {
            "-"
        } else {
            &seen.parent
        });
        let _own = own.lock().await;
        let port = match self.get_port(&name).await {
            Err(e) if allow_missing && e.code == berth_rpc::Code::NotFound => return Ok(()),
            other => other?,
        };
        self.store.delete_port(&port.uid, &request_id).await?;
        // The port is gone whatever happens now; the reconciler removes what stays.
        if let Err(error) = self.withdraw(&port).await {
            tracing::error!(port = %port.resource(), %error, "a deleted port leaves something on the host; the reconciler removes it");
        }
        Ok(())
    }

    async fn withdraw(&self, port: &PortRecord) -> Result<(), Error> {
        self.host.disarm(&port.host_name).await?;
        if let Some(network) = self.network_of(port).await? {
            let plan = plan_of(&network)?;
            let mac = port.mac.parse().map_err(Error::internal)?;
            let gateway = plan.ipv4.as_ref().map(|f| f.gateway());
            self.host
                .drop_record(&network.name, &port.uid, mac, gateway)
                .await?;
        }
        Ok(())
    }
}
