//! The gRPC face: `berth.gateway.v1`. `google.longrunning.Operations` and `OperationWatchService`
//! come with the operations themselves.

mod create;
mod gateway;

use berth_proto::gateway::gateway_service_server::GatewayServiceServer;

use crate::App;

/// Serves `berth.gateway.v1.GatewayService`.
pub fn gateway_server(app: App) -> GatewayServiceServer<gateway::Gateway> {
    GatewayServiceServer::new(gateway::Gateway::new(app))
}
