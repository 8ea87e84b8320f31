//! Every key a service knows, from the types that hold them: name, kind, default and meaning.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Configuration;

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `server.log.level`.
    pub name: String,
    /// What its values are.
    pub kind: Kind,
    /// As it would be written in the file; `None` where it is unset.
    pub default: Option<String>,
    /// The variable that goes over the file.
    pub variable: String,
    /// Whether a reload takes it up.
    pub reload: bool,
    /// Whether it may hold a password.
    pub secret: bool,
    /// What it does.
    pub meaning: String,
}

/// What a key's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `"text"`.
    Text,
    /// `["text", "text"]`.
    Texts,
    /// `12`.
    Number,
    /// `true` or `false`.
    Switch,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Texts => "list of texts",
            Self::Number => "number",
            Self::Switch => "true or false",
        })
    }
}

/// All keys of a service, table by table.
pub fn keys<C: Configuration>() -> Vec<Key> {
    let schema = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<C>();
    // A value that TOML can't write has no place in a file, and there is no such field.
    let defaults = toml::Table::try_from(C::default()).unwrap_or_default();
    let mut keys = Vec::new();
    collect(schema.as_value(), "", C::VARIABLES, &mut keys);
    // Declaration order is lost in JSON; the keys of a table are together.
    keys.sort_by(|a, b| {
        let place = |key: &Key| {
            let (table, name) = key.name.rsplit_once('.').unwrap_or(("", &key.name));
            (table.to_owned(), name.to_owned())
        };
        place(a).cmp(&place(b))
    });
    for key in &mut keys {
        if let Some(default) = find(&defaults, &key.name) {
            key.default = Some(default.to_string());
        }
    }
    keys
}

fn collect(schema: &Value, prefix: &str, variables: &str, keys: &mut Vec<Key>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (name, property) in properties {
        let name = format!("{prefix}{name}");
        // An optional table is itself or null.
        let alternatives = property.get("anyOf").and_then(Value::as_array);
        let table = alternatives
            .into_iter()
            .flatten()
            .chain([property])
            .find(|s| s.get("properties").is_some());
        if let Some(table) = table {
            collect(table, &format!("{name}."), variables, keys);
            continue;
        }
        let flag = |key: &str| property.get(key).and_then(Value::as_bool) == Some(true);
        keys.push(Key {
            kind: kind(property),
            // Of a table that is not there by default; JSON's lists are TOML's.
            default: property
                .get("default")
                .filter(|default| !default.is_null())
                .map(ToString::to_string),
            variable: variable(variables, &name),
            reload: flag("x-reload"),
            secret: flag("x-secret"),
            meaning: property
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            name,
        });
    }
}

fn kind(property: &Value) -> Kind {
    let is = |wanted: &str| match property.get("type") {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(several)) => several.iter().any(|t| t == wanted),
        _ => false,
    };
    if is("boolean") {
        Kind::Switch
    } else if is("integer") {
        Kind::Number
    } else if is("array") {
        Kind::Texts
    } else {
        Kind::Text
    }
}

/// The variable of a key.
pub(super) fn variable(prefix: &str, key: &str) -> String {
    format!("{prefix}__{}", key.replace('.', "__").to_uppercase())
}

/// A value below a table.
pub(super) fn find<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => find(table.get(first)?.as_table()?, rest),
    }
}

/// The table of a service's keys for its documentation.
pub fn markdown(keys: &[Key]) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut text = String::from(
        "| key | value | default | variable | reload | meaning |\n|---|---|---|---|---|---|\n",
    );
    for key in keys {
        let default = match &key.default {
            Some(default) => format!("`{}`", cell(default)),
            None => "unset".to_owned(),
        };
        text += &format!(
            "| `{}` | {} | {default} | `{}` | {} | {} |\n",
            key.name,
            key.kind,
            key.variable,
            if key.reload { "yes" } else { "restart" },
            cell(&key.meaning),
        );
    }
    text
}
