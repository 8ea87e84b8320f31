use berth_proto::network::port_service_server::PortService;
use berth_proto::{network as proto, types};
use berth_rpc::{Error, names, page};
use tonic::{Request, Response, Status};

use super::{Handlers, render};
use crate::app::CreatePort;
use crate::model::records::PortSpec;

fn spec(spec: Option<proto::PortSpec>) -> Result<PortSpec, Error> {
    let spec = spec.ok_or_else(|| Error::invalid("spec", "spec is missing"))?;
    let config: std::collections::BTreeMap<String, String> = spec.config.into_iter().collect();
    let guest_name = if spec.guest_name.is_empty() {
        config.get("name").cloned().unwrap_or_default()
    } else {
        spec.guest_name
    };
    Ok(PortSpec {
        holder: spec.holder,
        hostname: spec.hostname,
        mac: spec.mac,
        guest_name,
        config,
    })
}

#[tonic::async_trait]
impl PortService for Handlers {
    async fn create_port(
        &self,
        request: Request<proto::CreatePortRequest>,
    ) -> Result<Response<types::Port>, Status> {
        let ask = request.into_inner();
        let parent = names::Network::parse("parent", &ask.parent)?;
        let id = if ask.port_id.is_empty() {
            uuid::Uuid::now_v7().to_string()
        } else {
            ask.port_id
        };
        let command = CreatePort {
            name: names::Port::new(parent.project, parent.network, id),
            spec: spec(ask.spec)?,
            request_id: ask.request_id.clone(),
            validate_only: ask.validate_only,
        };
        let app = self.app.clone();
        let work = async move {
            let port = app.create_port(command, render::port_bytes).await?;
            Ok(render::port(&port))
        };
        Ok(Response::new(
            self.requests.run(&ask.request_id, work).await?,
        ))
    }

    async fn get_port(
        &self,
        request: Request<proto::GetPortRequest>,
    ) -> Result<Response<types::Port>, Status> {
        let name = names::Port::parse("name", &request.into_inner().name)?;
        let port = self.app.get_port(&name).await?;
        Ok(Response::new(render::port(&port)))
    }

    async fn list_ports(
        &self,
        request: Request<proto::ListPortsRequest>,
    ) -> Result<Response<proto::ListPortsResponse>, Status> {
        let ask = request.into_inner();
        let parent = names::Network::parse("parent", &ask.parent)?;
        let size = page::size(ask.page_size)?;
        let after = page::decode(&ask.page_token)?;
        let mut ports = self.app.list_ports(&parent, after.as_deref(), size).await?;
        let more = ports.len() > size;
        ports.truncate(size);
        let next_page_token = match ports.last() {
            Some(last) if more => page::encode(&last.id),
            _ => String::new(),
        };
        Ok(Response::new(proto::ListPortsResponse {
            ports: ports.iter().map(render::port).collect(),
            next_page_token,
        }))
    }

    async fn update_port(
        &self,
        request: Request<proto::UpdatePortRequest>,
    ) -> Result<Response<types::Port>, Status> {
        let ask = request.into_inner();
        let name = names::Port::parse("name", &ask.name)?;
        let spec = spec(ask.spec)?;
        let (app, id) = (self.app.clone(), ask.request_id.clone());
        let work = async move {
            let port = app.update_port(name, spec, id, render::port_bytes).await?;
            Ok(render::port(&port))
        };
        Ok(Response::new(
            self.requests.run(&ask.request_id, work).await?,
        ))
    }

    async fn delete_port(
        &self,
        request: Request<proto::DeletePortRequest>,
    ) -> Result<Response<()>, Status> {
        let ask = request.into_inner();
        let name = names::Port::parse("name", &ask.name)?;
        let (app, id) = (self.app.clone(), ask.request_id.clone());
        let work = async move { app.delete_port(name, ask.allow_missing, id).await };
        self.requests.run::<(), _>(&ask.request_id, work).await?;
        Ok(Response::new(()))
    }
}
