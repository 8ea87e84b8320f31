//! Projects: there is the default one, to look at.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::envelope::{self, Answer};
use super::query::{DEFAULT_PROJECT, Query};
use super::{etag, urls};
use crate::App;
use crate::app::{lists, reads};
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/projects", get(list).post(create))
        .route(
            "/1.0/projects/{name}",
            get(show)
                .put(change)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
        .route("/1.0/projects/{name}/state", get(state))
}

/// A project as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    config: Features,
    description: &'static str,
    name: &'static str,
    used_by: Vec<String>,
}

/// The default project has everything of its own.
#[derive(Debug, Serialize)]
struct Features {
    #[serde(rename = "features.images")]
    images: &'static str,
    #[serde(rename = "features.networks")]
    networks: &'static str,
    #[serde(rename = "features.profiles")]
    profiles: &'static str,
    #[serde(rename = "features.storage.volumes")]
    volumes: &'static str,
}

async fn default(app: &App) -> Result<Shown, Failure> {
    let parent = format!("projects/{DEFAULT_PROJECT}");
    let pools = format!("{parent}/storagePools/-");
    let (instances, images, profiles, networks, volumes) = tokio::try_join!(
        reads::instance_names(&app.owners, &parent),
        lists::images(&app.owners, &parent),
        lists::profiles(&app.owners, &parent),
        lists::networks(&app.owners, &parent, false),
        lists::volumes(&app.owners, &pools, "custom"),
    )?;
    let used_by = urls::of_resources(
        instances
            .iter()
            .map(String::as_str)
            .chain(images.iter().map(|image| image.name.as_str()))
            .chain(profiles.iter().map(|profile| profile.name.as_str()))
            .chain(networks.iter().map(|network| network.name.as_str()))
            .chain(volumes.iter().map(|volume| volume.name.as_str())),
    );
    Ok(Shown {
        config: Features {
            images: "true",
            networks: "true",
            profiles: "true",
            volumes: "true",
        },
        description: "Default LXD project",
        name: DEFAULT_PROJECT,
        used_by,
    })
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    if query.recursion == 0 {
        return Ok(envelope::sync(["/1.0/projects/default"]));
    }
    Ok(envelope::sync([default(&app).await?]))
}

fn known(name: &str) -> Result<(), Failure> {
    if name == DEFAULT_PROJECT {
        return Ok(());
    }
    Err(Failure::not_found("Project not found"))
}

async fn show(State(app): State<App>, Path(name): Path<String>) -> Answer {
    known(&name)?;
    let shown = default(&app).await?;
    let etag = etag::of(&(shown.description, &shown.config));
    Ok(envelope::sync_etag(shown, &etag))
}

/// What the project uses. It has no limits, and LXD sums up memory and the like only against a limit.
async fn state(State(app): State<App>, Path(name): Path<String>) -> Answer {
    known(&name)?;
    let parent = format!("projects/{DEFAULT_PROJECT}");
    let (instances, networks) = tokio::try_join!(
        reads::instance_names(&app.owners, &parent),
        lists::networks(&app.owners, &parent, false),
    )?;
    let used = |usage: usize| json!({"Limit": -1, "Usage": usage});
    Ok(envelope::sync(json!({"resources": {
        "containers": used(instances.len()),
        "cpu": used(0),
        "disk": used(0),
        "instances": used(instances.len()),
        "memory": used(0),
        "networks": used(networks.len()),
        "processes": used(0),
        "virtual-machines": used(0),
    }})))
}

async fn create() -> Answer {
    Err(Failure::unsupported("projects besides the default one"))
}

async fn change(Path(name): Path<String>) -> Answer {
    known(&name)?;
    Err(Failure::unsupported("changing a project"))
}

async fn rename(Path(name): Path<String>) -> Answer {
    known(&name)?;
    Err(Failure::new(
        StatusCode::FORBIDDEN,
        "The 'default' project cannot be renamed",
    ))
}

async fn delete(Path(name): Path<String>) -> Answer {
    known(&name)?;
    Err(Failure::new(
        StatusCode::FORBIDDEN,
        "The 'default' project cannot be deleted",
    ))
}
