//! The stock `lxc` on configuration, profiles and snapshots.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use berth_e2e::{Image, Server};

#[test]
fn lxc_config_and_profiles() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();

    lxc.ok(&["profile", "create", "conf-p"]);
    let edited = "config:\n  environment.FROM: profile\n  limits.processes: \"500\"\n\
                  description: edited\ndevices: {}\n";
    lxc.ok_with(&["profile", "edit", "conf-p"], edited.as_bytes());
    lxc.ok(&["profile", "set", "conf-p", "user.shade", "dark"]);
    let shown = lxc.ok(&["profile", "show", "conf-p"]);
    for line in [
        "environment.FROM: profile",
        "user.shade: dark",
        "description: edited",
    ] {
        assert!(shown.contains(line), "no {line} in {shown}");
    }
    assert_eq!(
        lxc.ok(&["profile", "get", "conf-p", "user.shade"]).trim(),
        "dark"
    );
    let listed = lxc.ok(&["profile", "list", "--format", "csv"]);
    assert!(listed.contains("conf-p,edited,0"), "{listed}");
    let refused = lxc.fails(&["profile", "create", "conf-p"]);
    assert!(refused.contains("already exists"), "{refused}");

    lxc.ok(&["launch", "busybox", "conf-a"]);
    lxc.ok(&["profile", "add", "conf-a", "conf-p"]);
    let shown = lxc.ok(&["profile", "show", "conf-p"]);
    assert!(shown.contains("/1.0/instances/conf-a"), "{shown}");
    let refused = lxc.fails(&["profile", "delete", "conf-p"]);
    assert!(refused.contains("in use"), "{refused}");

    lxc.ok(&["config", "set", "conf-a", "user.note", "a b"]);
    assert_eq!(
        lxc.ok(&["config", "get", "conf-a", "user.note"]).trim(),
        "a b"
    );
    let own = lxc.ok(&["config", "show", "conf-a"]);
    assert!(
        own.contains("user.note: a b") && !own.contains("environment.FROM"),
        "{own}"
    );
    assert!(own.contains("- default\n- conf-p"), "{own}");
    let expanded = lxc.ok(&["config", "show", "--expanded", "conf-a"]);
    assert!(expanded.contains("environment.FROM: profile"), "{expanded}");
    assert!(
        expanded.contains("path: /") && expanded.contains("type: nic"),
        "{expanded}"
    );
    let from = lxc.ok(&["exec", "conf-a", "--", "sh", "-c", "echo $FROM"]);
    assert_eq!(
        from.trim(),
        "profile",
        "a profile's environment reaches execs at once"
    );
    lxc.ok(&["config", "set", "conf-a", "environment.FROM", "instance"]);
    let from = lxc.ok(&["exec", "conf-a", "--", "sh", "-c", "echo $FROM"]);
    assert_eq!(
        from.trim(),
        "instance",
        "the instance's own configuration wins"
    );
    lxc.ok(&["config", "unset", "conf-a", "environment.FROM"]);

    let own = lxc.ok(&["config", "show", "conf-a"]);
    lxc.ok_with(
        &["config", "edit", "conf-a"],
        own.replace("a b", "c d").as_bytes(),
    );
    assert_eq!(
        lxc.ok(&["config", "get", "conf-a", "user.note"]).trim(),
        "c d"
    );
    let broken = lxc.run_with(&["config", "edit", "conf-a"], b"config: [broken");
    assert_ne!(broken.code, 0);
    let refused = lxc.fails(&["config", "set", "conf-a", "no.such.key", "1"]);
    assert!(refused.contains("no.such.key"), "{refused}");
    let refused = lxc.fails(&["config", "set", "conf-a", "limits.memory", "plenty"]);
    assert!(
        refused.contains("limits.memory") || refused.contains("plenty"),
        "{refused}"
    );

    lxc.ok(&["profile", "remove", "conf-a", "conf-p"]);
    lxc.ok(&["profile", "delete", "conf-p"]);
    lxc.ok(&["delete", "--force", "conf-a"]);
    let listed = lxc.ok(&["profile", "list", "--format", "csv"]);
    assert!(!listed.contains("conf-p"), "{listed}");
}

#[test]
fn lxc_snapshots() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    lxc.ok(&["launch", "busybox", "snap-a"]);
    let write = |text: &str| {
        lxc.ok(&[
            "exec",
            "snap-a",
            "--",
            "sh",
            "-c",
            &format!("echo {text} >/root/text; sync"),
        ]);
    };
    let read = || {
        lxc.ok(&["exec", "snap-a", "--", "cat", "/root/text"])
            .trim()
            .to_owned()
    };

    write("one");
    lxc.ok(&["snapshot", "snap-a", "first"]);
    write("two");
    lxc.ok(&["config", "set", "snap-a", "user.later", "yes"]);
    lxc.ok(&["snapshot", "snap-a"]);
    let refused = lxc.fails(&["snapshot", "snap-a", "first"]);
    assert!(refused.contains("already exists"), "{refused}");
    let info = lxc.ok(&["info", "snap-a"]);
    assert!(info.contains("first") && info.contains("snap0"), "{info}");
    let listed = lxc.ok(&["list", "snap-a", "--format", "csv", "-c", "nS"]);
    assert_eq!(listed.trim(), "snap-a,2");

    lxc.ok(&["restore", "snap-a", "first"]);
    assert_eq!(
        lxc.ok(&["list", "snap-a", "--format", "csv", "-c", "s"])
            .trim(),
        "RUNNING"
    );
    assert_eq!(read(), "one");
    assert_eq!(
        lxc.ok(&["config", "get", "snap-a", "user.later"]).trim(),
        ""
    );
    lxc.ok(&["restore", "snap-a", "snap0"]);
    assert_eq!(read(), "two");
    assert_eq!(
        lxc.ok(&["config", "get", "snap-a", "user.later"]).trim(),
        "yes"
    );

    let shown = lxc.ok(&["config", "show", "snap-a/first"]);
    assert!(shown.contains("expires_at:"), "{shown}");
    lxc.ok(&["delete", "snap-a/snap0"]);
    let refused = lxc.fails(&["restore", "snap-a", "snap0"]);
    assert!(refused.contains("does not exist"), "{refused}");
    lxc.ok(&["stop", "--force", "snap-a"]);
    lxc.ok(&["restore", "snap-a", "first"]);
    lxc.ok(&["start", "snap-a"]);
    assert_eq!(read(), "one");
    lxc.ok(&["delete", "--force", "snap-a"]);
}

#[test]
fn lxc_snapshots_by_rule_and_copies_with_them() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    lxc.ok(&["init", "busybox", "rule-a", "-t", "c1-m1"]);
    assert_eq!(
        lxc.ok(&["config", "get", "rule-a", "limits.memory"]).trim(),
        "1024MB"
    );
    lxc.ok(&["config", "set", "rule-a", "snapshots.pattern=auto-%d"]);
    lxc.ok(&["snapshot", "rule-a"]);
    let dated = "snapshots.pattern={{ creation_date|date:'2006-01-02' }}";
    lxc.ok(&["config", "set", "rule-a", dated]);
    lxc.ok(&["config", "set", "rule-a", "snapshots.expiry=1d"]);
    lxc.ok(&["snapshot", "rule-a"]);
    let names = |instance: &str| -> Vec<String> {
        let urls = lxc.query(&[&format!("/1.0/instances/{instance}/snapshots")]);
        let urls = urls.as_array().unwrap().iter();
        urls.map(|url| url.as_str().unwrap().rsplit('/').next().unwrap().to_owned())
            .collect()
    };
    let taken = names("rule-a");
    assert_eq!(taken.len(), 2, "{taken:?}");
    assert_eq!(taken[0], "auto-0");
    assert!(
        taken[1].len() == 10 && taken[1].starts_with("20"),
        "{taken:?}"
    );
    for (rule, complaint) in [
        ("snapshots.schedule=now and then", "chedule"),
        ("snapshots.expiry=1x", "expiry"),
    ] {
        let refused = lxc.fails(&["config", "set", "rule-a", rule]);
        assert!(refused.contains(complaint), "{refused}");
    }
    for schedule in ["@daily", "@hourly, @startup", "0 6 * * *", ""] {
        lxc.ok(&[
            "config",
            "set",
            "rule-a",
            &format!("snapshots.schedule={schedule}"),
        ]);
    }

    lxc.ok(&["copy", "rule-a", "rule-b"]);
    assert_eq!(names("rule-b"), taken);
    let expires = |snapshot: &str| {
        let path = format!("/1.0/instances/{snapshot}");
        lxc.query(&[&path])["expires_at"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let last = format!("snapshots/{}", taken[1]);
    assert!(!expires(&format!("rule-a/{last}")).starts_with("0001"));
    assert_eq!(
        expires(&format!("rule-a/{last}")),
        expires(&format!("rule-b/{last}"))
    );
    // The copy's snapshots are its own.
    lxc.ok(&["delete", "rule-a"]);
    lxc.ok(&["start", "rule-b"]);
    lxc.ok(&["exec", "rule-b", "--", "rm", "/etc/inittab"]);
    lxc.ok(&["restore", "rule-b", "auto-0"]);
    lxc.ok(&["exec", "rule-b", "--", "test", "-e", "/etc/inittab"]);
    lxc.ok(&["copy", "rule-b", "rule-c", "--instance-only"]);
    assert_eq!(names("rule-c"), Vec::<String>::new());
    lxc.ok(&["delete", "--force", "rule-b", "rule-c"]);
}
