//! Guests' files.

use axum::Router;

use super::refused;
use crate::App;

/// Routes beneath `prefix`.
pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(&format!("{prefix}/{{name}}/files"), refused("files"))
        .route(&format!("{prefix}/{{name}}/sftp"), refused("SFTP"))
}
