//! Berth's gRPC API: generated messages, clients and servers.
//!
//! The sources are `proto/berth/<area>/v1/*.proto`. `api.txt` beside them lists every method and
//! field; a test keeps it in step, so a change of the API shows in review. v1 only grows.

/// The encoded `FileDescriptorSet` of everything here, for reflection and for the golden listing.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/berth_descriptor.bin"));

macro_rules! package {
    ($($name:ident = $path:literal),* $(,)?) => {
        $(
            /// Generated from the package of the same name, version 1.
            #[allow(missing_docs, clippy::all, unreachable_pub)]
            pub mod $name {
                pub mod v1 {
                    tonic::include_proto!($path);
                }
            }
        )*
    };
}

/// Packages of `berth.*`.
pub mod berth {
    package! {
        r#type = "berth.r#type.v1",
        image = "berth.image.v1",
        storage = "berth.storage.v1",
        network = "berth.network.v1",
        instance = "berth.instance.v1",
        operation = "berth.operation.v1",
        gateway = "berth.gateway.v1",
        server = "berth.server.v1",
    }
}

/// Packages of `google.*` that Berth serves.
pub mod google {
    /// Generated from `google.rpc`.
    #[allow(missing_docs, clippy::all, unreachable_pub)]
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
    /// Generated from `google.longrunning`.
    #[allow(missing_docs, clippy::all, unreachable_pub)]
    pub mod longrunning {
        tonic::include_proto!("google.longrunning");
    }
}

pub use berth::gateway::v1 as gateway;
pub use berth::image::v1 as image;
pub use berth::instance::v1 as instance;
pub use berth::network::v1 as network;
pub use berth::operation::v1 as operation;
pub use berth::server::v1 as server;
pub use berth::storage::v1 as storage;
pub use berth::r#type::v1 as types;
pub use google::longrunning;
