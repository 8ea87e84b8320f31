//! Sagas on profiles. A profile's change is a change of every instance that has it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_operations::{Saga, Step};
use berth_proto::instance::{
    self, Device, InstanceValues, PlanUpdateProfileResponse, Profile, UpdateProfileRequest,
};
use berth_rpc::{Error, names};
use serde::{Deserialize, Serialize};

use super::Context;
use super::changes::{self as device_changes, Change, Made};
use super::undo::{absent_is_fine, answer, may_have_happened, noted};
use crate::app::holds::{self, Uses};
use crate::app::wire::Wire;

/// Makes a profile.
pub const CREATE: &str = "create_profile";
/// Changes one, and every instance that has it.
pub const UPDATE: &str = "update_profile";
/// Renames one.
pub const RENAME: &str = "rename_profile";
/// Removes one.
pub const DELETE: &str = "delete_profile";

/// Noted where the change may have been made: only then is it ours to take back.
const DONE: &str = "done";
const PLAN_ETAG: &str = "plan_etag";
const CHANGES: &str = "changes";
const MADE: &str = "made";

/// A profile as an operation's row has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    /// Project's short name.
    pub project: String,
    /// Short name.
    pub profile: String,
    description: String,
    config: BTreeMap<String, String>,
    devices: BTreeMap<String, BTreeMap<String, String>>,
    etag: String,
}

impl Stored {
    /// Of the profile that its resource name says.
    ///
    /// # Errors
    /// When it is no profile's name.
    pub fn new(profile: Profile) -> Result<Self, Error> {
        let name = names::Profile::parse("profile.name", &profile.name)?;
        Ok(Self {
            project: name.project,
            profile: name.profile,
            description: profile.description,
            config: profile.config.into_iter().collect(),
            devices: profile
                .devices
                .into_iter()
                .map(|(name, device)| (name, device.options.into_iter().collect()))
                .collect(),
            etag: profile.etag,
        })
    }

    /// Resource name.
    pub fn name(&self) -> String {
        names::Profile::new(&self.project, &self.profile).to_string()
    }

    fn devices(&self) -> HashMap<String, Device> {
        self.devices
            .iter()
            .map(|(name, options)| {
                let options = options.clone().into_iter().collect();
                (name.clone(), Device { options })
            })
            .collect()
    }

    fn uses(&self) -> Uses {
        Uses::of(&self.devices())
    }

    fn message(&self) -> Profile {
        Profile {
            name: self.name(),
            description: self.description.clone(),
            config: self.config.clone().into_iter().collect(),
            devices: self.devices(),
            used_by: Vec::new(),
            etag: self.etag.clone(),
        }
    }
}

/// `create_profile`.
pub fn create() -> Saga<crate::Gateway> {
    Saga {
        name: CREATE,
        version: 1,
        stages: vec![
            // First, since the holds of a profile of this name that is there are not ours.
            vec![Step::with_undo(
                "create_profile",
                |ctx| Box::pin(create_profile(ctx)),
                |ctx| Box::pin(remove_profile(ctx)),
            )],
            vec![Step::with_undo(
                "hold",
                |ctx| {
                    Box::pin(async move {
                        let new: Stored = ctx.params()?;
                        let owners = &ctx.app.owners;
                        holds::hold(owners, &new.project, &new.uses(), &new.name()).await
                    })
                },
                |ctx| {
                    Box::pin(async move {
                        let new: Stored = ctx.params()?;
                        let owners = &ctx.app.owners;
                        holds::release(owners, &new.project, &new.uses(), &new.name()).await
                    })
                },
            )],
        ],
    }
}

async fn create_profile(ctx: Context) -> Result<(), Error> {
    let new: Stored = ctx.params()?;
    let mut client = ctx.app.owners.profiles();
    let request = instance::CreateProfileRequest {
        parent: names::Project::new(&new.project).to_string(),
        profile_id: new.profile.clone(),
        profile: Some(new.message()),
        request_id: ctx.request_id(),
    };
    noted(&ctx, DONE, async {
        answer(client.create_profile(request).await)
    })
    .await?;
    Ok(())
}

async fn remove_profile(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, DONE)? {
        return Ok(());
    }
    let new: Stored = ctx.params()?;
    absent_is_fine(delete_by_name(&ctx, new.name()).await)
}

async fn delete_by_name(ctx: &Context, name: String) -> Result<(), Error> {
    let request = instance::DeleteProfileRequest {
        name,
        request_id: ctx.request_id(),
    };
    answer(ctx.app.owners.profiles().delete_profile(request).await)
}

/// A profile and what it uses, read before a saga begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Existing {
    /// Project's short name.
    pub project: String,
    /// Resource name.
    pub name: String,
    /// The name it gets, for a rename; short.
    pub new_name: String,
    /// Pools and networks it names.
    pub uses: Uses,
}

/// `delete_profile`.
pub fn delete() -> Saga<crate::Gateway> {
    Saga {
        name: DELETE,
        version: 1,
        stages: vec![
            vec![Step::with_undo(
                "release",
                |ctx| Box::pin(release_old_name(ctx)),
                |ctx| Box::pin(hold_if_there(ctx)),
            )],
            vec![Step::new("delete_profile", |ctx| {
                Box::pin(async move {
                    let old: Existing = ctx.params()?;
                    delete_by_name(&ctx, old.name).await
                })
            })],
        ],
    }
}

async fn release_old_name(ctx: Context) -> Result<(), Error> {
    let old: Existing = ctx.params()?;
    holds::release(&ctx.app.owners, &old.project, &old.uses, &old.name).await
}

async fn hold_old_name(ctx: Context) -> Result<(), Error> {
    let old: Existing = ctx.params()?;
    holds::hold(&ctx.app.owners, &old.project, &old.uses, &old.name).await
}

/// What is gone after all holds nothing.
async fn hold_if_there(ctx: Context) -> Result<(), Error> {
    let old: Existing = ctx.params()?;
    let request = instance::GetProfileRequest { name: old.name };
    match answer(ctx.app.owners.profiles().get_profile(request).await) {
        Ok(_) => hold_old_name(ctx).await,
        Err(error) if error.code == berth_rpc::Code::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// `rename_profile`.
pub fn rename() -> Saga<crate::Gateway> {
    Saga {
        name: RENAME,
        version: 1,
        stages: vec![
            vec![Step::with_undo(
                "rename_profile",
                |ctx| {
                    Box::pin(async move {
                        let old: Existing = ctx.params()?;
                        noted(&ctx, DONE, give_name(&ctx, old.name, old.new_name)).await
                    })
                },
                |ctx| {
                    Box::pin(async move {
                        if !may_have_happened(&ctx, DONE)? {
                            return Ok(());
                        }
                        let old: Existing = ctx.params()?;
                        let short = old.name.rsplit('/').next().unwrap_or_default().to_owned();
                        give_name(&ctx, new_name(&old), short).await
                    })
                },
            )],
            vec![Step::with_undo(
                "hold",
                |ctx| {
                    Box::pin(async move {
                        let old: Existing = ctx.params()?;
                        let owners = &ctx.app.owners;
                        holds::hold(owners, &old.project, &old.uses, &new_name(&old)).await
                    })
                },
                |ctx| {
                    Box::pin(async move {
                        let old: Existing = ctx.params()?;
                        let owners = &ctx.app.owners;
                        holds::release(owners, &old.project, &old.uses, &new_name(&old)).await
                    })
                },
            )],
            vec![Step::with_undo(
                "release",
                |ctx| Box::pin(release_old_name(ctx)),
                |ctx| Box::pin(hold_old_name(ctx)),
            )],
        ],
    }
}

fn new_name(old: &Existing) -> String {
    names::Profile::new(&old.project, &old.new_name).to_string()
}

async fn give_name(ctx: &Context, name: String, new_profile_id: String) -> Result<(), Error> {
    ctx.app
        .owners
        .profiles()
        .rename_profile(instance::RenameProfileRequest {
            name,
            new_profile_id,
            request_id: ctx.request_id(),
        })
        .await?;
    Ok(())
}

/// A profile's change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Update {
    /// As it was read before.
    pub old: Stored,
    /// As it is to be.
    pub new: Stored,
}

/// `update_profile`.
pub fn update() -> Saga<crate::Gateway> {
    Saga {
        name: UPDATE,
        version: 1,
        stages: vec![
            vec![Step::new("plan", |ctx| Box::pin(plan(ctx)))],
            vec![
                Step::with_undo(
                    "hold",
                    |ctx| Box::pin(hold_new(ctx)),
                    |ctx| Box::pin(release_new(ctx)),
                ),
                Step::with_undo(
                    "make",
                    |ctx| Box::pin(make(ctx)),
                    |ctx| Box::pin(unmake(ctx)),
                ),
            ],
            vec![Step::with_undo(
                "commit",
                |ctx| Box::pin(commit(ctx)),
                |ctx| Box::pin(revert(ctx)),
            )],
            vec![
                Step::with_undo(
                    "remove_surplus",
                    |ctx| Box::pin(remove_surplus(ctx)),
                    |ctx| Box::pin(restore_surplus(ctx)),
                ),
                Step::with_undo(
                    "release",
                    |ctx| Box::pin(release_old(ctx)),
                    |ctx| Box::pin(hold_old(ctx)),
                ),
            ],
        ],
    }
}

fn request(profile: Profile) -> UpdateProfileRequest {
    UpdateProfileRequest {
        profile: Some(profile),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["*".into()],
        }),
        ..Default::default()
    }
}

async fn planned(ctx: &Context, profile: Profile) -> Result<PlanUpdateProfileResponse, Error> {
    let plan = ctx
        .app
        .owners
        .profiles()
        .plan_update_profile(request(profile))
        .await?;
    Ok(plan.into_inner())
}

async fn plan(ctx: Context) -> Result<(), Error> {
    let Update { new, .. } = ctx.params()?;
    let plan = planned(&ctx, new.message()).await?;
    let mut changes = Vec::new();
    if !plan.instances.is_empty() {
        // One call for all of them: a profile may be under every instance there is.
        let mut before = instances(&ctx, &new.project).await?;
        for plan in plan.instances {
            let name = plan.instance.as_ref().map_or("", |i| i.name.as_str());
            let before = before
                .remove(name)
                .ok_or_else(|| Error::aborted("PLAN_STALE", "an instance is gone meanwhile"))?;
            changes.push(Change {
                plan: Wire(plan),
                before: Wire(before),
            });
        }
    }
    ctx.put(PLAN_ETAG, &plan.plan_etag)?;
    ctx.put(CHANGES, &changes)
}

async fn instances(
    ctx: &Context,
    project: &str,
) -> Result<HashMap<String, instance::Instance>, Error> {
    let mut client = ctx.app.owners.instances();
    let mut all = HashMap::new();
    let mut request = instance::ListInstancesRequest {
        parent: names::Project::new(project).to_string(),
        view: instance::InstanceView::Basic.into(),
        ..Default::default()
    };
    loop {
        let page = client.list_instances(request.clone()).await?.into_inner();
        all.extend(page.instances.into_iter().map(|i| (i.name.clone(), i)));
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

fn changes(ctx: &Context) -> Result<Vec<Change>, Error> {
    Ok(ctx.output(CHANGES)?.unwrap_or_default())
}

async fn make(ctx: Context) -> Result<(), Error> {
    let made: Arc<Mutex<BTreeMap<String, Made>>> = Arc::default();
    device_changes::each(&ctx, changes(&ctx)?, |ctx, change| {
        let made = made.clone();
        async move {
            let one = change.make(&ctx).await?;
            lock(&made).insert(change.before.0.name, one);
            Ok(())
        }
    })
    .await?;
    let made = lock(&made).clone();
    ctx.put(MADE, &made)
}

fn lock(made: &Mutex<BTreeMap<String, Made>>) -> MutexGuard<'_, BTreeMap<String, Made>> {
    // Whole after every insertion.
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn unmake(ctx: Context) -> Result<(), Error> {
    let mut made: BTreeMap<String, Made> = ctx.output(MADE)?.unwrap_or_default();
    device_changes::each(&ctx, changes(&ctx)?, |ctx, change| {
        let made = made.remove(&change.before.0.name);
        async move { change.unmake(&ctx, made.as_ref()).await }
    })
    .await
}

async fn commit(ctx: Context) -> Result<(), Error> {
    let Update { new, .. } = ctx.params()?;
    let made: BTreeMap<String, Made> = ctx.require(MADE)?;
    let mut instances = HashMap::new();
    for (name, made) in made {
        instances.insert(name, made.values());
    }
    let mut client = ctx.app.owners.profiles();
    let request = UpdateProfileRequest {
        plan_etag: ctx.require(PLAN_ETAG)?,
        instances,
        request_id: ctx.request_id(),
        ..request(new.message())
    };
    noted(&ctx, DONE, async {
        answer(client.update_profile(request).await)
    })
    .await?;
    Ok(())
}

async fn revert(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, DONE)? {
        return Ok(());
    }
    let Update { old, .. } = ctx.params()?;
    let mut profile = old.message();
    profile.etag.clear();
    let plan = planned(&ctx, profile.clone()).await?;
    let before: HashMap<String, Change> = changes(&ctx)?
        .into_iter()
        .map(|change| (change.before.0.name.clone(), change))
        .collect();
    let instances: HashMap<String, InstanceValues> = plan
        .instances
        .iter()
        .filter_map(|plan| {
            let name = &plan.instance.as_ref()?.name;
            Some((name.clone(), before.get(name)?.values_before(plan)))
        })
        .collect();
    ctx.app
        .owners
        .profiles()
        .update_profile(UpdateProfileRequest {
            plan_etag: plan.plan_etag,
            instances,
            request_id: ctx.request_id(),
            ..request(profile)
        })
        .await?;
    Ok(())
}

async fn remove_surplus(ctx: Context) -> Result<(), Error> {
    device_changes::each(&ctx, changes(&ctx)?, |ctx, change| async move {
        change.remove_surplus(&ctx).await
    })
    .await
}

async fn restore_surplus(ctx: Context) -> Result<(), Error> {
    device_changes::each(&ctx, changes(&ctx)?, |ctx, change| async move {
        change.restore_surplus(&ctx).await
    })
    .await
}

async fn hold_new(ctx: Context) -> Result<(), Error> {
    let Update { old, new } = ctx.params()?;
    let more = new.uses().without(&old.uses());
    holds::hold(&ctx.app.owners, &new.project, &more, &new.name()).await
}

async fn release_new(ctx: Context) -> Result<(), Error> {
    let Update { old, new } = ctx.params()?;
    let more = new.uses().without(&old.uses());
    holds::release(&ctx.app.owners, &new.project, &more, &new.name()).await
}

async fn release_old(ctx: Context) -> Result<(), Error> {
    let Update { old, new } = ctx.params()?;
    let less = old.uses().without(&new.uses());
    holds::release(&ctx.app.owners, &new.project, &less, &new.name()).await
}

async fn hold_old(ctx: Context) -> Result<(), Error> {
    let Update { old, new } = ctx.params()?;
    let less = old.uses().without(&new.uses());
    holds::hold(&ctx.app.owners, &new.project, &less, &new.name()).await
}
