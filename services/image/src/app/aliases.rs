use super::{App, Call, alias_name};
use crate::error::Error;
use crate::model::{Alias, AliasName, Kind, Prefix};
use crate::store;
use std::sync::Arc;

/// What an update changes; `None` stays.
#[derive(Debug, Default)]
pub struct AliasChange {
    /// Free text.
    pub description: Option<String>,
    /// Another image.
    pub target: Option<Prefix>,
}

/// Adds an alias for the one image that `target` fits. A `kind` must be the image's.
pub async fn create_alias(
    app: &Arc<App>,
    call: Call<Alias>,
    name: AliasName,
    description: String,
    target: &Prefix,
    kind: Option<Kind>,
) -> Result<Alias, Error> {
    let _writing = app.writing.lock().await;
    if app.catalogue().alias(&name).is_some() {
        return Err(Error::AliasExists(name.to_string()));
    }
    let image = super::get_image(app, target)?.image;
    if kind.is_some_and(|kind| kind != image.kind) {
        return Err(Error::invalid(
            "alias.type",
            format!(
                "image {} is of type {}",
                image.fingerprint,
                image.kind.as_str()
            ),
        ));
    }
    let alias = Alias {
        name,
        description,
        target: image.fingerprint.clone(),
        kind: image.kind,
    };
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::insert_alias(&mut tx, &alias).await?;
        tx.emit(event("image-alias-created", &alias, &call.traceparent))
            .await?;
        call.commit(tx, &alias).await
    };
    finish(app, outcome.await, None, alias).await
}

/// Changes an alias. An `etag` that is not empty must be the current one.
pub async fn update_alias(
    app: &Arc<App>,
    call: Call<Alias>,
    name: &AliasName,
    etag: &str,
    change: AliasChange,
) -> Result<Alias, Error> {
    let _writing = app.writing.lock().await;
    let mut alias = find(app, name)?;
    if !etag.is_empty() && etag != alias.etag() {
        return Err(Error::Rpc(berth_rpc::Error::etag_mismatch(alias_name(
            name,
        ))));
    }
    if let Some(description) = change.description {
        alias.description = description;
    }
    if let Some(target) = &change.target {
        let image = super::get_image(app, target)?.image;
        alias.target = image.fingerprint.clone();
        alias.kind = image.kind;
    }
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::update_alias(&mut tx, name, &alias).await?;
        tx.emit(event("image-alias-updated", &alias, &call.traceparent))
            .await?;
        call.commit(tx, &alias).await
    };
    finish(app, outcome.await, None, alias).await
}

/// Gives an alias another name.
pub async fn rename_alias(
    app: &Arc<App>,
    call: Call<Alias>,
    old: &AliasName,
    new: AliasName,
) -> Result<Alias, Error> {
    let _writing = app.writing.lock().await;
    let mut alias = find(app, old)?;
    if new != *old && app.catalogue().alias(&new).is_some() {
        return Err(Error::AliasExists(new.to_string()));
    }
    alias.name = new;
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::update_alias(&mut tx, old, &alias).await?;
        let mut renamed = event("image-alias-renamed", &alias, &call.traceparent);
        renamed
            .attributes
            .insert("old_name".to_owned(), old.to_string());
        tx.emit(renamed).await?;
        call.commit(tx, &alias).await
    };
    finish(app, outcome.await, Some(old), alias).await
}

/// Removes an alias; its image stays.
pub async fn delete_alias(app: &Arc<App>, call: Call<()>, name: &AliasName) -> Result<(), Error> {
    let _writing = app.writing.lock().await;
    let alias = find(app, name)?;
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::delete_alias(&mut tx, name).await?;
        tx.emit(event("image-alias-deleted", &alias, &call.traceparent))
            .await?;
        call.commit(tx, &()).await
    };
    let outcome = outcome.await;
    app.settled(outcome).await?;
    app.change(|catalogue| catalogue.remove_alias(name));
    Ok(())
}

fn find(app: &App, name: &AliasName) -> Result<Alias, Error> {
    app.catalogue()
        .alias(name)
        .ok_or_else(|| Error::NoAlias(name.to_string()))
}

fn event(action: &str, alias: &Alias, traceparent: &str) -> berth_store::Event {
    let attributes = [("target", alias.target.to_string())];
    store::event(action, alias_name(&alias.name), attributes, traceparent)
}

async fn finish(
    app: &App,
    outcome: Result<(), Error>,
    old: Option<&AliasName>,
    alias: Alias,
) -> Result<Alias, Error> {
    app.settled(outcome).await?;
    app.change(|catalogue| {
        if let Some(old) = old {
            catalogue.remove_alias(old);
        }
        catalogue.put_alias(
            alias.name.clone(),
            alias.description.clone(),
            alias.target.clone(),
        );
    });
    Ok(alias)
}
