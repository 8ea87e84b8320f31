//! The fake's profiles.

use std::collections::BTreeMap;

use berth_proto::instance::profile_service_server::ProfileService;
use berth_proto::instance::{self as pb, Instance, Profile};
use berth_rpc::mask::Mask;
use berth_rpc::{Error, etag};
use tonic::{Request, Response, Status};

use super::instance::{Fake, State};
use super::plan::{self, expand};
use super::replay::last;

fn shown(state: &State, name: &str) -> Result<Profile, Error> {
    let mut profile = state
        .profiles
        .get(name)
        .cloned()
        .ok_or_else(|| Error::not_found("Profile", last(name)))?;
    let config: BTreeMap<_, _> = profile.config.iter().collect();
    let devices: BTreeMap<_, _> = profile
        .devices
        .iter()
        .map(|(name, d)| (name, d.options.iter().collect::<BTreeMap<_, _>>()))
        .collect();
    let text = format!("{config:?}{devices:?}{}", profile.description);
    profile.etag = etag([text.as_str()]);
    profile.used_by = users(state, name).map(|i| i.name.clone()).collect();
    Ok(profile)
}

fn users<'a>(state: &'a State, profile: &str) -> impl Iterator<Item = &'a Instance> {
    let short = last(profile);
    state
        .instances
        .values()
        .filter(move |i| i.profiles.contains(&short))
}

fn check(profile: &Profile) -> Result<(), Error> {
    match profile.config.keys().find(|key| !key.contains('.')) {
        Some(key) => Err(Error::invalid(
            format!("profile.config.{key}"),
            format!("Unknown configuration key: {key}"),
        )),
        None => Ok(()),
    }
}

/// The profile and its users as an update would have them.
fn updated(
    state: &State,
    request: &pb::UpdateProfileRequest,
) -> Result<(Profile, Vec<Instance>), Error> {
    let mut new = request.profile.clone().unwrap_or_default();
    check(&new)?;
    let old = shown(state, &new.name)?;
    if !new.etag.is_empty() && new.etag != old.etag {
        return Err(Error::etag_mismatch("The profile"));
    }
    if Mask::from_proto(request.update_mask.as_ref()) != Mask::All {
        return Err(Error::unimplemented("the fake replaces profiles whole"));
    }
    new.etag.clear();
    let mut profiles = state.profiles.clone();
    profiles.insert(new.name.clone(), new.clone());
    let mut instances = Vec::new();
    for instance in users(state, &new.name) {
        let mut instance = instance.clone();
        expand(&profiles, &mut instance)?;
        instances.push(instance);
    }
    Ok((new, instances))
}

#[tonic::async_trait]
impl ProfileService for Fake {
    async fn create_profile(
        &self,
        request: Request<pb::CreateProfileRequest>,
    ) -> Result<Response<Profile>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut profile = request.profile.unwrap_or_default();
            check(&profile)?;
            profile.name = format!("{}/profiles/{}", request.parent, request.profile_id);
            if state.profiles.contains_key(&profile.name) {
                return Err(Error::already_exists("Profile", &request.profile_id));
            }
            state.changes += 1;
            let name = profile.name.clone();
            state.profiles.insert(name.clone(), profile);
            shown(state, &name)
        })
    }

    async fn get_profile(
        &self,
        request: Request<pb::GetProfileRequest>,
    ) -> Result<Response<Profile>, Status> {
        self.0.with(|state| shown(state, &request.get_ref().name))
    }

    async fn list_profiles(
        &self,
        _: Request<pb::ListProfilesRequest>,
    ) -> Result<Response<pb::ListProfilesResponse>, Status> {
        self.0.with(|state| {
            let profiles = state.profiles.keys().map(|name| shown(state, name));
            Ok(pb::ListProfilesResponse {
                profiles: profiles.collect::<Result<_, _>>()?,
                next_page_token: String::new(),
            })
        })
    }

    async fn plan_update_profile(
        &self,
        request: Request<pb::UpdateProfileRequest>,
    ) -> Result<Response<pb::PlanUpdateProfileResponse>, Status> {
        self.0.with(|state| {
            let (_, instances) = updated(state, request.get_ref())?;
            let plans = instances.into_iter().map(|new| {
                let old = state.find(&new.name)?;
                plan::plan(Some(old), new, String::new())
            });
            Ok(pb::PlanUpdateProfileResponse {
                plan_etag: state.plan_etag(),
                instances: plans.collect::<Result<_, _>>()?,
            })
        })
    }

    async fn update_profile(
        &self,
        request: Request<pb::UpdateProfileRequest>,
    ) -> Result<Response<Profile>, Status> {
        let mut request = request.into_inner();
        self.0.once(&request.request_id.clone(), |state| {
            state.check_plan(&request.plan_etag)?;
            let (profile, instances) = updated(state, &request)?;
            for instance in instances {
                let made = request.instances.remove(&instance.name).unwrap_or_default();
                state.settle(instance, made.attachments, made.ports)?;
            }
            state.changes += 1;
            let name = profile.name.clone();
            state.profiles.insert(name.clone(), profile);
            shown(state, &name)
        })
    }

    async fn rename_profile(
        &self,
        request: Request<pb::RenameProfileRequest>,
    ) -> Result<Response<Profile>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut profile = shown(state, &request.name)?;
            let (parent, _) = request.name.rsplit_once('/').unwrap();
            let name = format!("{parent}/{}", request.new_profile_id);
            if state.profiles.contains_key(&name) {
                return Err(Error::already_exists("Profile", &request.new_profile_id));
            }
            state.changes += 1;
            state.profiles.remove(&request.name);
            profile.name.clone_from(&name);
            profile.used_by.clear();
            let old = last(&request.name);
            for instance in state.instances.values_mut() {
                for used in &mut instance.profiles {
                    if *used == old {
                        used.clone_from(&request.new_profile_id);
                    }
                }
            }
            state.profiles.insert(name.clone(), profile);
            shown(state, &name)
        })
    }

    async fn delete_profile(
        &self,
        request: Request<pb::DeleteProfileRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let profile = shown(state, &request.name)?;
            if !profile.used_by.is_empty() {
                return Err(Error::held("The profile", profile.used_by));
            }
            state.changes += 1;
            state.profiles.remove(&request.name);
            Ok(())
        })
    }
}
