//! Query parameters that every endpoint shares.

use std::collections::HashMap;

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::filter::Filter;
use crate::error::Failure;

/// The one project there is until projects arrive.
pub const DEFAULT_PROJECT: &str = "default";

/// The parsed query string. Extracting it refuses unknown projects (404) and targets (400).
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// 0, 1 or 2; what is not a number is 0.
    pub recursion: u8,
    /// Project of the request.
    pub project: String,
    /// Objects of all projects.
    pub all_projects: bool,
    values: HashMap<String, String>,
}

impl Query {
    /// Any other parameter; absent is empty.
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// The `filter` parameter; an empty one is none.
    ///
    /// # Errors
    /// LXD's 500 with the grammar's complaint.
    pub fn filter(&self) -> Result<Option<Filter>, Failure> {
        match self.get("filter").trim() {
            "" => Ok(None),
            text => Filter::parse(text)
                .map(Some)
                .map_err(|why| Failure::internal(format!("Invalid filter: {why}"))),
        }
    }

    /// `projects/{p}` of the request.
    pub fn parent(&self) -> String {
        format!("projects/{}", self.project)
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let mut values = HashMap::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            let value = decode(value)?;
            values.entry(name).or_insert(value);
        }
        let value = |name: &str| values.get(name).map_or("", String::as_str);
        // LXD HEAD's clients append `;fields=`.
        let recursion = value("recursion")
            .split(';')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let all_projects = matches!(value("all-projects"), "true" | "1" | "yes" | "on");
        let project = match value("project") {
            "" => DEFAULT_PROJECT.to_owned(),
            other => other.to_owned(),
        };
        if all_projects && !value("project").is_empty() {
            return Err(Failure::bad_request(
                "Cannot specify a project when requesting all projects",
            ));
        }
        if project != DEFAULT_PROJECT {
            return Err(Failure::not_found("Project not found"));
        }
        // Clients send back the `location` they were shown, which is `none`.
        if !matches!(value("target"), "" | "none") {
            return Err(Failure::bad_request("Target only allowed when clustered"));
        }
        Ok(Self {
            recursion,
            project,
            all_projects,
            values,
        })
    }
}

fn decode(text: &str) -> Result<String, Failure> {
    berth_rpc::names::decode_segment(&text.replace('+', " "))
        .ok_or_else(|| Failure::bad_request(format!("invalid query: {text:?}")))
}

/// Query-encoded pairs such as `X-LXD-properties` carries, in order.
///
/// # Errors
/// 400 for broken escapes.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, Failure> {
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lxds_parameters_are_read() {
        let q = Query::parse("recursion=2&filter=&project=default").unwrap();
        assert_eq!((q.recursion, q.project.as_str()), (2, "default"));
        assert!(q.filter().unwrap().is_none());
        assert_eq!(Query::parse("recursion=x").unwrap().recursion, 0);
        assert_eq!(
            Query::parse("path=%2Fetc%2Fa+b").unwrap().get("path"),
            "/etc/a b"
        );
        assert_eq!(
            Query::parse("project=foo").unwrap_err().status.as_u16(),
            404
        );
        assert_eq!(Query::parse("target=m1").unwrap_err().status.as_u16(), 400);
        assert_eq!(
            Query::parse("all-projects=true&project=default")
                .unwrap_err()
                .status
                .as_u16(),
            400
        );
    }
}
