//! Networks.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/networks", "networks"),
        ("/1.0/networks/{network}", "networks"),
        ("/1.0/networks/{network}/state", "network state"),
        ("/1.0/networks/{network}/leases", "network leases"),
        ("/1.0/networks/{network}/forwards", "network forwards"),
        ("/1.0/networks/{network}/forwards/{address}", "network forwards"),
        ("/1.0/networks/{network}/peers", "network peers"),
        ("/1.0/networks/{network}/peers/{peer}", "network peers"),
    ])
}
