use super::receive_upload::{Received, UploadChunk, receive};
use super::{App, Call, ImageView, alias_name, blocking, image_name, now};
use crate::archive::{self, Inspected};
use crate::error::Error;
use crate::model::{Alias, AliasName, Blob, Catalogue, Fingerprint, Image};
use crate::store;
use berth_server::failpoint;
use futures::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An alias to make with the image.
#[derive(Debug, Clone)]
pub struct NewAlias {
    /// Its text.
    pub name: AliasName,
    /// Free text.
    pub description: String,
}

/// What comes before the bytes.
#[derive(Debug, Clone, Default)]
pub struct ImportHeader {
    /// Visible to untrusted clients.
    pub public: bool,
    /// Follows its source.
    pub auto_update: bool,
    /// As uploaded.
    pub filename: String,
    /// Over those of metadata.yaml.
    pub properties: BTreeMap<String, String>,
    /// For instances that name none.
    pub profiles: Vec<String>,
    /// Made with the image or not at all.
    pub aliases: Vec<NewAlias>,
    /// Another one is refused.
    pub expected: Option<Fingerprint>,
    /// Metadata and rootfs come apart.
    pub split: bool,
    /// Over that of metadata.yaml.
    pub expires_at: Option<i64>,
}

/// Takes an image: to the disk, looked at, then into the catalogue with its aliases. Until the
/// last step nothing of it shows, and whatever fails leaves nothing behind.
pub async fn import_image(
    app: &Arc<App>,
    call: Call<ImageView>,
    header: ImportHeader,
    chunks: impl Stream<Item = Result<UploadChunk, Error>>,
) -> Result<ImageView, Error> {
    // What is known to fail should fail before gigabytes are sent.
    refuse_taken(&app.catalogue(), header.expected.as_ref(), &header)?;
    let received = receive(app, header.split, chunks).await?;
    failpoint::pass("image.import.received").await?;
    if let Some(expected) = &header.expected
        && *expected != received.fingerprint
    {
        return Err(Error::invalid(
            "header.expected_fingerprint",
            format!("the bytes have fingerprint {}", received.fingerprint),
        ));
    }
    let (received, inspected) = inspect(received).await?;
    let view = describe(&header, &received, inspected);

    let _writing = app.writing.lock().await;
    refuse_taken(&app.catalogue(), Some(&received.fingerprint), &header)?;
    let outcome = async {
        place(app, received).await?;
        persist(app, &call, &view).await
    };
    if let Err(error) = outcome.await {
        // The files stay when it can't be known whether the image was committed; the next start
        // tells.
        match app.reload().await {
            Ok(()) => remove_unneeded(app, &view.image).await,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the catalogue was not read again");
            }
        }
        return Err(error);
    }
    app.change(|catalogue| {
        catalogue.put_image((*view.image).clone());
        for alias in &view.aliases {
            catalogue.put_alias(
                alias.name.clone(),
                alias.description.clone(),
                alias.target.clone(),
            );
        }
    });
    Ok(view)
}

fn refuse_taken(
    catalogue: &Catalogue,
    fingerprint: Option<&Fingerprint>,
    header: &ImportHeader,
) -> Result<(), Error> {
    if fingerprint.is_some_and(|f| catalogue.image(f).is_some()) {
        return Err(Error::ImageExists);
    }
    match header
        .aliases
        .iter()
        .find(|a| catalogue.alias(&a.name).is_some())
    {
        Some(taken) => Err(Error::AliasExists(taken.name.to_string())),
        None => Ok(()),
    }
}

async fn inspect(mut received: Received) -> Result<(Received, Inspected), Error> {
    blocking("looking at the upload", move || {
        let inspected = match received.parts.as_mut_slice() {
            [one] => archive::inspect_unified(&mut one.incoming.file)?,
            [meta, rootfs, ..] => {
                archive::inspect_split(&mut meta.incoming.file, &mut rootfs.incoming.file)?
            }
            [] => return Err(Error::invalid("chunk", "the upload is empty")),
        };
        Ok((received, inspected))
    })
    .await
}

fn describe(header: &ImportHeader, received: &Received, inspected: Inspected) -> ImageView {
    let mut properties = inspected.metadata.properties;
    properties.extend(header.properties.clone());
    let image = Image {
        fingerprint: received.fingerprint.clone(),
        kind: inspected.kind,
        architecture: inspected.metadata.architecture,
        filename: header.filename.clone(),
        public: header.public,
        auto_update: header.auto_update,
        cached: false,
        properties,
        profiles: header.profiles.clone(),
        blobs: received
            .parts
            .iter()
            .zip(inspected.formats)
            .map(|(part, format)| Blob {
                part: part.part,
                digest: part.digest.clone(),
                size: part.size,
                format,
            })
            .collect(),
        created_at: inspected.metadata.created_at,
        uploaded_at: now(),
        expires_at: header.expires_at.or(inspected.metadata.expires_at),
        last_used_at: None,
        holds: BTreeMap::new(),
    };
    let mut aliases: Vec<Alias> = header
        .aliases
        .iter()
        .map(|alias| Alias {
            name: alias.name.clone(),
            description: alias.description.clone(),
            target: image.fingerprint.clone(),
            kind: image.kind,
        })
        .collect();
    aliases.sort_by(|a, b| a.name.cmp(&b.name));
    ImageView {
        image: Arc::new(image),
        aliases,
    }
}

/// The files go first: a row never names a blob that isn't there.
async fn place(app: &Arc<App>, received: Received) -> Result<(), Error> {
    let blobs_of = app.clone();
    let placed = blocking("placing the image", move || {
        for mut part in received.parts {
            blobs_of
                .blobs
                .place(&mut part.incoming, &part.digest)
                .map_err(Error::io("placing the image"))?;
        }
        blobs_of
            .blobs
            .sync()
            .map_err(Error::io("placing the image"))
    });
    placed.await
}

async fn persist(app: &App, call: &Call<ImageView>, view: &ImageView) -> Result<(), Error> {
    failpoint::pass("image.import.placed").await?;
    let image = &view.image;
    let mut tx = app.store.begin().await?;
    store::insert_image(&mut tx, image).await?;
    for alias in &view.aliases {
        store::insert_alias(&mut tx, alias).await?;
    }
    let attributes = [("type", image.kind.as_str().to_owned())];
    let name = image_name(&image.fingerprint);
    tx.emit(store::event(
        "image-created",
        name,
        attributes,
        &call.traceparent,
    ))
    .await?;
    for alias in &view.aliases {
        let attributes = [("target", alias.target.to_string())];
        let name = alias_name(&alias.name);
        tx.emit(store::event(
            "image-alias-created",
            name,
            attributes,
            &call.traceparent,
        ))
        .await?;
    }
    call.commit(tx, view).await?;
    failpoint::pass("image.import.committed").await?;
    Ok(())
}

/// Takes back what [`place`] did, but for blobs that another image has too.
async fn remove_unneeded(app: &Arc<App>, image: &Image) {
    let digests: BTreeSet<_> = image.blobs.iter().map(|b| b.digest.clone()).collect();
    super::delete_image::remove_files(app, digests).await;
}
