//! `CreatePool`.

use std::sync::Arc;

use berth_rpc::Error;
use berth_server::failpoint;
use berth_store::StoreError;

use super::locks::{self, Want};
use super::{App, Ask, OpenPool, PoolView, blocking, event, reconcile};
use crate::driver::{self, Driver, SourceKind};
use crate::model::{config, config::Config, names, size};
use crate::store::{PoolRow, PoolState, failed};

/// A pool to be made.
pub struct NewPool {
    /// Name.
    pub name: String,
    /// User's text.
    pub description: String,
    /// Backend.
    pub driver: String,
    /// Configuration as the user gave it.
    pub config: Config,
    /// Check only.
    pub validate_only: bool,
}

/// Makes a pool. On failure nothing is left.
pub async fn create_pool(
    app: &Arc<App>,
    new: NewPool,
    ask: Ask<PoolView>,
) -> Result<PoolView, Error> {
    names::pool("pool_id", &new.name)?;
    if !driver::DRIVERS.contains(&new.driver.as_str()) {
        return Err(driver::unsupported(&new.driver).into());
    }
    let mut given = new.config;
    given.retain(|_, value| !value.is_empty());
    config::check_pool(&new.driver, &given)?;
    if given.contains_key("volatile.initial_source") {
        return Err(Error::invalid(
            "config.volatile.initial_source",
            "volatile.initial_source is written by the service",
        ));
    }
    let _held = app
        .locks
        .take([(locks::pool(&new.name), Want::Write)])
        .await;
    if app.pool(&new.name).is_ok() {
        return Err(Error::already_exists("Storage pool", &new.name));
    }
    reconcile::finish_interrupted(app, &new.name).await?;
    let mut row = plan(app, &new.name, &new.description, &new.driver, given).await?;
    if new.validate_only {
        let driver = Err("it was not made: validate_only".to_owned());
        let pool = Arc::new(OpenPool { row, driver });
        return Ok(PoolView {
            pool,
            used_by: Vec::new(),
        });
    }
    // Written down first: what a crash leaves from here on is known by its row, and removed.
    let mut tx = app.begin().await?;
    row.insert(&mut tx).await.map_err(|error| match error {
        StoreError::Unique(_) => Error::already_exists("Storage pool", &row.name),
        other => failed(other),
    })?;
    tx.commit().await.map_err(failed)?;
    let made = make(app, &mut row, ask).await;
    let opened = match made {
        Ok(opened) => opened,
        Err(error) => {
            reconcile::finish_removal(app, &row).await;
            return Err(error);
        }
    };
    let pool = app.put_pool(OpenPool {
        row,
        driver: Ok(opened),
    });
    Ok(PoolView {
        pool,
        used_by: Vec::new(),
    })
}

/// Makes the storage and commits the pool. On failure the row still says that it is being made.
async fn make(app: &App, row: &mut PoolRow, ask: Ask<PoolView>) -> Result<Arc<dyn Driver>, Error> {
    failpoint::pass("storage.create_pool.recorded").await?;
    let mut setup = row.setup();
    let (opened, setup) = blocking(move || {
        let driver = driver::make(&mut setup)?;
        Ok((driver, setup))
    })
    .await?;
    failpoint::pass("storage.create_pool.made").await?;
    let done = PoolRow {
        fs_uuid: setup.fs_uuid,
        state: PoolState::Created,
        ..row.clone()
    };
    let view = PoolView {
        pool: Arc::new(OpenPool {
            row: done.clone(),
            driver: Ok(opened.clone()),
        }),
        used_by: Vec::new(),
    };
    let mut tx = app.begin().await?;
    done.update(&mut tx).await.map_err(failed)?;
    tx.emit(event("storage-pool-created", done.resource(), ""))
        .await
        .map_err(failed)?;
    let answer = (ask.render)(&view);
    tx.finish_request(&ask.request_id, answer)
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    *row = done;
    Ok(opened)
}

async fn plan(
    app: &App,
    name: &str,
    description: &str,
    driver: &str,
    given: Config,
) -> Result<PoolRow, Error> {
    let uid = uuid::Uuid::new_v4().to_string();
    let options = given.get("btrfs.mount_options").map_or("", String::as_str);
    let options = config::mount_options(options)?;
    let size = given.get("size").and_then(|s| size::parse(s));
    let (state_dir, id, source) = (
        app.state_dir.clone(),
        uid.clone(),
        given.get("source").cloned(),
    );
    let (pool, kind) = (name.to_owned(), driver.to_owned());
    let setup = blocking(move || {
        driver::plan(
            &state_dir,
            &id,
            &pool,
            &kind,
            source.as_deref(),
            size,
            options,
        )
    })
    .await?;
    let mut config = given;
    if let Some(source) = config.get("source").cloned() {
        config.insert("volatile.initial_source".to_owned(), source);
    }
    config.insert("source".to_owned(), setup.source.display().to_string());
    if setup.kind == SourceKind::Loop {
        config
            .entry("size".to_owned())
            .or_insert_with(|| size::format(setup.size));
    }
    Ok(PoolRow {
        uid,
        node: app.node.clone(),
        name: name.to_owned(),
        description: description.to_owned(),
        driver: driver.to_owned(),
        config,
        state: PoolState::Creating,
        source: setup.source,
        source_kind: setup.kind,
        size_bytes: setup.size,
        fs_uuid: setup.fs_uuid,
        created_at: berth_store::now(),
    })
}
