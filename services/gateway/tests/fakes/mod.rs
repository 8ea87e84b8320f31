//! The four owners in memory: state machines that keep what they are told, answer a request id
//! once, and can be compared.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod guest;
pub mod image;
pub mod instance;
pub mod network;
mod plan;
mod profile;
pub mod replay;
mod snapshot;
pub mod storage;

use std::collections::BTreeSet;
use std::sync::Arc;

use berth_gateway::clients::Owners;
use berth_proto::image::image_service_server::ImageServiceServer;
use berth_proto::instance::console_service_server::ConsoleServiceServer;
use berth_proto::instance::exec_service_server::ExecServiceServer;
use berth_proto::instance::file_service_server::FileServiceServer;
use berth_proto::instance::instance_service_server::InstanceServiceServer;
use berth_proto::instance::log_service_server::LogServiceServer;
use berth_proto::instance::profile_service_server::ProfileServiceServer;
use berth_proto::instance::snapshot_service_server::SnapshotServiceServer;
use berth_proto::network::network_service_server::NetworkServiceServer;
use berth_proto::network::port_service_server::PortServiceServer;
use berth_proto::storage::pool_service_server::PoolServiceServer;
use berth_proto::storage::volume_service_server::VolumeServiceServer;
use tonic::service::Routes;

/// All four. Clones share them, as restarts of the gateway do.
#[derive(Debug, Clone, Default)]
pub struct Fakes {
    pub image: Arc<image::Fake>,
    pub storage: Arc<storage::Fake>,
    pub network: Arc<network::Fake>,
    pub instance: Arc<instance::Fake>,
    pub guest: Arc<guest::Fake>,
}

impl Fakes {
    /// Channels to them.
    pub async fn owners(&self) -> Owners {
        let serve = berth_testkit::serve_in_memory;
        Owners::over(
            serve(Routes::new(ImageServiceServer::from_arc(
                self.image.clone(),
            )))
            .await,
            serve(
                Routes::new(PoolServiceServer::from_arc(self.storage.clone()))
                    .add_service(VolumeServiceServer::from_arc(self.storage.clone())),
            )
            .await,
            serve(
                Routes::new(NetworkServiceServer::from_arc(self.network.clone()))
                    .add_service(PortServiceServer::from_arc(self.network.clone())),
            )
            .await,
            serve(
                Routes::new(InstanceServiceServer::from_arc(self.instance.clone()))
                    .add_service(ProfileServiceServer::from_arc(self.instance.clone()))
                    .add_service(SnapshotServiceServer::from_arc(self.instance.clone()))
                    .add_service(ExecServiceServer::from_arc(self.guest.clone()))
                    .add_service(ConsoleServiceServer::from_arc(self.guest.clone()))
                    .add_service(FileServiceServer::from_arc(self.guest.clone()))
                    .add_service(LogServiceServer::from_arc(self.guest.clone())),
            )
            .await,
        )
    }

    /// Everything there is in all four; copies of images that pools keep are left out, since they
    /// may be dropped and made again at any time.
    pub fn inventory(&self) -> BTreeSet<String> {
        image::inventory(&self.image)
            .into_iter()
            .chain(storage::inventory(&self.storage))
            .chain(network::inventory(&self.network))
            .chain(instance::inventory(&self.instance))
            .filter(|thing| {
                !thing.contains("/images/") || thing.starts_with("projects/default/images/")
            })
            .collect()
    }
}
