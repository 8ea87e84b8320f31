//! Reads that are smaller than a whole collection's objects.

use berth_proto::instance;
use berth_rpc::Error;

use crate::clients::Owners;

/// Resource names of a project's instances.
pub async fn instance_names(owners: &Owners, parent: &str) -> Result<Vec<String>, Error> {
    let mut client = owners.instances();
    let mut names = Vec::new();
    let mut request = instance::ListInstancesRequest {
        parent: parent.to_owned(),
        view: instance::InstanceView::Basic.into(),
        ..Default::default()
    };
    loop {
        let page = client.list_instances(request.clone()).await?.into_inner();
        names.extend(page.instances.into_iter().map(|instance| instance.name));
        if page.next_page_token.is_empty() {
            return Ok(names);
        }
        request.page_token = page.next_page_token;
    }
}
