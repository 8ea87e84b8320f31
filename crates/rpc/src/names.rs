//! Resource names: paths such as `projects/default/instances/c1`.

use crate::Error;

/// The one project there is until projects arrive.
pub const DEFAULT_PROJECT: &str = "default";

/// Splits `name` by a pattern such as `projects/{}/instances/{}` and gives the variable segments.
/// The error names `field`.
pub fn parse<const N: usize>(field: &str, pattern: &str, name: &str) -> Result<[String; N], Error> {
    let bad = || {
        Error::invalid(
            field,
            format!("{field} {name:?} is not of the form {pattern}"),
        )
    };
    let mut out: Vec<String> = Vec::with_capacity(N);
    let mut segments = name.split('/');
    for want in pattern.split('/') {
        let got = segments.next().ok_or_else(bad)?;
        if want.starts_with('{') {
            if got.is_empty() || got == "." || got == ".." || got.bytes().any(|b| b < 0x20) {
                return Err(bad());
            }
            out.push(got.to_owned());
        } else if got != want {
            return Err(bad());
        }
    }
    if segments.next().is_some() {
        return Err(bad());
    }
    out.try_into().map_err(|_| bad())
}

macro_rules! resource {
    ($(#[$doc:meta])* $name:ident { $($field:ident),+ } = $pattern:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name { $(
            /// Segment of the name.
            pub $field: String,
        )+ }

        impl $name {
            /// The form of the name.
            pub const PATTERN: &'static str = $pattern;

            /// Takes a name apart; the error names the request's `field`.
            pub fn parse(field: &str, name: &str) -> Result<Self, Error> {
                let [$($field),+] = parse(field, $pattern, name)?;
                Ok(Self { $($field),+ })
            }

            /// Puts a name together.
            pub fn new($($field: impl Into<String>),+) -> Self {
                Self { $($field: $field.into()),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut values = [$(self.$field.as_str()),+].into_iter();
                for (i, segment) in $pattern.split('/').enumerate() {
                    if i > 0 {
                        f.write_str("/")?;
                    }
                    if segment.starts_with('{') {
                        f.write_str(values.next().unwrap_or_default())?;
                    } else {
                        f.write_str(segment)?;
                    }
                }
                Ok(())
            }
        }
    };
}

resource!(
    /// A project.
    Project { project } = "projects/{project}"
);
resource!(
    /// An instance.
    Instance { project, instance } = "projects/{project}/instances/{instance}"
);
resource!(
    /// An instance's snapshot.
    InstanceSnapshot { project, instance, snapshot } =
        "projects/{project}/instances/{instance}/snapshots/{snapshot}"
);
resource!(
    /// A command run in an instance.
    Exec { project, instance, exec } = "projects/{project}/instances/{instance}/execs/{exec}"
);
resource!(
    /// A profile.
    Profile { project, profile } = "projects/{project}/profiles/{profile}"
);
resource!(
    /// An image; the segment may be a prefix of the fingerprint.
    Image { project, fingerprint } = "projects/{project}/images/{fingerprint}"
);
resource!(
    /// An image's alias, percent-encoded.
    ImageAlias { project, alias } = "projects/{project}/imageAliases/{alias}"
);
resource!(
    /// A storage pool.
    Pool { pool } = "storagePools/{pool}"
);
resource!(
    /// A pool as a project sees it: parent of volumes.
    ProjectPool { project, pool } = "projects/{project}/storagePools/{pool}"
);
resource!(
    /// A volume; `collection` is `containers`, `virtualMachines`, `images` or `custom`.
    Volume { project, pool, collection, volume } =
        "projects/{project}/storagePools/{pool}/{collection}/{volume}"
);
resource!(
    /// A volume's snapshot.
    VolumeSnapshot { project, pool, collection, volume, snapshot } =
        "projects/{project}/storagePools/{pool}/{collection}/{volume}/snapshots/{snapshot}"
);
resource!(
    /// A network; `-` stands for unmanaged parents of ports.
    Network { project, network } = "projects/{project}/networks/{network}"
);
resource!(
    /// A port.
    Port { project, network, port } = "projects/{project}/networks/{network}/ports/{port}"
);
resource!(
    /// An operation.
    Operation { operation } = "operations/{operation}"
);

/// Percent-encodes what may not stand in one segment of a name.
pub fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    // `.` and `..` would read as path steps.
    if out.chars().all(|c| c == '.') {
        out.replace('.', "%2E")
    } else {
        out
    }
}

/// Undoes [`encode_segment`]; `None` for broken escapes or text that is not UTF-8.
pub fn decode_segment(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'%' {
            let hex = text.get(i + 1..i + 3)?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let volume = Volume::parse("name", "projects/p/storagePools/s/containers/c1").unwrap();
        assert_eq!(volume.collection, "containers");
        assert_eq!(
            volume.to_string(),
            "projects/p/storagePools/s/containers/c1"
        );
        for bad in [
            "",
            "projects/p",
            "projects//instances/x",
            "projects/../instances/x",
            "projects/p/instances/x/y",
            "projects/p/instances/a\nb",
        ] {
            let error = Instance::parse("name", bad).unwrap_err();
            assert_eq!(error.fields[0].field, "name");
        }
    }

    proptest! {
        #[test]
        fn any_alias_fits_in_a_segment(alias in "\\PC{1,40}") {
            let segment = encode_segment(&alias);
            prop_assert!(!segment.contains('/'));
            prop_assert_eq!(decode_segment(&segment), Some(alias.clone()));
            let name = ImageAlias::new("default", segment.clone()).to_string();
            prop_assert_eq!(ImageAlias::parse("name", &name).unwrap().alias, segment);
        }
    }
}
