//! metadata.yaml: what an image says about itself. Written by strangers.

use super::architecture;
use super::image::{MAX_PROPERTIES, MAX_PROPERTIES_SIZE, check_property};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Largest metadata.yaml, in bytes.
pub const MAX_SIZE: usize = 1 << 20;
/// Openings of flow collections, and block sequence dashes on one line. The YAML scanner's time
/// grows with the square of their nesting.
const MAX_OPENINGS: usize = 4096;

/// What Berth takes from metadata.yaml. Templates are the business of whoever unpacks the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Kernel name.
    pub architecture: String,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch.
    pub expires_at: Option<i64>,
    /// Free text by key.
    pub properties: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    creation_date: Option<i64>,
    expiry_date: Option<i64>,
    properties: Option<Properties>,
}

struct Properties(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            // Counts while reading, so that what YAML's aliases multiply is refused before it is built.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut out = BTreeMap::new();
                let mut size = 0usize;
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    size = size.saturating_add(key.len()).saturating_add(value.len());
                    if out.len() >= MAX_PROPERTIES || size > MAX_PROPERTIES_SIZE {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_PROPERTIES} properties or {MAX_PROPERTIES_SIZE} bytes of them"
                        )));
                    }
                    check_property(&key, &value).map_err(A::Error::custom)?;
                    out.insert(key, value);
                }
                Ok(Properties(out))
            }

            fn visit_unit<E>(self) -> Result<Properties, E> {
                Ok(Properties(BTreeMap::new()))
            }
        }
        deserializer.deserialize_map(Bounded)
    }
}

impl Metadata {
    /// Reads the document; the error is a sentence for users.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_SIZE {
            return Err(format!("metadata.yaml is larger than {MAX_SIZE} bytes"));
        }
        let text =
            std::str::from_utf8(bytes).map_err(|_| "metadata.yaml is not UTF-8".to_owned())?;
        refuse_deep_nesting(text)?;
        if text.trim().is_empty() {
            return Err("metadata.yaml is empty".to_owned());
        }
        let document: Document =
            serde_yaml_ng::from_str(text).map_err(|e| format!("metadata.yaml: {e}"))?;
        let architecture = match document.architecture.as_deref() {
            None | Some("") => return Err("metadata.yaml has no architecture".to_owned()),
            Some(given) => architecture::kernel_name(given)
                .ok_or_else(|| format!("metadata.yaml: unknown architecture {given:?}"))?,
        };
        let created_at = match document.creation_date {
            None | Some(0) => return Err("metadata.yaml has no creation_date".to_owned()),
            Some(seconds) => millis("creation_date", seconds)?,
        };
        let expires_at = match document.expiry_date {
            None | Some(0) => None,
            Some(seconds) => Some(millis("expiry_date", seconds)?),
        };
        Ok(Self {
            architecture: architecture.to_owned(),
            created_at,
            expires_at,
            properties: document.properties.map(|p| p.0).unwrap_or_default(),
        })
    }
}

/// Seconds since the epoch, up to the year 9999: beyond it RFC 3339 has no form.
fn millis(field: &str, seconds: i64) -> Result<i64, String> {
    if (1..=253_402_300_799).contains(&seconds) {
        Ok(seconds * 1000)
    } else {
        Err(format!("metadata.yaml: {field} {seconds} is not a time"))
    }
}

fn refuse_deep_nesting(text: &str) -> Result<(), String> {
    let flow = text.bytes().filter(|b| matches!(b, b'[' | b'{')).count();
    let block = text
        .lines()
        .map(|line| {
            line.split_ascii_whitespace()
                .filter(|word| matches!(*word, "-" | "?" | ":"))
                .count()
        })
        .max()
        .unwrap_or(0);
    if flow > MAX_OPENINGS || block > MAX_OPENINGS {
        return Err("metadata.yaml is nested too deeply".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_usual_document_is_read() {
        let metadata = Metadata::parse(
            b"architecture: amd64\ncreation_date: 1424284563\nexpiry_date: 0\n\
              properties:\n  os: debian\n  release: 22.10\n  serial: 20260101\n\
              templates:\n  /etc/hostname:\n    when: [create, copy]\n    template: hostname.tpl\n",
        )
        .unwrap();
        assert_eq!(metadata.architecture, "x86_64");
        assert_eq!(metadata.created_at, 1_424_284_563_000);
        assert_eq!(metadata.expires_at, None);
        // Texts stay as written: a release is not a number.
        assert_eq!(metadata.properties["release"], "22.10");
        assert_eq!(metadata.properties["serial"], "20260101");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wants) in [
            ("", "empty"),
            ("creation_date: 1", "architecture"),
            ("architecture: x86_64", "creation_date"),
            ("architecture: z80\ncreation_date: 1", "z80"),
            ("architecture: [x86_64]\ncreation_date: 1", "architecture"),
            ("architecture: {a: b}\ncreation_date: 1", "architecture"),
            ("architecture: x86_64\ncreation_date: soon", "creation_date"),
            ("architecture: x86_64\ncreation_date: -5", "creation_date"),
            (
                "architecture: x86_64\ncreation_date: 99999999999999",
                "creation_date",
            ),
            (
                "architecture: x86_64\ncreation_date: 1\nproperties: [a]",
                "properties",
            ),
            (
                "architecture: x86_64\ncreation_date: 1\nproperties: {a: [b]}",
                "properties",
            ),
            ("- a\n- b", "metadata.yaml"),
            ("a: b: c", "metadata.yaml"),
            (
                "architecture: x86_64\ncreation_date: 1\n---\narchitecture: s390x\ncreation_date: 1",
                "document",
            ),
            (
                "architecture: x86_64\narchitecture: s390x\ncreation_date: 1",
                "architecture",
            ),
        ] {
            let error = Metadata::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(wants), "{text:?}: {error}");
        }
        assert!(Metadata::parse(b"\xff\xfe").unwrap_err().contains("UTF-8"));
        assert!(
            Metadata::parse(&vec![b'#'; MAX_SIZE + 1])
                .unwrap_err()
                .contains("larger")
        );
    }

    #[test]
    fn bombs_are_refused_quickly() {
        let head = "architecture: x86_64\ncreation_date: 1\n";
        let mut laugh = format!("{head}a: &a [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n");
        for (i, name) in ["b", "c", "d", "e", "f", "g", "h", "i"].iter().enumerate() {
            let before = char::from(b'a' + u8::try_from(i).unwrap());
            laugh += &format!(
                "{name}: &{name} [{}]\n",
                vec![format!("*{before}"); 9].join(",")
            );
        }
        // Unknown keys are skipped, not built: the bomb never goes off. As a property it is refused.
        let start = Instant::now();
        Metadata::parse(laugh.as_bytes()).unwrap();
        let error = Metadata::parse(format!("{laugh}properties: *i\n").as_bytes()).unwrap_err();
        assert!(error.contains("properties"), "{error}");

        let long = "x".repeat(60_000);
        let mut repeat = format!("{head}properties:\n  k: &l {long}\n");
        for i in 0..1000 {
            repeat += &format!("  k{i}: *l\n");
        }
        assert!(
            Metadata::parse(repeat.as_bytes())
                .unwrap_err()
                .contains("bytes")
        );

        for deep in ["[", "{", "- ", "? "] {
            let text = format!("{head}x: {}", deep.repeat(500_000 / deep.len()));
            assert!(Metadata::parse(text.as_bytes()).is_err());
            let lines = format!("{head}x:\n {}", format!("{deep}\n ").repeat(4000));
            let _ = Metadata::parse(lines.as_bytes());
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Metadata::parse(&bytes);
        }

        #[test]
        fn yaml_like_junk_never_panics(text in "([a-z:\\-\\[\\]{}&*!|>'\" \n#,?0-9]{0,12}(architecture|creation_date|properties)?){0,12}") {
            let _ = Metadata::parse(text.as_bytes());
        }

        #[test]
        fn properties_survive(properties in proptest::collection::btree_map("[a-z.]{1,12}", "\\PC{0,30}", 0..20)) {
            let text = format!(
                "architecture: x86_64\ncreation_date: 7\nproperties: {}\n",
                serde_json::to_string(&properties).unwrap()
            );
            let metadata = Metadata::parse(text.as_bytes()).unwrap();
            prop_assert_eq!(metadata.properties, properties);
        }
    }
}
