//! Which cgroup hierarchies this host has, told by mountinfo, never by directory names.

use super::limits::Version;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) kind: Kind,
    pub(crate) mount: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    V2,
    /// v1 with these controllers (cpu and cpuacct may share one).
    V1(Vec<String>),
    /// v1 without controllers: `name=systemd`.
    Named(String),
}

impl Kind {
    /// Whether the guest gets ownership of its directory. v1 controllers are never delegated: their
    /// limit files would be the guest's to write.
    pub(crate) fn delegated(&self) -> bool {
        match self {
            Kind::V2 => true,
            Kind::Named(name) => name == "systemd",
            Kind::V1(_) => false,
        }
    }

    /// Whether a directory of this hierarchy has a controller; `v2_controllers` are those of a v2 directory.
    pub(crate) fn counts(&self, v2_controllers: &[String], controller: &str) -> Option<Version> {
        match self {
            Kind::V1(list) if list.iter().any(|c| c == controller) => Some(Version::V1),
            Kind::V2 => {
                let name = if controller == "blkio" {
                    "io"
                } else {
                    controller
                };
                let has = v2_controllers.iter().any(|c| c == name);
                has.then_some(Version::V2)
            }
            _ => None,
        }
    }
}

/// Hierarchies in mountinfo order; one that is mounted several times counts once.
pub(crate) fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<(&str, Hierarchy)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(device), Some(mount), Some(fs_type)) = (left.get(2), left.get(4), right.first())
        else {
            continue;
        };
        let kind = match *fs_type {
            "cgroup2" => Kind::V2,
            "cgroup" => v1_kind(right.get(2).copied().unwrap_or_default()),
            _ => continue,
        };
        if !found.iter().any(|(known, _)| known == device) {
            found.push((
                device,
                Hierarchy {
                    kind,
                    mount: unescape(mount),
                },
            ));
        }
    }
    found.into_iter().map(|(_, h)| h).collect()
}

fn v1_kind(options: &str) -> Kind {
    let mut controllers = Vec::new();
    for option in options.split(',') {
        if let Some(name) = option.strip_prefix("name=") {
            return Kind::Named(name.to_owned());
        }
        let generic = [
            "rw",
            "ro",
            "noprefix",
            "clone_children",
            "xattr",
            "cpuset_v2_mode",
            "none",
            "favordynmods",
        ];
        if !generic.contains(&option) && !option.contains('=') {
            controllers.push(option.to_owned());
        }
    }
    Kind::V1(controllers)
}

/// mountinfo writes blank, tab, newline and backslash as `\ooo`.
fn unescape(path: &str) -> String {
    let mut out = Vec::new();
    let bytes = path.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = path
            .get(i + 1..i + 4)
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (bytes[i], octal) {
            (b'\\', Some(value)) => {
                out.push(value);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
            99 31 0:38 / /elsewhere rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let all = parse(text);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].kind, Kind::V1(vec!["cpu".into(), "cpuacct".into()]));
        assert_eq!(all[1].kind, Kind::Named("systemd".into()));
        assert!(all[1].kind.delegated());
        assert_eq!(all[2].mount, "/sys/fs/cgroup/uni fied");
        assert!(!all[0].kind.delegated());
    }

    #[test]
    fn pure_v2() {
        let text = "26 22 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(
            parse(text),
            [Hierarchy {
                kind: Kind::V2,
                mount: "/sys/fs/cgroup".into()
            }]
        );
    }
}
