//! Applies a preseed: makes what is missing, merges into what is there, and takes everything back
//! when a part of it fails.

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::preseed::{Config, Network, Pool, Preseed, Profile, Project};
use crate::rest::{Read, Server, is_missing, segment};

/// How to take one change back.
enum Undo {
    Delete(String),
    Put(String, Value),
}

/// What an update may overwrite of an object that was read.
#[derive(Deserialize)]
struct Existing {
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    devices: Map<String, Value>,
    #[serde(default)]
    driver: String,
    #[serde(default, rename = "type")]
    kind: String,
}

impl Existing {
    /// The writable part, as it was.
    fn writable(&self, with_devices: bool) -> Value {
        let mut object = json!({"config": self.config, "description": self.description});
        if with_devices {
            object["devices"] = Value::Object(self.devices.clone());
        }
        object
    }

    fn merge(&mut self, config: &Config, description: &str) {
        for (key, value) in config {
            self.config.insert(key.clone(), Value::from(value.clone()));
        }
        if !description.is_empty() {
            description.clone_into(&mut self.description);
        }
    }
}

/// Applies `preseed` whole or not at all.
///
/// # Errors
/// The first refusal; what was done before it has been taken back, or the message says what not.
pub(crate) async fn apply(server: &Server, preseed: &Preseed) -> anyhow::Result<()> {
    if preseed.cluster.is_some() {
        bail!("`cluster` in a preseed is not supported: this server cannot be clustered yet");
    }
    let mut done = Vec::new();
    let Err(error) = run(server, preseed, &mut done).await else {
        return Ok(());
    };
    let mut left = Vec::new();
    for undo in done.into_iter().rev() {
        let (path, result) = match undo {
            Undo::Delete(path) => {
                let result = server.change("DELETE", &path, &json!({}), None).await;
                (path, result)
            }
            Undo::Put(path, old) => {
                let result = server.change("PUT", &path, &old, None).await;
                (path, result)
            }
        };
        if let Err(why) = result {
            left.push(format!("{path} ({why:#})"));
        }
    }
    if left.is_empty() {
        Err(error)
    } else {
        Err(error.context(format!("could not take back {}", left.join(", "))))
    }
}

async fn run(server: &Server, preseed: &Preseed, done: &mut Vec<Undo>) -> anyhow::Result<()> {
    if !preseed.config.is_empty() {
        server_config(server, &preseed.config, done)
            .await
            .context("cannot update the server's configuration")?;
    }
    for pool in &preseed.storage_pools {
        apply_pool(server, pool, done)
            .await
            .with_context(|| format!("storage pool {:?}", pool.name))?;
    }
    for network in &preseed.networks {
        apply_network(server, network, done)
            .await
            .with_context(|| format!("network {:?}", network.name))?;
    }
    for project in &preseed.projects {
        apply_project(server, project, done)
            .await
            .with_context(|| format!("project {:?}", project.name))?;
    }
    for profile in &preseed.profiles {
        apply_profile(server, profile, done)
            .await
            .with_context(|| format!("profile {:?}", profile.name))?;
    }
    Ok(())
}

async fn find(server: &Server, path: &str) -> anyhow::Result<Option<Read<Existing>>> {
    match server.get(path).await {
        Ok(read) => Ok(Some(read)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn server_config(
    server: &Server,
    config: &Config,
    done: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    let mut read: Read<Existing> = server.get("/1.0").await?;
    let old = json!({"config": read.value.config});
    read.value.merge(config, "");
    let new = json!({"config": read.value.config});
    put(server, "/1.0".into(), old, &new, read.etag.as_deref(), done).await
}

async fn apply_pool(server: &Server, pool: &Pool, done: &mut Vec<Undo>) -> anyhow::Result<()> {
    let path = format!("/1.0/storage-pools/{}", segment(&pool.name));
    let Some(mut read) = find(server, &path).await? else {
        let new = json!({"name": pool.name, "driver": pool.driver,
            "description": pool.description, "config": pool.config});
        return post(server, "/1.0/storage-pools", path, &new, done).await;
    };
    if !pool.driver.is_empty() && pool.driver != read.value.driver {
        bail!(
            "it is of type {:?} instead of {:?}",
            read.value.driver,
            pool.driver
        );
    }
    let old = read.value.writable(false);
    read.value.merge(&pool.config, &pool.description);
    let new = read.value.writable(false);
    put(server, path, old, &new, read.etag.as_deref(), done).await
}

async fn apply_network(
    server: &Server,
    network: &Network,
    done: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    let query = project_query(&network.project);
    let path = format!("/1.0/networks/{}{query}", segment(&network.name));
    let Some(mut read) = find(server, &path).await? else {
        let new = json!({"name": network.name, "type": network.kind,
            "description": network.description, "config": network.config});
        let collection = format!("/1.0/networks{query}");
        return post(server, &collection, path, &new, done).await;
    };
    if !network.kind.is_empty() && network.kind != read.value.kind {
        bail!(
            "it is of type {:?} instead of {:?}",
            read.value.kind,
            network.kind
        );
    }
    let old = read.value.writable(false);
    let mut config = network.config.clone();
    // `auto` asks for an address once; what it became is kept.
    config.retain(|key, value| value != "auto" || !read.value.config.contains_key(key));
    read.value.merge(&config, &network.description);
    let new = read.value.writable(false);
    put(server, path, old, &new, read.etag.as_deref(), done).await
}

async fn apply_project(
    server: &Server,
    project: &Project,
    done: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    let path = format!("/1.0/projects/{}", segment(&project.name));
    let Some(mut read) = find(server, &path).await? else {
        let new = json!({"name": project.name, "description": project.description,
            "config": project.config});
        return post(server, "/1.0/projects", path, &new, done).await;
    };
    let old = read.value.writable(false);
    read.value.merge(&project.config, &project.description);
    let new = read.value.writable(false);
    put(server, path, old, &new, read.etag.as_deref(), done).await
}

async fn apply_profile(
    server: &Server,
    profile: &Profile,
    done: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    let path = format!("/1.0/profiles/{}", segment(&profile.name));
    let Some(mut read) = find(server, &path).await? else {
        let new = json!({"name": profile.name, "description": profile.description,
            "config": profile.config, "devices": profile.devices});
        return post(server, "/1.0/profiles", path, &new, done).await;
    };
    let old = read.value.writable(true);
    read.value.merge(&profile.config, &profile.description);
    for (name, options) in &profile.devices {
        let device = read
            .value
            .devices
            .entry(name.clone())
            .or_insert_with(|| json!({}));
        for (key, value) in options {
            device[key] = Value::from(value.clone());
        }
    }
    let new = read.value.writable(true);
    put(server, path, old, &new, read.etag.as_deref(), done).await
}

async fn post(
    server: &Server,
    collection: &str,
    path: String,
    new: &Value,
    done: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    server.change("POST", collection, new, None).await?;
    done.push(Undo::Delete(path));
    Ok(())
}

async fn put(
    server: &Server,
    path: String,
    old: Value,
    new: &Value,
    etag: Option<&str>,
    done: &mut Vec<Undo>,
) -> anyhow::Result<()> {
    // A second run of the same preseed changes nothing and disturbs no guest.
    if &old == new {
        return Ok(());
    }
    server.change("PUT", &path, new, etag).await?;
    done.push(Undo::Put(path, old));
    Ok(())
}

fn project_query(project: &str) -> String {
    if project.is_empty() || project == "default" {
        String::new()
    } else {
        format!("?project={}", segment(project))
    }
}
