//! Operations.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/operations", "operations"),
        ("/1.0/operations/{id}", "operations"),
        ("/1.0/operations/{id}/wait", "operations"),
        ("/1.0/operations/{id}/websocket", "operations"),
    ])
}
