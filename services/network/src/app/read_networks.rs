use std::collections::{BTreeMap, HashMap};

use berth_rpc::Error;

use super::{App, NetworkView, lock};
use crate::host::{Link, LinkKind};
use crate::model::keys::Config;
use crate::model::records::NetworkRecord;

impl App {
    /// One network, or a link of the host by its name.
    pub async fn get_network(&self, project: &str, name: &str) -> Result<NetworkView, Error> {
        if let Some(record) = self.store.network(name).await? {
            if record.project != project {
                return Err(Error::not_found("Network", name));
            }
            return self.view(record).await;
        }
        let link = self
            .host
            .link(name)
            .await?
            .ok_or_else(|| Error::not_found("Network", name))?;
        let ports = self.store.ports_on(name).await?;
        let mut used_by: Vec<String> = ports.into_iter().map(|p| p.spec.holder).collect();
        used_by.sort();
        used_by.dedup();
        Ok(unmanaged(project, &link, used_by))
    }

    /// Networks of a project, and with `unmanaged` the host's other links; by name, after
    /// `after`, one more than `limit` if there is more.
    pub async fn list_networks(
        &self,
        project: &str,
        unmanaged_too: bool,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<NetworkView>, Error> {
        let records = self.store.networks().await?;
        let mut used: HashMap<String, Vec<String>> = HashMap::new();
        let holders = self.store.port_holders().await?;
        for (key, holder) in holders.into_iter().chain(self.store.all_holds().await?) {
            used.entry(key).or_default().push(holder);
        }
        let mut users_of = |key: &str| {
            let mut users = used.remove(key).unwrap_or_default();
            users.sort();
            users.dedup();
            users
        };
        let mut views = BTreeMap::new();
        let links = if unmanaged_too {
            self.host.links().await?
        } else {
            Vec::new()
        };
        for link in links {
            // Managed ones of other projects are nobody else's business.
            if !link.name.is_empty() && !records.iter().any(|r| r.name == link.name) {
                let users = users_of(&link.name);
                views.insert(link.name.clone(), unmanaged(project, &link, users));
            }
        }
        for record in records.into_iter().filter(|r| r.project == project) {
            let users = users_of(&record.uid);
            views.insert(record.name.clone(), self.view_with(record, users));
        }
        Ok(views
            .into_values()
            .filter(|v| after.is_none_or(|a| v.record.name.as_str() > a))
            .take(limit + 1)
            .collect())
    }

    /// The link of a network, or any link of the host, with the names of its ports.
    pub async fn network_link(
        &self,
        project: &str,
        name: &str,
    ) -> Result<(Link, Vec<String>), Error> {
        if let Some(record) = self.store.network(name).await?
            && record.project != project
        {
            return Err(Error::not_found("Network", name));
        }
        let link = self
            .host
            .link(name)
            .await?
            .ok_or_else(|| Error::not_found("Network", name))?;
        let upper = if link.kind == LinkKind::Bridge {
            let mut names: Vec<String> = self
                .host
                .links()
                .await?
                .into_iter()
                .filter(|l| l.controller == Some(link.index))
                .map(|l| l.name)
                .collect();
            names.sort();
            names
        } else {
            Vec::new()
        };
        Ok((link, upper))
    }

    pub(super) async fn view(&self, record: NetworkRecord) -> Result<NetworkView, Error> {
        let used_by = self.holders_of(&record).await?;
        Ok(self.view_with(record, used_by))
    }

    fn view_with(&self, record: NetworkRecord, used_by: Vec<String>) -> NetworkView {
        NetworkView {
            kind: "bridge".to_owned(),
            managed: true,
            trouble: lock(&self.troubles)
                .get(&record.uid)
                .cloned()
                .unwrap_or_default(),
            warnings: self.host.warnings(&record.name),
            used_by,
            record,
        }
    }
}

fn unmanaged(project: &str, link: &Link, used_by: Vec<String>) -> NetworkView {
    let kind = match link.kind {
        LinkKind::Loopback => "loopback",
        LinkKind::Bridge => "bridge",
        LinkKind::Vlan => "vlan",
        LinkKind::Bond => "bond",
        LinkKind::Physical => "physical",
        LinkKind::Other => "unknown",
    };
    NetworkView {
        record: NetworkRecord {
            uid: String::new(),
            project: project.to_owned(),
            name: link.name.clone(),
            description: String::new(),
            config: Config::new(),
            hwaddr: String::new(),
            generation: 0,
        },
        kind: kind.to_owned(),
        managed: false,
        trouble: String::new(),
        warnings: Vec::new(),
        used_by,
    }
}
