//! The configuration in force as a file, with where each value comes from.

use super::keys::{self, Key};
use super::load::Loaded;
use super::{ConfigError, Configuration};

/// TOML that means the same; passwords are left out unless `secrets` are asked for.
///
/// # Errors
/// When a value can't be written as TOML.
pub fn print<C: Configuration>(loaded: &Loaded<C>, secrets: bool) -> Result<String, ConfigError> {
    let table = toml::Table::try_from(&loaded.config)
        .map_err(|e| ConfigError::Value(format!("printing: {e}")))?;
    let keys = keys::keys::<C>();
    let (top, below): (Vec<_>, Vec<_>) = keys.iter().partition(|key| !key.name.contains('.'));
    let mut text = String::new();
    for key in top {
        line(&mut text, key, &table, loaded, secrets);
    }
    let mut section = String::new();
    for key in below {
        let Some((of, _)) = key.name.rsplit_once('.') else {
            continue;
        };
        // A header would make an optional table out of nothing.
        let there = keys::find(&table, of).is_some();
        if of != section {
            section = of.to_owned();
            text += &format!("\n{}[{of}]\n", if there { "" } else { "# " });
        }
        line(&mut text, key, &table, loaded, secrets);
    }
    Ok(text)
}

fn line<C>(text: &mut String, key: &Key, table: &toml::Table, loaded: &Loaded<C>, secrets: bool) {
    let name = key.name.rsplit('.').next().unwrap_or(&key.name);
    let origin = loaded.origins.exactly(&key.name);
    *text += &match keys::find(table, &key.name) {
        None => format!("# {name} =\n"),
        Some(value) if key.secret && !secrets => {
            format!("{name} = {}  # {origin}\n", redacted(value))
        }
        Some(value) => format!("{name} = {value}  # {origin}\n"),
    };
}

/// A URL without its password; another text as it is.
fn redacted(value: &toml::Value) -> toml::Value {
    let without = || {
        let text = value.as_str()?;
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        // A password may hold an @ that nobody escaped.
        let (user, _) = rest[..end].rsplit_once('@')?.0.split_once(':')?;
        let host = rest[..end].rsplit_once('@')?.1;
        Some(format!("{scheme}://{user}:***@{host}{}", &rest[end..]))
    };
    let Some(text) = without() else {
        return in_query(value);
    };
    in_query(&toml::Value::String(text))
}

/// `?password=` is another place for it.
fn in_query(value: &toml::Value) -> toml::Value {
    let Some((before, after)) = value.as_str().and_then(|text| text.split_once("password=")) else {
        return value.clone();
    };
    let rest = after.find('&').map_or("", |end| &after[end..]);
    toml::Value::String(format!("{before}password=***{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("sqlite:/var/x.db", "sqlite:/var/x.db"),
            ("postgres://host/db", "postgres://host/db"),
            ("postgres://me@host/db", "postgres://me@host/db"),
            ("postgres://me:pw@host/db", "postgres://me:***@host/db"),
            (
                "postgres://me:p@w@host/db?a=b",
                "postgres://me:***@host/db?a=b",
            ),
            (
                "postgres://host/db?password=pw&a=b",
                "postgres://host/db?password=***&a=b",
            ),
        ] {
            let redacted = redacted(&toml::Value::String(url.to_owned()));
            assert_eq!(redacted.as_str(), Some(shown));
        }
    }
}
