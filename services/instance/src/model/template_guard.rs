//! Which templates are rendered at all. The engine counts instructions, and one instruction can double a
//! string or a list: forty of them are more memory than there is, and templates come with images. So what
//! makes values grow is refused before it runs: operators that join, literals of lists and maps, captured
//! blocks, macros, and filters and functions that are not known to be harmless. What images use (the
//! instance's facts, `config_get`, conditions, loops) remains.

const TAGS: [&str; 10] = [
    "for", "endfor", "if", "elif", "else", "endif", "set", "with", "endwith", "raw",
];
const FILTERS: [&str; 26] = [
    "abs",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "int",
    "items",
    "last",
    "length",
    "lines",
    "lower",
    "max",
    "min",
    "reverse",
    "round",
    "safe",
    "sort",
    "split",
    "title",
    "trim",
];
const MORE_FILTERS: [&str; 2] = ["unique", "upper"];
const FUNCTIONS: [&str; 2] = ["config_get", "range"];
/// Words of the language that a parenthesis may follow.
const WORDS: [&str; 8] = ["if", "elif", "in", "and", "or", "not", "is", "else"];

/// Says what a template may not hold, if it holds it.
pub fn check(source: &str) -> Result<(), String> {
    let mut rest = source;
    while let Some(at) = rest
        .find("{{")
        .into_iter()
        .chain(rest.find("{%"))
        .chain(rest.find("{#"))
        .min()
    {
        let (open, inner) = rest[at..].split_at(2);
        rest = match open {
            "{#" => inner.split_once("#}").map_or("", |(_, after)| after),
            "{{" => tag(inner, "}}", false)?,
            _ => tag(inner, "%}", true)?,
        };
    }
    Ok(())
}

/// Checks one tag up to `close` and gives what follows it.
fn tag<'s>(inner: &'s str, close: &str, statement: bool) -> Result<&'s str, String> {
    let mut rest = inner.trim_start_matches(['-', '+']);
    let mut first = statement.then_some(());
    let (mut is_for, mut word, mut after_bar, mut before) = (false, "", false, ' ');
    // For each parenthesis that is open, whether it is a call's.
    let mut calls: Vec<bool> = Vec::new();
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(close) {
            return Ok(after);
        }
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
            if first.take().is_some() {
                is_for = name == "for";
                if !TAGS.contains(&name) && name != "endraw" {
                    return Err(refused(&format!("the tag {name:?}")));
                }
            } else if after_bar && !FILTERS.contains(&name) && !MORE_FILTERS.contains(&name) {
                return Err(refused(&format!("the filter {name:?}")));
            } else if is_for && name == "recursive" {
                return Err(refused("a recursive loop"));
            }
            // A filter's arguments are a call's; a method's (after a dot) are none that are known.
            word = match (after_bar, before) {
                (true, _) => "config_get",
                (false, '.') => ".",
                _ => name,
            };
            (rest, after_bar, before) = (after, false, 'a');
            continue;
        }
        match c {
            '"' | '\'' => {
                rest = string(&rest[1..], c)?;
                (word, after_bar, before) = ("", false, 'a');
                continue;
            }
            '~' | '+' | '*' => return Err(refused(&format!("the operator {c:?}"))),
            '{' => return Err(refused("a map")),
            '[' if !matches!(before, 'a' | ')' | ']') || WORDS.contains(&word) => {
                return Err(refused("a list"));
            }
            '(' if FUNCTIONS.contains(&word) => calls.push(true),
            '(' if matches!(before, 'a' | ')' | ']') && !WORDS.contains(&word) => {
                return Err(refused(
                    "a call of something else than config_get and range",
                ));
            }
            '(' => calls.push(false),
            ')' => drop(calls.pop()),
            ',' if !calls.last().copied().unwrap_or(is_for) => return Err(refused("a list")),
            _ => {}
        }
        (after_bar, before, word) = (c == '|', c, "");
        rest = &rest[c.len_utf8()..];
    }
    // The engine says where it is unterminated.
    Ok("")
}

/// What follows a quoted string.
fn string(mut rest: &str, quote: char) -> Result<&str, String> {
    loop {
        let Some(at) = rest.find([quote, '\\']) else {
            return Ok("");
        };
        let (found, after) = rest[at..].split_at(1);
        if found != "\\" {
            return Ok(after);
        }
        let mut escaped = after.chars();
        escaped.next();
        rest = escaped.as_str();
    }
}

fn refused(what: &str) -> String {
    format!("{what} is not supported: it could make a template's values grow without bound")
}

#[cfg(test)]
mod tests {
    use super::check;
    use proptest::prelude::*;

    #[test]
    fn what_images_use_passes() {
        for source in [
            "{{ container.name }}\n",
            "{# a ~ b #}{{ instance.name|upper }}",
            "{% if config_get(\"user.network_mode\", \"\") == \"link-local\" %}manual{% else %}dhcp{% endif %}",
            "{{ config_get('user.vendor-data', properties.default) }}",
            "{% for k, v in config|dictsort %}{{ k }}={{ v|default(\"~ + * [\") }}\n{% endfor %}",
            "{%- if not (trigger == 'copy' and x in config) -%}{{ devices[\"eth0\"].nictype }}{%- endif -%}",
            "{% for i in range(3) %}{{ i }}{% endfor %}{% set a = 'x\\'~' %}",
            "plain {text} ~ a + b * [1, 2]",
        ] {
            assert_eq!(check(source), Ok(()), "{source}");
        }
    }

    #[test]
    fn what_grows_is_refused() {
        for source in [
            "{% set a = a ~ a %}",
            "{{ 'x' * 100000000 }}",
            "{{ a + a }}",
            "{{ \"a\"|indent(99999999999) }}",
            "{{ \"%99999999999d\" | format(1) }}",
            "{{ [a, a] }}",
            "{% set a = [a, a] %}",
            "{% set a = (a, a) %}",
            "{% set a = a, a %}",
            "{{ {'a': a} }}",
            "{% set a %}{{ a }}{{ a }}{% endset %}{% endset %}",
            "{% macro m() %}{% endmacro %}",
            "{{ namespace(a=1) }}",
            "{{ dict(a=1) }}",
            "{% for x in y recursive %}{{ loop(y) }}{% endfor %}",
            "{% filter upper %}x{% endfilter %}",
            "{% include 'x' %}",
            "{{ 'a'.join(b) }}",
            "{{ a|replace('x', a) }}",
            "{{ '\\\\' ~ a }}",
            "{{ x in [a, a] }}",
        ] {
            assert!(check(source).is_err(), "{source}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(source in "(\\{\\{|\\{%|%\\}|\\}\\}|\\PC){0,60}") {
            let _ = check(&source);
        }
    }
}
