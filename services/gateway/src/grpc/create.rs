//! From `CreateInstanceRequest` to the saga that makes an instance.

use berth_operations::Operation;
use berth_proto::gateway::CreateInstanceRequest;
use berth_proto::gateway::create_instance_request::Source;
use berth_proto::image::resolve_image_request::Selector;
use berth_proto::image::{Image, ResolveImageRequest};
use berth_proto::instance::{
    GetInstanceRequest, ImageInfo, InstanceView, PlanCreateInstanceRequest,
};
use berth_rpc::{Error, names};

use crate::App;
use crate::app::operations::About;
use crate::app::sagas::devices::{self, Contents};
use crate::app::sagas::instances::create::{NAME, Params};
use crate::app::wire::Wire;

/// Begins to make an instance.
pub(super) async fn begin(app: &App, request: CreateInstanceRequest) -> Result<Operation, Error> {
    let project = names::Project::parse("parent", &request.parent)?.project;
    let name = names::Instance::new(&project, &request.instance_id);
    names::Instance::parse("instance_id", &name.to_string())?;
    let mut plan = PlanCreateInstanceRequest {
        parent: request.parent,
        instance_id: request.instance_id,
        instance: request.instance,
        image: None,
        default_profiles: request.default_profiles,
        copy_of: String::new(),
    };
    let contents = match request.source {
        None => {
            return Err(Error::invalid(
                "source",
                "one of image_alias, image_fingerprint, copy_of and empty is required",
            ));
        }
        Some(Source::Empty(_)) => Contents::Empty,
        Some(Source::ImageAlias(alias)) => {
            from_image(app, &mut plan, Selector::Alias(alias)).await?
        }
        Some(Source::ImageFingerprint(fingerprint)) => {
            from_image(app, &mut plan, Selector::Fingerprint(fingerprint)).await?
        }
        Some(Source::CopyOf(source)) => {
            let of = volume_of(app, &source).await?;
            plan.copy_of = source;
            Contents::Copy { of }
        }
    };
    let about = About::task("Creating instance", &project)
        .on_container(&name.instance)
        .requested_as(&request.request_id);
    let params = Params {
        plan: Wire(plan),
        contents,
        start: request.start,
    };
    app.operations.start(NAME, &params, about).await
}

async fn from_image(
    app: &App,
    plan: &mut PlanCreateInstanceRequest,
    selector: Selector,
) -> Result<Contents, Error> {
    let image: Image = app
        .owners
        .images()
        .resolve_image(ResolveImageRequest {
            parent: plan.parent.clone(),
            selector: Some(selector),
            touch: true,
            ..Default::default()
        })
        .await?
        .into_inner();
    let contents = Contents::Image {
        fingerprint: image.fingerprint.clone(),
        blobs: image.blobs.into_iter().map(Wire).collect(),
    };
    plan.image = Some(ImageInfo {
        fingerprint: image.fingerprint,
        architecture: image.architecture,
        properties: image.properties,
        profiles: image.profiles,
    });
    Ok(contents)
}

/// The root volume of an instance, or of one of its snapshots.
async fn volume_of(app: &App, source: &str) -> Result<String, Error> {
    let (instance, snapshot) = match source.split_once("/snapshots/") {
        Some((instance, snapshot)) => (instance, Some(snapshot)),
        None => (source, None),
    };
    names::Instance::parse("copy_of", instance)?;
    let instance = app
        .owners
        .instances()
        .get_instance(GetInstanceRequest {
            name: instance.to_owned(),
            view: InstanceView::Basic.into(),
        })
        .await?
        .into_inner();
    let volume = &devices::root(&instance)?.1.volume;
    Ok(match snapshot {
        Some(snapshot) => format!("{volume}/snapshots/{snapshot}"),
        None => volume.clone(),
    })
}
