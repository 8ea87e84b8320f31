//! The `filter=` language: `[not] field eq|ne value [and|or ...]`, strictly left to right.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

/// Clauses of one filter, names in a field, and bytes that each clause's compiled pattern may take: together they
/// bound what one request can make this service compile and hold.
const MAX_CLAUSES: usize = 32;
const MAX_PARTS: usize = 16;
const MAX_PATTERN: usize = 256 << 10;

/// A parsed filter.
#[derive(Debug)]
pub struct Filter {
    clauses: Vec<Clause>,
}

#[derive(Debug)]
struct Clause {
    /// How it joins what came before.
    join: Join,
    not: bool,
    field: Vec<String>,
    ne: bool,
    value: Regex,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    And,
    Or,
}

impl Filter {
    /// Parses the text; the error is a fragment of a sentence.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = split(text)?;
        let mut clauses = Vec::new();
        let mut tokens = tokens.into_iter().peekable();
        let mut join = Join::And;
        while tokens.peek().is_some() {
            let mut not = false;
            while tokens.next_if(|t| t.eq_ignore_ascii_case("not")).is_some() {
                not = !not;
            }
            let field = tokens.next().ok_or("clause has no field")?;
            let operator = tokens.next().ok_or("clause has no operator")?;
            let ne = match operator.to_ascii_lowercase().as_str() {
                "eq" => false,
                "ne" => true,
                other => return Err(format!("unknown operator {other:?}")),
            };
            let text = tokens.next().ok_or("clause has no value")?;
            if clauses.len() == MAX_CLAUSES {
                return Err(format!("more than {MAX_CLAUSES} clauses"));
            }
            if field.split('.').count() > MAX_PARTS {
                return Err(format!("a field of more than {MAX_PARTS} parts"));
            }
            clauses.push(Clause {
                join,
                not,
                field: field.split('.').map(str::to_owned).collect(),
                ne,
                value: pattern(&text)?,
                text,
            });
            match tokens.next() {
                None => break,
                Some(word) if word.eq_ignore_ascii_case("and") => join = Join::And,
                Some(word) if word.eq_ignore_ascii_case("or") => join = Join::Or,
                Some(word) => return Err(format!("{word:?} is neither and nor or")),
            }
            if tokens.peek().is_none() {
                return Err("unterminated logical operator".to_owned());
            }
        }
        Ok(Self { clauses })
    }

    /// Whether an object, as the API renders it, passes.
    pub fn matches(&self, object: &Value) -> bool {
        let mut result = true;
        for (i, clause) in self.clauses.iter().enumerate() {
            let hit = clause.matches(object);
            result = match (i, clause.join) {
                (0, _) => hit,
                (_, Join::And) => result && hit,
                (_, Join::Or) => result || hit,
            };
        }
        result
    }
}

impl Clause {
    fn matches(&self, object: &Value) -> bool {
        let value = lookup(object, &self.field);
        let equal = match value {
            Some(Value::String(s)) => self.value.is_match(s),
            Some(Value::Bool(b)) => {
                self.text
                    .eq_ignore_ascii_case(if *b { "true" } else { "false" })
            }
            Some(Value::Number(n)) => n.to_string() == self.text,
            // LXD reads an absent map key as the empty string.
            None => self.value.is_match(""),
            Some(_) => false,
        };
        (equal != self.ne) != self.not
    }
}

/// Follows `path` into maps; keys may themselves hold dots (`config.image.os`).
fn lookup<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    let map = object.as_object()?;
    (1..=path.len()).find_map(|n| {
        let value = map.get(&path[..n].join("."))?;
        if n == path.len() {
            Some(value)
        } else {
            lookup(value, &path[n..])
        }
    })
}

/// Anchored unless the text anchors itself; case does not matter.
fn pattern(text: &str) -> Result<Regex, String> {
    let anchored = if text.contains('^') || text.contains('$') {
        text.to_owned()
    } else {
        format!("^{text}$")
    };
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .case_insensitive(true)
            .size_limit(MAX_PATTERN)
            .dfa_size_limit(MAX_PATTERN)
            .build()
    };
    // A text that is no pattern compares as itself.
    build(&anchored)
        .or_else(|_| build(&format!("^{}$", regex::escape(text))))
        .map_err(|e| e.to_string())
}

/// Splits on blanks; double quotes keep them, a backslash takes the next character as it is.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut tokens = Vec::new();
    let mut token = None::<String>;
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                quoted = !quoted;
                token.get_or_insert_default();
            }
            '\\' if quoted => token
                .get_or_insert_default()
                .push(characters.next().ok_or("unterminated escape")?),
            c if c.is_whitespace() && !quoted => tokens.extend(token.take()),
            c => token.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("unterminated quote".to_owned());
    }
    tokens.extend(token);
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn passes(filter: &str) -> bool {
        Filter::parse(filter).unwrap().matches(&json!({
            "name": "c1", "status": "Running", "ephemeral": false, "status_code": 103,
            "config": {"image.os": "Debian Linux", "user.a": "b"},
            "devices": {"eth0": {"nictype": "bridged"}},
        }))
    }

    #[test]
    fn clauses_join_left_to_right() {
        assert!(passes("name eq c1"));
        assert!(passes("name eq C."));
        assert!(!passes("name eq c"));
        assert!(passes("name eq ^c"));
        assert!(passes("not name eq c2 and status eq running"));
        assert!(passes("name eq x or status eq running"));
        // (true or true) and false: no precedence.
        assert!(!passes("name eq c1 or name eq c1 and name eq c2"));
        assert!(passes("config.image.os eq \"debian linux\""));
        assert!(passes("devices.eth0.nictype eq bridged"));
        assert!(passes("config.user.none ne x"));
        assert!(passes("ephemeral eq false"));
    }

    #[test]
    fn broken_filters_say_what_is_wrong() {
        for (text, why) in [
            ("name", "clause has no operator"),
            ("name eq", "clause has no value"),
            ("name like x", "unknown operator \"like\""),
            ("name eq \"x", "unterminated quote"),
            ("name eq x and", "unterminated logical operator"),
            (&vec!["name eq x"; 33].join(" and "), "more than 32 clauses"),
            (
                &format!("{} eq x", ["a"; 17].join(".")),
                "a field of more than 16 parts",
            ),
        ] {
            assert_eq!(Filter::parse(text).unwrap_err(), why, "{text}");
        }
    }
}
