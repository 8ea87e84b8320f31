//! `/1.0/instances/{name}/logs`.

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Path, State};
use axum::routing::get;
use berth_proto::instance::{DeleteLogRequest, GetLogRequest, ListLogsRequest};
use futures::{StreamExt, TryStreamExt, stream};
use http::header::CONTENT_DISPOSITION;

use super::console::octets;
use super::envelope::{self, Answer, set_header};
use super::instances::{collection, resource};
use super::query::Query;
use super::urls;
use crate::App;
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(&format!("{prefix}/{{name}}/logs"), get(list))
        .route(
            &format!("{prefix}/{{name}}/logs/{{file}}"),
            get(read).delete(delete),
        )
}

async fn list(
    State(app): State<App>,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    query: Query,
) -> Answer {
    let (collection, _) = collection(&uri);
    let request = ListLogsRequest {
        name: resource(&query, &name)?,
    };
    let files = app
        .owners
        .logs()
        .list_logs(request)
        .await?
        .into_inner()
        .files;
    let urls: Vec<String> = files
        .iter()
        .map(|file| {
            let (name, file) = (urls::escape(&name), urls::escape(file));
            format!("/1.0/{collection}/{name}/logs/{file}")
        })
        .collect();
    Ok(envelope::sync(urls))
}

fn checked(file: &str) -> Result<(), Failure> {
    if file.contains('/') || file.starts_with('.') || file.chars().any(char::is_control) {
        return Err(Failure::bad_request(format!(
            "log file name {file} not valid"
        )));
    }
    Ok(())
}

async fn read(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    query: Query,
) -> Answer {
    checked(&file)?;
    let request = GetLogRequest {
        name: resource(&query, &name)?,
        file: file.clone(),
    };
    let mut log = app.owners.logs().get_log(request).await?.into_inner();
    // The first message tells whether there is such a log, while an error can still be an answer.
    let first = log.message().await?;
    let all = stream::iter(first.map(Ok))
        .chain(log)
        .map_ok(|part| part.data);
    let mut response = octets(Body::from_stream(all));
    let disposition = format!("inline;filename={file}");
    set_header(&mut response, CONTENT_DISPOSITION, &disposition);
    Ok(response)
}

async fn delete(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    query: Query,
) -> Answer {
    checked(&file)?;
    let request = DeleteLogRequest {
        name: resource(&query, &name)?,
        file,
    };
    app.owners.logs().delete_log(request).await?;
    Ok(envelope::empty())
}
