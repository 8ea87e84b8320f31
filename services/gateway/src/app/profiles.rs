//! Profiles: making, changing, renaming and removing one.

use berth_proto::instance::{GetProfileRequest, Profile};
use berth_rpc::mask::Mask;
use berth_rpc::{Code, Error};

use crate::App;
use crate::app::holds::Uses;
use crate::app::operations::About;
use crate::app::sagas::{self, changes, profiles as steps};
use crate::error::Failure;

/// Plans that may be overtaken by other changes before it is given up.
const TRIES: u32 = 4;

/// Makes one.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn create(app: &App, project: &str, profile: Profile) -> Result<(), Failure> {
    let about = About::task("Creating profile", project);
    sagas::finish(app, steps::CREATE, &steps::Stored::new(profile)?, about)
        .await
        .map_err(|error| match error.code {
            Code::AlreadyExists => Failure::conflict("The profile already exists"),
            _ => error.into(),
        })
}

async fn read(app: &App, name: &str) -> Result<Profile, Error> {
    let profile = app
        .owners
        .profiles()
        .get_profile(GetProfileRequest {
            name: name.to_owned(),
        })
        .await?;
    Ok(profile.into_inner())
}

/// What an update's saga needs to know. A mask that names paths merges them into what is there.
///
/// # Errors
/// When there is no such profile.
pub async fn change(
    app: &App,
    mut new: Profile,
    mask: Option<&prost_types::FieldMask>,
) -> Result<steps::Update, Error> {
    let old = read(app, &new.name).await?;
    let mask = Mask::from_proto(mask);
    if mask != Mask::All {
        // A merge is over what was read, so it may not have changed since.
        new.etag.clone_from(&old.etag);
        if !mask.has("description") {
            new.description.clone_from(&old.description);
        }
        let config = old.config.clone().into_iter().collect();
        let devices = old.devices.clone().into_iter().collect();
        new.config = mask
            .merge_map("config", &config, &new.config, String::is_empty)
            .into_iter()
            .collect();
        new.devices = mask
            .merge_map("devices", &devices, &new.devices, |d| d.options.is_empty())
            .into_iter()
            .collect();
    }
    Ok(steps::Update {
        old: steps::Stored::new(old)?,
        new: steps::Stored::new(new)?,
    })
}

/// How an update presents itself.
pub fn about_update(project: &str, request_id: &str) -> About {
    About::task("Updating profile", project).requested_as(request_id)
}

/// Replaces one. An etag, where it has one, is checked when it is committed.
///
/// # Errors
/// When it, or an instance that has it, refuses the change; nothing has changed then.
pub async fn update(app: &App, project: &str, new: Profile) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let params = change(app, new.clone(), None).await?;
        let about = about_update(project, "");
        match sagas::finish(app, steps::UPDATE, &params, about).await {
            Err(error) if changes::is_stale(&error) && tries < TRIES => tries += 1,
            result => return Ok(result?),
        }
    }
}

async fn existing(app: &App, project: &str, name: &str) -> Result<steps::Existing, Error> {
    let profile = read(app, name).await?;
    Ok(steps::Existing {
        project: project.to_owned(),
        name: name.to_owned(),
        new_name: String::new(),
        uses: Uses::of(&profile.devices),
    })
}

/// Renames one.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn rename(app: &App, project: &str, name: &str, new: &str) -> Result<(), Failure> {
    let mut params = existing(app, project, name).await?;
    new.clone_into(&mut params.new_name);
    let about = About::task("Renaming profile", project);
    sagas::finish(app, steps::RENAME, &params, about)
        .await
        .map_err(|error| match error.code {
            Code::AlreadyExists => Failure::conflict(format!("Name {new:?} already in use")),
            _ => error.into(),
        })
}

/// Removes one.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn delete(app: &App, project: &str, name: &str) -> Result<(), Failure> {
    let params = existing(app, project, name).await?;
    let about = About::task("Deleting profile", project);
    sagas::finish(app, steps::DELETE, &params, about)
        .await
        .map_err(|error| match error.reason.as_str() {
            "HELD" | "PROFILE_IN_USE" => Failure::bad_request("Profile is currently in use"),
            _ => error.into(),
        })
}
