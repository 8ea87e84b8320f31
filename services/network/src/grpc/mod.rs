//! The only place that names tonic and generated types: handlers parse, call and render.

mod network;
mod port;
mod render;

use std::sync::Arc;

use berth_proto::network::network_service_server::NetworkServiceServer;
use berth_proto::network::port_service_server::PortServiceServer;
use berth_server::Requests;

use crate::app::App;

/// The handlers of both services.
#[derive(Debug, Clone)]
pub struct Handlers {
    app: Arc<App>,
    requests: Requests,
}

/// `NetworkService` and `PortService` over the use cases.
pub fn services(app: &Arc<App>) -> (NetworkServiceServer<Handlers>, PortServiceServer<Handlers>) {
    let handlers = Handlers {
        app: app.clone(),
        requests: Requests::new(app.store().store().clone()),
    };
    (
        NetworkServiceServer::new(handlers.clone()),
        PortServiceServer::new(handlers),
    )
}
