//! Aliases of images. A name may hold slashes, raw or as %2F.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::image;
use berth_rpc::names;
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::body::Json;
use super::envelope::{self, Answer};
use super::images::{self, type_name};
use super::query::Query;
use super::{etag, urls};
use crate::App;
use crate::app::lists;
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/images/aliases", get(list).post(create))
        .route(
            "/1.0/images/aliases/{*name}",
            get(show)
                .put(replace)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
}

/// An alias as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    description: String,
    target: String,
    name: String,
    r#type: &'static str,
}

impl From<image::Alias> for Shown {
    fn from(alias: image::Alias) -> Self {
        Self {
            description: alias.description,
            target: alias.target,
            name: alias.alias,
            r#type: type_name(alias.r#type),
        }
    }
}

impl Shown {
    fn etag(&self) -> String {
        etag::of(&(&self.description, &self.target))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    name: String,
    description: Option<String>,
    target: Option<String>,
}

/// 5.0.2 escapes aliases twice in its URLs.
fn url(alias: &str) -> String {
    format!(
        "/1.0/images/aliases/{}",
        urls::escape(alias).replace('%', "%25")
    )
}

fn resource(query: &Query, alias: &str) -> String {
    names::ImageAlias::new(&query.project, names::encode_segment(alias)).to_string()
}

fn taken(alias: &str) -> Failure {
    Failure::conflict(format!("Alias \"{alias}\" already exists"))
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let mut aliases = lists::aliases(&app.owners, &query.parent()).await?;
    aliases.sort_by(|a, b| a.alias.cmp(&b.alias));
    if query.recursion == 0 {
        let urls: Vec<String> = aliases.iter().map(|alias| url(&alias.alias)).collect();
        return Ok(envelope::sync(urls));
    }
    let shown: Vec<Shown> = aliases.into_iter().map(Shown::from).collect();
    Ok(envelope::sync(shown))
}

async fn create(State(app): State<App>, query: Query, Json(body): Json<Body>) -> Answer {
    let target = body.target.unwrap_or_default();
    if body.name.is_empty() || target.is_empty() {
        return Err(Failure::bad_request("name and target are required"));
    }
    let target = full(&app, &query, target).await?;
    let request = image::CreateAliasRequest {
        parent: query.parent(),
        alias: Some(image::Alias {
            alias: body.name.clone(),
            description: body.description.unwrap_or_default(),
            target,
            ..image::Alias::default()
        }),
        request_id: crate::app::request_id(),
    };
    match app.owners.images().create_alias(request).await {
        Ok(_) => Ok(envelope::created(&url(&body.name))),
        Err(status) if status.code() == tonic::Code::AlreadyExists => Err(taken(&body.name)),
        Err(status) => Err(status.into()),
    }
}

/// The whole fingerprint that a target names; a whole one is left to the image service to check.
async fn full(app: &App, query: &Query, target: String) -> Result<String, Failure> {
    if target.len() == 64 {
        return Ok(target);
    }
    Ok(images::read(app, query, &target).await?.fingerprint)
}

async fn read(app: &App, query: &Query, alias: &str) -> Result<image::Alias, Failure> {
    let name = resource(query, alias);
    match app
        .owners
        .images()
        .get_alias(image::GetAliasRequest { name })
        .await
    {
        Ok(found) => Ok(found.into_inner()),
        Err(status) => Err(missing(status)),
    }
}

fn missing(status: tonic::Status) -> Failure {
    if status.code() == tonic::Code::NotFound {
        Failure::not_found("Image alias not found")
    } else {
        status.into()
    }
}

async fn show(State(app): State<App>, Path(alias): Path<String>, query: Query) -> Answer {
    let shown = Shown::from(read(&app, &query, &alias).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

async fn replace(
    State(app): State<App>,
    Path(alias): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let body = Body {
        description: Some(body.description.unwrap_or_default()),
        target: Some(body.target.unwrap_or_default()),
        ..body
    };
    update(&app, &query, &alias, &headers, body).await
}

async fn change(
    State(app): State<App>,
    Path(alias): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    update(&app, &query, &alias, &headers, body).await
}

async fn update(app: &App, query: &Query, alias: &str, headers: &HeaderMap, body: Body) -> Answer {
    if body.target.as_deref() == Some("") {
        return Err(Failure::bad_request("The target field is required"));
    }
    let mut found = read(app, query, alias).await?;
    etag::check(headers, &Shown::from(found.clone()).etag())?;
    if let Some(target) = body.target {
        found.target = full(app, query, target).await?;
    }
    if let Some(description) = body.description {
        found.description = description;
    }
    app.owners
        .images()
        .update_alias(image::UpdateAliasRequest {
            alias: Some(found),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["description".into(), "target".into()],
            }),
            request_id: crate::app::request_id(),
        })
        .await?;
    Ok(envelope::empty())
}

async fn rename(
    State(app): State<App>,
    Path(alias): Path<String>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    if body.name.is_empty() {
        return Err(Failure::bad_request("No name provided"));
    }
    let request = image::RenameAliasRequest {
        name: resource(&query, &alias),
        new_alias: body.name.clone(),
        request_id: crate::app::request_id(),
    };
    match app.owners.images().rename_alias(request).await {
        Ok(_) => Ok(envelope::created(&url(&body.name))),
        Err(status) if status.code() == tonic::Code::AlreadyExists => Err(taken(&body.name)),
        Err(status) => Err(missing(status)),
    }
}

async fn delete(State(app): State<App>, Path(alias): Path<String>, query: Query) -> Answer {
    app.owners
        .images()
        .delete_alias(image::DeleteAliasRequest {
            name: resource(&query, &alias),
            request_id: crate::app::request_id(),
        })
        .await
        .map_err(missing)?;
    Ok(envelope::empty())
}
