//! Instances.

use axum::Router;

use super::refused;
use crate::App;

/// Routes beneath `prefix`.
pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(&format!("{prefix}"), refused("instances"))
        .route(&format!("{prefix}/{{name}}"), refused("instances"))
        .route(&format!("{prefix}/{{name}}/backups"), refused("instance backups"))
        .route(&format!("{prefix}/{{name}}/backups/{{backup}}"), refused("instance backups"))
        .route(&format!("{prefix}/{{name}}/backups/{{backup}}/export"), refused("instance backups"))
}
