//! ETags over writable state, and If-Match.

use http::HeaderMap;
use http::header::IF_MATCH;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::Failure;

/// 64 hex over the JSON of the writable fields; map keys must be ordered (`BTreeMap`, `Value`).
pub fn of(writable: &impl Serialize) -> String {
    let mut hash = Sha256::new();
    // `Sha256` as a writer never fails, and neither does JSON of strings and numbers.
    if let Ok(text) = serde_json::to_vec(writable) {
        hash.update(text);
    }
    hex::encode(hash.finalize())
}

/// The client's If-Match, without quotes; `None` = it does not care.
pub fn if_match(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(IF_MATCH)?.to_str().ok()?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    (!text.is_empty() && text != "*").then_some(text)
}

/// Fails with 412 when the client saw another state than `current`.
///
/// # Errors
/// 412.
pub fn check(headers: &HeaderMap, current: &str) -> Result<(), Failure> {
    match if_match(headers) {
        Some(got) if got != current => Err(Failure::etag(current, got)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_do_not_matter_and_absence_passes() {
        let mut headers = HeaderMap::new();
        assert!(check(&headers, "a").is_ok());
        headers.insert(IF_MATCH, "\"a\"".parse().unwrap());
        assert!(check(&headers, "a").is_ok());
        assert_eq!(check(&headers, "b").unwrap_err().status.as_u16(), 412);
    }
}
