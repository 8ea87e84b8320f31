//! The units and the compose file: their syntax, and that they fit the binaries and one another.
//! Units run for real where systemd is (`xtask bed`), the compose file in `compose.rs`.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_yaml_ng::Value;
use xtask::sandbox::SERVICES;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .canonicalize()
        .unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn systemd_accepts_the_units() {
    let mut units: Vec<PathBuf> = std::fs::read_dir(root().join("systemd"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            p.extension()
                .is_some_and(|e| e == "service" || e == "socket" || e == "target")
        })
        .collect();
    units.sort();
    // Beside a service and a socket each: the REST socket, the guests' service, the target.
    assert_eq!(units.len(), 2 * SERVICES.len() + 3);
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .args(&units)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // The binaries are not installed where the tests run, and other packages' units are not ours.
    let complaints: Vec<&str> = said
        .lines()
        .filter(|l| l.contains("berth"))
        .filter(|l| !l.contains("is not executable") && !l.contains("Command 'man "))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    for service in SERVICES {
        let unit = read(&format!("systemd/berth-{service}.service"));
        assert!(unit.contains(&format!("ExecStart=/usr/bin/berth-{service} --config ")));
        assert!(unit.contains("Type=notify") && unit.contains("WatchdogSec="));
        // Any order of start: no service names another.
        for other in SERVICES.iter().filter(|other| **other != service) {
            assert!(
                !unit.contains(&format!("berth-{other}.")),
                "{service}: {other}"
            );
        }
        let socket = read(&format!("systemd/berth-{service}.socket"));
        assert!(socket.contains(&format!("FileDescriptorName=berth-{service}")));
    }
}

/// What a child inherits for ever must not be in the unit that starts guests.
#[test]
fn nothing_of_the_instance_unit_stays_with_guests() {
    let unit = read("systemd/berth-instance.service");
    let inherited = [
        "CapabilityBoundingSet",
        "AmbientCapabilities",
        "NoNewPrivileges",
        "SystemCallFilter",
        "SystemCallArchitectures",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "RestrictAddressFamilies",
        "ProtectHostname",
        "ProtectClock",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "PrivateDevices",
        "PrivateNetwork",
        "PrivateUsers",
        "PrivateIPC",
    ];
    for line in unit.lines() {
        let key = line.split('=').next().unwrap_or_default();
        assert!(!inherited.contains(&key), "{line}");
    }
    assert!(unit.contains("HOST_MOUNT_NS=/proc/1/ns/mnt"));
}

/// A service asks for a profile of its name, and the parser takes it.
#[test]
fn each_service_has_its_apparmor_profile() {
    for service in SERVICES {
        let unit = read(&format!("systemd/berth-{service}.service"));
        assert!(unit.contains(&format!("\nAppArmorProfile=berth-{service}\n")));
        let path = root().join(format!("systemd/apparmor/berth-{service}"));
        let output = Command::new("apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache", "--names"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{service}: {said}");
        let names = String::from_utf8_lossy(&output.stdout);
        assert_eq!(names.trim(), format!("berth-{service}"));
        let compiled = Command::new("apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache", "--stdout"])
            .args(["--kernel-features", "/etc/apparmor.d/abi/3.0"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{service}: {said}");
    }
}

/// `systemd-analyze security` for a unit: 0 is closed, 10 is open.
fn exposure(unit: &str) -> f64 {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(root().join("systemd").join(unit))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find(|l| l.contains("Overall exposure level"));
    let figure = line.and_then(|l| l.rsplit_once(": ")?.1.split_whitespace().next());
    figure
        .unwrap_or_else(|| panic!("{unit}: {said}"))
        .parse()
        .unwrap()
}

#[test]
fn sandboxes_are_as_documented_and_get_no_wider() {
    const BEGIN: &str = "BERTH_UPDATE_GOLDEN=1 -->\n";
    const END: &str = "<!-- end -->";
    let path = root().join("docs/systemd.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    let units = SERVICES.iter().copied().chain(["guests"]);
    let now: Vec<(String, f64)> = units
        .map(|name| format!("berth-{name}.service"))
        .map(|unit| (unit.clone(), exposure(&unit)))
        .collect();
    if std::env::var_os("BERTH_UPDATE_GOLDEN").is_some() {
        let rows: String = now
            .iter()
            .map(|(unit, figure)| format!("| `{unit}` | {figure:.1} |\n"))
            .collect();
        let new = format!("{before}{BEGIN}\n| unit | exposure |\n|---|---|\n{rows}\n{END}{after}");
        std::fs::write(&path, new).unwrap();
        return;
    }
    for (unit, figure) in now {
        let row = table.lines().find(|l| l.contains(&format!("`{unit}`")));
        let cell = row.and_then(|r| r.trim_end_matches('|').rsplit('|').next());
        let documented: f64 = cell
            .unwrap_or_else(|| panic!("{unit} is not in {}", path.display()))
            .trim()
            .parse()
            .unwrap();
        // Other releases of systemd weigh otherwise: closer is fine, wider is not.
        assert!(
            figure <= documented,
            "{unit}: {figure}, documented {documented}"
        );
    }
}

fn names(value: &Value) -> BTreeSet<String> {
    let mapping = value.as_mapping().unwrap();
    mapping
        .keys()
        .map(|k| k.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_compose_file_has_one_role_per_service() {
    let mut compose: Value = serde_yaml_ng::from_str(&read("docker-compose.yml")).unwrap();
    compose.apply_merge().unwrap();
    let services = &compose["services"];
    let observability = ["collector", "prometheus", "viewer"];
    let others = ["prepare"].into_iter().chain(observability);
    let wanted = SERVICES.into_iter().chain(others).map(str::to_owned);
    assert_eq!(names(services), wanted.collect());
    let volumes = names(&compose["volumes"]);
    let dockerfile = read("deploy/Dockerfile");
    let stages: BTreeSet<&str> = dockerfile
        .lines()
        .filter_map(|l| l.strip_prefix("FROM berth-base AS "))
        .collect();
    assert_eq!(stages, SERVICES.into_iter().collect());
    // Building needs no network, for whoever has none.
    assert!(!dockerfile.lines().any(|l| l.starts_with("RUN ")));
    for name in SERVICES {
        let service = &services[name];
        assert_eq!(
            service["restart"].as_str(),
            Some("unless-stopped"),
            "{name}"
        );
        assert_eq!(service["build"]["target"].as_str(), Some(name));
        for volume in service["volumes"].as_sequence().unwrap() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            let known = source.starts_with(['/', '.', '$']);
            assert!(
                known || volumes.contains(source),
                "{name}: no volume {source}"
            );
        }
        let health = serde_yaml_ng::to_string(&service["healthcheck"]["test"]).unwrap();
        assert!(
            health.contains(&format!("/usr/bin/berth-{name}")),
            "{health}"
        );
        let key = format!("BERTH_{}__SERVER__METRICS_LISTEN", name.to_uppercase());
        let metrics = service["environment"][key.as_str()].as_str().unwrap();
        assert!(metrics.starts_with("tcp:127.0.0.1:"), "{metrics}");
    }
    // Whoever needs no root has none.
    for (name, user) in [("image", "berth-image:berth"), ("gateway", "berth:berth")] {
        assert_eq!(services[name]["user"].as_str(), Some(user));
        assert_eq!(services[name]["cap_drop"][0].as_str(), Some("ALL"));
        assert!(services[name].get("cap_add").is_none());
    }
    for name in observability {
        let profiles = &services[name]["profiles"];
        assert_eq!(profiles[0].as_str(), Some("observability"), "{name}");
    }
}
