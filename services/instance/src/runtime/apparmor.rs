//! Compiles guests' AppArmor profiles and puts them into the kernel.
//!
//! The parser is a program, and takes its time (50 ms and more): it runs when a text is new, which for guests without
//! `raw.apparmor` is once for each of the four kinds. A start only hands the kernel the compiled profile with the
//! guest's name in it, which is one write.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::Error;
use crate::model::apparmor::{ANY_UID, Guest, name, profile, uid_of};

const PARSER: &str = "apparmor_parser";
const PARAMETER: &str = "/sys/module/apparmor/parameters/enabled";
const CONTROL: &str = "/sys/kernel/security/apparmor";
/// Longest that the parser may take. Globs of `raw.apparmor` can be made to explode.
const PATIENCE: Duration = Duration::from_secs(30);
/// Compiled profiles that are kept, in memory and on disk.
const KEPT: usize = 64;

/// Whether guests are confined, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// They are.
    On,
    /// The kernel has no AppArmor, or it was switched off at boot.
    Absent,
    /// The configuration says `apparmor = "off"`.
    Off,
    /// It has, and it cannot be used; no guest starts until the sentence is dealt with.
    Unusable(String),
}

impl State {
    /// One word, for metrics and for the server's description.
    pub fn word(&self) -> &'static str {
        match self {
            State::On => "on",
            State::Absent => "absent",
            State::Off => "off",
            State::Unusable(_) => "unusable",
        }
    }

    /// Looks at the host.
    pub fn of_host(wanted: bool) -> State {
        let enabled = std::fs::read_to_string(PARAMETER).is_ok_and(|text| text.trim() == "Y");
        if !enabled {
            return State::Absent;
        }
        if !wanted {
            return State::Off;
        }
        if !Path::new(CONTROL).join(".replace").exists() {
            let why =
                format!("the kernel has AppArmor, and {CONTROL} is not there: mount securityfs");
            return State::Unusable(why);
        }
        match find_parser() {
            Some(_) => State::On,
            None => State::Unusable(format!(
                "the kernel has AppArmor, and the program {PARSER} (package apparmor) is not installed"
            )),
        }
    }
}

fn find_parser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.find_map(|dir| Some(dir.join(PARSER)).filter(|file| file.is_file()))
}

type Compiled = Arc<Vec<u8>>;

/// See the module.
#[derive(Debug)]
pub struct AppArmor {
    state: State,
    dir: PathBuf,
    /// Compiled profiles in the order of their last use.
    compiled: Mutex<Vec<(String, Compiled)>>,
    /// What the kernel has of each guest, as this process put it there.
    loaded: Mutex<HashMap<String, String>>,
    /// One parser at a time: it takes a processor and tens of megabytes.
    parsing: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AppArmor {
    /// `dir` keeps compiled profiles over a restart.
    pub fn new(state: State, dir: PathBuf) -> AppArmor {
        match &state {
            State::Unusable(why) => tracing::error!("no guest can start: {why}"),
            State::Off => tracing::warn!("guests are not confined by AppArmor: apparmor = \"off\""),
            State::Absent => tracing::info!("the kernel has no AppArmor"),
            State::On => {}
        }
        AppArmor {
            state,
            dir,
            compiled: Mutex::default(),
            loaded: Mutex::default(),
            parsing: tokio::sync::Mutex::default(),
        }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the parser takes `raw.apparmor`. Where neither the kernel nor the host has AppArmor it is kept unread.
    pub async fn check(&self, guest: &Guest) -> Result<(), Error> {
        if guest.raw.trim().is_empty() {
            return Ok(());
        }
        if let State::Unusable(why) = &self.state {
            return Err(Error::precondition("APPARMOR", why.clone()));
        }
        if self.state != State::On && find_parser().is_none() {
            return Ok(());
        }
        self.parse(&profile(&name(ANY_UID), guest)).await.map(drop)
    }

    /// Puts the guest's profile into the kernel unless it is there; its name, when guests are confined.
    pub async fn load(&self, uid: &str, guest: &Guest) -> Result<Option<String>, Error> {
        match &self.state {
            State::Absent | State::Off => return Ok(None),
            State::Unusable(why) => return Err(Error::precondition("APPARMOR", why.clone())),
            State::On => {}
        }
        let name = name(uid);
        // A text of our own does not say whose it is but in its name; a user's may.
        let written_for = if guest.raw.trim().is_empty() {
            ANY_UID
        } else {
            uid
        };
        let text = profile(&crate::model::apparmor::name(written_for), guest);
        let key = key(&text);
        if lock(&self.loaded).get(uid) == Some(&key) {
            return Ok(Some(name));
        }
        let compiled = self.compiled(&key, &text).await?;
        let mine = rename(&compiled, written_for, uid);
        let written = tokio::task::spawn_blocking(move || control(".replace", &mine));
        written
            .await
            .map_err(Error::internal)?
            .map_err(|e| Error::internal(format!("loading the AppArmor profile {name}: {e}")))?;
        lock(&self.loaded).insert(uid.to_owned(), key);
        Ok(Some(name))
    }

    /// Takes the profile of a guest that is gone out of the kernel.
    pub async fn unload(&self, uid: &str) {
        if self.state != State::On {
            return;
        }
        lock(&self.loaded).remove(uid);
        let name = name(uid);
        let removed = tokio::task::spawn_blocking({
            let name = name.clone();
            move || control(".remove", name.as_bytes())
        });
        match removed.await.map_err(io::Error::other).flatten() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(name, %error, "an AppArmor profile stays loaded");
            }
            _ => {}
        }
    }

    /// Uids of guests whose profile the kernel has.
    pub async fn loaded(&self) -> io::Result<Vec<String>> {
        if self.state != State::On {
            return Ok(Vec::new());
        }
        let read = tokio::task::spawn_blocking(|| {
            std::fs::read_to_string(Path::new(CONTROL).join("profiles"))
        });
        let text = read.await.map_err(io::Error::other)??;
        Ok(guests_in(&text))
    }

    async fn compiled(&self, key: &str, text: &str) -> Result<Compiled, Error> {
        if let Some(found) = self.take(key) {
            return Ok(found);
        }
        let _one = self.parsing.lock().await;
        if let Some(found) = self.take(key) {
            return Ok(found);
        }
        let path = self.dir.join(key);
        let bytes = match tokio::fs::read(&path).await {
            Ok(bytes) => bytes,
            Err(_) => {
                let bytes = self.run_parser(text).await?;
                if let Err(error) = self.keep(&path, &bytes) {
                    // Compiled again after the next start of the service.
                    tracing::warn!(path = %path.display(), %error, "a compiled profile is not kept");
                }
                bytes
            }
        };
        let bytes = Arc::new(bytes);
        let mut all = lock(&self.compiled);
        all.push((key.to_owned(), bytes.clone()));
        if all.len() > KEPT {
            all.remove(0);
        }
        Ok(bytes)
    }

    fn take(&self, key: &str) -> Option<Compiled> {
        let mut all = lock(&self.compiled);
        let at = all.iter().position(|(known, _)| known == key)?;
        let found = all.remove(at);
        let bytes = found.1.clone();
        all.push(found);
        Some(bytes)
    }

    /// Writes a compiled profile for the next run of the service, and removes the oldest beyond what is kept.
    fn keep(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let mut kept: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(&self.dir)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.metadata()?.modified()?, entry.path()))
            })
            .collect::<io::Result<_>>()?;
        kept.sort();
        let surplus = (kept.len() + 1).saturating_sub(KEPT);
        for (_, old) in kept.iter().take(surplus) {
            std::fs::remove_file(old)?;
        }
        // What is read back goes into the kernel: whole or not at all.
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, bytes)?;
        std::fs::rename(&temporary, path)
    }

    async fn parse(&self, text: &str) -> Result<Vec<u8>, Error> {
        let _one = self.parsing.lock().await;
        self.run_parser(text).await
    }

    async fn run_parser(&self, text: &str) -> Result<Vec<u8>, Error> {
        let parser = find_parser()
            .ok_or_else(|| Error::precondition("APPARMOR", format!("{PARSER} is not installed")))?;
        let mut command = tokio::process::Command::new(parser);
        command
            .args(["--skip-kernel-load", "--skip-cache", "--quiet", "--stdout"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let run = async {
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take();
            let text = text.as_bytes().to_vec();
            let feed = tokio::spawn(async move {
                if let Some(stdin) = &mut stdin {
                    // One that stops reading has found a fault, which it tells of.
                    let _ = stdin.write_all(&text).await;
                }
            });
            let output = child.wait_with_output().await;
            feed.abort();
            output
        };
        let output = match tokio::time::timeout(PATIENCE, run).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(Error::internal(format!("running {PARSER}: {error}"))),
            Err(_) => return Err(refused("it takes too long to compile")),
        };
        if !output.status.success() {
            return Err(refused(&fault(&String::from_utf8_lossy(&output.stderr))));
        }
        Ok(output.stdout)
    }
}

/// The rest of a text is ours, and tested: what the parser refuses is the user's part.
fn refused(why: &str) -> Error {
    Error::invalid(
        "config.raw.apparmor",
        format!("Invalid config option \"raw.apparmor\": {why}"),
    )
}

/// What the parser says is wrong, without what it warns of.
fn fault(stderr: &str) -> String {
    let mut lines = stderr.lines().map(str::trim);
    let told = lines.rfind(|line| line.contains("error"));
    told.unwrap_or("AppArmor refuses it")
        .chars()
        .take(300)
        .collect()
}

/// A compiled profile fits a text, a kernel's features and what the parser made of them.
fn key(text: &str) -> String {
    let mut hash = Sha256::new();
    let uname = rustix::system::uname();
    for part in [
        uname.release().to_bytes(),
        uname.version().to_bytes(),
        text.as_bytes(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The compiled profile under another guest's name. All names have one length, so no length in the format changes;
/// the tables that paths and labels compile to hold no names as text.
fn rename(compiled: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (name(from), name(to));
    let mut out = compiled.to_vec();
    let mut at = 0;
    while let Some(found) = out[at..]
        .windows(from.len())
        .position(|part| part == from.as_bytes())
    {
        at += found;
        out[at..at + from.len()].copy_from_slice(to.as_bytes());
        at += from.len();
    }
    out
}

/// One whole write: the kernel takes no other.
fn control(file: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(Path::new(CONTROL).join(file))?;
    match file.write(bytes)? {
        n if n == bytes.len() => Ok(()),
        n => Err(io::Error::other(format!(
            "the kernel took {n} bytes of {}",
            bytes.len()
        ))),
    }
}

/// Guests among lines like `berth-<uid> (enforce)`; what they defined inside of theirs goes with it.
fn guests_in(profiles: &str) -> Vec<String> {
    let names = profiles
        .lines()
        .filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name));
    names.filter_map(uid_of).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0190a0a0-1111-7222-8333-444455556666";

    fn here(dir: &Path) -> AppArmor {
        AppArmor::new(State::Absent, dir.to_owned())
    }

    #[tokio::test]
    async fn a_profile_is_compiled_once_and_kept_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let text = profile(&name(ANY_UID), &Guest::default());
        let key = key(&text);
        let first = here(dir.path());
        let compiled = first.compiled(&key, &text).await.unwrap();
        assert!(Arc::ptr_eq(
            &compiled,
            &first.compiled(&key, &text).await.unwrap()
        ));
        let file = dir.path().join(&key);
        assert_eq!(std::fs::read(&file).unwrap(), *compiled);
        std::fs::write(&file, "kept").unwrap();
        let second = here(dir.path());
        assert_eq!(*second.compiled(&key, &text).await.unwrap(), b"kept");
    }

    #[tokio::test]
    async fn a_renamed_profile_is_the_one_that_the_parser_makes_of_that_name() {
        let dir = tempfile::tempdir().unwrap();
        let apparmor = here(dir.path());
        for privileged in [false, true] {
            let guest = Guest {
                privileged,
                ..Guest::default()
            };
            let any = apparmor
                .parse(&profile(&name(ANY_UID), &guest))
                .await
                .unwrap();
            let own = apparmor.parse(&profile(&name(UID), &guest)).await.unwrap();
            assert_ne!(any, own);
            assert_eq!(rename(&any, ANY_UID, UID), own);
        }
    }

    #[tokio::test]
    async fn what_the_parser_refuses_names_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let apparmor = here(dir.path());
        let raw = |raw: &str| Guest {
            raw: raw.to_owned(),
            ..Guest::default()
        };
        apparmor.check(&raw("/srv/** r,")).await.unwrap();
        let error = apparmor.check(&raw("/srv/** r")).await.unwrap_err();
        assert!(error.message.contains("raw.apparmor"), "{}", error.message);
        assert!(error.message.contains("syntax error"), "{}", error.message);
    }

    #[tokio::test]
    async fn without_its_means_nothing_is_loaded_and_nothing_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            here(dir.path()).load(UID, &Guest::default()).await.unwrap(),
            None
        );
        let state = State::Unusable("the parser is not installed".into());
        let broken = AppArmor::new(state, dir.path().to_owned());
        let error = broken.load(UID, &Guest::default()).await.unwrap_err();
        assert!(error.message.contains("not installed"));
    }

    #[test]
    fn guests_are_told_from_others() {
        let text = format!(
            "berth-{UID} (enforce)\nberth-{UID}//x (enforce)\nberth-image (enforce)\nman_filter (complain)\n"
        );
        assert_eq!(guests_in(&text), [UID]);
    }

    #[tokio::test]
    async fn the_oldest_kept_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let apparmor = here(dir.path());
        for n in 0..KEPT + 3 {
            apparmor
                .keep(&dir.path().join(n.to_string()), b"x")
                .unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), KEPT);
    }
}
