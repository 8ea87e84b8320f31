//! Between the API's messages and the use cases' types.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use berth_proto::{storage as proto, types};
use berth_rpc::{Error, names};
use prost::Message;

use crate::app::create_volume::Source;
use crate::app::{OpenPool, PoolView, SnapshotView, VolumeView, read};
use crate::driver::{Access, Place};
use crate::model::{self, config};
use crate::source::{BlobSource, Format, ImageSource, Location, Part};
use crate::store::Hold;

pub(super) fn pool(view: &PoolView) -> proto::Pool {
    let row = &view.pool.row;
    let (status, message) = view.pool.status();
    proto::Pool {
        name: row.resource(),
        uid: row.uid.clone(),
        description: row.description.clone(),
        driver: row.driver.clone(),
        config: row.config.clone().into_iter().collect(),
        status: status.to_owned(),
        status_message: message,
        used_by: view.used_by.clone(),
        etag: read::pool_etag(row),
    }
}

pub(super) fn pool_bytes(view: &PoolView) -> Vec<u8> {
    pool(view).encode_to_vec()
}

pub(super) fn volume(view: &VolumeView) -> proto::Volume {
    let row = &view.row;
    let name = row.resource(&view.pool.row.name);
    proto::Volume {
        uid: row.uid.clone(),
        description: row.description.clone(),
        content_type: row.content_type.clone(),
        config: row.config.clone().into_iter().collect(),
        holds: view.holds.iter().map(hold).collect(),
        attachment: attachment(
            &view.pool,
            &name,
            row,
            &row.place(),
            row.key.collection == "images",
        ),
        create_time: row.created_at.clone(),
        etag: read::volume_etag(row),
        snapshot_count: i32::try_from(row.snapshot_count).unwrap_or(i32::MAX),
        name,
    }
}

pub(super) fn volume_bytes(view: &VolumeView) -> Vec<u8> {
    volume(view).encode_to_vec()
}

pub(super) fn snapshot(view: &SnapshotView) -> proto::Snapshot {
    let row = &view.row;
    let name = format!(
        "{}/snapshots/{}",
        view.volume.resource(&view.pool.row.name),
        row.name
    );
    proto::Snapshot {
        uid: row.uid.clone(),
        description: row.description.clone(),
        config: row.config.clone().into_iter().collect(),
        create_time: row.created_at.clone(),
        expire_time: row.expires_at.clone(),
        attachment: attachment(&view.pool, &name, &view.volume, &row.place(), true),
        name,
    }
}

pub(super) fn snapshot_bytes(view: &SnapshotView) -> Vec<u8> {
    snapshot(view).encode_to_vec()
}

pub(super) fn empty_bytes(_: &()) -> Vec<u8> {
    Vec::new()
}

fn hold(hold: &Hold) -> types::Hold {
    types::Hold {
        holder: hold.holder.clone(),
        authority: hold.authority.clone(),
        expire_time: hold.expires_at.clone(),
    }
}

/// What to mount for a place; nothing while the pool is away.
fn attachment(
    pool: &OpenPool,
    name: &str,
    row: &crate::store::VolumeRow,
    place: &Place,
    read_only: bool,
) -> Option<types::Attachment> {
    use types::attachment::{Device, Mount, mount};
    let driver = pool.driver.as_ref().ok()?;
    let subpath = format!("{}/{}", place.area.dir(), place.name());
    let mut what = match driver.access() {
        Access::HostPath(top) => Mount {
            source: Some(mount::Source::HostPath(
                top.join(subpath).display().to_string(),
            )),
            ..Mount::default()
        },
        Access::Device {
            path,
            diskseq,
            fs_type,
            options,
            fs_uuid,
        } => Mount {
            source: Some(mount::Source::Device(Device {
                path: path.display().to_string(),
                diskseq,
            })),
            fs_type: fs_type.to_owned(),
            fs_options: options,
            subpath,
            fs_uuid,
            ..Mount::default()
        },
    };
    // No device of an image or a guest's making may be opened through a volume.
    what.attr = Some(types::MountAttr {
        read_only,
        nodev: true,
        ..types::MountAttr::default()
    });
    let unmapped = row
        .config
        .get("security.unmapped")
        .and_then(|v| config::boolean(v));
    let ownership = if unmapped == Some(true) {
        types::Ownership::Unmapped
    } else {
        types::Ownership::Raw
    };
    what.set_ownership(ownership);
    what.can_idmap = driver.can_idmap();
    Some(types::Attachment {
        volume: name.to_owned(),
        volume_uid: row.uid.clone(),
        generation: row.generation,
        mounts: vec![what],
        block: None,
        needs_freeze: driver.needs_freeze(),
    })
}

pub(super) fn hold_from(field: &str, hold: Option<types::Hold>) -> Result<Hold, Error> {
    let hold = hold.ok_or_else(|| Error::invalid(field, format!("{field} is missing")))?;
    if hold.holder.is_empty() || hold.holder.chars().any(char::is_control) {
        return Err(Error::invalid(
            format!("{field}.holder"),
            "a hold needs the resource name of its holder",
        ));
    }
    let expires_at = time(&format!("{field}.expire_time"), &hold.expire_time)?;
    Ok(Hold {
        holder: hold.holder,
        authority: hold.authority,
        expires_at,
    })
}

/// A time in the database's own form, so that texts compare as times; empty stays empty.
pub(super) fn time(field: &str, text: &str) -> Result<String, Error> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let time = chrono::DateTime::parse_from_rfc3339(text)
        .map_err(|_| Error::invalid(field, format!("{text:?} is not an RFC 3339 time")))?;
    Ok(time
        .to_utc()
        .to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

/// A volume's name out of a request, for one that exists.
pub(super) fn volume_name(field: &str, name: &str) -> Result<names::Volume, Error> {
    let name = names::Volume::parse(field, name)?;
    collection(field, &name.collection)?;
    Ok(name)
}

/// A volume's name in which `-` stands for any.
pub(super) fn volume_names(field: &str, name: &str) -> Result<names::Volume, Error> {
    let name = names::Volume::parse(field, name)?;
    if name.collection != "-" {
        collection(field, &name.collection)?;
    }
    Ok(name)
}

/// A snapshot's name out of a request: its volume and its own.
pub(super) fn snapshot_name(field: &str, name: &str) -> Result<(names::Volume, String), Error> {
    let name = names::VolumeSnapshot::parse(field, name)?;
    collection(field, &name.collection)?;
    let volume = names::Volume::new(name.project, name.pool, name.collection, name.volume);
    Ok((volume, name.snapshot))
}

fn collection(field: &str, collection: &str) -> Result<(), Error> {
    model::names::collection(field, collection)
}

pub(super) fn source_from(
    source: Option<proto::create_volume_request::Source>,
    with_snapshots: bool,
) -> Result<Source, Error> {
    use proto::create_volume_request::Source as From;
    match source {
        None | Some(From::Empty(())) => Ok(Source::Empty),
        Some(From::Image(image)) => Ok(Source::Image(image_from(image)?)),
        Some(From::CopyOf(name)) => {
            let (volume, snapshot) = match name.split_once("/snapshots/") {
                Some(_) => {
                    let (volume, snapshot) = snapshot_name("copy_of", &name)?;
                    (volume, Some(snapshot))
                }
                None => (volume_name("copy_of", &name)?, None),
            };
            Ok(Source::Copy {
                volume,
                snapshot,
                with_snapshots,
            })
        }
    }
}

fn image_from(image: proto::ImageSource) -> Result<ImageSource, Error> {
    model::names::fingerprint("image.fingerprint", &image.fingerprint)?;
    let parts = image
        .blobs
        .into_iter()
        .map(|blob| {
            let location = location_from(&blob)?;
            blob_from(blob, location)
        })
        .collect::<Result<_, _>>()?;
    Ok(ImageSource::new(image.fingerprint, parts)?)
}

/// An image whose blobs' bytes were received, each in a file.
pub(super) fn received_image(
    image: proto::ImageSource,
    files: Vec<File>,
) -> Result<ImageSource, Error> {
    let parts = image
        .blobs
        .into_iter()
        .zip(files)
        .map(|(blob, file)| blob_from(blob, Location::Received(Arc::new(file))))
        .collect::<Result<_, _>>()?;
    Ok(ImageSource::new(image.fingerprint, parts)?)
}

/// What can be refused of an image before its bytes are here. Gives the blobs' lengths.
pub(super) fn announced_image(image: &proto::ImageSource) -> Result<Vec<u64>, Error> {
    model::names::fingerprint("image.fingerprint", &image.fingerprint)?;
    let blobs = image.blobs.iter().cloned();
    let parts = blobs
        .map(|blob| blob_from(blob, Location::Path(PathBuf::new())))
        .collect::<Result<Vec<_>, _>>()?;
    let sizes = parts.iter().map(|part| part.size).collect();
    ImageSource::new(image.fingerprint.clone(), parts)?;
    Ok(sizes)
}

fn location_from(blob: &types::BlobRef) -> Result<Location, Error> {
    let path = blob
        .uri
        .strip_prefix("file://")
        .filter(|p| p.starts_with('/'));
    let path = path.ok_or_else(|| {
        Error::invalid(
            "image.blobs.uri",
            format!("blob uri {:?} is not of the form file:///path", blob.uri),
        )
    })?;
    Ok(Location::Path(PathBuf::from(path)))
}

fn blob_from(blob: types::BlobRef, location: Location) -> Result<BlobSource, Error> {
    use types::blob_ref::Part as P;
    let sha256 = blob.digest.strip_prefix("sha256:").unwrap_or_default();
    model::names::fingerprint("image.blobs.digest", sha256).map_err(|_| {
        Error::invalid(
            "image.blobs.digest",
            format!(
                "blob digest {:?} is not sha256:<64 lowercase hex>",
                blob.digest
            ),
        )
    })?;
    let part = match blob.part() {
        P::Unified => Part::Unified,
        P::Metadata => Part::Metadata,
        P::Rootfs => Part::Rootfs,
        P::Unspecified => {
            return Err(Error::invalid("image.blobs.part", "blob part is missing"));
        }
    };
    let format = Format::parse("image.blobs.media_type", &blob.media_type)?;
    if format == Format::Squashfs && part != Part::Rootfs {
        return Err(Error::invalid(
            "image.blobs.media_type",
            "only a root filesystem may be a squashfs",
        ));
    }
    Ok(BlobSource {
        location,
        sha256: sha256.to_owned(),
        size: u64::try_from(blob.size_bytes)
            .map_err(|_| Error::invalid("image.blobs.size_bytes", "a size is not negative"))?,
        format,
        part,
    })
}
