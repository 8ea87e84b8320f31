//! Profiles.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::instance;
use berth_rpc::names;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::body::{self, Config, Json};
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, urls};
use crate::App;
use crate::app::{lists, profiles};
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/profiles", get(list).post(create))
        .route(
            "/1.0/profiles/{name}",
            get(show)
                .put(replace)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
}

/// A profile as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    config: BTreeMap<String, String>,
    description: String,
    devices: BTreeMap<String, BTreeMap<String, String>>,
    name: String,
    used_by: Vec<String>,
}

impl From<instance::Profile> for Shown {
    fn from(profile: instance::Profile) -> Self {
        Self {
            config: profile.config.into_iter().collect(),
            description: profile.description,
            devices: profile
                .devices
                .into_iter()
                .map(|(name, device)| (name, device.options.into_iter().collect()))
                .collect(),
            name: urls::last(&profile.name).to_owned(),
            used_by: urls::of_resources(profile.used_by.iter().map(String::as_str)),
        }
    }
}

impl Shown {
    fn etag(&self) -> String {
        etag::of(&(&self.config, &self.description, &self.devices))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    name: String,
    description: Option<String>,
    #[serde(deserialize_with = "body::config_opt")]
    config: Option<Config>,
    #[serde(deserialize_with = "body::devices_opt")]
    devices: Option<BTreeMap<String, Config>>,
}

impl Body {
    fn profile(self, name: String, etag: String) -> instance::Profile {
        instance::Profile {
            name,
            description: self.description.unwrap_or_default(),
            config: set(self.config.unwrap_or_default()),
            devices: self
                .devices
                .unwrap_or_default()
                .into_iter()
                .map(|(name, options)| {
                    let options = set(options);
                    (name, instance::Device { options })
                })
                .collect(),
            used_by: Vec::new(),
            etag,
        }
    }
}

/// An empty value means the key is not set.
fn set(config: Config) -> std::collections::HashMap<String, String> {
    config
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn check_name(name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::bad_request("No name provided"));
    }
    if name.contains('/') {
        return Err(Failure::bad_request(
            "Profile names may not contain slashes",
        ));
    }
    if name == "." || name == ".." {
        return Err(Failure::bad_request(format!(
            "Invalid profile name {name:?}"
        )));
    }
    Ok(())
}

fn resource(query: &Query, name: &str) -> Result<String, Failure> {
    let name = urls::named("Profile", name)?;
    Ok(names::Profile::new(&query.project, name).to_string())
}

fn location(name: &str) -> String {
    format!("/1.0/profiles/{}", urls::escape(name))
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let mut shown: Vec<Shown> = lists::profiles(&app.owners, &query.parent())
        .await?
        .into_iter()
        .map(Shown::from)
        .collect();
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    if query.recursion == 0 {
        let urls: Vec<String> = shown
            .iter()
            .map(|profile| location(&profile.name))
            .collect();
        return Ok(envelope::sync(urls));
    }
    Ok(envelope::sync(shown))
}

async fn read(app: &App, query: &Query, name: &str) -> Result<instance::Profile, Failure> {
    let name = resource(query, name)?;
    let profile = app
        .owners
        .profiles()
        .get_profile(instance::GetProfileRequest { name })
        .await?;
    Ok(profile.into_inner())
}

async fn show(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let shown = Shown::from(read(&app, &query, &name).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

async fn create(State(app): State<App>, query: Query, Json(body): Json<Body>) -> Answer {
    check_name(&body.name)?;
    let name = body.name.clone();
    let resource = resource(&query, &name)?;
    profiles::create(&app, &query.project, body.profile(resource, String::new())).await?;
    Ok(envelope::created(&location(&name)))
}

async fn replace(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let current = read(&app, &query, &name).await?;
    etag::check(&headers, &Shown::from(current.clone()).etag())?;
    let etag = guard(&headers, &current);
    let new = body.profile(current.name, etag);
    profiles::update(&app, &query.project, new).await?;
    Ok(envelope::empty())
}

/// The owner checks its etag at the commit, where the client cares at all.
fn guard(headers: &HeaderMap, current: &instance::Profile) -> String {
    etag::if_match(headers)
        .map(|_| current.etag.clone())
        .unwrap_or_default()
}

async fn change(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let mut new = read(&app, &query, &name).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    for (key, value) in body.config.unwrap_or_default() {
        if value.is_empty() {
            new.config.remove(&key);
        } else {
            new.config.insert(key, value);
        }
    }
    for (name, options) in body.devices.unwrap_or_default() {
        let options = set(options);
        new.devices.insert(name, instance::Device { options });
    }
    if let Some(description) = body.description {
        new.description = description;
    }
    // A merge is over what was read, so its etag always counts.
    profiles::update(&app, &query.project, new).await?;
    Ok(envelope::empty())
}

async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    refuse_default(&name, "renamed")?;
    check_name(&body.name)?;
    profiles::rename(&app, &query.project, &resource(&query, &name)?, &body.name).await?;
    Ok(envelope::created(&location(&body.name)))
}

async fn delete(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    refuse_default(&name, "deleted")?;
    profiles::delete(&app, &query.project, &resource(&query, &name)?).await?;
    Ok(envelope::empty())
}

fn refuse_default(name: &str, verb: &str) -> Result<(), Failure> {
    if name == "default" {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            format!("The \"default\" profile cannot be {verb}"),
        ));
    }
    Ok(())
}
