//! The cluster: this server is in none.

use axum::Router;
use axum::routing::{any, get};
use serde_json::json;

use super::envelope::{self, Answer};
use super::{etag, refuse_all};
use crate::App;
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/cluster", get(show).put(change))
        .route("/1.0/cluster/members", get(no_members).post(no_cluster))
        .route("/1.0/cluster/members/{name}", any(no_members))
        .route("/1.0/cluster/members/{name}/state", any(no_members))
        .route("/1.0/cluster/groups", any(no_cluster))
        .route("/1.0/cluster/groups/{name}", any(no_cluster))
        .merge(refuse_all(&[(
            "/1.0/cluster/certificate",
            "the cluster's certificate",
        )]))
}

async fn show() -> Answer {
    let cluster = json!({"server_name": "", "enabled": false, "member_config": []});
    let etag = etag::of(&cluster);
    Ok(envelope::sync_etag(cluster, &etag))
}

async fn change() -> Answer {
    Err(Failure::unsupported("clustering"))
}

async fn no_members() -> Answer {
    Err(Failure::internal("Server is not clustered"))
}

async fn no_cluster() -> Answer {
    Err(Failure::bad_request("This server is not clustered"))
}
