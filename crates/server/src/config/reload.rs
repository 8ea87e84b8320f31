//! A configuration that is read again while the service runs.

use std::path::PathBuf;

use tokio::sync::watch;

use super::keys;
use super::load::load;
use super::{ConfigError, Configuration, ServerConfig};

/// What a reload needs and gives.
pub struct Reload<C> {
    path: Option<PathBuf>,
    current: watch::Sender<C>,
}

impl<C> std::fmt::Debug for Reload<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What a server asks of a [`Reload`] of whatever service.
pub(crate) trait Reloading: Send + Sync {
    /// Reads the file again. What is good and may change at run time is in force afterwards.
    fn reload(&self) -> Result<ServerConfig, ConfigError>;
}

impl<C: Configuration> Reload<C> {
    /// Of a service that started with `config` from `path`.
    pub fn new(path: Option<PathBuf>, config: C) -> Self {
        Self {
            path,
            current: watch::Sender::new(config),
        }
    }

    /// Told of each reload that found something new.
    pub fn subscribe(&self) -> watch::Receiver<C> {
        self.current.subscribe()
    }
}

impl<C: Configuration> Reloading for Reload<C> {
    fn reload(&self) -> Result<ServerConfig, ConfigError> {
        let new = load::<C>(self.path.as_deref())?.config;
        let old = self.current.borrow().clone();
        let (config, waiting, changed) = mixed(&old, &new)?;
        for key in waiting {
            tracing::warn!(
                key,
                "this key was changed and needs a restart to take effect"
            );
        }
        let server = config.server().clone();
        if !changed.is_empty() {
            tracing::info!(?changed, "the configuration was reloaded");
            self.current.send_replace(config);
        }
        Ok(server)
    }
}

/// `old` with what `new` says of keys that may change at run time; the keys that may not and
/// differ, and those that changed.
///
/// # Errors
/// When the outcome can't be written as TOML.
pub fn mixed<C: Configuration>(
    old: &C,
    new: &C,
) -> Result<(C, Vec<String>, Vec<String>), ConfigError> {
    let failed = |e: &dyn std::fmt::Display| ConfigError::Value(format!("reload: {e}"));
    let mut table = toml::Table::try_from(old).map_err(|e| failed(&e))?;
    let new = toml::Table::try_from(new).map_err(|e| failed(&e))?;
    let (mut waiting, mut changed) = (Vec::new(), Vec::new());
    for key in keys::keys::<C>() {
        let value = keys::find(&new, &key.name).cloned();
        if keys::find(&table, &key.name) == value.as_ref() {
            continue;
        }
        // A table that was not there can't come by halves.
        let parent = key.name.rsplit_once('.').map(|(parent, _)| parent);
        let there = parent.is_none_or(|parent| keys::find(&table, parent).is_some());
        if key.reload && there {
            super::load::set(&mut table, &key.name, value);
            changed.push(key.name);
        } else {
            waiting.push(key.name);
        }
    }
    let config = C::deserialize(toml::Value::Table(table)).map_err(|e| failed(&e))?;
    Ok((config, waiting, changed))
}
