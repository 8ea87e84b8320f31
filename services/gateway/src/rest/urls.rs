//! Between resource names and LXD's URLs.

use berth_rpc::names::{self, DEFAULT_PROJECT};

use crate::error::Failure;

/// Collections of volumes and the words LXD has for them.
const COLLECTIONS: [(&str, &str); 4] = [
    ("container", "containers"),
    ("virtual-machine", "virtualMachines"),
    ("image", "images"),
    ("custom", "custom"),
];

/// The collection that LXD's volume type names.
pub(super) fn collection(kind: &str) -> Option<&'static str> {
    COLLECTIONS
        .iter()
        .find_map(|(lxd, ours)| (*lxd == kind).then_some(*ours))
}

/// LXD's word for a collection; an unknown one is shown as it is.
pub(super) fn volume_type(collection: &str) -> &str {
    COLLECTIONS
        .iter()
        .find_map(|(lxd, ours)| (*ours == collection).then_some(*lxd))
        .unwrap_or(collection)
}

/// Escapes one segment as Go's `url.PathEscape` does, which LXD's URLs are made with.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+=:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Nothing has a longer name.
const NAME_MAX: usize = 1024;

/// A segment taken from a path, for use in a resource name. What no name can be is not found.
///
/// # Errors
/// 404 `<kind> not found`.
pub(super) fn named<'a>(kind: &str, name: &'a str) -> Result<&'a str, Failure> {
    let wrong = name.is_empty() || name == "." || name == ".." || name.contains('/');
    if wrong || name.len() > NAME_MAX || name.bytes().any(|b| b < 0x20) {
        return Err(Failure::not_found(format!("{kind} not found")));
    }
    Ok(name)
}

/// LXD's URL of what a resource name names. Volumes that belong to an instance or an image are
/// shown as these, as LXD's `used_by` does.
pub(crate) fn of_resource(name: &str) -> String {
    let with = |project: &str, url: String| {
        if project == DEFAULT_PROJECT {
            url
        } else {
            format!("{url}?project={}", escape(project))
        }
    };
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["projects", p, "instances", i] => with(p, format!("/1.0/instances/{}", escape(i))),
        ["projects", p, "instances", i, "snapshots", s] => with(
            p,
            format!("/1.0/instances/{}/snapshots/{}", escape(i), escape(s)),
        ),
        ["projects", p, "profiles", x] => with(p, format!("/1.0/profiles/{}", escape(x))),
        ["projects", p, "images", f] => with(p, format!("/1.0/images/{f}")),
        ["projects", p, "networks", n] => with(p, format!("/1.0/networks/{}", escape(n))),
        ["projects", p, "imageAliases", a] => {
            let alias = names::decode_segment(a).unwrap_or_else(|| (*a).to_owned());
            with(p, format!("/1.0/images/aliases/{}", escape(&alias)))
        }
        ["storagePools", s] => format!("/1.0/storage-pools/{}", escape(s)),
        [
            "projects",
            p,
            "storagePools",
            pool,
            collection,
            v,
            rest @ ..,
        ] => {
            let snapshot = match rest {
                ["snapshots", s] => Some(*s),
                _ => None,
            };
            with(p, of_volume(pool, collection, v, snapshot))
        }
        _ => name.to_owned(),
    }
}

fn of_volume(pool: &str, collection: &str, volume: &str, snapshot: Option<&str>) -> String {
    let mut url = match collection {
        "containers" | "virtualMachines" => format!("/1.0/instances/{}", escape(volume)),
        "images" => format!("/1.0/images/{volume}"),
        _ => format!(
            "/1.0/storage-pools/{}/volumes/{}/{}",
            escape(pool),
            volume_type(collection),
            escape(volume)
        ),
    };
    if let Some(snapshot) = snapshot {
        url.push_str("/snapshots/");
        url.push_str(&escape(snapshot));
    }
    url
}

/// URLs of holders, sorted, each once.
pub(crate) fn of_resources<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut urls: Vec<String> = names.into_iter().map(of_resource).collect();
    urls.sort();
    urls.dedup();
    urls
}

/// The last segment of a resource name.
pub(super) fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_names_become_lxds_urls() {
        for (name, url) in [
            ("projects/default/instances/c1", "/1.0/instances/c1"),
            ("projects/p/profiles/x", "/1.0/profiles/x?project=p"),
            (
                "projects/default/storagePools/s/containers/c1/snapshots/a",
                "/1.0/instances/c1/snapshots/a",
            ),
            (
                "projects/default/storagePools/s/images/abcd",
                "/1.0/images/abcd",
            ),
            (
                "projects/default/storagePools/s/custom/v w",
                "/1.0/storage-pools/s/volumes/custom/v%20w",
            ),
            (
                "projects/default/imageAliases/a%2Fb",
                "/1.0/images/aliases/a%2Fb",
            ),
            ("something/else", "something/else"),
        ] {
            assert_eq!(of_resource(name), url);
        }
    }

    #[test]
    fn what_no_name_can_be_is_not_found() {
        for name in ["", ".", "..", "a/b", "a\nb"] {
            assert_eq!(
                named("Profile", name).unwrap_err().message,
                "Profile not found"
            );
        }
        assert_eq!(named("Profile", "a b").unwrap(), "a b");
    }
}
