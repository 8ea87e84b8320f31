//! Clustering: there is none.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/cluster", "clustering"),
        ("/1.0/cluster/certificate", "clustering"),
        ("/1.0/cluster/members", "clustering"),
        ("/1.0/cluster/members/{name}", "clustering"),
        ("/1.0/cluster/members/{name}/state", "clustering"),
        ("/1.0/cluster/groups", "clustering"),
        ("/1.0/cluster/groups/{name}", "clustering"),
    ])
}
