//! gRPC: the only place that names tonic and the generated types. A handler parses, calls a use
//! case, renders.

mod convert;
mod pools;
mod receive;
mod volumes;

use std::sync::Arc;

use berth_proto::storage::pool_service_server::PoolServiceServer;
use berth_proto::storage::volume_service_server::VolumeServiceServer;
use berth_server::Requests;

use crate::app::App;

/// Both services over one set of use cases.
#[derive(Clone)]
pub struct Storage {
    app: Arc<App>,
    requests: Requests,
}

impl Storage {
    /// Serves `app`.
    pub fn new(app: Arc<App>) -> Self {
        let requests = Requests::new(app.store.clone());
        Self { app, requests }
    }

    /// `berth.storage.v1.PoolService`.
    pub fn pool_service(&self) -> PoolServiceServer<Self> {
        PoolServiceServer::new(self.clone())
    }

    /// `berth.storage.v1.VolumeService`.
    pub fn volume_service(&self) -> VolumeServiceServer<Self> {
        VolumeServiceServer::new(self.clone())
    }
}
