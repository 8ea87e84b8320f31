//! Trusted certificates.

use axum::Router;

use super::refuse_all;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    refuse_all(&[
        ("/1.0/certificates", "certificates"),
        ("/1.0/certificates/{fingerprint}", "certificates"),
    ])
}
