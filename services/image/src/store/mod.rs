//! The database's side: rows of images, aliases and holds. Writes only; reads are served from the
//! [`Catalogue`], which is loaded from here once.

use crate::error::Error;
use crate::model::{
    Alias, AliasName, Blob, Catalogue, Fingerprint, Format, Hold, Image, Kind, Part,
};
use berth_store::{Event, Fetch, Migration, Row, Store, StoreError, Tx, args};
use std::collections::{BTreeMap, BTreeSet};

/// The schema.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "create_images",
    sql: include_str!("migrations/0001_create_images.sql"),
}];

/// The one project until projects arrive.
pub const PROJECT: &str = berth_rpc::names::DEFAULT_PROJECT;

/// A value that the database holds and no release of ours wrote.
fn corrupt(column: &str, expected: &'static str) -> StoreError {
    StoreError::Column {
        column: column.to_owned(),
        expected,
    }
}

/// Reads everything.
pub async fn load(store: &Store) -> Result<Catalogue, StoreError> {
    let mut blobs: BTreeMap<String, Vec<Blob>> = BTreeMap::new();
    for row in store
        .read()
        .fetch_all(
            "SELECT fingerprint, part, digest, size_bytes, media_type FROM image_blobs
             WHERE project = $1 ORDER BY fingerprint, position",
            args![PROJECT],
        )
        .await?
    {
        let blob = blob_from(&row)?;
        blobs
            .entry(row.text("fingerprint")?)
            .or_default()
            .push(blob);
    }
    let mut holds: BTreeMap<String, BTreeMap<String, Hold>> = BTreeMap::new();
    for row in store
        .read()
        .fetch_all(
            "SELECT fingerprint, holder, authority, expires_at FROM image_holds WHERE project = $1",
            args![PROJECT],
        )
        .await?
    {
        let hold = Hold {
            holder: row.text("holder")?,
            authority: row.text("authority")?,
            expires_at: row.opt_i64("expires_at")?,
        };
        holds
            .entry(row.text("fingerprint")?)
            .or_default()
            .insert(hold.holder.clone(), hold);
    }
    let mut catalogue = Catalogue::default();
    for row in store
        .read()
        .fetch_all("SELECT * FROM images WHERE project = $1", args![PROJECT])
        .await?
    {
        let fingerprint = row.text("fingerprint")?;
        let blobs = blobs.remove(&fingerprint).unwrap_or_default();
        let holds = holds.remove(&fingerprint).unwrap_or_default();
        catalogue.put_image(image_from(&row, blobs, holds)?);
    }
    for row in store
        .read()
        .fetch_all(
            "SELECT name, description, fingerprint FROM image_aliases WHERE project = $1",
            args![PROJECT],
        )
        .await?
    {
        let name = AliasName::parse(&row.text("name")?).map_err(|_| corrupt("name", "an alias"))?;
        catalogue.put_alias(
            name,
            row.text("description")?,
            fingerprint(&row, "fingerprint")?,
        );
    }
    Ok(catalogue)
}

fn fingerprint(row: &Row, column: &str) -> Result<Fingerprint, StoreError> {
    Fingerprint::parse(&row.text(column)?).ok_or_else(|| corrupt(column, "a sha256"))
}

fn blob_from(row: &Row) -> Result<Blob, StoreError> {
    Ok(Blob {
        part: Part::parse(&row.text("part")?).ok_or_else(|| corrupt("part", "a part"))?,
        digest: fingerprint(row, "digest")?,
        size: u64::try_from(row.i64("size_bytes")?)
            .map_err(|_| corrupt("size_bytes", "a length"))?,
        format: Format::from_media_type(&row.text("media_type")?)
            .ok_or_else(|| corrupt("media_type", "a format"))?,
    })
}

fn image_from(
    row: &Row,
    blobs: Vec<Blob>,
    holds: BTreeMap<String, Hold>,
) -> Result<Image, StoreError> {
    Ok(Image {
        fingerprint: fingerprint(row, "fingerprint")?,
        kind: Kind::parse(&row.text("kind")?).ok_or_else(|| corrupt("kind", "a kind"))?,
        architecture: row.text("architecture")?,
        filename: row.text("filename")?,
        public: row.bool("public")?,
        auto_update: row.bool("auto_update")?,
        cached: row.bool("cached")?,
        properties: serde_json::from_str(&row.text("properties")?)
            .map_err(|_| corrupt("properties", "a JSON map"))?,
        profiles: serde_json::from_str(&row.text("profiles")?)
            .map_err(|_| corrupt("profiles", "a JSON list"))?,
        blobs,
        created_at: row.i64("created_at")?,
        uploaded_at: row.i64("uploaded_at")?,
        expires_at: row.opt_i64("expires_at")?,
        last_used_at: row.opt_i64("last_used_at")?,
        holds,
    })
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Rpc(berth_rpc::Error::internal(e)))
}

fn bigint(size: u64) -> i64 {
    // Files are shorter than 8 EiB.
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Adds an image and its blobs.
pub async fn insert_image(tx: &mut Tx, image: &Image) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO images (project, fingerprint, kind, architecture, filename, public,
            auto_update, cached, properties, profiles, created_at, uploaded_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        args![
            PROJECT,
            image.fingerprint.as_str(),
            image.kind.as_str(),
            &image.architecture,
            &image.filename,
            image.public,
            image.auto_update,
            image.cached,
            json(&image.properties)?,
            json(&image.profiles)?,
            image.created_at,
            image.uploaded_at,
            image.expires_at
        ],
    )
    .await
    .map_err(|error| match error {
        StoreError::Unique(_) => Error::ImageExists,
        other => Error::Store(other),
    })?;
    for (position, blob) in (0i64..).zip(&image.blobs) {
        tx.execute(
            "INSERT INTO image_blobs
                (project, fingerprint, position, part, digest, size_bytes, media_type)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            args![
                PROJECT,
                image.fingerprint.as_str(),
                position,
                blob.part.as_str(),
                blob.digest.as_str(),
                bigint(blob.size),
                blob.format.media_type()
            ],
        )
        .await?;
        tx.execute(
            "DELETE FROM blob_removals WHERE digest = $1",
            args![blob.digest.as_str()],
        )
        .await?;
    }
    Ok(())
}

/// Writes what a client may change.
pub async fn update_image(tx: &mut Tx, image: &Image) -> Result<(), Error> {
    tx.execute(
        "UPDATE images SET public = $3, auto_update = $4, properties = $5, profiles = $6,
            expires_at = $7 WHERE project = $1 AND fingerprint = $2",
        args![
            PROJECT,
            image.fingerprint.as_str(),
            image.public,
            image.auto_update,
            json(&image.properties)?,
            json(&image.profiles)?,
            image.expires_at
        ],
    )
    .await?;
    Ok(())
}

/// Removes an image with its aliases; `orphans` are blobs that no other image needs.
pub async fn delete_image(
    tx: &mut Tx,
    fingerprint: &Fingerprint,
    orphans: &BTreeSet<Fingerprint>,
) -> Result<(), StoreError> {
    // Expired holds go with it; live ones were refused before.
    for table in ["image_holds", "images"] {
        tx.execute(
            &format!("DELETE FROM {table} WHERE project = $1 AND fingerprint = $2"),
            args![PROJECT, fingerprint.as_str()],
        )
        .await?;
    }
    for digest in orphans {
        tx.execute(
            "INSERT INTO blob_removals (digest) VALUES ($1) ON CONFLICT (digest) DO NOTHING",
            args![digest.as_str()],
        )
        .await?;
    }
    Ok(())
}

/// Adds an alias.
pub async fn insert_alias(tx: &mut Tx, alias: &Alias) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO image_aliases (project, name, description, fingerprint)
         VALUES ($1, $2, $3, $4)",
        args![
            PROJECT,
            alias.name.as_str(),
            &alias.description,
            alias.target.as_str()
        ],
    )
    .await
    .map_err(|error| match error {
        StoreError::Unique(_) => Error::AliasExists(alias.name.to_string()),
        other => Error::Store(other),
    })?;
    Ok(())
}

/// Writes an alias over the one called `old`.
pub async fn update_alias(tx: &mut Tx, old: &AliasName, alias: &Alias) -> Result<(), Error> {
    tx.execute(
        "UPDATE image_aliases SET name = $3, description = $4, fingerprint = $5
         WHERE project = $1 AND name = $2",
        args![
            PROJECT,
            old.as_str(),
            alias.name.as_str(),
            &alias.description,
            alias.target.as_str()
        ],
    )
    .await
    .map_err(|error| match error {
        StoreError::Unique(_) => Error::AliasExists(alias.name.to_string()),
        other => Error::Store(other),
    })?;
    Ok(())
}

/// Removes an alias.
pub async fn delete_alias(tx: &mut Tx, name: &AliasName) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM image_aliases WHERE project = $1 AND name = $2",
        args![PROJECT, name.as_str()],
    )
    .await?;
    Ok(())
}

/// Adds or prolongs a hold.
pub async fn put_hold(
    tx: &mut Tx,
    fingerprint: &Fingerprint,
    hold: &Hold,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO image_holds (project, fingerprint, holder, authority, expires_at)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (project, fingerprint, holder)
         DO UPDATE SET authority = excluded.authority, expires_at = excluded.expires_at",
        args![
            PROJECT,
            fingerprint.as_str(),
            &hold.holder,
            &hold.authority,
            hold.expires_at
        ],
    )
    .await?;
    Ok(())
}

/// Releases a hold.
pub async fn delete_hold(
    tx: &mut Tx,
    fingerprint: &Fingerprint,
    holder: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM image_holds WHERE project = $1 AND fingerprint = $2 AND holder = $3",
        args![PROJECT, fingerprint.as_str(), holder],
    )
    .await?;
    Ok(())
}

/// Writes down when images were last used.
pub async fn record_uses(tx: &mut Tx, uses: &BTreeMap<Fingerprint, i64>) -> Result<(), StoreError> {
    for (fingerprint, at) in uses {
        tx.execute(
            "UPDATE images SET last_used_at = $3 WHERE project = $1 AND fingerprint = $2
                AND (last_used_at IS NULL OR last_used_at < $3)",
            args![PROJECT, fingerprint.as_str(), *at],
        )
        .await?;
    }
    Ok(())
}

/// Blobs whose images are gone by our own doing.
pub async fn removals(store: &Store) -> Result<BTreeSet<Fingerprint>, StoreError> {
    store
        .read()
        .fetch_all("SELECT digest FROM blob_removals", args![])
        .await?
        .iter()
        .map(|row| fingerprint(row, "digest"))
        .collect()
}

/// Forgets removals that are done.
pub async fn forget_removals(
    tx: &mut Tx,
    digests: &BTreeSet<Fingerprint>,
) -> Result<(), StoreError> {
    for digest in digests {
        tx.execute(
            "DELETE FROM blob_removals WHERE digest = $1",
            args![digest.as_str()],
        )
        .await?;
    }
    Ok(())
}

/// An event of the default project.
pub fn event(
    action: &str,
    resource: String,
    attributes: impl IntoIterator<Item = (&'static str, String)>,
    traceparent: &str,
) -> Event {
    Event {
        action: action.to_owned(),
        resource,
        project: PROJECT.to_owned(),
        generation: 0,
        attributes: attributes
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        traceparent: traceparent.to_owned(),
    }
}
