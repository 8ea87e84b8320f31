//! Image templates: which are due, and what they say.

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};

use super::expand::Expanded;

/// Bytes that one template may make; more is a runaway loop.
const OUTPUT_MAX: usize = 1 << 20;
/// Instructions of the template engine for one template.
const FUEL: u64 = 1_000_000;

/// What made templates due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    Create,
    Copy,
    Start,
    Rename,
}

impl Trigger {
    pub fn name(self) -> &'static str {
        match self {
            Trigger::Create => "create",
            Trigger::Copy => "copy",
            Trigger::Start => "start",
            Trigger::Rename => "rename",
        }
    }

    pub fn parse(text: &str) -> Option<Trigger> {
        [
            Trigger::Create,
            Trigger::Copy,
            Trigger::Start,
            Trigger::Rename,
        ]
        .into_iter()
        .find(|t| t.name() == text)
    }
}

/// One entry of `templates` in metadata.yaml.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Template {
    #[serde(default)]
    pub when: Vec<String>,
    /// Leave a file alone that is there already.
    #[serde(default)]
    pub create_only: bool,
    /// File below the image's `templates/`.
    pub template: String,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    templates: Option<BTreeMap<String, Template>>,
}

/// Templates by the path in the guest. The text is an image's: hostile until read.
pub fn parse_metadata(yaml: &str) -> Result<BTreeMap<String, Template>, String> {
    let metadata: Metadata =
        serde_yaml_ng::from_str(yaml).map_err(|e| format!("metadata.yaml: {e}"))?;
    let templates = metadata.templates.unwrap_or_default();
    for (path, template) in &templates {
        if !path.starts_with('/') || path.split('/').any(|p| p == "..") {
            return Err(format!(
                "metadata.yaml: template path {path:?} is not absolute"
            ));
        }
        let file = &template.template;
        if file.is_empty() || file.split('/').any(|p| matches!(p, "" | "." | "..")) {
            return Err(format!(
                "metadata.yaml: template file {file:?} is not below templates/"
            ));
        }
    }
    Ok(templates)
}

/// What a template sees.
#[derive(Debug, Serialize)]
pub struct Context<'a> {
    pub trigger: &'static str,
    pub path: &'a str,
    pub instance: BTreeMap<&'static str, String>,
    /// The same, under LXD's older name.
    pub container: BTreeMap<&'static str, String>,
    pub config: &'a BTreeMap<String, String>,
    pub devices: &'a BTreeMap<String, BTreeMap<String, String>>,
    pub properties: &'a BTreeMap<String, String>,
}

/// Facts of the instance that do not change from template to template.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    pub name: &'a str,
    pub architecture: &'a str,
    pub ephemeral: bool,
    pub expanded: &'a Expanded,
}

/// Renders one template. No file, no network, no other template is in its reach.
pub fn render(
    source: &str,
    path: &str,
    trigger: Trigger,
    template: &Template,
    subject: &Subject<'_>,
) -> Result<Vec<u8>, String> {
    let instance = BTreeMap::from([
        ("name", subject.name.to_owned()),
        ("type", "container".to_owned()),
        ("architecture", subject.architecture.to_owned()),
        ("privileged", subject.expanded.privileged().to_string()),
        ("ephemeral", subject.ephemeral.to_string()),
    ]);
    let context = Context {
        trigger: trigger.name(),
        path,
        container: instance.clone(),
        instance,
        config: &subject.expanded.config,
        devices: &subject.expanded.devices,
        properties: &template.properties,
    };
    super::template_guard::check(source)
        .map_err(|why| format!("template {:?}: {why}", template.template))?;
    let mut engine = minijinja::Environment::new();
    engine.set_undefined_behavior(minijinja::UndefinedBehavior::Chainable);
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    engine.set_keep_trailing_newline(true);
    engine.set_fuel(Some(FUEL));
    let config = subject.expanded.config.clone();
    engine.add_function("config_get", move |key: &str, default: Option<&str>| {
        config
            .get(key)
            .cloned()
            .unwrap_or_else(|| default.unwrap_or_default().to_owned())
    });
    let fail = |e: minijinja::Error| format!("template {:?}: {e}", template.template);
    engine.add_template("template", source).map_err(fail)?;
    let mut out = Bounded(Vec::new());
    let compiled = engine.get_template("template").map_err(fail)?;
    compiled
        .render_captured_to(context, &mut out)
        .map_err(fail)?;
    Ok(out.0)
}

struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_MAX {
            return Err(std::io::Error::other("the template makes more than 1 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(source: &str) -> Result<String, String> {
        let mut expanded = Expanded::default();
        expanded.config.insert("user.x".into(), "<1>".into());
        let subject = Subject {
            name: "c1",
            architecture: "x86_64",
            ephemeral: false,
            expanded: &expanded,
        };
        let template = Template {
            when: vec![],
            create_only: false,
            template: "t.tpl".into(),
            properties: BTreeMap::from([("p".into(), "v".into())]),
        };
        let out = render(source, "/etc/x", Trigger::Create, &template, &subject)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn templates_see_their_instance() {
        assert_eq!(
            run("{{ instance.name }} {{ container.name }}\n").unwrap(),
            "c1 c1\n"
        );
        assert_eq!(run("{{ config_get(\"user.x\", \"d\") }}").unwrap(), "<1>");
        assert_eq!(run("{{ config_get(\"user.y\", \"d\") }}").unwrap(), "d");
        assert_eq!(
            run("{% if trigger == \"create\" %}{{ properties.p }}{% endif %}").unwrap(),
            "v"
        );
        assert_eq!(run("{{ nothing.at.all }}").unwrap(), "");
    }

    #[test]
    fn templates_cannot_run_away_or_read_files() {
        assert!(
            run("{% for i in range(9000) %}{% for j in range(9000) %}x{% endfor %}{% endfor %}")
                .is_err()
        );
        assert!(run("{% include \"/etc/passwd\" %}").is_err());
        // Two instructions, and as much memory as there is.
        assert!(run("{{ \"a\nb\"|indent(99999999999) }}").is_err());
        let double = "{% set a = a ~ a %}".repeat(40);
        assert!(
            run(&format!(
                "{{% set a = \"aaaaaaaa\" %}}{double}{{{{ a|length }}}}"
            ))
            .is_err()
        );
    }

    #[test]
    fn metadata_is_read() {
        let yaml = "architecture: x86_64\ncreation_date: 1\ntemplates:\n  /etc/hostname:\n    when: [create, copy]\n    template: hostname.tpl\n";
        let templates = parse_metadata(yaml).unwrap();
        assert_eq!(templates["/etc/hostname"].when, ["create", "copy"]);
        assert!(parse_metadata("templates:\n").unwrap().is_empty());
        assert!(parse_metadata("templates: {/../x: {template: a}}").is_err());
        assert!(parse_metadata("templates: {/x: {template: ../a}}").is_err());
    }

    proptest! {
        #[test]
        fn hostile_metadata_never_panics(yaml in "\\PC{0,200}") {
            let _ = parse_metadata(&yaml);
        }

        #[test]
        fn hostile_templates_never_panic(source in "\\PC{0,100}") {
            let _ = run(&source);
        }
    }
}
