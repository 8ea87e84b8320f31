use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn guest(privileged: bool, nesting: bool) -> Guest {
    Guest {
        privileged,
        nesting,
        raw: String::new(),
    }
}

/// What the parser says of a profile, judged by the features of a kernel that mediates everything it knows.
fn parse(text: &str) -> Result<(), String> {
    let mut child = Command::new("apparmor_parser")
        .args(["--skip-kernel-load", "--skip-cache", "--stdout"])
        .args(["--kernel-features", "/etc/apparmor.d/abi/3.0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the package apparmor");
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that stops reading has found a fault, which it tells of.
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("its end");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn the_parser_takes_every_kind() {
    for privileged in [false, true] {
        for nesting in [false, true] {
            let mut guest = guest(privileged, nesting);
            assert_eq!(parse(&profile(&name(ANY_UID), &guest)), Ok(()), "{guest:?}");
            guest.raw = "/opt/** r,\nprofile child {\n  /x/{a,b} r,\n}\n# a comment".to_owned();
            assert_eq!(check_raw(&guest.raw), Ok(()));
            assert_eq!(parse(&profile(&name(ANY_UID), &guest)), Ok(()), "{guest:?}");
        }
    }
    assert!(parse("profile x { /a r").is_err());
}

#[test]
fn texts_are_as_reviewed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/apparmor");
    for (file, guest) in [
        ("unprivileged", guest(false, false)),
        ("nesting", guest(false, true)),
        ("privileged", guest(true, false)),
        ("privileged-nesting", guest(true, true)),
    ] {
        let path = format!("{dir}/{file}.profile");
        let text = profile(&name(ANY_UID), &guest);
        if std::env::var_os("BERTH_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).expect("writing the golden text");
        }
        let golden = std::fs::read_to_string(&path).expect("the golden text");
        assert_eq!(text, golden, "BERTH_UPDATE_GOLDEN=1 accepts {path}");
    }
}

#[test]
fn only_guests_names_are_taken_for_guests() {
    assert_eq!(uid_of(&name(ANY_UID)), Some(ANY_UID));
    for other in [
        "berth-image",
        "berth-monitor",
        "lxd-x",
        "berth-",
        "berth-0000",
    ] {
        assert_eq!(uid_of(other), None, "{other}");
    }
}

/// The globs this module writes: letters, `**`, `[^...]`, `{,...}`.
fn matches(glob: &[u8], path: &[u8]) -> bool {
    match glob {
        [] => path.is_empty(),
        [b'{', b',', rest @ ..] => {
            let end = rest
                .iter()
                .position(|c| *c == b'}')
                .expect("a closed brace");
            let (inner, after) = (&rest[..end], &rest[end + 1..]);
            matches(after, path) || matches(&[inner, after].concat(), path)
        }
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|n| matches(rest, &path[n..])),
        [b'[', b'^', rest @ ..] => {
            let end = rest
                .iter()
                .position(|c| *c == b']')
                .expect("a closed class");
            match path {
                [first, more @ ..] => {
                    !rest[..end].contains(first) && matches(&rest[end + 1..], more)
                }
                [] => false,
            }
        }
        [letter, rest @ ..] => path.first() == Some(letter) && matches(rest, &path[1..]),
    }
}

proptest! {
    #[test]
    fn everything_else_is_matched_and_nothing_kept(
        path in "(f|n|k|ne|net|fs|kernel|devices|class|virtual|cgroup|cgroupx|sem|hostname|/){0,6}",
    ) {
        for kept in [&OWN_SYSCTLS[..], &OWN_SYS[..]] {
            let full = format!("/x/{path}");
            let hit = all_but("/x/", kept)
                .iter()
                .any(|glob| matches(glob.as_bytes(), full.as_bytes()));
            let is_kept = kept
                .iter()
                .any(|name| path == *name || path.starts_with(&format!("{name}/")));
            prop_assert_eq!(hit, !is_kept, "{}", full);
        }
    }

    /// Whatever is accepted stays inside: after it a profile of another name must not exist. The parser, which
    /// takes a text whole or not at all, is asked what profiles it found.
    #[test]
    fn raw_text_does_not_escape(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just("}"), Just("{"), Just("\n"), Just("#"), Just("\""), Just("\\"), Just(","), Just(" "),
                Just("profile evil {"), Just("/a r,"), Just("/b{c,d} r,"), Just("\n}\n"), Just("^hat {"),
                Just("#include"), Just("include <abstractions/base>"), Just("flags=(complain)"), Just("\r"),
            ],
            0..9,
        ),
    ) {
        let raw: String = pieces.concat();
        if check_raw(&raw).is_ok() {
            let text = profile(&name(ANY_UID), &Guest { raw, ..Guest::default() });
            for found in names(&text) {
                prop_assert!(found.starts_with(&name(ANY_UID)), "{} in {}", found, text);
            }
        }
    }
}

/// Names of the profiles that the parser finds in a text; none when it refuses it.
fn names(text: &str) -> Vec<String> {
    let mut child = Command::new("apparmor_parser")
        .arg("--names")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the package apparmor");
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that stops reading has refused it.
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("its end");
    match output.status.success() {
        true => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect(),
        false => Vec::new(),
    }
}

#[test]
fn what_would_end_the_profile_is_refused() {
    for (raw, why) in [
        ("}\nprofile evil { file, }", "would end"),
        ("/a r, }", "would end"),
        ("{", "not closed"),
        ("# {\n}\nprofile evil {", "after #"),
        ("/a#} r,", "after #"),
        ("\"/a}\" r,", "in quotes"),
        ("\"/a", "quote"),
        ("/a\\} r,", "escaped"),
        ("/a\\", "backslash"),
        ("#include \"/etc/shadow\"", "include"),
        ("include </etc/shadow>", "include"),
        ("include <abstractions/../../shadow>", "include"),
        ("/a r,include </etc/x>", "include"),
        ("/a\u{0} r,", "control"),
    ] {
        let refused = check_raw(raw).expect_err(raw);
        assert!(refused.contains(why), "{raw:?}: {refused}");
    }
    for raw in [
        "",
        "/a r,",
        "mount fstype=nfs*,",
        "/srv/{a,b}/** rw, # both",
        "/usr/include/** r,",
        "profile x {\n  /a r,\n}",
        "include <abstractions/base>",
        "#include if exists <abstractions/base>",
        "\"/with space\" r,",
    ] {
        assert_eq!(check_raw(raw), Ok(()), "{raw:?}");
    }
}
