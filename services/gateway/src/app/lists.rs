//! Whole collections, page by page: one call for a page of a thousand.

use berth_proto::{image, instance, network, storage};
use berth_rpc::Error;

use crate::clients::Owners;

/// Follows page tokens until there are none.
macro_rules! pages {
    ($client:expr, $method:ident, $field:ident, $request:expr) => {{
        let mut client = $client;
        let mut all = Vec::new();
        let mut request = $request;
        loop {
            let page = client.$method(request.clone()).await?.into_inner();
            all.extend(page.$field);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        Ok(all)
    }};
}

/// Images of a project.
pub async fn images(owners: &Owners, parent: &str) -> Result<Vec<image::Image>, Error> {
    pages!(
        owners.images(),
        list_images,
        images,
        image::ListImagesRequest {
            parent: parent.to_owned(),
            ..Default::default()
        }
    )
}

/// Aliases of a project.
pub async fn aliases(owners: &Owners, parent: &str) -> Result<Vec<image::Alias>, Error> {
    pages!(
        owners.images(),
        list_aliases,
        aliases,
        image::ListAliasesRequest {
            parent: parent.to_owned(),
            ..Default::default()
        }
    )
}

/// Profiles of a project.
pub async fn profiles(owners: &Owners, parent: &str) -> Result<Vec<instance::Profile>, Error> {
    pages!(
        owners.profiles(),
        list_profiles,
        profiles,
        instance::ListProfilesRequest {
            parent: parent.to_owned(),
            ..Default::default()
        }
    )
}

/// Storage pools.
pub async fn pools(owners: &Owners) -> Result<Vec<storage::Pool>, Error> {
    pages!(
        owners.pools(),
        list_pools,
        pools,
        storage::ListPoolsRequest::default()
    )
}

/// Volumes of one pool or, with `-`, of all. An empty collection means each.
pub async fn volumes(
    owners: &Owners,
    parent: &str,
    collection: &str,
) -> Result<Vec<storage::Volume>, Error> {
    pages!(
        owners.volumes(),
        list_volumes,
        volumes,
        storage::ListVolumesRequest {
            parent: parent.to_owned(),
            collection: collection.to_owned(),
            ..Default::default()
        }
    )
}

/// Managed networks and, where asked, the host's other links.
pub async fn networks(
    owners: &Owners,
    parent: &str,
    include_unmanaged: bool,
) -> Result<Vec<network::Network>, Error> {
    pages!(
        owners.networks(),
        list_networks,
        networks,
        network::ListNetworksRequest {
            parent: parent.to_owned(),
            include_unmanaged,
            ..Default::default()
        }
    )
}
