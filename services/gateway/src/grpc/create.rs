//! From `CreateInstanceRequest` to the creation of an instance.

use berth_operations::Operation;
use berth_proto::gateway::CreateInstanceRequest;
use berth_proto::gateway::create_instance_request::Source as Asked;
use berth_proto::image::resolve_image_request::Selector;
use berth_rpc::{Error, names};

use crate::App;
use crate::app::instances::{self, Creation, Source};

/// Begins to make an instance.
pub(super) async fn begin(app: &App, request: CreateInstanceRequest) -> Result<Operation, Error> {
    let project = names::Project::parse("parent", &request.parent)?.project;
    let source = match request.source {
        None => {
            return Err(Error::invalid(
                "source",
                "one of image_alias, image_fingerprint, copy_of and empty is required",
            ));
        }
        Some(Asked::Empty(_)) => Source::Empty,
        Some(Asked::ImageAlias(alias)) => Source::Image(Selector::Alias(alias)),
        Some(Asked::ImageFingerprint(prefix)) => Source::Image(Selector::Fingerprint(prefix)),
        Some(Asked::CopyOf(of)) => {
            let instance = of.split("/snapshots/").next().unwrap_or_default();
            names::Instance::parse("copy_of", instance)?;
            // Snapshots come along by volume copies of their own, never unasked.
            Source::Copy {
                of,
                without_snapshots: true,
            }
        }
    };
    let creation = Creation {
        project,
        name: request.instance_id,
        instance: request.instance.unwrap_or_default(),
        default_profiles: request.default_profiles,
        source,
        start: request.start,
        request_id: request.request_id,
    };
    instances::create(app, creation).await
}
