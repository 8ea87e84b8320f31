//! The Debian packages, made from the binaries under test: what is in them, and what installing, upgrading and
//! purging them does to a Debian system. The system is a chroot in namespaces of its own, without systemd running.
#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use berth_e2e::wait;
use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::pool_service_client::PoolServiceClient;
use berth_proto::storage::volume_service_client::VolumeServiceClient;
use berth_proto::storage::{CreatePoolRequest, CreateVolumeRequest, Pool};
use tempfile::TempDir;
use xtask::deb::{self, PACKAGES};
use xtask::sandbox::{SERVICES, paths};

fn binaries() -> PathBuf {
    match std::env::var_os("BERTH_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => paths::build_workspace().unwrap(),
    }
}

/// A later build of the same, as far as dpkg is concerned.
fn repacked(package: &Path, out: &Path) -> PathBuf {
    let tree = TempDir::new().unwrap();
    run(Command::new("dpkg-deb")
        .arg("--raw-extract")
        .arg(package)
        .arg(tree.path()));
    let control = tree.path().join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = "-1+t1\n";
    assert!(text.contains(version), "{text}");
    fs::write(control, text.replacen(version, "-1+t2\n", 1)).unwrap();
    let name = package.file_name().unwrap().to_str().unwrap();
    let later = out.join(name.replace("+t1_", "+t2_"));
    run(Command::new("dpkg-deb")
        .args(["-Zgzip", "-z1", "--build"])
        .args([tree.path(), &later]));
    later
}

/// The packages' files by name.
fn packages(out: &Path, suffix: &str, lint: bool) -> BTreeMap<&'static str, PathBuf> {
    let options = deb::Options {
        bin_dir: Some(binaries()),
        out: Some(out.to_owned()),
        version_suffix: Some(suffix.to_owned()),
        no_lint: !lint,
        ..deb::Options::default()
    };
    let made = deb::run(&options).unwrap();
    let names = PACKAGES.iter().map(|package| package.name);
    assert_eq!(made.len(), PACKAGES.len());
    names.zip(made).collect()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

fn field(package: &Path, name: &str) -> String {
    let text = stdout(
        Command::new("dpkg-deb")
            .arg("--field")
            .args([package.as_os_str(), name.as_ref()]),
    );
    text.trim().to_owned()
}

#[test]
fn packages_hold_what_they_say_and_lintian_is_content() {
    let out = TempDir::new().unwrap();
    let packages = packages(out.path(), "t1", true);
    for package in PACKAGES {
        let file = &packages[package.name];
        assert_eq!(field(file, "Package"), package.name);
        assert!(
            field(file, "Version").ends_with("-1+t1"),
            "{}",
            field(file, "Version")
        );
        let root = out.path().join(package.name);
        run(Command::new("dpkg-deb")
            .arg("--raw-extract")
            .args([file, &root]));

        for (binary, directory) in package.binaries {
            let installed = root.join(directory).join(binary);
            assert_eq!(
                fs::metadata(&installed).unwrap().permissions().mode() & 0o7777,
                0o755
            );
            let sections = stdout(
                Command::new("readelf")
                    .args(["--sections", "--wide"])
                    .arg(&installed),
            );
            assert!(
                !sections.contains(".debug_info"),
                "{binary} is not stripped"
            );
        }
        if !package.binaries.is_empty() {
            assert!(
                field(file, "Depends").contains("libc6 (>="),
                "{}",
                field(file, "Depends")
            );
        }
        for program in package.documented {
            let section = if package.service.is_some() { 8 } else { 1 };
            let page = root.join(format!("usr/share/man/man{section}/{program}.{section}.gz"));
            let text = stdout(Command::new("zcat").arg(&page));
            assert!(
                text.contains(".SH OPTIONS") && text.contains("Berth"),
                "{text}"
            );
            for (path, shell) in [
                (
                    format!("bash-completion/completions/{program}"),
                    Some("bash"),
                ),
                (format!("zsh/vendor-completions/_{program}"), None),
                (format!("fish/vendor_completions.d/{program}.fish"), None),
            ] {
                let completion = root.join("usr/share").join(path);
                assert!(fs::read_to_string(&completion).unwrap().contains("help"));
                if let Some(shell) = shell {
                    run(Command::new(shell).arg("-n").arg(&completion));
                }
            }
        }
        for script in ["preinst", "postinst", "prerm", "postrm"] {
            let script = root.join("DEBIAN").join(script);
            if script.exists() {
                run(Command::new("shellcheck")
                    .args(["--shell=sh", "--severity=style"])
                    .arg(&script));
            }
        }
        let conffiles = fs::read_to_string(root.join("DEBIAN/conffiles")).unwrap_or_default();
        match package.service {
            Some(service) => {
                assert!(
                    conffiles
                        .lines()
                        .any(|line| line == format!("/etc/berth/{service}.toml"))
                );
                check_conffile(service, &root.join(format!("etc/berth/{service}.toml")));
            }
            None => assert_eq!(conffiles, "", "{}", package.name),
        }
    }
    let instance = field(&packages["berth-instance"], "Depends");
    for wanted in ["libseccomp2 (>=", "lxcfs", "berth-common (>="] {
        assert!(instance.contains(wanted), "{instance}");
    }
}

/// It sets nothing, and shows what the program has as its defaults.
fn check_conffile(service: &str, path: &Path) {
    let program = binaries().join(format!("berth-{service}"));
    let print = |args: &[&str]| {
        stdout(
            Command::new(&program)
                .env_clear()
                .arg("--print-config")
                .args(args),
        )
    };
    let defaults = print(&[]);
    assert_eq!(print(&["--config", path.to_str().unwrap()]), defaults);
    let text = fs::read_to_string(path).unwrap();
    let (_, shown) = text.split_once("\n\n").unwrap();
    let (shown, defaults): (Vec<_>, Vec<_>) = (shown.lines().collect(), defaults.lines().collect());
    assert_eq!(shown.len(), defaults.len());
    for (shown, default) in shown.iter().zip(defaults) {
        // Tables stay; what is a comment already is one still.
        let value = !default.is_empty() && !default.starts_with(['[', '#']);
        let default = default.strip_suffix("  # default").unwrap_or(default);
        let hash = if value { "#" } else { "" };
        assert_eq!(*shown, format!("{hash}{default}"));
    }
}

/// A Debian system in a directory.
struct System {
    root: TempDir,
}

impl System {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let tar = deb::base_system(&paths::cache()).unwrap();
        run(Command::new("tar")
            .args(["--extract", "--numeric-owner", "--xattrs", "--file"])
            .arg(tar)
            .arg("--directory")
            .arg(root.path()));
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    /// A program in it: in namespaces of its own, where nothing is systemd and the network is empty.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--net",
                "--ipc",
                "--uts",
                "--fork",
                "--kill-child",
            ])
            .arg(format!("--root={}", self.root.path().display()))
            .args(["--wd=/", "--mount-proc", "--", program])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn dpkg(
        &self,
        verb: &str,
        what: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> String {
        let output = run(self.command("dpkg").arg(verb).args(what));
        // Maintainer scripts speak to people there, and systemd's tools say what they make.
        let said = String::from_utf8(output.stderr).unwrap();
        let lines = said.lines().filter(|line| !line.starts_with("Creat"));
        lines.map(|line| format!("{line}\n")).collect()
    }

    fn install(&self, packages: &BTreeMap<&str, PathBuf>, names: &[&str]) -> String {
        let into = self.at("root/packages");
        fs::create_dir_all(&into).unwrap();
        let files: Vec<String> = names
            .iter()
            .map(|name| {
                let file = &packages[name];
                let here = file.file_name().unwrap().to_str().unwrap();
                fs::copy(file, into.join(here)).unwrap();
                format!("/root/packages/{here}")
            })
            .collect();
        let said = self.dpkg("--install", files);
        fs::remove_dir_all(into).unwrap();
        said
    }

    fn versions(&self) -> BTreeMap<String, String> {
        let format = "--showformat=${Package} ${db:Status-Status} ${Version}\n";
        let listed = stdout(
            self.command("dpkg-query")
                .args(["--show", format, "berth*"]),
        );
        listed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
            .collect()
    }

    /// Every file with its kind, owner, mode and size; not what dpkg and its like keep for themselves.
    fn files(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        self.collect(self.root.path(), &mut found);
        found
    }

    fn collect(&self, directory: &Path, found: &mut BTreeMap<String, String>) {
        const BOOKKEEPING: [&str; 8] = [
            "var/lib/dpkg",
            "var/log",
            "var/cache",
            "etc/.pwd.lock",
            "etc/passwd-",
            "etc/shadow-",
            "etc/group-",
            "etc/gshadow-",
        ];
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(self.root.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if BOOKKEEPING.contains(&name.as_str()) {
                continue;
            }
            let data = fs::symlink_metadata(&path).unwrap();
            let kind = data.file_type();
            let what = if kind.is_dir() {
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!("{} bytes", data.len())
            } else if kind.is_socket() {
                "socket".to_owned()
            } else {
                "device".to_owned()
            };
            found.insert(
                name,
                format!(
                    "{what} {}:{} {:o}",
                    data.uid(),
                    data.gid(),
                    data.mode() & 0o7777
                ),
            );
            if kind.is_dir() {
                self.collect(&path, found);
            }
        }
    }
}

#[track_caller]
fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for (path, what) in before {
        match after.get(path) {
            None => differences.push(format!("- {path}: {what}")),
            Some(now) if now != what => differences.push(format!("~ {path}: {what}, now {now}")),
            Some(_) => {}
        }
    }
    let new = after.iter().filter(|(path, _)| !before.contains_key(*path));
    differences.extend(new.map(|(path, what)| format!("+ {path}: {what}")));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn install_upgrade_remove_and_purge() {
    let out = TempDir::new().unwrap();
    let first = packages(out.path(), "t1", false);
    let later = first
        .iter()
        .map(|(name, file)| (*name, repacked(file, out.path())));
    let second: BTreeMap<&str, PathBuf> = later.collect();
    let all: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
    let system = System::new();
    let before = system.files();

    let said = system.install(&first, &all);
    assert_eq!(said, "", "nothing to complain about");
    assert!(stdout(system.command("dpkg").arg("--audit")).is_empty());
    installed(&system);

    // The administrator's choices.
    let changed = format!(
        "{}\n[server.log]\nlevel = \"debug\"\n",
        system
            .read("etc/berth/image.toml")
            .replace("[server.log]", "")
    );
    fs::write(system.at("etc/berth/image.toml"), &changed).unwrap();
    run(system
        .command("systemctl")
        .args(["disable", "berth-network.service"]));

    let said = system.install(&second, &all);
    assert_eq!(said, "", "nothing to complain about");
    let versions = system.versions();
    assert!(
        versions
            .values()
            .all(|what| what.starts_with("installed") && what.ends_with("+t2")),
        "{versions:?}"
    );
    assert_eq!(system.read("etc/berth/image.toml"), changed);
    assert!(
        !system
            .at("etc/systemd/system/berth.target.wants/berth-network.service")
            .is_symlink()
    );
    assert!(
        system
            .at("etc/systemd/system/berth.target.wants/berth-image.service")
            .is_symlink()
    );

    // What there is to lose: a service's state, and a pool in a directory that was there before.
    let theirs = system.at("srv/data");
    fs::create_dir(&theirs).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(use_storage(&system));
    fs::write(theirs.join("not-berths"), "keep me").unwrap();
    let volumes = || fs::read_dir(&theirs).unwrap().count();
    assert!(volumes() > 1, "the pool has something in it");
    fs::create_dir_all(system.at("var/lib/berth/image/blobs")).unwrap();

    system.dpkg("--remove", all.iter().rev());
    assert_eq!(
        system.read("etc/berth/image.toml"),
        changed,
        "configuration stays"
    );
    assert!(
        system.at("var/lib/berth/storage/state.db").exists() && volumes() > 1,
        "data stays"
    );
    assert!(!system.at("usr/bin/berth-image").exists());

    system.dpkg("--purge", all.iter().rev());
    assert_eq!(
        fs::read_to_string(theirs.join("not-berths")).unwrap(),
        "keep me"
    );
    assert_eq!(volumes(), 1, "what Berth put there is gone, nothing else");
    fs::remove_dir_all(&theirs).unwrap();
    assert_same(&before, &system.files());
    let mut known = system.command("dpkg-query");
    let known = known.args(["--show", "berth*"]).output().unwrap();
    assert!(!known.status.success(), "dpkg knows them still");

    taken_ids(&first);
}

fn installed(system: &System) {
    let shown = stdout(
        system
            .command("stat")
            .args(["--format=%U %G %A", "/run/berth"]),
    );
    assert!(
        shown.starts_with("root berth ") && shown.trim().ends_with("---"),
        "{shown}"
    );
    for file in ["etc/subuid", "etc/subgid"] {
        let lines = system.read(file);
        assert!(
            lines
                .lines()
                .any(|line| line == "berth-guests:1879048192:268435456"),
            "{file}: {lines}"
        );
    }
    for service in SERVICES {
        let wants = "etc/systemd/system";
        assert!(
            system
                .at(&format!(
                    "{wants}/berth.target.wants/berth-{service}.service"
                ))
                .is_symlink()
        );
        assert!(
            system
                .at(&format!(
                    "{wants}/sockets.target.wants/berth-{service}.socket"
                ))
                .is_symlink()
        );
        let config = format!("/etc/berth/{service}.toml");
        let program = format!("berth-{service}");
        run(system
            .command(&program)
            .args(["--config", &config, "--check-config"]));
    }
    assert!(
        system
            .at("etc/systemd/system/multi-user.target.wants/berth.target")
            .is_symlink()
    );
    assert!(stdout(system.command("berth").arg("--version")).starts_with("berth "));
    assert!(
        system.at("usr/bin/lxc").exists(),
        "lxd-client is there as well"
    );
}

/// The installed service, for a moment: a pool in /srv/data with a volume in it.
async fn use_storage(system: &System) {
    let mut service = system.command("berth-storage");
    // In a chroot no mount can be made private.
    service.env("BERTH_STORAGE__PRIVATE_MOUNTS", "false");
    service.args(["--config", "/etc/berth/storage.toml"]);
    let mut service = service.spawn().unwrap();
    let socket = system.at("run/berth/storage.sock");
    wait::until("the storage service", Duration::from_secs(20), || {
        std::os::unix::net::UnixStream::connect(&socket).map_err(|error| error.to_string())
    });
    let channel = berth_rpc::connect(&format!("unix:{}", socket.display())).unwrap();
    let pool = Pool {
        driver: "dir".to_owned(),
        config: [("source".to_owned(), "/srv/data".to_owned())].into(),
        ..Pool::default()
    };
    PoolServiceClient::new(channel.clone())
        .create_pool(CreatePoolRequest {
            pool_id: "theirs".to_owned(),
            pool: Some(pool),
            ..CreatePoolRequest::default()
        })
        .await
        .unwrap();
    VolumeServiceClient::new(channel)
        .create_volume(CreateVolumeRequest {
            parent: "projects/default/storagePools/theirs".to_owned(),
            collection: "custom".to_owned(),
            volume_id: "v1".to_owned(),
            source: Some(Source::Empty(())),
            ..CreateVolumeRequest::default()
        })
        .await
        .unwrap();
    // unshare kills what it started.
    service.kill().unwrap();
    service.wait().unwrap();
    // A socket that nobody serves any more is systemd's to remove, had it made it.
    fs::remove_file(socket).unwrap();
}

/// Ids that are somebody else's are not taken.
fn taken_ids(packages: &BTreeMap<&str, PathBuf>) {
    let system = System::new();
    let names = ["berth-common", "berth-instance"];
    let taken = "someone:1900000000:65536\n";
    let subuid = system.read("etc/subuid");
    fs::write(system.at("etc/subuid"), format!("{subuid}{taken}")).unwrap();

    let said = system.install(packages, &names);
    assert!(
        said.contains("WARNING") && said.contains("/etc/subuid: someone:1900000000:65536"),
        "{said}"
    );
    assert!(
        said.contains("id_base") && said.contains("not started"),
        "{said}"
    );
    assert!(!system.read("etc/subgid").contains("berth-guests"));

    // As it says.
    let config = system.read("etc/berth/instance.toml");
    let config = config.replace("#id_count = 268435456", "id_count = 16777216");
    fs::write(system.at("etc/berth/instance.toml"), config).unwrap();
    let output = run(system.command("dpkg-reconfigure").arg("berth-instance"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    for file in ["etc/subuid", "etc/subgid"] {
        assert!(
            system
                .read(file)
                .contains("berth-guests:1879048192:16777216\n"),
            "{file}"
        );
    }
    system.dpkg("--purge", names.iter().rev());
    assert_eq!(system.read("etc/subuid"), format!("{subuid}{taken}"));
}
