//! A PostgreSQL server for the duration of a test run, from Debian's package.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

/// Ends, and its data goes, when dropped.
pub(crate) struct Postgres {
    server: Child,
    port: u16,
    _home: TempDir,
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Postgres {
    pub(crate) fn start() -> Result<Self> {
        let programs = programs()?;
        // It refuses to run as root.
        let user = User::from_name("postgres")?.context("no user postgres")?;
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        let home = TempDir::with_prefix("berth-postgres-")?;
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711))?;
        let data = home.path().join("data");
        fs::create_dir(&data)?;
        chown(&data, Some(uid), Some(gid))?;
        let as_user = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command
                .uid(uid)
                .gid(gid)
                .current_dir("/")
                .stdin(Stdio::null());
            command
        };
        let made = as_user("initdb")
            .args([
                "--auth=trust",
                "--username=berth",
                "--encoding=UTF8",
                "--no-sync",
                "-D",
            ])
            .arg(&data)
            .output()?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        // Free now; should somebody take it in between, the server says so and the run stops.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = fs::File::create(home.path().join("log"))?;
        let server = as_user("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""])
            .args(["-c", "fsync=off", "-c", "max_connections=400"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut started = Self {
            server,
            port,
            _home: home,
        };
        started.wait(&programs)?;
        Ok(started)
    }

    fn wait(&mut self, programs: &Path) -> Result<()> {
        let begun = Instant::now();
        let port = self.port.to_string();
        loop {
            let created = Command::new(programs.join("createdb"))
                .args(["-h", "127.0.0.1", "-p", &port, "-U", "berth", "berth"])
                .stdin(Stdio::null())
                .output()?;
            if created.status.success() {
                return Ok(());
            }
            if self.server.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                bail!("PostgreSQL: {}", String::from_utf8_lossy(&created.stderr));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://berth:berth@127.0.0.1:{}/berth", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // "Immediate shutdown": the data goes with it.
        let pid = Pid::from_raw(self.server.id().cast_signed());
        if let Err(error) = kill(pid, Signal::SIGQUIT) {
            eprintln!("PostgreSQL: {error}");
        }
        if let Err(error) = self.server.wait() {
            eprintln!("PostgreSQL: {error}");
        }
    }
}

/// Debian keeps the servers' programs apart by version; the newest is taken.
fn programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL (package postgresql)")?
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    Ok(versions
        .pop()
        .context("no PostgreSQL (package postgresql)")?
        .1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_while_it_is_wanted_and_goes_with_its_data() {
        let server = Postgres::start().unwrap();
        let (port, data) = (server.port, server._home.path().to_owned());
        assert!(server.url().contains(&port.to_string()));
        let query = Command::new(programs().unwrap().join("psql"))
            .args(["-tAc", "select current_user", &server.url()])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&query.stdout).trim(), "berth");
        drop(server);
        assert!(!data.exists());
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
