//! The four owners, as the gateway calls them: one kept-alive channel each.

pub mod upload;

use std::sync::Arc;

use berth_proto::{image, instance, network, storage};
use berth_rpc::tls::ClientTls;
use berth_rpc::{Channel, Error};

use crate::config::Services;

/// Answers may be long lists; one message of this size is the most that is believed.
const MAX_MESSAGE: usize = 64 << 20;

/// Clients of the four owners. Clones share the channels.
#[derive(Debug, Clone)]
pub struct Owners {
    image: Channel,
    storage: Channel,
    network: Channel,
    instance: Channel,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $channel:ident => $area:ident :: $module:ident :: $client:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            pub fn $name(&self) -> $area::$module::$client<Channel> {
                $area::$module::$client::new(self.$channel.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            }
        )+
    };
}

impl Owners {
    /// Connects lazily; an owner that is away is found out by the first call.
    ///
    /// # Errors
    /// When an address is malformed, or needs a certificate and there is none.
    pub fn connect(services: &Services, tls: Option<&Arc<ClientTls>>) -> Result<Self, Error> {
        Ok(Self {
            image: berth_rpc::connect_with(&services.image, tls)?,
            storage: berth_rpc::connect_with(&services.storage, tls)?,
            network: berth_rpc::connect_with(&services.network, tls)?,
            instance: berth_rpc::connect_with(&services.instance, tls)?,
        })
    }

    /// Over channels made elsewhere, e.g. in memory.
    pub fn over(image: Channel, storage: Channel, network: Channel, instance: Channel) -> Self {
        Self {
            image,
            storage,
            network,
            instance,
        }
    }

    /// Images, for an upload that counts only once it is declared complete.
    pub fn image_upload(
        &self,
        complete: upload::Complete,
    ) -> image::image_service_client::ImageServiceClient<upload::Declared> {
        image::image_service_client::ImageServiceClient::new(upload::Declared::new(
            self.image.clone(),
            complete,
        ))
    }

    /// Guests' files, for an upload that counts only once it is declared complete.
    pub fn file_upload(
        &self,
        complete: upload::Complete,
    ) -> instance::file_service_client::FileServiceClient<upload::Declared> {
        instance::file_service_client::FileServiceClient::new(upload::Declared::new(
            self.instance.clone(),
            complete,
        ))
    }

    clients! {
        /// Images and aliases.
        images: image => image::image_service_client::ImageServiceClient,
        /// Storage pools.
        pools: storage => storage::pool_service_client::PoolServiceClient,
        /// Volumes.
        volumes: storage => storage::volume_service_client::VolumeServiceClient,
        /// Networks.
        networks: network => network::network_service_client::NetworkServiceClient,
        /// Ports.
        ports: network => network::port_service_client::PortServiceClient,
        /// Instances.
        instances: instance => instance::instance_service_client::InstanceServiceClient,
        /// Instances' snapshots.
        snapshots: instance => instance::snapshot_service_client::SnapshotServiceClient,
        /// Profiles.
        profiles: instance => instance::profile_service_client::ProfileServiceClient,
        /// Commands in guests.
        execs: instance => instance::exec_service_client::ExecServiceClient,
        /// Consoles.
        consoles: instance => instance::console_service_client::ConsoleServiceClient,
        /// Guests' files.
        files: instance => instance::file_service_client::FileServiceClient,
        /// Instances' logs.
        logs: instance => instance::log_service_client::LogServiceClient,
    }
}
