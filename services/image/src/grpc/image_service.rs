use super::convert;
use crate::app::{self, AliasChange, App, Call, ExportMessage, ImageView};
use crate::error::Error;
use crate::model::Alias;
use berth_proto::image as proto;
use berth_proto::image::image_service_server::{ImageService, ImageServiceServer};
use berth_proto::types::{Event, WatchEventsRequest};
use berth_rpc::mask::Mask;
use berth_rpc::{REQUEST_ID, page};
use berth_server::{BrokenOff, Requests, WholeUploads};
use futures::{Stream, StreamExt};
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A page of images ends after the one that makes it longer than this; an image has little more
/// than 1 MiB.
const PAGE_BYTES: usize = 2 << 20;

/// `berth.image.v1.ImageService` over an [`App`].
#[derive(Debug, Clone)]
pub struct ImageApi {
    app: Arc<App>,
    requests: Requests,
}

impl ImageApi {
    /// The service.
    pub fn new(app: Arc<App>) -> Self {
        let requests = Requests::new(app.store().clone());
        Self { app, requests }
    }

    /// The service as a server takes it.
    pub fn into_server(self) -> WholeUploads<ImageServiceServer<Self>> {
        WholeUploads::new(ImageServiceServer::new(self))
    }

    /// Runs a change on a task of its own, once for its request id.
    async fn run<M, F>(&self, key: String, work: F) -> Answer<M>
    where
        M: Message + Default + 'static,
        F: Future<Output = Result<M, Error>> + Send + 'static,
    {
        let done = self.requests.run(
            &key,
            async move { work.await.map_err(berth_rpc::Error::from) },
        );
        Ok(Response::new(done.await?))
    }

    fn image_call(&self, key: &str) -> Call<ImageView> {
        let app = self.app.clone();
        call(key, move |view| {
            convert::image_to_proto(&app, view).encode_to_vec()
        })
    }

    fn alias_call(key: &str) -> Call<Alias> {
        call(key, |alias| convert::alias_to_proto(alias).encode_to_vec())
    }

    fn render(&self, view: &ImageView) -> Response<proto::Image> {
        Response::new(convert::image_to_proto(&self.app, view))
    }
}

fn call<T>(key: &str, encode: impl Fn(&T) -> Vec<u8> + Send + Sync + 'static) -> Call<T> {
    Call {
        request_id: key.to_owned(),
        traceparent: berth_rpc::trace::current_traceparent().unwrap_or_default(),
        encode: Box::new(encode),
    }
}

fn broken_off() -> Result<app::UploadChunk, Error> {
    Err(Error::Rpc(berth_rpc::Error::new(
        berth_rpc::Code::Cancelled,
        "CANCELLED",
        "the upload broke off",
    )))
}

/// A request's id counts within its method; no id, no key.
fn key(method: &str, request_id: &str) -> String {
    if request_id.is_empty() {
        String::new()
    } else {
        format!("{method}/{request_id}")
    }
}

/// The same for methods whose message has no field for it.
fn key_from_metadata<T>(method: &str, request: &Request<T>) -> String {
    let id = request.metadata().get(REQUEST_ID);
    key(
        method,
        id.and_then(|id| id.to_str().ok()).unwrap_or_default(),
    )
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn import_image(
        &self,
        request: Request<Streaming<proto::ImportImageRequest>>,
    ) -> Answer<proto::Image> {
        use proto::import_image_request::Message;
        let mark = BrokenOff::of(&request)?;
        let mut stream = request.into_inner();
        let Some(Message::Header(header)) = stream.message().await?.and_then(|m| m.message) else {
            return Err(Error::invalid("header", "the first message must be the header").into());
        };
        let key = key("ImportImage", &header.request_id);
        let header = convert::import_header(header)?;
        let (app, call) = (self.app.clone(), self.image_call(&key));
        self.run(key, async move {
            let chunks = stream.map(|message| match message {
                Ok(message) => convert::chunk(message),
                Err(status) => Err(Error::Rpc(status.into())),
            });
            let end = futures::stream::once(async move { mark.is_set() });
            let broken = end.filter_map(|broken| async move { broken.then(broken_off) });
            let view = app::import_image(&app, call, header, chunks.chain(broken)).await?;
            Ok(convert::image_to_proto(&app, &view))
        })
        .await
    }

    type ExportImageStream = BoxStream<proto::ExportImageResponse>;

    async fn export_image(
        &self,
        request: Request<proto::ExportImageRequest>,
    ) -> Answer<Self::ExportImageStream> {
        let prefix = convert::image_prefix("name", &request.into_inner().name)?;
        let messages = app::export_image(&self.app, &prefix)?;
        let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
        Ok(Response::new(Box::pin(stream.map(|message| {
            Ok(match message? {
                ExportMessage::Part {
                    part,
                    filename,
                    size,
                } => convert::part_header(part, filename, size),
                ExportMessage::Data(data) => proto::ExportImageResponse {
                    message: Some(proto::export_image_response::Message::Data(data)),
                },
            })
        }))))
    }

    async fn get_image(&self, request: Request<proto::GetImageRequest>) -> Answer<proto::Image> {
        let prefix = convert::image_prefix("name", &request.into_inner().name)?;
        Ok(self.render(&app::get_image(&self.app, &prefix)?))
    }

    async fn list_images(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Answer<proto::ListImagesResponse> {
        let request = request.into_inner();
        convert::project("parent", &request.parent)?;
        let size = page::size(request.page_size)?;
        let after = page::decode(&request.page_token)?;
        let catalogue = self.app.catalogue();
        let mut images = catalogue
            .images_after(after.as_deref())
            .filter(|image| image.public || !request.public_only)
            .map(|image| {
                let view = ImageView {
                    image: image.clone(),
                    aliases: catalogue.aliases_of(&image.fingerprint),
                };
                convert::image_to_proto(&self.app, &view)
            });
        let mut page: Vec<proto::Image> = Vec::new();
        let mut bytes = 0;
        // A page never outgrows the 4 MiB that gRPC clients take by default.
        while page.len() < size && bytes < PAGE_BYTES {
            let Some(image) = images.next() else { break };
            bytes += image.encoded_len();
            page.push(image);
        }
        let next_page_token = match (page.last(), images.next()) {
            (Some(last), Some(_)) => page::encode(&last.fingerprint),
            _ => String::new(),
        };
        Ok(Response::new(proto::ListImagesResponse {
            images: page,
            next_page_token,
        }))
    }

    async fn update_image(
        &self,
        request: Request<proto::UpdateImageRequest>,
    ) -> Answer<proto::Image> {
        const FIELDS: [&str; 5] = [
            "properties",
            "public",
            "auto_update",
            "profiles",
            "expire_time",
        ];
        let request = request.into_inner();
        let key = key("UpdateImage", &request.request_id);
        let image = request
            .image
            .ok_or_else(|| Error::invalid("image", "image is missing"))?;
        let prefix = convert::image_prefix("image.name", &image.name)?;
        let mask = Mask::from_proto(request.update_mask.as_ref());
        convert::check_mask(&mask, &FIELDS, &["properties"])?;
        let (app, call) = (self.app.clone(), self.image_call(&key));
        self.run(key, async move {
            let etag = image.etag.clone();
            let change =
                Box::new(move |stored: &mut _| convert::apply_image(stored, &image, &mask));
            let view = app::update_image(&app, call, &prefix, &etag, change).await?;
            Ok(convert::image_to_proto(&app, &view))
        })
        .await
    }

    async fn delete_image(&self, request: Request<proto::DeleteImageRequest>) -> Answer<()> {
        let request = request.into_inner();
        let key = key("DeleteImage", &request.request_id);
        let prefix = convert::image_prefix("name", &request.name)?;
        let (app, call) = (self.app.clone(), call(&key, |(): &()| Vec::new()));
        self.run(key, async move {
            app::delete_image(&app, call, &prefix, &request.etag).await
        })
        .await
    }

    async fn resolve_image(
        &self,
        request: Request<proto::ResolveImageRequest>,
    ) -> Answer<proto::Image> {
        let request = request.into_inner();
        convert::project("parent", &request.parent)?;
        let kind = convert::kind("type", request.r#type)?;
        let selector = convert::selector(request.selector)?;
        let view = app::resolve_image(&self.app, &selector, kind, request.touch)?;
        Ok(self.render(&view))
    }

    async fn hold_image(&self, request: Request<proto::HoldImageRequest>) -> Answer<proto::Image> {
        let key = key_from_metadata("HoldImage", &request);
        let request = request.into_inner();
        let prefix = convert::image_prefix("name", &request.name)?;
        let hold = convert::hold(request.hold, chrono::Utc::now().timestamp_millis())?;
        let app = self.app.clone();
        self.run(key, async move {
            let view = app::hold_image(&app, &prefix, hold).await?;
            Ok(convert::image_to_proto(&app, &view))
        })
        .await
    }

    async fn release_image(
        &self,
        request: Request<proto::ReleaseImageRequest>,
    ) -> Answer<proto::Image> {
        let key = key_from_metadata("ReleaseImage", &request);
        let request = request.into_inner();
        let prefix = convert::image_prefix("name", &request.name)?;
        if request.holder.is_empty() {
            return Err(Error::invalid("holder", "holder must not be empty").into());
        }
        let app = self.app.clone();
        self.run(key, async move {
            let view = app::release_image(&app, &prefix, &request.holder).await?;
            Ok(convert::image_to_proto(&app, &view))
        })
        .await
    }

    async fn create_alias(
        &self,
        request: Request<proto::CreateAliasRequest>,
    ) -> Answer<proto::Alias> {
        let request = request.into_inner();
        let key = key("CreateAlias", &request.request_id);
        convert::project("parent", &request.parent)?;
        let alias = request
            .alias
            .ok_or_else(|| Error::invalid("alias", "alias is missing"))?;
        let name = convert::alias_text("alias.alias", &alias.alias)?;
        let kind = convert::kind("alias.type", alias.r#type)?;
        let target = convert::target("alias.target", &alias.target)?;
        let (app, call) = (self.app.clone(), Self::alias_call(&key));
        self.run(key, async move {
            let description = alias.description;
            let made = app::create_alias(&app, call, name, description, &target, kind).await?;
            Ok(convert::alias_to_proto(&made))
        })
        .await
    }

    async fn get_alias(&self, request: Request<proto::GetAliasRequest>) -> Answer<proto::Alias> {
        let name = convert::alias_of("name", &request.into_inner().name)?;
        let alias = self
            .app
            .catalogue()
            .alias(&name)
            .ok_or_else(|| Error::NoAlias(name.to_string()))?;
        Ok(Response::new(convert::alias_to_proto(&alias)))
    }

    async fn list_aliases(
        &self,
        request: Request<proto::ListAliasesRequest>,
    ) -> Answer<proto::ListAliasesResponse> {
        let request = request.into_inner();
        convert::project("parent", &request.parent)?;
        let size = page::size(request.page_size)?;
        let after = page::decode(&request.page_token)?;
        let catalogue = self.app.catalogue();
        let mut aliases = catalogue.aliases_after(after.as_deref());
        let page: Vec<_> = aliases.by_ref().take(size).collect();
        let next_page_token = match (page.last(), aliases.next()) {
            (Some(last), Some(_)) => page::encode(last.name.as_str()),
            _ => String::new(),
        };
        Ok(Response::new(proto::ListAliasesResponse {
            aliases: page.iter().map(convert::alias_to_proto).collect(),
            next_page_token,
        }))
    }

    async fn update_alias(
        &self,
        request: Request<proto::UpdateAliasRequest>,
    ) -> Answer<proto::Alias> {
        let request = request.into_inner();
        let key = key("UpdateAlias", &request.request_id);
        let alias = request
            .alias
            .ok_or_else(|| Error::invalid("alias", "alias is missing"))?;
        let name = convert::alias_of("alias.name", &alias.name)?;
        let mask = Mask::from_proto(request.update_mask.as_ref());
        convert::check_mask(&mask, &["description", "target"], &[])?;
        let mut change = AliasChange::default();
        if mask.has("target") {
            change.target = Some(convert::target("alias.target", &alias.target)?);
        }
        if mask.has("description") {
            change.description = Some(alias.description);
        }
        let (app, call) = (self.app.clone(), Self::alias_call(&key));
        self.run(key, async move {
            let alias = app::update_alias(&app, call, &name, &alias.etag, change).await?;
            Ok(convert::alias_to_proto(&alias))
        })
        .await
    }

    async fn rename_alias(
        &self,
        request: Request<proto::RenameAliasRequest>,
    ) -> Answer<proto::Alias> {
        let request = request.into_inner();
        let key = key("RenameAlias", &request.request_id);
        let old = convert::alias_of("name", &request.name)?;
        let new = convert::alias_text("new_alias", &request.new_alias)?;
        let (app, call) = (self.app.clone(), Self::alias_call(&key));
        self.run(key, async move {
            let alias = app::rename_alias(&app, call, &old, new).await?;
            Ok(convert::alias_to_proto(&alias))
        })
        .await
    }

    async fn delete_alias(&self, request: Request<proto::DeleteAliasRequest>) -> Answer<()> {
        let request = request.into_inner();
        let key = key("DeleteAlias", &request.request_id);
        let name = convert::alias_of("name", &request.name)?;
        let (app, call) = (self.app.clone(), call(&key, |(): &()| Vec::new()));
        self.run(
            key,
            async move { app::delete_alias(&app, call, &name).await },
        )
        .await
    }

    type WatchEventsStream = BoxStream<Event>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let store = self.app.store().clone();
        Ok(Response::new(berth_server::watch_events(
            store,
            request.get_ref(),
        )))
    }
}
