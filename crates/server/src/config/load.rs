//! Reads a configuration: defaults, the file over them, the environment over that. All that is
//! wrong is found at once, each with the place where it is written.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Configuration;
use super::keys::{self, Key, Kind};
use super::problems::{ConfigError, Findings, Origin, Origins, Problem};

/// A configuration that was found good.
#[derive(Debug, Clone)]
pub struct Loaded<C> {
    /// The values.
    pub config: C,
    /// Where they come from.
    pub origins: Origins,
}

/// Reads `path`, where there is one, and the environment.
///
/// # Errors
/// When anything is wrong; the error has it all.
pub fn load<C: Configuration>(path: Option<&Path>) -> Result<Loaded<C>, ConfigError> {
    let text = match path {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    load_from(&text, path.unwrap_or(Path::new("")), &variables)
}

/// As [`load`], of a text and variables that are given; `path` is what problems name.
///
/// # Errors
/// When anything is wrong; the error has it all.
pub fn load_from<C: Configuration>(
    text: &str,
    path: &Path,
    variables: &BTreeMap<String, String>,
) -> Result<Loaded<C>, ConfigError> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let line = |offset: usize| {
        1 + text.as_bytes()[..offset.min(text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
    };
    if !errors.is_empty() {
        let problems = errors.iter().map(|error| Problem {
            origin: Origin::File(path.to_owned(), error.span().map_or(1, |s| line(s.start))),
            key: String::new(),
            message: error.message().to_owned(),
        });
        return Err(ConfigError::Wrong(problems.collect()));
    }
    let mut file: toml::Table =
        toml::from_str(text).map_err(|e| ConfigError::Value(format!("{}: {e}", path.display())))?;
    let mut reading = Reading {
        keys: keys::keys::<C>(),
        origins: Origins::default(),
        problems: Vec::new(),
    };
    reading.note_lines(document.get_ref(), "", &|offset| {
        Origin::File(path.to_owned(), line(offset))
    });
    reading.drop_unknown(&mut file, "");
    let mut table = toml::Table::try_from(C::default())
        .map_err(|e| ConfigError::Value(format!("defaults: {e}")))?;
    merge(&mut table, file);
    reading.environment(&mut table, C::VARIABLES, variables);
    let defaults = toml::Table::try_from(C::default())
        .map_err(|e| ConfigError::Value(format!("defaults: {e}")))?;
    let config = reading.values::<C>(table, &defaults)?;
    let mut findings = Findings::default();
    config.check(&mut findings);
    for (key, message) in findings.0 {
        reading.problem(key, message);
    }
    let Reading {
        origins,
        mut problems,
        ..
    } = reading;
    if problems.is_empty() {
        return Ok(Loaded { config, origins });
    }
    problems.sort_by_key(|p| match &p.origin {
        Origin::File(_, line) => (0, *line),
        Origin::Environment(_) => (1, 0),
        Origin::Default => (2, 0),
    });
    Err(ConfigError::Wrong(problems))
}

struct Reading {
    keys: Vec<Key>,
    origins: Origins,
    problems: Vec<Problem>,
}

impl Reading {
    fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) {
        let key = key.into();
        self.problems.push(Problem {
            origin: self.origins.of(&key),
            key,
            message: message.into(),
        });
    }

    /// Where each key and each element of a list is written.
    fn note_lines(&mut self, table: &DeTable<'_>, prefix: &str, at: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            self.origins.0.insert(name.clone(), at(key.span().start));
            match value.get_ref() {
                DeValue::Table(below) => self.note_lines(below, &format!("{name}."), at),
                DeValue::Array(elements) => {
                    for (index, element) in elements.iter().enumerate() {
                        let origin = at(element.span().start);
                        self.origins.0.insert(format!("{name}[{index}]"), origin);
                    }
                }
                _ => {}
            }
        }
    }

    fn is_key(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }

    fn is_table(&self, name: &str) -> bool {
        let prefix = format!("{name}.");
        self.keys.iter().any(|key| key.name.starts_with(&prefix))
    }

    /// Takes what no key has out of `table`.
    fn drop_unknown(&mut self, table: &mut toml::Table, prefix: &str) {
        let names: Vec<String> = table.keys().cloned().collect();
        for name in names {
            let full = format!("{prefix}{name}");
            if self.is_key(&full) {
                continue;
            }
            if !self.is_table(&full) {
                self.unknown(&full);
                table.remove(&name);
            } else if let Some(toml::Value::Table(below)) = table.get_mut(&name) {
                self.drop_unknown(below, &format!("{full}."));
            } else {
                self.problem(&full, "this is a table, not a value");
                table.remove(&name);
            }
        }
    }

    fn unknown(&mut self, key: &str) {
        let message = match self.suggestion(key) {
            Some(known) => format!("there is no such key; did you mean {known}?"),
            None => "there is no such key".to_owned(),
        };
        self.problem(key, message);
    }

    /// A key of the same name elsewhere, or one that is spelt nearly so.
    fn suggestion(&self, key: &str) -> Option<String> {
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let wanted = last(key);
        let tables = self
            .keys
            .iter()
            .filter_map(|k| Some(k.name.rsplit_once('.')?.0.to_owned()));
        let all: Vec<String> = self
            .keys
            .iter()
            .map(|k| k.name.clone())
            .chain(tables)
            .collect();
        if let Some(same) = all.iter().find(|name| last(name) == wanted) {
            return Some(same.clone());
        }
        let close = |a: &str, b: &str| strsim::damerau_levenshtein(a, b);
        let near = |name: &&String| close(&last(name), &wanted) <= 1 + wanted.len() / 4;
        all.iter()
            .filter(near)
            .min_by_key(|name| (close(&last(name), &wanted), close(name, key)))
            .cloned()
    }

    fn environment(
        &mut self,
        table: &mut toml::Table,
        prefix: &str,
        variables: &BTreeMap<String, String>,
    ) {
        let start = format!("{prefix}__");
        for (variable, value) in variables.iter().filter(|(v, _)| v.starts_with(&start)) {
            let name = variable[start.len()..].replace("__", ".").to_lowercase();
            let origin = Origin::Environment(variable.clone());
            let Some(key) = self.keys.iter().find(|key| key.name == name) else {
                let suggestion = self.suggestion(&name);
                let message = match suggestion {
                    Some(known) if self.is_key(&known) => format!(
                        "there is no such key; did you mean {}?",
                        keys::variable(prefix, &known)
                    ),
                    _ => "there is no such key".to_owned(),
                };
                self.problems.push(Problem {
                    origin,
                    key: name,
                    message,
                });
                continue;
            };
            let value = scalar(key.kind, value);
            self.origins.set(&name, origin);
            set(table, &name, Some(value));
        }
    }

    /// The values, or all that have the wrong type.
    fn values<C: Configuration>(
        &mut self,
        mut table: toml::Table,
        defaults: &toml::Table,
    ) -> Result<C, ConfigError> {
        // Each round mends one value, so there are no more rounds than values.
        for _ in 0..=self.keys.len() {
            let value = toml::Value::Table(table.clone());
            let error = match serde_path_to_error::deserialize::<_, C>(value) {
                Ok(config) => return Ok(config),
                Err(error) => error,
            };
            let path = error.path().to_string();
            let message = error.inner().message().trim().to_owned();
            let whole = path.split('[').next().unwrap_or_default().to_owned();
            self.problem(path, message);
            if !self.is_key(&whole) && !self.is_table(&whole) {
                break;
            }
            let default = keys::find(defaults, &whole).cloned();
            if default == keys::find(&table, &whole).cloned() {
                break;
            }
            set(&mut table, &whole, default);
        }
        Err(ConfigError::Wrong(std::mem::take(&mut self.problems)))
    }
}

/// Lays `over` on `base`, table by table; what else is there is replaced.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// As the file would have it; a text needs no quotes.
fn scalar(kind: Kind, text: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut table| table.remove("v"));
    match (kind, parsed) {
        (Kind::Text, Some(value @ toml::Value::String(_))) => value,
        (Kind::Text, _) | (_, None) => toml::Value::String(text.to_owned()),
        (_, Some(value)) => value,
    }
}

/// Sets or removes a value, and makes the tables above it.
pub(super) fn set(table: &mut toml::Table, key: &str, value: Option<toml::Value>) {
    match key.split_once('.') {
        None => match value {
            Some(value) => {
                table.insert(key.to_owned(), value);
            }
            None => {
                table.remove(key);
            }
        },
        Some((first, rest)) => {
            let below = table
                .entry(first.to_owned())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let Some(below) = below.as_table_mut() {
                set(below, rest, value);
            }
        }
    }
}
