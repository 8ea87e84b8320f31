//! berth.instance.v1: the only place that names tonic and generated types. A handler parses, calls, renders.

mod console;
pub mod convert;
mod exec;
mod file;
mod instance;
mod log;
mod profile;
mod render;
mod snapshot;

use std::sync::Arc;

use berth_proto::instance::console_service_server::ConsoleServiceServer;
use berth_proto::instance::exec_service_server::ExecServiceServer;
use berth_proto::instance::file_service_server::FileServiceServer;
use berth_proto::instance::instance_service_server::InstanceServiceServer;
use berth_proto::instance::log_service_server::LogServiceServer;
use berth_proto::instance::profile_service_server::ProfileServiceServer;
use berth_proto::instance::snapshot_service_server::SnapshotServiceServer;
use berth_rpc::names;
use berth_server::{Requests, Server, WholeUploads};
use prost::Message;

use crate::Error;
use crate::app::{App, Encode};

/// All services of the API over one application.
#[derive(Debug, Clone)]
pub struct Api {
    pub app: Arc<App>,
    pub requests: Requests,
}

/// Largest message: a file's or an exec's piece is far smaller, a list of a thousand instances fits.
const MESSAGE_MAX: usize = 64 << 20;

/// How the store's recorded answers are encoded.
pub const ENCODE: Encode = Encode {
    instance: |view| render::instance(view).encode_to_vec(),
    snapshot: |view, snapshot| render::snapshot(&view.record, snapshot).encode_to_vec(),
    profile: |profile, users| render::profile(profile, users).encode_to_vec(),
    empty: || ().encode_to_vec(),
};

impl Api {
    pub fn new(app: Arc<App>) -> Api {
        let requests = Requests::new(app.records.store().clone());
        Api { app, requests }
    }
}

/// Adds the seven services to a server.
pub fn serve(server: Server, app: Arc<App>) -> Server {
    let api = Api::new(app);
    server
        .add_service(InstanceServiceServer::new(api.clone()).max_encoding_message_size(MESSAGE_MAX))
        .add_service(SnapshotServiceServer::new(api.clone()))
        .add_service(ProfileServiceServer::new(api.clone()))
        .add_service(ExecServiceServer::new(api.clone()))
        .add_service(ConsoleServiceServer::new(api.clone()))
        .add_service(WholeUploads::new(FileServiceServer::new(api.clone())))
        .add_service(LogServiceServer::new(api))
}

/// The services as a router, for tests in one process.
pub fn router(app: Arc<App>) -> tonic::service::Routes {
    let api = Api::new(app);
    tonic::service::Routes::new(InstanceServiceServer::new(api.clone()))
        .add_service(SnapshotServiceServer::new(api.clone()))
        .add_service(ProfileServiceServer::new(api.clone()))
        .add_service(ExecServiceServer::new(api.clone()))
        .add_service(ConsoleServiceServer::new(api.clone()))
        .add_service(WholeUploads::new(FileServiceServer::new(api.clone())))
        .add_service(LogServiceServer::new(api))
}

/// Project and instance of a resource name.
fn instance_name(field: &str, name: &str) -> Result<(String, String), Error> {
    let name = names::Instance::parse(field, name)?;
    Ok((name.project, name.instance))
}

fn project_name(field: &str, name: &str) -> Result<String, Error> {
    Ok(names::Project::parse(field, name)?.project)
}
