//! `berth admin init`.

use std::io::Read as _;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::auto::{self, Present};
use super::preseed::Preseed;
use super::{Init, apply, questions};
use crate::rest::Server;

/// Sets the server up as the flags say.
pub(crate) async fn run(server: &Server, flags: Init) -> anyhow::Result<()> {
    if flags.dump {
        print!("{}", dump(server).await?);
        return Ok(());
    }
    if flags.preseed {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read the preseed from stdin")?;
        return apply::apply(server, &Preseed::parse(&text)?).await;
    }
    let present = Present::read(server).await?;
    if flags.auto || flags.minimal {
        return automatic(server, &flags, &present).await;
    }
    let stdin = std::io::stdin();
    let mut asked = questions::Questions::new(stdin.lock(), std::io::stdout());
    let (preseed, print) = questions::ask(&mut asked, &present)?;
    if print {
        print!("{}", serde_yaml_ng::to_string(&preseed)?);
    }
    apply::apply(server, &preseed).await
}

async fn automatic(server: &Server, flags: &Init, present: &Present) -> anyhow::Result<()> {
    let mut preseed = auto::choose(flags, present)?;
    let Err(error) = apply::apply(server, &preseed).await else {
        return Ok(());
    };
    // Nobody asked for btrfs: where loop devices or its tools are missing, dir does as well.
    let Some(pool) = preseed
        .storage_pools
        .iter_mut()
        .find(|pool| pool.driver == "btrfs")
    else {
        return Err(error);
    };
    if flags.storage_backend.is_some()
        || flags.storage_create_device.is_some()
        || flags.storage_create_loop.is_some()
    {
        return Err(error);
    }
    eprintln!("A btrfs pool cannot be made ({error:#}); making a dir pool instead.");
    pool.driver = "dir".into();
    apply::apply(server, &preseed).await
}

/// The present configuration as a preseed.
async fn dump(server: &Server) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        config: super::preseed::Config,
    }
    let keep = |mut list: Vec<Value>, keys: &[&str]| {
        for item in &mut list {
            if let Some(object) = item.as_object_mut() {
                object.retain(|key, _| keys.contains(&key.as_str()));
            }
        }
        Value::Array(list)
    };
    let get =
        |path: &'static str| async move { anyhow::Ok(server.get::<Vec<Value>>(path).await?.value) };
    let mut networks = get("/1.0/networks?recursion=1").await?;
    networks.retain(|network| network["managed"] == true);
    let preseed = Preseed {
        config: server.get::<Info>("/1.0").await?.value.config,
        networks: serde_json::from_value(keep(
            networks,
            &["name", "type", "description", "config"],
        ))?,
        storage_pools: serde_json::from_value(keep(
            get("/1.0/storage-pools?recursion=1").await?,
            &["name", "driver", "description", "config"],
        ))?,
        profiles: serde_json::from_value(keep(
            get("/1.0/profiles?recursion=1").await?,
            &["name", "description", "config", "devices"],
        ))?,
        projects: serde_json::from_value(keep(
            get("/1.0/projects?recursion=1").await?,
            &["name", "description", "config"],
        ))?,
        cluster: None,
    };
    Ok(serde_yaml_ng::to_string(&preseed)?)
}
