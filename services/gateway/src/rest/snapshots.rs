//! Snapshots of instances.

use axum::Router;

use super::refused;
use crate::App;

/// Routes beneath `prefix`.
pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(&format!("{prefix}/{{name}}/snapshots"), refused("snapshots"))
        .route(&format!("{prefix}/{{name}}/snapshots/{{snapshot}}"), refused("snapshots"))
}
