//! Images: list, show, change, delete. Bytes are in [`super::image_upload`] and
//! [`super::image_export`].

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::routing::{get, post};
use berth_proto::image;
use berth_rpc::Error;
use berth_rpc::names;
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::body::{self, Json};
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, image_export, image_upload, refused, urls};
use crate::App;
use crate::app::operations::About;
use crate::app::{images, lists, time};
use crate::error::Failure;

/// What LXD shows for an image that does not expire.
const NO_EXPIRY: &str = "1970-01-01T00:00:00Z";

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route(
            "/1.0/images",
            get(list)
                .post(image_upload::create)
                // An image is as large as it is; it streams through.
                .layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/1.0/images/{fingerprint}",
            get(show).put(replace).patch(change).delete(delete),
        )
        .route(
            "/1.0/images/{fingerprint}/export",
            get(image_export::export).post(push),
        )
        .route("/1.0/images/{fingerprint}/refresh", post(refresh))
        .route(
            "/1.0/images/{fingerprint}/secret",
            refused("an image's secret"),
        )
}

/// An image as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    auto_update: bool,
    properties: BTreeMap<String, String>,
    public: bool,
    expires_at: String,
    profiles: Vec<String>,
    aliases: Vec<ShownAlias>,
    architecture: String,
    cached: bool,
    filename: String,
    fingerprint: String,
    size: i64,
    r#type: &'static str,
    created_at: String,
    last_used_at: String,
    uploaded_at: String,
}

#[derive(Debug, Serialize)]
struct ShownAlias {
    name: String,
    description: String,
}

impl From<image::Image> for Shown {
    fn from(image: image::Image) -> Self {
        let mut aliases: Vec<ShownAlias> = image
            .aliases
            .into_iter()
            .map(|alias| ShownAlias {
                name: alias.alias,
                description: alias.description,
            })
            .collect();
        aliases.sort_by(|a, b| a.name.cmp(&b.name));
        let expires_at = match image.expire_time.as_str() {
            "" | time::ZERO => NO_EXPIRY.to_owned(),
            _ => image.expire_time,
        };
        Self {
            auto_update: image.auto_update,
            properties: image.properties.into_iter().collect(),
            public: image.public,
            expires_at,
            profiles: image.profiles,
            aliases,
            architecture: image.architecture,
            cached: image.cached,
            filename: image.filename,
            fingerprint: image.fingerprint,
            size: image.size_bytes,
            r#type: type_name(image.r#type),
            created_at: time::or_zero(&image.create_time).to_owned(),
            last_used_at: time::or_zero(&image.last_used_time).to_owned(),
            uploaded_at: time::or_zero(&image.upload_time).to_owned(),
        }
    }
}

impl Shown {
    fn etag(&self) -> String {
        etag::of(&(
            self.public,
            self.auto_update,
            &self.properties,
            &self.profiles,
            &self.expires_at,
        ))
    }
}

/// LXD's word for an image's type.
pub(super) fn type_name(kind: i32) -> &'static str {
    match image::image::Type::try_from(kind) {
        Ok(image::image::Type::VirtualMachine) => "virtual-machine",
        _ => "container",
    }
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let filter = query.filter()?;
    let mut shown: Vec<Shown> = lists::images(&app.owners, &query.parent())
        .await?
        .into_iter()
        .map(Shown::from)
        .collect();
    shown.sort_by(|a, b| a.fingerprint.cmp(&b.fingerprint));
    if let Some(filter) = filter {
        shown.retain(|image| {
            serde_json::to_value(image).is_ok_and(|object| filter.matches(&object))
        });
    }
    if query.recursion == 0 {
        let urls: Vec<String> = shown
            .iter()
            .map(|image| format!("/1.0/images/{}", image.fingerprint))
            .collect();
        return Ok(envelope::sync(urls));
    }
    Ok(envelope::sync(shown))
}

/// Reads one image by any unique prefix.
pub(super) async fn read(
    app: &App,
    query: &Query,
    fingerprint: &str,
) -> Result<image::Image, Failure> {
    let fingerprint = urls::named("Image", fingerprint)?;
    // Whatever is no prefix of a fingerprint names no image.
    if !fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::not_found("Image not found"));
    }
    let name = names::Image::new(&query.project, fingerprint.to_ascii_lowercase()).to_string();
    let image = app
        .owners
        .images()
        .get_image(image::GetImageRequest { name })
        .await?
        .into_inner();
    Ok(image)
}

async fn show(State(app): State<App>, Path(fingerprint): Path<String>, query: Query) -> Answer {
    let shown = Shown::from(read(&app, &query, &fingerprint).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

/// What PUT and PATCH take; what is absent stays.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Put {
    auto_update: Option<bool>,
    public: Option<bool>,
    #[serde(deserialize_with = "body::config_opt")]
    properties: Option<body::Config>,
    profiles: Option<Vec<String>>,
    expires_at: Option<String>,
}

async fn replace(
    State(app): State<App>,
    Path(fingerprint): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(put): Json<Put>,
) -> Answer {
    let put = Put {
        auto_update: Some(put.auto_update.unwrap_or_default()),
        public: Some(put.public.unwrap_or_default()),
        properties: Some(put.properties.unwrap_or_default()),
        ..put
    };
    update(&app, &query, &fingerprint, &headers, put, false).await
}

async fn change(
    State(app): State<App>,
    Path(fingerprint): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(put): Json<Put>,
) -> Answer {
    update(&app, &query, &fingerprint, &headers, put, true).await
}

async fn update(
    app: &App,
    query: &Query,
    fingerprint: &str,
    headers: &HeaderMap,
    put: Put,
    merge: bool,
) -> Answer {
    let expires = time::or_empty(put.expires_at.as_deref())
        .map_err(|why| Error::invalid("expires_at", why))?;
    let mut image = read(app, query, fingerprint).await?;
    let shown = Shown::from(image.clone());
    etag::check(headers, &shown.etag())?;
    if let Some(properties) = put.properties {
        if !merge {
            image.properties.clear();
        }
        image.properties.extend(properties);
        image.properties.retain(|_, value| !value.is_empty());
    }
    image.public = put.public.unwrap_or(image.public);
    image.auto_update = put.auto_update.unwrap_or(image.auto_update);
    if let Some(profiles) = put.profiles {
        image.profiles = profiles;
    }
    if !expires.is_empty() {
        image.expire_time = expires;
    }
    app.owners
        .images()
        .update_image(image::UpdateImageRequest {
            // The etag that was read closes the gap until the write.
            image: Some(image),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["*".into()],
            }),
            request_id: crate::app::request_id(),
        })
        .await?;
    Ok(envelope::empty())
}

async fn delete(State(app): State<App>, Path(fingerprint): Path<String>, query: Query) -> Answer {
    // The short form may not mean another image by the time the operation runs.
    let image = read(&app, &query, &fingerprint).await?;
    let view = images::delete(&app, &query.project, &image.fingerprint).await?;
    Ok(envelope::operation(&view))
}

/// No image here comes from another server, so there is none to ask for a newer one.
async fn refresh(State(app): State<App>, Path(fingerprint): Path<String>, query: Query) -> Answer {
    let image = read(&app, &query, &fingerprint).await?;
    let why = format!(
        "Failed to update image {:?} in project {:?}: Image source not found",
        image.fingerprint, query.project
    );
    let about = About::task("Refreshing image", &query.project);
    let view = app
        .operations
        .spawn(about, |_| async move { Err(Failure::bad_request(why)) });
    Ok(envelope::operation(&view))
}

async fn push() -> Answer {
    Err(Failure::unsupported("pushing an image to another server"))
}
