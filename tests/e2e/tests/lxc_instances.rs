//! The stock `lxc` on instances: their life, commands in them, their files.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::time::Duration;

use berth_e2e::{Image, Lxc, Server, wait};

const SOON: Duration = Duration::from_secs(20);

fn state_of(lxc: &Lxc, name: &str) -> String {
    lxc.ok(&["list", &format!("^{name}$"), "--format", "csv", "-c", "s"])
        .trim()
        .to_owned()
}

/// Waits for the DHCP address that `lxc list` shows.
fn address_of(lxc: &Lxc, name: &str) -> String {
    wait::until("an address by DHCP", SOON, || {
        let shown = lxc.ok(&["list", &format!("^{name}$"), "--format", "csv", "-c", "4"]);
        match shown.trim().trim_matches('"').strip_suffix(" (eth0)") {
            Some(address) => Ok(address.to_owned()),
            None => Err(format!("shown: {shown:?}")),
        }
    })
}

#[test]
fn lxc_instance_life() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();

    let version = lxc.ok(&["version"]);
    assert!(version.contains("Client version: 5.0.2"), "{version}");
    assert!(version.contains("Server version: 5.0.2"), "{version}");
    let info = lxc.ok(&["info"]);
    for line in [
        "api_version: \"1.0\"",
        "auth: trusted",
        "server_clustered: false",
    ] {
        assert!(info.contains(line), "no {line} in {info}");
    }
    let resources = lxc.ok(&["info", "--resources"]);
    for line in ["CPU", "Memory:", "Threads:"] {
        assert!(resources.contains(line), "no {line} in {resources}");
    }

    let launched = lxc.ok(&["launch", "busybox", "life-a"]);
    assert!(launched.contains("Starting life-a"), "{launched}");
    lxc.ok(&["init", "busybox", "life-b", "-c", "user.colour=blue"]);
    assert_eq!(state_of(&lxc, "life-a"), "RUNNING");
    assert_eq!(state_of(&lxc, "life-b"), "STOPPED");
    let listed = lxc.ok(&["list", "--format", "csv", "-c", "nstS"]);
    assert!(listed.contains("life-a,RUNNING,CONTAINER,0"), "{listed}");
    assert!(listed.contains("life-b,STOPPED,CONTAINER,0"), "{listed}");
    let by_key = lxc.ok(&["list", "user.colour=blue", "--format", "csv", "-c", "n"]);
    assert_eq!(by_key.trim(), "life-b");
    let json: serde_json::Value =
        serde_json::from_str(&lxc.ok(&["list", "life-a", "--format", "json"])).unwrap();
    assert_eq!(json[0]["name"], "life-a");
    assert!(json[0]["state"]["pid"].as_i64().unwrap() > 1);

    let address = address_of(&lxc, "life-a");
    let shown = lxc.ok(&["info", "life-a"]);
    for part in [
        "Name: life-a",
        "Status: RUNNING",
        "Type: container",
        "Processes:",
        &address,
    ] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }

    lxc.ok(&["pause", "life-a"]);
    assert_eq!(state_of(&lxc, "life-a"), "FROZEN");
    lxc.ok(&["start", "life-a"]);
    assert_eq!(state_of(&lxc, "life-a"), "RUNNING");
    lxc.ok(&["exec", "life-a", "--", "touch", "/run/marker"]);
    let pid = |lxc: &Lxc| {
        lxc.query(&["/1.0/instances/life-a/state"])["pid"]
            .as_i64()
            .unwrap()
    };
    let before = pid(&lxc);
    lxc.ok(&["restart", "life-a", "--timeout", "30"]);
    assert_eq!(state_of(&lxc, "life-a"), "RUNNING");
    assert_ne!(pid(&lxc), before, "a restart is a new init");
    lxc.ok(&["restart", "--force", "life-a"]);
    lxc.ok(&["stop", "life-a", "--timeout", "30"]);
    assert_eq!(state_of(&lxc, "life-a"), "STOPPED");
    let refused = lxc.fails(&["exec", "life-a", "--", "true"]);
    assert!(refused.contains("Instance is not running"), "{refused}");
    lxc.ok(&["start", "life-a", "life-b"]);
    lxc.ok(&["stop", "--force", "life-a"]);

    let refused = lxc.fails(&["delete", "life-b"]);
    assert!(refused.contains("running"), "{refused}");
    lxc.ok(&["delete", "life-a"]);
    lxc.ok(&["delete", "--force", "life-b"]);
    assert_eq!(lxc.ok(&["list", "^life-", "--format", "csv"]), "");
    let refused = lxc.fails(&["info", "life-a"]);
    assert!(refused.contains("not found"), "{refused}");

    lxc.ok(&["launch", "busybox", "life-c", "--ephemeral"]);
    lxc.ok(&["stop", "--force", "life-c"]);
    wait::until("an ephemeral instance goes", SOON, || {
        match lxc.ok(&["list", "^life-c$", "--format", "csv"]) {
            gone if gone.is_empty() => Ok(()),
            there => Err(there),
        }
    });
}

#[test]
fn lxc_events_operations_and_query() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    let monitor = lxc.spawn(&["monitor", "--format", "json"]);
    // The socket is open when an event of this scenario's own arrives; until then it repeats.
    std::thread::sleep(Duration::from_millis(500));
    lxc.ok(&["launch", "busybox", "events-a"]);

    let running = lxc.spawn(&["exec", "events-a", "--", "sleep", "60"]);
    let id = wait::until("the exec's operation", SOON, || {
        let all = lxc.query(&["/1.0/operations?recursion=1"]);
        let found = all["running"].as_array().and_then(|running| {
            running
                .iter()
                .find(|operation| operation["description"] == "Executing command")
        });
        found
            .map(|operation| operation["id"].as_str().unwrap().to_owned())
            .ok_or(all.to_string())
    });
    let listed = lxc.ok(&["operation", "list", "--format", "csv"]);
    assert!(listed.contains(&id), "{listed}");
    let shown = lxc.ok(&["operation", "show", &id]);
    assert!(
        shown.contains("class: websocket") && shown.contains("status: Running"),
        "{shown}"
    );
    let refused = lxc.fails(&["operation", "delete", &id]);
    assert!(refused.contains("cancel"), "{refused}");
    drop(running);
    wait::until("the exec ends with its client", SOON, || {
        match lxc.ok(&["operation", "list", "--format", "csv"]) {
            listed if listed.contains(&format!("{id},WEBSOCKET,Executing command,RUNNING")) => {
                Err(listed)
            }
            _ => Ok(()),
        }
    });

    let urls = lxc.query(&["/1.0/instances"]);
    assert!(
        urls.as_array()
            .unwrap()
            .contains(&"/1.0/instances/events-a".into()),
        "{urls}"
    );
    let body = r#"{"action": "stop", "force": true, "timeout": 30}"#;
    lxc.ok(&[
        "query",
        "--wait",
        "-X",
        "PUT",
        "-d",
        body,
        "/1.0/instances/events-a/state",
    ]);
    let state = lxc.query(&["/1.0/instances/events-a/state"]);
    assert_eq!(state["status"], "Stopped");
    lxc.ok(&["query", "--wait", "-X", "DELETE", "/1.0/instances/events-a"]);

    std::thread::sleep(Duration::from_millis(300));
    let events: Vec<serde_json::Value> = monitor
        .end()
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let lifecycle = |action: &str| {
        events.iter().any(|event| {
            event["type"] == "lifecycle"
                && event["metadata"]["action"] == action
                && event["metadata"]["source"] == "/1.0/instances/events-a"
        })
    };
    for action in ["created", "started", "exec", "stopped", "deleted"] {
        assert!(
            lifecycle(&format!("instance-{action}")),
            "no instance-{action} in {events:#?}"
        );
    }
    let finished = |description: &str| {
        events.iter().any(|event| {
            event["type"] == "operation"
                && event["metadata"]["description"] == description
                && event["metadata"]["status_code"] == 200
        })
    };
    for description in [
        "Creating instance",
        "Starting instance",
        "Deleting instance",
    ] {
        assert!(
            finished(description),
            "no end of {description:?} in {events:#?}"
        );
    }
}

#[test]
fn lxc_exec() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    lxc.ok(&[
        "launch",
        "busybox",
        "exec-a",
        "-c",
        "environment.COLOUR=blue",
    ]);
    let exec = |args: &[&str]| lxc.run(&[&["exec", "exec-a"], args].concat());

    let both = exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (both.code, both.stdout.trim(), both.stderr.trim()),
        (7, "out", "err")
    );
    let missing = exec(&["--", "no-such-command"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert!(missing.stderr.contains("Command not found"), "{missing:?}");
    let closed = exec(&["--", "/etc/passwd"]);
    assert_eq!(closed.code, 126, "{closed:?}");
    assert!(
        closed.stderr.contains("Command not executable"),
        "{closed:?}"
    );

    let environment = exec(&["--env", "EXTRA=1", "--", "env"]).stdout;
    for line in [
        "COLOUR=blue",
        "EXTRA=1",
        "HOME=/root",
        "USER=root",
        "LANG=C.UTF-8",
        "container=lxc",
    ] {
        assert!(
            environment.lines().any(|l| l == line),
            "no {line} in {environment}"
        );
    }
    assert_eq!(exec(&["--cwd", "/var", "--", "pwd"]).stdout.trim(), "/var");
    let user = exec(&["--user", "1000", "--group", "100", "--", "id", "-u"]);
    assert_eq!(user.stdout.trim(), "1000");
    assert_eq!(
        exec(&["--", "cat", "/proc/self/uid_map"])
            .stdout
            .split_whitespace()
            .next(),
        Some("0")
    );

    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&input));
    let piped = lxc.ok_with(&["exec", "exec-a", "--", "sha256sum"], &input);
    assert_eq!(piped.split_whitespace().next(), Some(sum.as_str()));
    let flood = exec(&["--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]);
    assert_eq!((flood.code, flood.stdout.len()), (0, 3_000_000));

    // What a command leaves running may still write.
    let late = exec(&[
        "--",
        "sh",
        "-c",
        "(sleep 1; echo late) & echo early; exit 3",
    ]);
    assert_eq!((late.code, late.stdout.as_str()), (3, "early\nlate\n"));

    let mut terminal = lxc.terminal(&["exec", "exec-a", "--", "sh"], 33, 101);
    terminal.expect("# ", SOON);
    terminal.send("stty size; tty\n");
    terminal.expect("33 101", SOON);
    terminal.expect("/dev/pts/", SOON);
    terminal.resize(20, 90);
    wait::until("the new size", SOON, || {
        terminal.send("echo size:$(stty size):\n");
        // The echo of the command holds a `$`, its output does not.
        terminal.expect("size:", SOON);
        match terminal.expect(":", SOON) {
            shown if shown == "20 90" => Ok(()),
            shown => Err(shown),
        }
    });
    terminal.send("sleep 50\n");
    terminal.expect("sleep 50", SOON);
    // The shell must have started it: an interrupt before that clears the line instead.
    std::thread::sleep(Duration::from_millis(500));
    terminal.send("\x03");
    terminal.expect("^C", SOON);
    terminal.expect("# ", SOON);
    terminal.send("echo after-$((40 + 2)); exit 5\n");
    terminal.expect("after-42", SOON);
    assert_eq!(terminal.wait(SOON), 5);

    // An interrupt on the console is the shell's there, and no ctrl-alt-del for init.
    let pid = || lxc.query(&["/1.0/instances/exec-a/state"])["pid"].clone();
    let before = pid();
    let mut console = lxc.terminal(&["console", "exec-a"], 24, 80);
    console.expect("To detach", SOON);
    console.send("\r");
    console.expect("# ", SOON);
    console.send("sleep 50\r");
    console.expect("sleep 50", SOON);
    std::thread::sleep(Duration::from_millis(500));
    console.send("\x03");
    console.expect("# ", SOON);
    console.send("echo still-$((40 + 2))\r");
    console.expect("still-42", SOON);
    assert_eq!(pid(), before, "the guest has not rebooted");
    drop(console);

    lxc.ok(&["delete", "--force", "exec-a"]);
}

#[test]
fn lxc_files() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    lxc.ok(&["launch", "busybox", "files-a"]);
    let local = tempfile::tempdir().unwrap();
    let at = |name: &str| local.path().join(name).display().to_string();

    let content: Vec<u8> = (0..500_000_u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(at("big"), &content).unwrap();
    for running in [true, false] {
        if !running {
            lxc.ok(&["stop", "--force", "files-a"]);
        }
        let target = format!("files-a/srv/{running}/deep/big");
        let owner = ["--uid", "1000", "--gid", "100", "--mode", "0640"];
        lxc.ok(&[&["file", "push", "-p"], &owner[..], &[&at("big"), &target]].concat());
        lxc.ok(&["file", "pull", &target, &at("back")]);
        assert_eq!(std::fs::read(at("back")).unwrap(), content);
        let text = lxc.ok_with(&["file", "push", "-", "files-a/root/note"], b"a note\n");
        assert_eq!(text, "");
        assert_eq!(
            lxc.ok(&["file", "pull", "files-a/root/note", "-"]),
            "a note\n"
        );
        let refused = lxc.fails(&["file", "pull", "files-a/no/such", &at("none")]);
        assert!(refused.to_lowercase().contains("not found"), "{refused}");
        lxc.ok(&["file", "delete", "files-a/root/note"]);
        let refused = lxc.fails(&["file", "pull", "files-a/root/note", "-"]);
        assert!(refused.to_lowercase().contains("not found"), "{refused}");
    }

    std::fs::create_dir_all(at("tree/inner")).unwrap();
    std::fs::write(at("tree/one"), "1").unwrap();
    std::fs::write(at("tree/inner/two"), "2").unwrap();
    std::os::unix::fs::symlink("one", at("tree/link")).unwrap();
    lxc.ok(&["file", "push", "-r", &at("tree"), "files-a/opt/", "-p"]);
    lxc.ok(&["file", "pull", "-r", "files-a/opt/tree", &at("copy")]);
    let copied = if local.path().join("copy/tree").exists() {
        "copy/tree"
    } else {
        "copy"
    };
    assert_eq!(
        std::fs::read_to_string(at(&format!("{copied}/inner/two"))).unwrap(),
        "2"
    );
    // The API tells links' targets as absolute paths, and the client copies what it is told.
    let link = std::fs::read_link(at(&format!("{copied}/link"))).unwrap();
    assert_eq!(link, std::path::Path::new("/opt/tree/one"));

    lxc.ok(&["start", "files-a"]);
    let listed = lxc.ok(&[
        "exec",
        "files-a",
        "--",
        "stat",
        "-c",
        "%u %g %a",
        "/srv/true/deep/big",
    ]);
    assert_eq!(listed.trim(), "1000 100 640");
    let edited = lxc.ok_with(
        &["file", "edit", "files-a/etc/hosts"],
        b"127.0.0.1 edited\n",
    );
    assert_eq!(edited, "");
    let hosts = lxc.ok(&["exec", "files-a", "--", "cat", "/etc/hosts"]);
    assert_eq!(hosts, "127.0.0.1 edited\n");
    // A link in the guest that points at the machine's files stays in the guest.
    lxc.ok(&[
        "exec",
        "files-a",
        "--",
        "ln",
        "-s",
        "/etc/machine-secret",
        "/root/trap",
    ]);
    lxc.ok(&[
        "exec",
        "files-a",
        "--",
        "sh",
        "-c",
        "echo guest >/etc/machine-secret",
    ]);
    assert_eq!(
        lxc.ok(&["file", "pull", "files-a/root/trap", "-"]),
        "guest\n"
    );

    lxc.ok(&["delete", "--force", "files-a"]);
}
