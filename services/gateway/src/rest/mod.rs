//! LXD's REST API, version 1.0, in the dialect of 5.0.2.

pub mod body;
pub mod envelope;
pub mod etag;
pub mod filter;
pub mod listen;
pub mod query;
pub mod router;

mod aliases;
mod certificates;
mod cluster;
mod console;
mod events;
mod exec;
mod exec_bridge;
mod exec_sockets;
mod extensions;
mod files;
mod image_export;
mod image_upload;
mod images;
mod instance_state;
mod instance_view;
mod instances;
mod logs;
mod measure;
mod metadata;
mod networks;
mod operations;
mod profiles;
mod projects;
mod resources;
mod server;
mod snapshots;
mod storage_pools;
mod storage_volume_snapshots;
mod storage_volumes;
mod streams;
pub(crate) mod urls;
mod warnings;

use axum::Router;
use axum::routing::{MethodRouter, any};

use crate::App;
use crate::error::Failure;

/// A route whose every method is refused by name.
fn refused(what: &'static str) -> MethodRouter<App> {
    any(move || async move { Failure::unsupported(what) })
}

/// Several such routes.
fn refuse_all(paths: &[(&str, &'static str)]) -> Router<App> {
    paths.iter().fold(Router::new(), |router, (path, what)| {
        router.route(path, refused(what))
    })
}
