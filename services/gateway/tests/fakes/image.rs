//! An image service in memory. Its images are any bytes that begin with `IMAGE`.

use std::collections::BTreeMap;

use berth_proto::image::export_image_response::{Message as Out, PartHeader};
use berth_proto::image::image_service_server::ImageService;
use berth_proto::image::import_image_request::Message as In;
use berth_proto::image::resolve_image_request::Selector;
use berth_proto::image::{self, Alias, Image};
use berth_proto::types::blob_ref::Part;
use berth_proto::types::{BlobRef, Event, WatchEventsRequest};
use berth_rpc::{Error, etag, names};
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::replay::{Replaying, last};

#[derive(Debug, Default)]
pub struct State {
    pub images: BTreeMap<String, Stored>,
    pub aliases: BTreeMap<String, Alias>,
    /// Uploads that broke off.
    pub broken: usize,
    /// Fingerprint of an image whose bytes end half way.
    pub damaged: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub image: Image,
    pub parts: Vec<(Part, Vec<u8>)>,
}

#[derive(Debug, Default)]
pub struct Fake(pub Replaying<State>);

impl State {
    fn find(&self, name: &str) -> Result<String, Error> {
        let wanted = last(name);
        let mut found = self.images.keys().filter(|f| f.starts_with(&wanted));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.clone()),
            (None, _) => Err(Error::not_found("Image", wanted)),
            _ => Err(Error::invalid("name", "More than one image matches")),
        }
    }

    fn shown(&self, fingerprint: &str) -> Image {
        let mut image = self.images[fingerprint].image.clone();
        image.aliases = self
            .aliases
            .values()
            .filter(|a| a.target == fingerprint)
            .cloned()
            .collect();
        let mut properties: Vec<_> = image.properties.iter().collect();
        properties.sort();
        image.etag = etag([format!("{properties:?}{}", image.public).as_str()]);
        image
    }
}

impl Fake {
    /// Puts an image there.
    pub fn put(&self, bytes: &[u8]) -> String {
        let mut hash = Sha256::new();
        hash.update(bytes);
        let fingerprint = hex::encode(hash.finalize());
        let image = stored_image(&fingerprint, bytes.len());
        self.0.lock().images.insert(
            fingerprint.clone(),
            Stored {
                image,
                parts: vec![(Part::Unified, bytes.to_vec())],
            },
        );
        fingerprint
    }
}

fn stored_image(fingerprint: &str, size: usize) -> Image {
    Image {
        name: format!("projects/default/images/{fingerprint}"),
        fingerprint: fingerprint.to_owned(),
        r#type: image::image::Type::Container.into(),
        architecture: "x86_64".into(),
        filename: "image.tar.gz".into(),
        size_bytes: size as i64,
        properties: [("os".to_owned(), "Busy".to_owned())].into(),
        profiles: vec!["default".into()],
        blobs: vec![BlobRef {
            uri: format!("file:///blobs/{fingerprint}"),
            digest: format!("sha256:{fingerprint}"),
            size_bytes: size as i64,
            media_type: "application/x-tar+gzip".into(),
            part: Part::Unified.into(),
        }],
        create_time: "2023-11-14T22:13:20Z".into(),
        upload_time: "2026-01-01T00:00:00Z".into(),
        ..Image::default()
    }
}

fn alias_name(parent: &str, alias: &str) -> String {
    format!("{parent}/imageAliases/{}", names::encode_segment(alias))
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn import_image(
        &self,
        request: Request<Streaming<image::ImportImageRequest>>,
    ) -> Result<Response<Image>, Status> {
        let mut stream = request.into_inner();
        let mut header = None;
        let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(status) => {
                    self.0.lock().broken += 1;
                    return Err(status);
                }
            };
            match message.message {
                Some(In::Header(h)) => header = Some(h),
                Some(In::Chunk(chunk)) => match parts.last_mut() {
                    Some((part, bytes)) if *part == chunk.part() => bytes.extend(&chunk.data),
                    _ => parts.push((chunk.part(), chunk.data.to_vec())),
                },
                None => {}
            }
        }
        let header = header.ok_or_else(|| Error::invalid("header", "no header"))?;
        let all: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        if !all.starts_with(b"IMAGE") {
            return Err(Error::invalid("chunk.data", "Unsupported compression").into());
        }
        let fingerprint = hex::encode(Sha256::digest(&all));
        if !header.expected_fingerprint.is_empty() && header.expected_fingerprint != fingerprint {
            return Err(Error::invalid("expected_fingerprint", "fingerprints don't match").into());
        }
        self.0.once(&header.request_id, |state| {
            if state.images.contains_key(&fingerprint) {
                return Err(Error::already_exists("Image", &fingerprint));
            }
            let mut image = stored_image(&fingerprint, all.len());
            image.filename = header.filename;
            image.public = header.public;
            image.profiles = header.profiles;
            image.properties.extend(header.properties);
            let stored = Stored { image, parts };
            state.images.insert(fingerprint.clone(), stored);
            Ok(state.shown(&fingerprint))
        })
    }

    type ExportImageStream = BoxStream<'static, Result<image::ExportImageResponse, Status>>;

    async fn export_image(
        &self,
        request: Request<image::ExportImageRequest>,
    ) -> Result<Response<Self::ExportImageStream>, Status> {
        let name = request.into_inner().name;
        let parts = self.0.with(|state| {
            let fingerprint = state.find(&name)?;
            Ok((
                fingerprint.clone(),
                state.images[&fingerprint].parts.clone(),
            ))
        })?;
        let (fingerprint, parts) = parts.into_inner();
        let mut messages = Vec::new();
        for (part, bytes) in parts {
            let filename = match part {
                Part::Metadata => format!("meta-{fingerprint}.tar.xz"),
                Part::Rootfs => format!("{fingerprint}.squashfs"),
                _ => format!("{fingerprint}.tar.gz"),
            };
            messages.push(Out::Part(PartHeader {
                part: part.into(),
                filename,
                size_bytes: bytes.len() as i64,
            }));
            messages.extend(bytes.chunks(3).map(|c| Out::Data(c.to_vec().into())));
        }
        let damaged = self.0.lock().damaged.as_ref() == Some(&fingerprint);
        let whole = messages.len();
        let answers = messages.into_iter().enumerate().map(move |(at, message)| {
            if damaged && at > whole / 2 {
                return Err(Error::internal("the bytes are gone").into());
            }
            Ok(image::ExportImageResponse {
                message: Some(message),
            })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(answers))))
    }

    async fn get_image(
        &self,
        request: Request<image::GetImageRequest>,
    ) -> Result<Response<Image>, Status> {
        self.0.with(|state| {
            let fingerprint = state.find(&request.get_ref().name)?;
            Ok(state.shown(&fingerprint))
        })
    }

    async fn list_images(
        &self,
        _: Request<image::ListImagesRequest>,
    ) -> Result<Response<image::ListImagesResponse>, Status> {
        self.0.with(|state| {
            Ok(image::ListImagesResponse {
                images: state.images.keys().map(|f| state.shown(f)).collect(),
                next_page_token: String::new(),
            })
        })
    }

    async fn update_image(
        &self,
        request: Request<image::UpdateImageRequest>,
    ) -> Result<Response<Image>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let new = request.image.unwrap_or_default();
            let fingerprint = state.find(&new.name)?;
            if !new.etag.is_empty() && new.etag != state.shown(&fingerprint).etag {
                return Err(Error::etag_mismatch("The image"));
            }
            let stored = state.images.get_mut(&fingerprint).unwrap();
            stored.image.properties = new.properties;
            stored.image.public = new.public;
            stored.image.auto_update = new.auto_update;
            stored.image.profiles = new.profiles;
            stored.image.expire_time = new.expire_time;
            Ok(state.shown(&fingerprint))
        })
    }

    async fn delete_image(
        &self,
        request: Request<image::DeleteImageRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let fingerprint = state.find(&request.name)?;
            let holds = &state.images[&fingerprint].image.holds;
            if !holds.is_empty() {
                let holders = holds.iter().map(|h| h.holder.clone()).collect();
                return Err(Error::held("The image", holders));
            }
            state.images.remove(&fingerprint);
            state.aliases.retain(|_, a| a.target != fingerprint);
            Ok(())
        })
    }

    async fn resolve_image(
        &self,
        request: Request<image::ResolveImageRequest>,
    ) -> Result<Response<Image>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let fingerprint = match request.selector {
                Some(Selector::Alias(alias)) => state
                    .aliases
                    .get(&alias_name(&request.parent, &alias))
                    .map(|a| a.target.clone())
                    .ok_or_else(|| Error::not_found("Image alias", alias))?,
                Some(Selector::Fingerprint(prefix)) => state.find(&prefix)?,
                Some(Selector::Properties(wanted)) => state
                    .images
                    .values()
                    .find(|stored| {
                        let has = &stored.image.properties;
                        wanted.properties.iter().all(|(k, v)| has.get(k) == Some(v))
                    })
                    .map(|stored| stored.image.fingerprint.clone())
                    .ok_or_else(|| Error::not_found("Image", "by properties"))?,
                None => return Err(Error::invalid("selector", "selector is required")),
            };
            Ok(state.shown(&fingerprint))
        })
    }

    async fn hold_image(
        &self,
        request: Request<image::HoldImageRequest>,
    ) -> Result<Response<Image>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let fingerprint = state.find(&request.name)?;
            let hold = request.hold.unwrap_or_default();
            let holds = &mut state.images.get_mut(&fingerprint).unwrap().image.holds;
            holds.retain(|h| h.holder != hold.holder);
            holds.push(hold);
            Ok(state.shown(&fingerprint))
        })
    }

    async fn release_image(
        &self,
        request: Request<image::ReleaseImageRequest>,
    ) -> Result<Response<Image>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let fingerprint = state.find(&request.name)?;
            let stored = state.images.get_mut(&fingerprint).unwrap();
            stored.image.holds.retain(|h| h.holder != request.holder);
            Ok(state.shown(&fingerprint))
        })
    }

    async fn create_alias(
        &self,
        request: Request<image::CreateAliasRequest>,
    ) -> Result<Response<Alias>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut alias = request.alias.unwrap_or_default();
            alias.name = alias_name(&request.parent, &alias.alias);
            if state.aliases.contains_key(&alias.name) {
                return Err(Error::already_exists("Image alias", &alias.alias));
            }
            alias.target = state.find(&alias.target)?;
            alias.r#type = image::image::Type::Container.into();
            state.aliases.insert(alias.name.clone(), alias.clone());
            Ok(alias)
        })
    }

    async fn get_alias(
        &self,
        request: Request<image::GetAliasRequest>,
    ) -> Result<Response<Alias>, Status> {
        self.0.with(|state| alias(state, &request.get_ref().name))
    }

    async fn list_aliases(
        &self,
        _: Request<image::ListAliasesRequest>,
    ) -> Result<Response<image::ListAliasesResponse>, Status> {
        self.0.with(|state| {
            Ok(image::ListAliasesResponse {
                aliases: state.aliases.values().cloned().collect(),
                next_page_token: String::new(),
            })
        })
    }

    async fn update_alias(
        &self,
        request: Request<image::UpdateAliasRequest>,
    ) -> Result<Response<Alias>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let new = request.alias.unwrap_or_default();
            let mut old = alias(state, &new.name)?;
            old.target = state.find(&new.target)?;
            old.description = new.description;
            state.aliases.insert(old.name.clone(), old.clone());
            Ok(old)
        })
    }

    async fn rename_alias(
        &self,
        request: Request<image::RenameAliasRequest>,
    ) -> Result<Response<Alias>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut alias = alias(state, &request.name)?;
            let name = alias_name("projects/default", &request.new_alias);
            if state.aliases.contains_key(&name) {
                return Err(Error::already_exists("Image alias", &request.new_alias));
            }
            state.aliases.remove(&request.name);
            alias.name = name;
            alias.alias = request.new_alias;
            state.aliases.insert(alias.name.clone(), alias.clone());
            Ok(alias)
        })
    }

    async fn delete_alias(
        &self,
        request: Request<image::DeleteAliasRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            alias(state, &request.name)?;
            state.aliases.remove(&request.name);
            Ok(())
        })
    }

    type WatchEventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

fn alias(state: &State, name: &str) -> Result<Alias, Error> {
    state
        .aliases
        .get(name)
        .cloned()
        .ok_or_else(|| Error::not_found("Image alias", last(name)))
}

/// What there is, for comparing.
pub fn inventory(fake: &Fake) -> Vec<String> {
    let state = fake.0.lock();
    let images = state.images.values().map(|stored| {
        let holders: Vec<_> = stored.image.holds.iter().map(|h| &h.holder).collect();
        format!("{} held by {holders:?}", stored.image.name)
    });
    let aliases = state
        .aliases
        .values()
        .map(|a| format!("{} -> {} {:?}", a.name, a.target, a.description));
    images.chain(aliases).collect()
}
