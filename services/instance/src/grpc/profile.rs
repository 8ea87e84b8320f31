//! ProfileService.

use std::collections::BTreeMap;

use berth_proto::instance as proto;
use berth_proto::instance::profile_service_server::ProfileService;
use berth_rpc::mask::Mask;
use berth_rpc::{names, page};
use tonic::{Request, Response, Status};

use super::{Api, convert, project_name, render};
use crate::Error;
use crate::app::{ProfileUpdate, Values};
use crate::model::record::Profile;

type Answer<T> = Result<Response<T>, Status>;

fn name(field: &str, name: &str) -> Result<(String, String), Error> {
    let name = names::Profile::parse(field, name)?;
    Ok((name.project, name.profile))
}

fn update(request: &mut proto::UpdateProfileRequest) -> Result<ProfileUpdate, Error> {
    let given = request.profile.take().unwrap_or_default();
    let (project, name) = name("profile.name", &given.name)?;
    Ok(ProfileUpdate {
        project,
        name,
        description: given.description,
        config: given.config.into_iter().collect(),
        devices: convert::devices(given.devices),
        mask: Mask::from_proto(request.update_mask.as_ref()),
        etag: given.etag,
    })
}

impl Api {
    fn rendered(&self, profile: &Profile) -> proto::Profile {
        let users = self
            .app
            .profile_users(&profile.project)
            .remove(&profile.name);
        render::profile(profile, &users.unwrap_or_default())
    }
}

#[tonic::async_trait]
impl ProfileService for Api {
    async fn create_profile(
        &self,
        request: Request<proto::CreateProfileRequest>,
    ) -> Answer<proto::Profile> {
        let r = request.into_inner();
        let given = r.profile.unwrap_or_default();
        let profile = Profile {
            uid: String::new(),
            project: project_name("parent", &r.parent)?,
            name: r.profile_id,
            description: given.description,
            config: given.config.into_iter().collect(),
            devices: convert::devices(given.devices),
        };
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move {
            app.create_profile(profile, &id)
                .await
                .map(|p| render::profile(&p, &[]))
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn get_profile(
        &self,
        request: Request<proto::GetProfileRequest>,
    ) -> Answer<proto::Profile> {
        let (project, name) = name("name", &request.into_inner().name)?;
        Ok(Response::new(
            self.rendered(&self.app.profile(&project, &name)?),
        ))
    }

    async fn list_profiles(
        &self,
        request: Request<proto::ListProfilesRequest>,
    ) -> Answer<proto::ListProfilesResponse> {
        let r = request.into_inner();
        let project = project_name("parent", &r.parent)?;
        let mut users = self.app.profile_users(&project);
        let all = self.app.profiles(&project);
        let (all, next) = page::cut(all, r.page_size, &r.page_token, |p| p.name.as_str())?;
        let profiles = all
            .iter()
            .map(|p| render::profile(p, &users.remove(&p.name).unwrap_or_default()))
            .collect();
        Ok(Response::new(proto::ListProfilesResponse {
            profiles,
            next_page_token: next,
        }))
    }

    async fn plan_update_profile(
        &self,
        request: Request<proto::UpdateProfileRequest>,
    ) -> Answer<proto::PlanUpdateProfileResponse> {
        let (plan_etag, plans) = self
            .app
            .plan_update_profile(&update(&mut request.into_inner())?)?;
        let instances = plans.into_iter().map(render::plan).collect();
        Ok(Response::new(proto::PlanUpdateProfileResponse {
            plan_etag,
            instances,
        }))
    }

    async fn update_profile(
        &self,
        request: Request<proto::UpdateProfileRequest>,
    ) -> Answer<proto::Profile> {
        let mut r = request.into_inner();
        let update = update(&mut r)?;
        let mut values: BTreeMap<String, Values> = BTreeMap::new();
        for (instance, given) in r.instances {
            values.insert(instance, convert::values(given.attachments, given.ports)?);
        }
        let (api, id) = (self.clone(), r.request_id.clone());
        let work = async move {
            let done = api
                .app
                .update_profile(&update, &r.plan_etag, values, &id)
                .await;
            done.map(|profile| api.rendered(&profile))
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn rename_profile(
        &self,
        request: Request<proto::RenameProfileRequest>,
    ) -> Answer<proto::Profile> {
        let r = request.into_inner();
        let (project, old) = name("name", &r.name)?;
        let (api, id) = (self.clone(), r.request_id.clone());
        let work = async move {
            let done = api
                .app
                .rename_profile(&project, &old, &r.new_profile_id, &id)
                .await;
            done.map(|profile| api.rendered(&profile))
        };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }

    async fn delete_profile(&self, request: Request<proto::DeleteProfileRequest>) -> Answer<()> {
        let r = request.into_inner();
        let (project, name) = name("name", &r.name)?;
        let (app, id) = (self.app.clone(), r.request_id.clone());
        let work = async move { app.delete_profile(&project, &name, &id).await };
        Ok(Response::new(self.requests.run(&r.request_id, work).await?))
    }
}
