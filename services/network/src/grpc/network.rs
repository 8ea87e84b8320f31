use berth_proto::network::network_service_server::NetworkService;
use berth_proto::{network as proto, types};
use berth_rpc::mask::Mask;
use berth_rpc::{Error, names, page};
use tonic::{Request, Response, Status};

use super::{Handlers, render};
use crate::app::{CreateNetwork, UpdateNetwork};
use crate::model::records::HoldRecord;

fn parse(name: &str) -> Result<(String, String), Error> {
    names::Network::parse("name", name).map(|n| (n.project, n.network))
}

#[tonic::async_trait]
impl NetworkService for Handlers {
    async fn create_network(
        &self,
        request: Request<proto::CreateNetworkRequest>,
    ) -> Result<Response<proto::Network>, Status> {
        let ask = request.into_inner();
        let parent = names::Project::parse("parent", &ask.parent)?;
        let network = ask.network.unwrap_or_default();
        let command = CreateNetwork {
            project: parent.project,
            name: ask.network_id,
            description: network.description,
            kind: network.r#type,
            config: network.config.into_iter().collect(),
            request_id: ask.request_id.clone(),
            validate_only: ask.validate_only,
        };
        let app = self.app.clone();
        let work = async move {
            let view = app.create_network(command, render::network_bytes).await?;
            Ok(render::network(&view))
        };
        Ok(Response::new(
            self.requests.run(&ask.request_id, work).await?,
        ))
    }

    async fn get_network(
        &self,
        request: Request<proto::GetNetworkRequest>,
    ) -> Result<Response<proto::Network>, Status> {
        let (project, name) = parse(&request.into_inner().name)?;
        let view = self.app.get_network(&project, &name).await?;
        Ok(Response::new(render::network(&view)))
    }

    async fn list_networks(
        &self,
        request: Request<proto::ListNetworksRequest>,
    ) -> Result<Response<proto::ListNetworksResponse>, Status> {
        let ask = request.into_inner();
        let parent = names::Project::parse("parent", &ask.parent)?;
        let size = page::size(ask.page_size)?;
        let after = page::decode(&ask.page_token)?;
        let mut views = self
            .app
            .list_networks(
                &parent.project,
                ask.include_unmanaged,
                after.as_deref(),
                size,
            )
            .await?;
        let more = views.len() > size;
        views.truncate(size);
        let next_page_token = match views.last() {
            Some(last) if more => page::encode(&last.record.name),
            _ => String::new(),
        };
        Ok(Response::new(proto::ListNetworksResponse {
            networks: views.iter().map(render::network).collect(),
            next_page_token,
        }))
    }

    async fn update_network(
        &self,
        request: Request<proto::UpdateNetworkRequest>,
    ) -> Result<Response<proto::Network>, Status> {
        let ask = request.into_inner();
        let network = ask
            .network
            .ok_or_else(|| Error::invalid("network", "network is missing"))?;
        let (project, name) = parse(&network.name)?;
        let command = UpdateNetwork {
            project,
            name,
            description: network.description,
            config: network.config,
            mask: Mask::from_proto(ask.update_mask.as_ref()),
            etag: network.etag,
            request_id: ask.request_id.clone(),
        };
        let app = self.app.clone();
        let work = async move {
            let view = app.update_network(command, render::network_bytes).await?;
            Ok(render::network(&view))
        };
        Ok(Response::new(
            self.requests.run(&ask.request_id, work).await?,
        ))
    }

    async fn rename_network(
        &self,
        request: Request<proto::RenameNetworkRequest>,
    ) -> Result<Response<proto::Network>, Status> {
        let ask = request.into_inner();
        let (project, name) = parse(&ask.name)?;
        let (app, id) = (self.app.clone(), ask.request_id.clone());
        let names = (project, name, ask.new_network_id);
        let work = async move {
            let view = app.rename_network(names, id, render::network_bytes).await?;
            Ok(render::network(&view))
        };
        Ok(Response::new(
            self.requests.run(&ask.request_id, work).await?,
        ))
    }

    async fn delete_network(
        &self,
        request: Request<proto::DeleteNetworkRequest>,
    ) -> Result<Response<()>, Status> {
        let ask = request.into_inner();
        let name = parse(&ask.name)?;
        let (app, id) = (self.app.clone(), ask.request_id.clone());
        let work = async move { app.delete_network(name, ask.etag, id).await };
        self.requests.run::<(), _>(&ask.request_id, work).await?;
        Ok(Response::new(()))
    }

    async fn get_network_state(
        &self,
        request: Request<proto::GetNetworkStateRequest>,
    ) -> Result<Response<proto::NetworkState>, Status> {
        let (project, name) = parse(&request.into_inner().name)?;
        let (link, upper) = self.app.network_link(&project, &name).await?;
        Ok(Response::new(render::state(&link, upper)))
    }

    async fn list_leases(
        &self,
        request: Request<proto::ListLeasesRequest>,
    ) -> Result<Response<proto::ListLeasesResponse>, Status> {
        let parent = names::Network::parse("parent", &request.into_inner().parent)?;
        let leases = self.app.leases(&parent.project, &parent.network).await?;
        Ok(Response::new(proto::ListLeasesResponse {
            leases: leases.iter().map(render::lease).collect(),
        }))
    }

    async fn hold_network(
        &self,
        request: Request<proto::HoldNetworkRequest>,
    ) -> Result<Response<proto::Network>, Status> {
        let ask = request.into_inner();
        let hold = ask.hold.unwrap_or_default();
        let hold = HoldRecord {
            holder: hold.holder,
            authority: hold.authority,
            expires: hold.expire_time,
        };
        let view = self
            .app
            .clone()
            .hold_network(parse(&ask.name)?, hold)
            .await?;
        Ok(Response::new(render::network(&view)))
    }

    async fn release_network(
        &self,
        request: Request<proto::ReleaseNetworkRequest>,
    ) -> Result<Response<proto::Network>, Status> {
        let ask = request.into_inner();
        let name = parse(&ask.name)?;
        let view = self.app.clone().release_network(name, &ask.holder).await?;
        Ok(Response::new(render::network(&view)))
    }

    type WatchEventsStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<types::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<types::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let store = self.app.store().store().clone();
        Ok(Response::new(berth_server::watch_events(
            store,
            request.get_ref(),
        )))
    }
}
