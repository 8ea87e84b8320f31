//! Page tokens: opaque to clients, the last name of the page before to us.

use crate::Error;

/// Largest page that is given.
pub const MAX: usize = 1000;

/// The token that resumes after `last`.
pub fn encode(last: &str) -> String {
    hex::encode(last.as_bytes())
}

/// What to resume after; `None` for the first page.
pub fn decode(token: &str) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    hex::decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(Some)
        .ok_or_else(|| Error::invalid("page_token", "page_token is not one this server gave"))
}

/// Rows to give for a requested `page_size`; 0 means as many as one page may hold.
pub fn size(requested: i32) -> Result<usize, Error> {
    match usize::try_from(requested) {
        Ok(0) => Ok(MAX),
        Ok(n) => Ok(n.min(MAX)),
        Err(_) => Err(Error::invalid(
            "page_size",
            "page_size must not be negative",
        )),
    }
}

/// Cuts one page out of all items in the order of `key`, and names the next.
pub fn cut<T>(
    mut items: Vec<T>,
    requested: i32,
    token: &str,
    key: impl Fn(&T) -> &str,
) -> Result<(Vec<T>, String), Error> {
    let size = size(requested)?;
    if let Some(after) = decode(token)? {
        items.retain(|item| key(item) > after.as_str());
    }
    items.sort_by(|a, b| key(a).cmp(key(b)));
    let more = items.len() > size;
    items.truncate(size);
    let next = match items.last() {
        Some(last) if more => encode(key(last)),
        _ => String::new(),
    };
    Ok((items, next))
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_give_everything_once() {
        let all: Vec<String> = (0..25).map(|i| format!("n{i:02}")).collect();
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let (page, next) = super::cut(all.clone(), 10, &token, |s| s.as_str()).unwrap();
            seen.extend(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, all);
    }
}
