//! Storage pools.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/storage-pools", "storage pools"),
        ("/1.0/storage-pools/{pool}", "storage pools"),
        ("/1.0/storage-pools/{pool}/resources", "storage pool resources"),
    ])
}
