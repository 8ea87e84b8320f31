//! Logs of instances.

use axum::Router;

use super::refused;
use crate::App;

/// Routes beneath `prefix`.
pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(&format!("{prefix}/{{name}}/logs"), refused("logs"))
        .route(&format!("{prefix}/{{name}}/logs/{{file}}"), refused("logs"))
}
