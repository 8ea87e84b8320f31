//! The server a scenario runs against, and what happens to it afterwards.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xtask::image;
use xtask::sandbox::{DownOptions, Sandbox, UpOptions, down, paths, up};

use crate::{Image, Lxc, Rest};

/// A running server: a sandbox of this scenario's own, or the one `BERTH_E2E_SOCKET` names.
pub struct Server {
    socket: PathBuf,
    sandbox: Option<Owned>,
}

struct Owned {
    sandbox: Sandbox,
    directory: TempDir,
}

impl Server {
    /// For scenarios that only speak LXD's API.
    pub fn any() -> Self {
        match std::env::var_os("BERTH_E2E_SOCKET") {
            None => Self::sandbox(),
            Some(socket) => {
                let socket = PathBuf::from(socket);
                let rest = Rest::new(&socket);
                let mut client = xtask::rest::Client::new(&socket);
                rest.runtime()
                    .block_on(xtask::setup::ensure(&mut client))
                    .unwrap();
                Self {
                    socket,
                    sandbox: None,
                }
            }
        }
    }

    /// For scenarios that look behind the API.
    pub fn sandbox() -> Self {
        Self::sandbox_with(UpOptions::default())
    }

    pub fn sandbox_with(options: UpOptions) -> Self {
        sweep();
        let directory = TempDir::with_prefix(PREFIX).unwrap();
        std::fs::write(directory.path().join(OWNER), std::process::id().to_string()).unwrap();
        open_to_others(directory.path());
        let state = directory.path().join("s");
        let bin_dir = options.bin_dir.clone().or_else(built);
        let options = UpOptions {
            isolated: true,
            bin_dir,
            ..options
        };
        let sandbox = match up(&state, &options) {
            Ok(sandbox) => sandbox,
            Err(error) => {
                keep_logs(&state);
                panic!("no sandbox: {error:#}")
            }
        };
        let owned = Owned { sandbox, directory };
        Self {
            socket: owned.sandbox.socket(),
            sandbox: Some(owned),
        }
    }

    /// Whether this is Berth in a sandbox rather than the server under comparison.
    pub fn is_own(&self) -> bool {
        self.sandbox.is_some()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The sandbox; panics against another server, where such a scenario has no business.
    #[track_caller]
    pub fn own(&self) -> &Sandbox {
        &self
            .sandbox
            .as_ref()
            .expect("this scenario needs a sandbox of its own")
            .sandbox
    }

    pub fn rest(&self) -> Rest {
        Rest::new(&self.socket)
    }

    pub fn lxc(&self) -> Lxc {
        Lxc::new(&self.socket)
    }

    /// Imports an image under an alias of its name, if the server has it not yet.
    #[track_caller]
    pub fn import(&self, kind: Image) -> String {
        let mut client = xtask::rest::Client::new(&self.socket);
        let file = image_file(kind);
        let (alias, rest) = (kind.to_string(), self.rest());
        rest.runtime().block_on(async {
            let fingerprint = client.upload_image(&file).await.unwrap();
            let path = format!("/1.0/images/aliases/{alias}");
            if client.find(&path).await.unwrap().is_none() {
                let body = serde_json::json!({"name": alias, "target": fingerprint});
                let post = http::Method::POST;
                client
                    .change(post, "/1.0/images/aliases", Some(body))
                    .await
                    .unwrap();
            }
            fingerprint
        })
    }

    /// Takes the sandbox down now, so that a scenario can look at what is left.
    pub fn down(mut self) {
        if let Some(owned) = self.sandbox.take() {
            down(owned.sandbox.state(), &DownOptions::default()).unwrap();
            owned.directory.close().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(owned) = self.sandbox.take() else {
            return;
        };
        let state = owned.sandbox.state().to_owned();
        if std::thread::panicking() {
            keep_logs(&state);
        }
        if let Err(error) = down(&state, &DownOptions::default()) {
            // The directory must survive what could not be removed from it.
            let kept = owned.directory.keep();
            let problem = format!("{} could not be taken down: {error:#}", kept.display());
            if std::thread::panicking() {
                eprintln!("{problem}");
            } else {
                panic!("{problem}");
            }
        }
    }
}

const PREFIX: &str = "berth-e2e-";
/// Who uses a sandbox, beside its state.
const OWNER: &str = "owner";

/// Takes down what scenarios left that were killed, by a time limit or by hand.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // One without an owner is just being made, by another scenario.
        let Ok(owner) = std::fs::read_to_string(entry.path().join(OWNER)) else {
            continue;
        };
        if std::path::Path::new("/proc").join(owner.trim()).exists() {
            continue;
        }
        let gone = down(&entry.path().join("s"), &DownOptions::default());
        match gone {
            Ok(()) => drop(std::fs::remove_dir_all(entry.path())),
            Err(error) => eprintln!("{} stays: {error:#}", entry.path().display()),
        }
    }
}

/// The file of an image made from this machine's packages.
pub fn image_file(kind: Image) -> PathBuf {
    image::cached(kind, &paths::cache()).unwrap()
}

/// Services without root must pass through it.
pub fn open_to_others(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711)).unwrap();
}

/// The directory with the binaries under test.
pub fn binaries() -> PathBuf {
    built().unwrap_or_else(|| paths::build(false).unwrap())
}

/// Binaries that were built with these tests; `None` makes `up` build them.
fn built() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("BERTH_BIN_DIR") {
        return Some(PathBuf::from(directory));
    }
    None
}

/// A failed scenario's logs, where whoever reads the failure finds them.
fn keep_logs(state: &Path) {
    let name = std::thread::current()
        .name()
        .unwrap_or("main")
        .replace("::", "-");
    let kept = paths::target().join("e2e-logs").join(name);
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(state.join("log"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), kept.join(entry.file_name()))?;
        }
        Ok(())
    };
    match copy() {
        Ok(()) => eprintln!("logs are in {}", kept.display()),
        Err(error) => eprintln!("no logs kept: {error}"),
    }
}
