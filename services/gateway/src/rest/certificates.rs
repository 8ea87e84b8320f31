//! Trusted certificates. The API is on a unix socket only, so there are none.

use axum::Router;
use axum::routing::get;

use super::envelope::{self, Answer};
use crate::App;
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/certificates", get(list).post(add))
        .route(
            "/1.0/certificates/{fingerprint}",
            get(missing).put(missing).patch(missing).delete(missing),
        )
}

async fn list() -> Answer {
    Ok(envelope::sync([(); 0]))
}

async fn add() -> Answer {
    Err(Failure::unsupported(
        "trusting a certificate: the API is not on the network",
    ))
}

async fn missing() -> Answer {
    Err(Failure::not_found("Certificate not found"))
}
