//! The read model of one project: every answer about images comes from here, none from disk.
//!
//! The database says the same; a write goes there first and here after its commit.

use super::{Alias, AliasName, Fingerprint, Image, Kind, Prefix, Selector};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What an alias points at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    description: String,
    fingerprint: Fingerprint,
}

/// Why no image is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Nothing matches.
    None,
    /// A prefix matches several.
    Ambiguous,
    /// One matches, of the other kind.
    Kind(Kind),
}

/// Images and aliases of a project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    images: BTreeMap<Fingerprint, Arc<Image>>,
    aliases: BTreeMap<AliasName, Target>,
    by_target: BTreeSet<(Fingerprint, AliasName)>,
    /// Images whose blobs are missing or of another length.
    damaged: BTreeSet<Fingerprint>,
}

impl Catalogue {
    /// The image with exactly this fingerprint.
    pub fn image(&self, fingerprint: &Fingerprint) -> Option<&Arc<Image>> {
        self.images.get(fingerprint)
    }

    /// All images by fingerprint, from after `after`.
    pub fn images_after(&self, after: Option<&str>) -> impl Iterator<Item = &Arc<Image>> {
        let from = match after {
            Some(last) => std::ops::Bound::Excluded(last),
            None => std::ops::Bound::Unbounded,
        };
        self.images
            .range::<str, _>((from, std::ops::Bound::Unbounded))
            .map(|(_, image)| image)
    }

    /// The one image whose fingerprint begins so.
    pub fn by_prefix(&self, prefix: &Prefix) -> Result<&Arc<Image>, Miss> {
        let mut matching = self
            .images
            .range::<str, _>((
                std::ops::Bound::Included(prefix.as_str()),
                std::ops::Bound::Unbounded,
            ))
            .take_while(|(fingerprint, _)| fingerprint.as_str().starts_with(prefix.as_str()));
        let (_, first) = matching.next().ok_or(Miss::None)?;
        match matching.next() {
            Some(_) => Err(Miss::Ambiguous),
            None => Ok(first),
        }
    }

    /// The image a selector names, of `kind` when one is wanted.
    pub fn select(&self, selector: &Selector, kind: Option<Kind>) -> Result<&Arc<Image>, Miss> {
        let wanted = |image: &Image| kind.is_none_or(|kind| image.kind == kind);
        let image = match selector {
            Selector::Alias(name) => {
                let target = self.aliases.get(name).ok_or(Miss::None)?;
                self.images.get(&target.fingerprint).ok_or(Miss::None)?
            }
            Selector::Fingerprint(prefix) => self.by_prefix(prefix)?,
            Selector::Properties(properties) => self
                .images
                .values()
                .filter(|image| wanted(image))
                .filter(|image| {
                    properties
                        .iter()
                        .all(|(key, value)| image.properties.get(key) == Some(value))
                })
                .max_by_key(|image| image.uploaded_at)
                .ok_or(Miss::None)?,
        };
        if wanted(image) {
            Ok(image)
        } else {
            Err(Miss::Kind(image.kind))
        }
    }

    /// The alias of this name.
    pub fn alias(&self, name: &AliasName) -> Option<Alias> {
        self.aliases.get(name).map(|t| self.render(name, t))
    }

    /// All aliases by name, from after `after`.
    pub fn aliases_after(&self, after: Option<&str>) -> impl Iterator<Item = Alias> {
        let from = match after {
            Some(last) => std::ops::Bound::Excluded(last),
            None => std::ops::Bound::Unbounded,
        };
        self.aliases
            .range::<str, _>((from, std::ops::Bound::Unbounded))
            .map(|(name, target)| self.render(name, target))
    }

    /// An image's aliases by name.
    pub fn aliases_of(&self, fingerprint: &Fingerprint) -> Vec<Alias> {
        // No alias is empty, so this is before all of them.
        let mut out = Vec::new();
        for (target, name) in self.by_target.range((
            std::ops::Bound::Included((fingerprint.clone(), AliasName::first())),
            std::ops::Bound::Unbounded,
        )) {
            if target != fingerprint {
                break;
            }
            out.extend(self.alias(name));
        }
        out
    }

    fn render(&self, name: &AliasName, target: &Target) -> Alias {
        Alias {
            name: name.clone(),
            description: target.description.clone(),
            target: target.fingerprint.clone(),
            kind: self
                .images
                .get(&target.fingerprint)
                .map_or(Kind::Container, |image| image.kind),
        }
    }

    /// Whether an image needs the blob of this digest.
    pub fn needs_blob(&self, digest: &Fingerprint) -> bool {
        self.images
            .values()
            .any(|image| image.blobs.iter().any(|blob| blob.digest == *digest))
    }

    /// Whether the image's blobs were missing or damaged when last looked at.
    pub fn is_damaged(&self, fingerprint: &Fingerprint) -> bool {
        self.damaged.contains(fingerprint)
    }

    /// Says so.
    pub fn set_damaged(&mut self, fingerprint: &Fingerprint) {
        if self.images.contains_key(fingerprint) {
            self.damaged.insert(fingerprint.clone());
        }
    }

    /// Adds or replaces an image.
    pub fn put_image(&mut self, image: Image) {
        self.images
            .insert(image.fingerprint.clone(), Arc::new(image));
    }

    /// Removes an image and its aliases.
    pub fn remove_image(&mut self, fingerprint: &Fingerprint) {
        for alias in self.aliases_of(fingerprint) {
            self.remove_alias(&alias.name);
        }
        self.damaged.remove(fingerprint);
        self.images.remove(fingerprint);
    }

    /// Notes a use. Cheap: no write follows at once.
    pub fn touch(&mut self, fingerprint: &Fingerprint, at: i64) {
        if let Some(image) = self.images.get_mut(fingerprint) {
            let image = Arc::make_mut(image);
            image.last_used_at = image.last_used_at.max(Some(at));
        }
    }

    /// Adds or replaces an alias.
    pub fn put_alias(&mut self, name: AliasName, description: String, target: Fingerprint) {
        self.remove_alias(&name);
        self.by_target.insert((target.clone(), name.clone()));
        self.aliases.insert(
            name,
            Target {
                description,
                fingerprint: target,
            },
        );
    }

    /// Removes an alias; absent is fine.
    pub fn remove_alias(&mut self, name: &AliasName) {
        if let Some(target) = self.aliases.remove(name) {
            self.by_target.remove(&(target.fingerprint, name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Blob, Format, Part};
    use proptest::prelude::*;

    fn image(fingerprint: &str, uploaded_at: i64, kind: Kind, os: &str) -> Image {
        let fingerprint = Fingerprint::parse(&format!("{fingerprint:0<64}")).unwrap();
        Image {
            kind,
            architecture: "x86_64".into(),
            filename: String::new(),
            public: false,
            auto_update: false,
            cached: false,
            properties: [("os".to_owned(), os.to_owned())].into(),
            profiles: Vec::new(),
            blobs: vec![Blob {
                part: Part::Unified,
                digest: fingerprint.clone(),
                size: 1,
                format: Format::Tar,
            }],
            created_at: 1,
            uploaded_at,
            expires_at: None,
            last_used_at: None,
            holds: BTreeMap::new(),
            fingerprint,
        }
    }

    #[test]
    fn prefixes_name_one_or_none_or_are_ambiguous() {
        let mut catalogue = Catalogue::default();
        catalogue.put_image(image("abc", 1, Kind::Container, "debian"));
        catalogue.put_image(image("abd", 2, Kind::VirtualMachine, "debian"));
        let find = |text| catalogue.by_prefix(&Prefix::parse(text).unwrap());
        assert_eq!(find("ab").unwrap_err(), Miss::Ambiguous);
        assert_eq!(find("ac").unwrap_err(), Miss::None);
        assert_eq!(find("abd").unwrap().uploaded_at, 2);
        let newest = Selector::Properties([("os".to_owned(), "debian".to_owned())].into());
        assert_eq!(catalogue.select(&newest, None).unwrap().uploaded_at, 2);
        let container = catalogue.select(&newest, Some(Kind::Container)).unwrap();
        assert_eq!(container.uploaded_at, 1);
        let vm = Selector::Fingerprint(Prefix::parse("abd").unwrap());
        assert_eq!(
            catalogue.select(&vm, Some(Kind::Container)).unwrap_err(),
            Miss::Kind(Kind::VirtualMachine)
        );
    }

    #[test]
    fn aliases_go_with_their_image() {
        let mut catalogue = Catalogue::default();
        let one = image("a1", 1, Kind::Container, "x");
        let two = image("b2", 1, Kind::Container, "x");
        let name = |text| AliasName::parse(text).unwrap();
        catalogue.put_image(one.clone());
        catalogue.put_image(two.clone());
        catalogue.put_alias(name("x/1"), String::new(), one.fingerprint.clone());
        catalogue.put_alias(name("x"), String::new(), one.fingerprint.clone());
        catalogue.put_alias(name("y"), String::new(), one.fingerprint.clone());
        catalogue.put_alias(name("y"), String::new(), two.fingerprint.clone());
        assert_eq!(catalogue.aliases_of(&one.fingerprint).len(), 2);
        assert_eq!(catalogue.aliases_of(&two.fingerprint).len(), 1);
        catalogue.remove_image(&one.fingerprint);
        assert!(catalogue.alias(&name("x")).is_none());
        assert_eq!(catalogue.aliases_after(None).count(), 1);
        assert!(!catalogue.needs_blob(&one.fingerprint));
        assert!(catalogue.needs_blob(&two.fingerprint));
    }

    proptest! {
        #[test]
        fn a_prefix_finds_what_a_scan_finds(
            fingerprints in proptest::collection::btree_set("[ab]{1,4}", 1..12),
            prefix in "[ab]{1,4}",
        ) {
            let mut catalogue = Catalogue::default();
            for f in &fingerprints {
                catalogue.put_image(image(f, 1, Kind::Container, "x"));
            }
            let all: Vec<String> =
                catalogue.images_after(None).map(|i| i.fingerprint.to_string()).collect();
            let matching: Vec<&String> = all.iter().filter(|f| f.starts_with(&prefix)).collect();
            let found = catalogue.by_prefix(&Prefix::parse(&prefix).unwrap());
            match matching.as_slice() {
                [] => prop_assert_eq!(found.unwrap_err(), Miss::None),
                [one] => prop_assert_eq!(found.unwrap().fingerprint.as_str(), one.as_str()),
                _ => prop_assert_eq!(found.unwrap_err(), Miss::Ambiguous),
            }
        }
    }
}
