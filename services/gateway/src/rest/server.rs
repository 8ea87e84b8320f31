//! The server itself.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/", "server"),
        ("/1.0", "server"),
    ])
}
