//! Between the API's messages and the model.

use crate::app::{App, ImageView, ImportHeader, NewAlias, UploadChunk, alias_name, image_name};
use crate::error::Error;
use crate::model::{
    Alias, AliasName, Fingerprint, Hold, Image, Kind, Part, Prefix, Selector, image, time,
};
use berth_proto::image as proto;
use berth_proto::types;
use berth_rpc::mask::Mask;
use berth_rpc::names;
use std::collections::BTreeMap;

/// Longest file name, profile name or holder, in bytes.
const MAX_TEXT: usize = 1024;

/// `projects/{p}`; only the default project exists.
pub(super) fn project(field: &str, parent: &str) -> Result<(), Error> {
    known_project(names::Project::parse(field, parent)?.project)
}

fn known_project(project: String) -> Result<(), Error> {
    if project == names::DEFAULT_PROJECT {
        Ok(())
    } else {
        Err(Error::NoProject(project))
    }
}

/// `projects/{p}/images/{prefix}`.
pub(super) fn image_prefix(field: &str, name: &str) -> Result<Prefix, Error> {
    let name = names::Image::parse(field, name)?;
    known_project(name.project)?;
    prefix(&name.fingerprint)
}

/// What isn't hexadecimal names no image; that is not the caller's mistake, since clients try an
/// unknown alias as a fingerprint.
fn prefix(text: &str) -> Result<Prefix, Error> {
    Prefix::parse(text).ok_or_else(|| Error::NoImage(text.to_owned()))
}

/// `projects/{p}/imageAliases/{percent-encoded}`.
pub(super) fn alias_of(field: &str, name: &str) -> Result<AliasName, Error> {
    let parsed = names::ImageAlias::parse(field, name)?;
    known_project(parsed.project)?;
    let text = names::decode_segment(&parsed.alias)
        .ok_or_else(|| Error::invalid(field, format!("{field} {name:?} is not percent-encoded")))?;
    AliasName::parse(&text).map_err(|sentence| Error::invalid(field, sentence))
}

pub(super) fn alias_text(field: &str, text: &str) -> Result<AliasName, Error> {
    AliasName::parse(text).map_err(|sentence| Error::invalid(field, sentence))
}

pub(super) fn target(field: &str, text: &str) -> Result<Prefix, Error> {
    if text.is_empty() {
        return Err(Error::invalid(field, "the alias needs a target"));
    }
    prefix(text)
}

pub(super) fn kind(field: &str, value: i32) -> Result<Option<Kind>, Error> {
    match proto::image::Type::try_from(value) {
        Ok(proto::image::Type::Unspecified) => Ok(None),
        Ok(proto::image::Type::Container) => Ok(Some(Kind::Container)),
        Ok(proto::image::Type::VirtualMachine) => Ok(Some(Kind::VirtualMachine)),
        Err(_) => Err(Error::invalid(
            field,
            format!("{value} is no type of image"),
        )),
    }
}

fn kind_to_proto(kind: Kind) -> i32 {
    match kind {
        Kind::Container => proto::image::Type::Container,
        Kind::VirtualMachine => proto::image::Type::VirtualMachine,
    }
    .into()
}

fn part_to_proto(part: Part) -> i32 {
    match part {
        Part::Unified => types::blob_ref::Part::Unified,
        Part::Metadata => types::blob_ref::Part::Metadata,
        Part::Rootfs => types::blob_ref::Part::Rootfs,
    }
    .into()
}

pub(super) fn part_header(part: Part, filename: String, size: u64) -> proto::ExportImageResponse {
    use proto::export_image_response::{Message, PartHeader};
    proto::ExportImageResponse {
        message: Some(Message::Part(PartHeader {
            part: part_to_proto(part),
            filename,
            size_bytes: bytes_to_proto(size),
        })),
    }
}

/// Files are shorter than 8 EiB.
fn bytes_to_proto(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(super) fn image_to_proto(app: &App, view: &ImageView) -> proto::Image {
    let image = &view.image;
    proto::Image {
        name: image_name(&image.fingerprint),
        fingerprint: image.fingerprint.to_string(),
        r#type: kind_to_proto(image.kind),
        architecture: image.architecture.clone(),
        filename: image.filename.clone(),
        size_bytes: bytes_to_proto(image.size()),
        public: image.public,
        auto_update: image.auto_update,
        cached: image.cached,
        properties: image.properties.clone().into_iter().collect(),
        profiles: image.profiles.clone(),
        aliases: view.aliases.iter().map(alias_to_proto).collect(),
        blobs: image
            .blobs
            .iter()
            .map(|blob| types::BlobRef {
                uri: app.blobs.uri(&blob.digest),
                digest: format!("sha256:{}", blob.digest),
                size_bytes: bytes_to_proto(blob.size),
                media_type: blob.format.media_type().to_owned(),
                part: part_to_proto(blob.part),
            })
            .collect(),
        create_time: time::render(Some(image.created_at)),
        upload_time: time::render(Some(image.uploaded_at)),
        expire_time: time::render(image.expires_at),
        last_used_time: time::render(image.last_used_at),
        holds: image.holds.values().map(hold_to_proto).collect(),
        etag: image.etag(),
    }
}

fn hold_to_proto(hold: &Hold) -> types::Hold {
    types::Hold {
        holder: hold.holder.clone(),
        authority: hold.authority.clone(),
        expire_time: hold
            .expires_at
            .map(|at| time::render(Some(at)))
            .unwrap_or_default(),
    }
}

pub(super) fn alias_to_proto(alias: &Alias) -> proto::Alias {
    proto::Alias {
        name: alias_name(&alias.name),
        alias: alias.name.to_string(),
        description: alias.description.clone(),
        target: alias.target.to_string(),
        r#type: kind_to_proto(alias.kind),
        etag: alias.etag(),
    }
}

fn one_line(field: &str, text: &str) -> Result<(), Error> {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(Error::invalid(
            field,
            format!("{field} must have at most {MAX_TEXT} bytes and no control characters"),
        ));
    }
    Ok(())
}

pub(super) fn hold(hold: Option<types::Hold>, now: i64) -> Result<Hold, Error> {
    let hold = hold.ok_or_else(|| Error::invalid("hold", "hold is missing"))?;
    for (field, text) in [
        ("hold.holder", &hold.holder),
        ("hold.authority", &hold.authority),
    ] {
        one_line(field, text)?;
        if text.is_empty() {
            return Err(Error::invalid(field, format!("{field} must not be empty")));
        }
    }
    let expires_at = time::parse(&hold.expire_time)
        .map_err(|sentence| Error::invalid("hold.expire_time", sentence))?;
    if expires_at.is_some_and(|at| at <= now) {
        return Err(Error::invalid(
            "hold.expire_time",
            "hold.expire_time has passed",
        ));
    }
    Ok(Hold {
        holder: hold.holder,
        authority: hold.authority,
        expires_at,
    })
}

pub(super) fn import_header(
    header: proto::import_image_request::Header,
) -> Result<ImportHeader, Error> {
    project("header.parent", &header.parent)?;
    one_line("header.filename", &header.filename)?;
    if header.filename.contains('/') {
        return Err(Error::invalid(
            "header.filename",
            "header.filename must not hold a slash",
        ));
    }
    image::check_properties(&header.properties).map_err(|(key, sentence)| {
        let field = key.map_or_else(String::new, |key| format!(".{key}"));
        Error::invalid(format!("header.properties{field}"), sentence)
    })?;
    profiles("header.profiles", &header.profiles)?;
    let expected = match header.expected_fingerprint.as_str() {
        "" => None,
        text => Some(Fingerprint::parse(text).ok_or_else(|| {
            Error::invalid(
                "header.expected_fingerprint",
                format!("{text:?} is not a sha256 in hexadecimal"),
            )
        })?),
    };
    let expires_at = time::parse(&header.expire_time)
        .map_err(|sentence| Error::invalid("header.expire_time", sentence))?;
    Ok(ImportHeader {
        public: header.public,
        auto_update: header.auto_update,
        filename: header.filename,
        properties: header.properties.into_iter().collect(),
        profiles: header.profiles,
        aliases: new_aliases(header.aliases)?,
        expected,
        split: header.split,
        expires_at,
    })
}

fn new_aliases(given: Vec<proto::Alias>) -> Result<Vec<NewAlias>, Error> {
    let mut out: Vec<NewAlias> = Vec::new();
    for (i, alias) in given.into_iter().enumerate() {
        let field = format!("header.aliases[{i}].alias");
        let name = alias_text(&field, &alias.alias)?;
        if out.iter().any(|other| other.name == name) {
            return Err(Error::invalid(
                field,
                format!("alias {:?} comes twice", alias.alias),
            ));
        }
        if !alias.target.is_empty() {
            return Err(Error::invalid(
                format!("header.aliases[{i}].target"),
                "an alias made with an image points at that image",
            ));
        }
        out.push(NewAlias {
            name,
            description: alias.description,
        });
    }
    Ok(out)
}

fn profiles(field: &str, given: &[String]) -> Result<(), Error> {
    for profile in given {
        one_line(field, profile)?;
        if profile.is_empty() {
            return Err(Error::invalid(field, "a profile's name must not be empty"));
        }
    }
    Ok(())
}

pub(super) fn chunk(message: proto::ImportImageRequest) -> Result<UploadChunk, Error> {
    use proto::import_image_request::Message;
    use types::blob_ref::Part as ProtoPart;
    let chunk = match message.message {
        Some(Message::Chunk(chunk)) => chunk,
        Some(Message::Header(_)) => {
            return Err(Error::invalid("header", "the header comes once, first"));
        }
        None => return Err(Error::invalid("message", "the message is empty")),
    };
    let part = match ProtoPart::try_from(chunk.part) {
        Ok(ProtoPart::Unified) => Part::Unified,
        Ok(ProtoPart::Metadata) => Part::Metadata,
        Ok(ProtoPart::Rootfs) => Part::Rootfs,
        Ok(ProtoPart::Unspecified) | Err(_) => {
            return Err(Error::invalid(
                "chunk.part",
                "chunk.part must name the part",
            ));
        }
    };
    Ok(UploadChunk {
        part,
        data: chunk.data,
    })
}

pub(super) fn selector(
    selector: Option<proto::resolve_image_request::Selector>,
) -> Result<Selector, Error> {
    use proto::resolve_image_request::Selector as Given;
    match selector {
        Some(Given::Alias(text)) => alias_text("alias", &text).map(Selector::Alias),
        Some(Given::Fingerprint(text)) => prefix(&text).map(Selector::Fingerprint),
        Some(Given::Properties(given)) if given.properties.is_empty() => Err(Error::invalid(
            "properties",
            "an image can't be chosen by no properties",
        )),
        Some(Given::Properties(given)) => Ok(Selector::Properties(
            given.properties.into_iter().collect::<BTreeMap<_, _>>(),
        )),
        None => Err(Error::invalid(
            "selector",
            "one of alias, fingerprint and properties is needed",
        )),
    }
}

/// Refuses paths that an update can't write.
pub(super) fn check_mask(mask: &Mask, fields: &[&str], maps: &[&str]) -> Result<(), Error> {
    let Mask::Paths(paths) = mask else {
        return Ok(());
    };
    for path in paths {
        let known = fields.contains(&path.as_str())
            || maps.iter().any(|map| {
                path.strip_prefix(map)
                    .and_then(|rest| rest.strip_prefix('.'))
                    .is_some_and(|key| !key.is_empty())
            });
        if !known {
            return Err(Error::invalid(
                "update_mask",
                format!("{path:?} can't be updated; {} can", fields.join(", ")),
            ));
        }
    }
    Ok(())
}

/// Writes the fields that the mask names over `image`.
pub(super) fn apply_image(
    image: &mut Image,
    given: &proto::Image,
    mask: &Mask,
) -> Result<(), Error> {
    image.properties = mask.merge_map("properties", &image.properties, &given.properties, |_| {
        false
    });
    if mask.has("public") {
        image.public = given.public;
    }
    if mask.has("auto_update") {
        image.auto_update = given.auto_update;
    }
    if mask.has("profiles") {
        profiles("image.profiles", &given.profiles)?;
        image.profiles.clone_from(&given.profiles);
    }
    if mask.has("expire_time") {
        image.expires_at = time::parse(&given.expire_time)
            .map_err(|sentence| Error::invalid("image.expire_time", sentence))?;
    }
    Ok(())
}
