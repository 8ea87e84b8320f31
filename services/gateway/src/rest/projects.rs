//! Projects: the default one.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/projects", "projects"),
        ("/1.0/projects/{name}", "projects"),
        ("/1.0/projects/{name}/state", "project state"),
    ])
}
