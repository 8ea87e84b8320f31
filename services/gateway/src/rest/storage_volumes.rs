//! Storage volumes.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/storage-pools/{pool}/volumes", "storage volumes"),
        ("/1.0/storage-pools/{pool}/volumes/{type}", "storage volumes"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}", "storage volumes"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}/state", "storage volume state"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}/snapshots", "storage volume snapshots"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}/snapshots/{snapshot}", "storage volume snapshots"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}/backups", "storage volume backups"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}/backups/{backup}", "storage volume backups"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{volume}/backups/{backup}/export", "storage volume backups"),
    ])
}
