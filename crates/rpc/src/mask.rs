//! Field masks as Berth reads them: `*` replaces, a path merges.

use std::collections::{BTreeMap, HashMap};

/// What a mask asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// Replace everything writable (LXD's PUT).
    All,
    /// Only these paths (LXD's PATCH).
    Paths(Vec<String>),
}

impl Mask {
    /// Absent and `*` both replace all.
    pub fn from_proto(mask: Option<&prost_types::FieldMask>) -> Self {
        match mask {
            None => Self::All,
            Some(m) if m.paths.is_empty() || m.paths.iter().any(|p| p == "*") => Self::All,
            Some(m) => Self::Paths(m.paths.clone()),
        }
    }

    /// Whether the field is written, whole or in part.
    pub fn has(&self, field: &str) -> bool {
        match self {
            Self::All => true,
            Self::Paths(paths) => paths.iter().any(|p| {
                p == field
                    || p.strip_prefix(field)
                        .is_some_and(|rest| rest.starts_with('.'))
            }),
        }
    }

    /// Merges a map field: whole when `field` is named, else the keys named `field.<key>`.
    /// A named key that `new` doesn't have, or has empty when `empty_unsets`, is removed.
    pub fn merge_map<V: Clone>(
        &self,
        field: &str,
        old: &BTreeMap<String, V>,
        new: &HashMap<String, V>,
        is_unset: impl Fn(&V) -> bool,
    ) -> BTreeMap<String, V> {
        let whole = match self {
            Self::All => true,
            Self::Paths(paths) => paths.iter().any(|p| p == field),
        };
        if whole {
            return new
                .iter()
                .filter(|(_, v)| !is_unset(v))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
        }
        let mut out = old.clone();
        let Self::Paths(paths) = self else { return out };
        for path in paths {
            let Some(key) = path
                .strip_prefix(field)
                .and_then(|rest| rest.strip_prefix('.'))
            else {
                continue;
            };
            match new.get(key) {
                Some(v) if !is_unset(v) => {
                    out.insert(key.to_owned(), v.clone());
                }
                _ => {
                    out.remove(key);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_merges_one_key_and_star_replaces() {
        let old = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b.c".into(), "2".into())]);
        let new = HashMap::from([("a".to_owned(), "9".to_owned())]);
        let merge = |paths: &[&str]| {
            let mask = Mask::from_proto(Some(&prost_types::FieldMask {
                paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            }));
            mask.merge_map("config", &old, &new, |v| v.is_empty())
        };
        assert_eq!(merge(&["config.a"]).len(), 2);
        assert_eq!(
            merge(&["config.b.c"]),
            BTreeMap::from([("a".to_owned(), "1".to_owned())])
        );
        assert_eq!(
            merge(&["*"]),
            BTreeMap::from([("a".to_owned(), "9".to_owned())])
        );
        assert_eq!(merge(&["description"]), old);
    }
}
