//! Request bodies, read as leniently as LXD's Go decoder reads them: unknown fields are ignored,
//! null is absent, keys match in any case.

use std::collections::BTreeMap;

use axum::extract::{FromRequest, Request};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::error::Failure;

/// No JSON document of the API is larger.
const MAX_BODY: usize = 16 << 20;

/// Objects of the API below the top whose keys match in any case too. Keys of maps (`config`) are data.
const NESTED: [&str; 4] = ["source", "state", "target", "args"];

/// A JSON body. An empty one is an empty object.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY)
            .await
            .map_err(|e| Failure::bad_request(format!("the body cannot be read: {e}")))?;
        parse(&bytes).map(Self)
    }
}

/// Parses a body.
///
/// # Errors
/// 400 with serde's account of where it is wrong.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let value = if bytes.iter().all(u8::is_ascii_whitespace) {
        Value::Object(serde_json::Map::new())
    } else {
        serde_json::from_slice(bytes).map_err(|e| Failure::bad_request(e.to_string()))?
    };
    if !value.is_object() {
        return Err(Failure::bad_request("the body must be a JSON object"));
    }
    serde_json::from_value(normalise(value)).map_err(|e| Failure::bad_request(e.to_string()))
}

fn normalise(value: Value) -> Value {
    let Value::Object(map) = value else {
        return value;
    };
    Value::Object(
        map.into_iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(key, value)| {
                let key = key.to_lowercase();
                if NESTED.contains(&key.as_str()) {
                    let value = normalise(value);
                    (key, value)
                } else {
                    (key, value)
                }
            })
            .collect(),
    )
}

/// A `map[string]string` as Go decodes it: a null value is the empty string.
pub type Config = BTreeMap<String, String>;

/// `#[serde(deserialize_with)]` for a config map.
///
/// # Errors
/// For values that are no strings.
pub fn config<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
    let map = BTreeMap::<String, Value>::deserialize(deserializer)?;
    map.into_iter().map(text).collect()
}

/// The same where absence matters.
///
/// # Errors
/// For values that are no strings.
pub fn config_opt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Config>, D::Error> {
    config(deserializer).map(Some)
}

/// `#[serde(deserialize_with)]` for devices: name → options.
///
/// # Errors
/// For options that are no strings.
pub fn devices<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Config>, D::Error> {
    let map = BTreeMap::<String, Option<BTreeMap<String, Value>>>::deserialize(deserializer)?;
    map.into_iter()
        .map(|(name, options)| {
            let options = options.unwrap_or_default();
            Ok((
                name,
                options.into_iter().map(text).collect::<Result<_, _>>()?,
            ))
        })
        .collect()
}

/// The same where absence matters.
///
/// # Errors
/// For options that are no strings.
pub fn devices_opt<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, Config>>, D::Error> {
    devices(deserializer).map(Some)
}

fn text<E: serde::de::Error>((key, value): (String, Value)) -> Result<(String, String), E> {
    match value {
        Value::String(s) => Ok((key, s)),
        Value::Null => Ok((key, String::new())),
        other => Err(E::custom(format!(
            "the value of {key:?} must be a string, not {other}"
        ))),
    }
}

/// `#[serde(deserialize_with)]` for lists that clients send as null.
///
/// # Errors
/// For what is neither null nor such a list.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer)
        .map(Option::unwrap_or_default)
        .map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Default)]
    #[serde(default)]
    struct Sample {
        name: String,
        profiles: Option<Vec<String>>,
        #[serde(deserialize_with = "config")]
        config: Config,
        source: Inner,
    }

    #[derive(Debug, Deserialize, Default)]
    #[serde(default)]
    struct Inner {
        r#type: String,
    }

    #[test]
    fn gos_leniency() {
        let sample: Sample = parse(
            br#"{"Name":"c1","profiles":null,"Config":{"user.X":null,"a":"b"},"source":{"Type":"none"},"other":1}"#,
        )
        .unwrap();
        assert_eq!(sample.name, "c1");
        assert_eq!(sample.profiles, None);
        assert_eq!(sample.config["user.X"], "");
        assert_eq!(sample.source.r#type, "none");
        let none: Sample = parse(br#"{"profiles":[]}"#).unwrap();
        assert_eq!(none.profiles, Some(vec![]));
        assert!(parse::<Sample>(b"").is_ok());
        assert_eq!(parse::<Sample>(b"{bad").unwrap_err().status.as_u16(), 400);
        assert!(parse::<Sample>(br#"{"config":{"a":1}}"#).is_err());
    }
}
