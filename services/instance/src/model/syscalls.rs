//! What a guest's programs may not call: the policy, before it is compiled.

/// What happens on a denied call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Errno(i32),
    Kill,
}

/// One denied system call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Denied {
    pub name: String,
    pub action: Action,
}

/// The whole policy: everything not denied is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy {
    pub denied: Vec<Denied>,
    /// `umount2` with MNT_FORCE: it would abort the host's own NFS and FUSE requests.
    pub no_forced_umount: bool,
}

/// Calls that reach beyond any namespace. ENOSYS lets init systems fall back as on a kernel without them.
const DEFAULT: [&str; 6] = [
    "kexec_load",
    "kexec_file_load",
    "open_by_handle_at",
    "init_module",
    "finit_module",
    "delete_module",
];

const ENOSYS: i32 = 38;

impl Policy {
    /// `default` adds what is always dangerous; `extra` is the text of `security.syscalls.deny`.
    pub fn new(default: bool, extra: &str) -> Result<Policy, String> {
        let denied = |name: &&str| Denied {
            name: (*name).to_owned(),
            action: Action::Errno(ENOSYS),
        };
        let mut all: Vec<Denied> = match default {
            true => DEFAULT.iter().map(denied).collect(),
            false => Vec::new(),
        };
        for one in parse(extra)? {
            all.retain(|d| d.name != one.name);
            all.push(one);
        }
        Ok(Policy {
            denied: all,
            no_forced_umount: default,
        })
    }
}

/// Lines of `name`, `name errno N` or `name kill`.
pub fn parse(text: &str) -> Result<Vec<Denied>, String> {
    let mut denied = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let bad = || format!("Invalid system call rule: {line}");
        let name = words[0];
        if !name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            return Err(bad());
        }
        let action = match words[1..] {
            [] => Action::Errno(ENOSYS),
            ["kill"] => Action::Kill,
            ["errno", number] => match number.parse() {
                Ok(errno @ 1..=4095) => Action::Errno(errno),
                _ => return Err(bad()),
            },
            _ => return Err(bad()),
        };
        denied.push(Denied {
            name: name.to_owned(),
            action,
        });
    }
    Ok(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let policy = Policy::new(true, "ptrace errno 1\nkexec_load kill\n").unwrap();
        let find = |name: &str| {
            policy
                .denied
                .iter()
                .find(|d| d.name == name)
                .map(|d| d.action)
        };
        assert_eq!(find("ptrace"), Some(Action::Errno(1)));
        assert_eq!(find("kexec_load"), Some(Action::Kill));
        assert_eq!(find("init_module"), Some(Action::Errno(38)));
        for bad in ["ptrace errno", "ptrace errno 0", "Ptrace", "a b c", "[all]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
