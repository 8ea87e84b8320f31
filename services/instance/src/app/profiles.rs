//! Profiles: configuration that instances share. A change of one is a change of all that use it.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_rpc::mask::Mask;
use berth_store::Event;

use super::plan::{Draft, check_etag, merge_values};
use super::{App, ByName, DEFAULT_PROFILE, Plan, Slot, Values};
use crate::Error;
use crate::model::keys::{self, Config};
use crate::model::record::{self, Devices, Instance, Profile};
use crate::model::update::keep_own_keys;
use crate::model::{device, name};

/// What a client wants changed.
#[derive(Debug, Clone)]
pub struct ProfileUpdate {
    pub project: String,
    pub name: String,
    pub description: String,
    pub config: Config,
    pub devices: Devices,
    pub mask: Mask,
    /// Checked when it is not empty.
    pub etag: String,
}

/// One user of a profile, before and as it would be.
struct User {
    slot: Arc<Slot>,
    before: Arc<Instance>,
    draft: Draft,
}

fn profile_event(action: &str, profile: &Profile) -> Event {
    Event {
        action: action.to_owned(),
        resource: profile.resource(),
        project: profile.project.clone(),
        traceparent: berth_rpc::trace::current_traceparent().unwrap_or_default(),
        ..Event::default()
    }
}

fn validate(profile: &Profile) -> Result<(), Error> {
    keys::validate(&profile.config, keys::Scope::Profile)?;
    device::validate(&profile.devices)
}

impl App {
    /// A stored profile, or the default one that every project has.
    pub fn profile(&self, project: &str, name: &str) -> Result<Profile, Error> {
        let stored = self
            .profiles_now()
            .get(&(project.to_owned(), name.to_owned()))
            .cloned();
        match stored {
            Some(profile) => Ok(profile),
            None if name == DEFAULT_PROFILE => Ok(default_profile(project)),
            None => Err(Error::not_found("Profile", name)),
        }
    }

    /// All of a project, by name.
    pub fn profiles(&self, project: &str) -> Vec<Profile> {
        let stored = self.profiles_now();
        let mut all: BTreeMap<String, Profile> = stored
            .iter()
            .filter(|((p, _), _)| p == project)
            .map(|((_, n), profile)| (n.clone(), profile.clone()))
            .collect();
        all.entry(DEFAULT_PROFILE.to_owned())
            .or_insert_with(|| default_profile(project));
        all.into_values().collect()
    }

    /// Resource names of the instances that have each profile of a project.
    pub fn profile_users(&self, project: &str) -> BTreeMap<String, Vec<String>> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for slot in self.slots(project) {
            let record = slot.record();
            for profile in &record.profiles {
                users
                    .entry(profile.clone())
                    .or_default()
                    .push(record.resource());
            }
        }
        users
    }

    pub async fn create_profile(
        &self,
        mut profile: Profile,
        request_id: &str,
    ) -> Result<Profile, Error> {
        name::profile(&profile.name)?;
        profile.config.retain(|_, value| !value.is_empty());
        validate(&profile)?;
        self.check_apparmor(None, &profile.config).await?;
        let _gate = self.profile_gate.write().await;
        if self.profile(&profile.project, &profile.name).is_ok() {
            return Err(Error::already_exists("Profile", &profile.name));
        }
        profile.uid = uuid::Uuid::now_v7().to_string();
        self.put_profile(&profile, "profile-created", request_id)
            .await?;
        Ok(profile)
    }

    async fn put_profile(
        &self,
        profile: &Profile,
        action: &str,
        request_id: &str,
    ) -> Result<(), Error> {
        let mut tx = self.records.begin().await?;
        tx.put_profile(profile).await?;
        let bytes = (self.encode.profile)(profile, &[]);
        self.finish(
            &mut tx,
            Some(profile_event(action, profile)),
            request_id,
            bytes,
        )
        .await?;
        tx.commit().await?;
        let key = (profile.project.clone(), profile.name.clone());
        self.publish_profiles(|all| drop(all.insert(key, profile.clone())));
        Ok(())
    }

    /// One plan for each instance that has the profile.
    pub fn plan_update_profile(
        &self,
        update: &ProfileUpdate,
    ) -> Result<(String, Vec<Plan>), Error> {
        let (old, new) = self.updated_profile(update)?;
        let users = self.drafts(&new)?;
        let etag = profile_etag(&old, &users);
        let plans = users
            .into_iter()
            .map(|u| self.plan(u.draft, Some(&u.before), u.slot.run()));
        Ok((etag, plans.collect()))
    }

    fn updated_profile(&self, update: &ProfileUpdate) -> Result<(Profile, Profile), Error> {
        let old = self.profile(&update.project, &update.name)?;
        if !update.etag.is_empty() && update.etag != old.etag() {
            return Err(Error::etag_mismatch(old.resource()));
        }
        let mut new = old.clone();
        if update.mask.has("description") {
            new.description.clone_from(&update.description);
        }
        let config = update.config.clone().into_iter().collect();
        let devices = update.devices.clone().into_iter().collect();
        new.config = update
            .mask
            .merge_map("config", &old.config, &config, String::is_empty);
        new.devices = update
            .mask
            .merge_map("devices", &old.devices, &devices, |d| d.is_empty());
        validate(&new)?;
        Ok((old, new))
    }

    /// Every user as it would be with the profile as it would be.
    fn drafts(&self, profile: &Profile) -> Result<Vec<User>, Error> {
        let mut profiles: ByName<Profile> = (*self.profiles_now()).clone();
        let key = (profile.project.clone(), profile.name.clone());
        profiles.insert(key, profile.clone());
        let mut users = Vec::new();
        for slot in self.slots(&profile.project) {
            let before = slot.record();
            if !before.profiles.contains(&profile.name) {
                continue;
            }
            let old = self.expand(&before);
            let draft = self
                .draft((*before).clone(), Some((&before, &old)), &profiles)
                .map_err(|e| e.context(format!("Instance {:?}", before.name)))?;
            users.push(User {
                slot,
                before,
                draft,
            });
        }
        Ok(users)
    }

    /// Commits the profile and what it means for every user, then changes those that run. Guests that refuse
    /// are named in the error; the profile is changed nevertheless, as LXD does.
    pub async fn update_profile(
        &self,
        update: &ProfileUpdate,
        plan_etag: &str,
        mut values: BTreeMap<String, Values>,
        request_id: &str,
    ) -> Result<Profile, Error> {
        let _gate = self.profile_gate.write().await;
        let (old, mut new) = self.updated_profile(update)?;
        if new.uid.is_empty() {
            new.uid = uuid::Uuid::now_v7().to_string();
        }
        self.check_apparmor(Some(&old.config), &new.config).await?;
        let users = self.drafts(&new)?;
        check_etag(plan_etag, &profile_etag(&old, &users))?;
        let mut changes = Vec::new();
        for user in users {
            let given = values.remove(&user.before.resource()).unwrap_or_default();
            let merged = merge_values(Some(&user.before), &user.draft, given)
                .map_err(|e| e.context(format!("Instance {:?}", user.before.name)))?;
            changes.push((user, merged));
        }
        self.commit_profile(&new, changes, request_id).await?;
        Ok(new)
    }

    async fn commit_profile(
        &self,
        new: &Profile,
        changes: Vec<(User, Values)>,
        request_id: &str,
    ) -> Result<(), Error> {
        berth_server::failpoint::pass("instance.profile.commit").await?;
        let mut writing = Vec::new();
        for (user, _) in &changes {
            writing.push(user.slot.writing.lock().await);
        }
        let mut tx = self.records.begin().await?;
        tx.put_profile(new).await?;
        let mut records = Vec::new();
        for (user, values) in &changes {
            // A run may have ended or begun since the draft: its own keys are those of now.
            let now = user.slot.record();
            let mut record = (*now).clone();
            let mut config = user.draft.record.config.clone();
            keep_own_keys(&now.config, &mut config)?;
            record.config = config;
            record.attachments = values.attachments.clone();
            record.ports = values.ports.clone();
            tx.update_instance(&record).await?;
            records.push((now, record));
        }
        let users = records
            .iter()
            .map(|(_, r)| r.resource())
            .collect::<Vec<_>>();
        let bytes = (self.encode.profile)(new, &users);
        let told = profile_event("profile-updated", new);
        self.finish(&mut tx, Some(told), request_id, bytes).await?;
        tx.commit().await?;
        let olds: Vec<_> = changes
            .iter()
            .map(|(u, _)| self.expand(&u.slot.record()))
            .collect();
        let key = (new.project.clone(), new.name.clone());
        self.publish_profiles(|all| drop(all.insert(key, new.clone())));
        for ((user, _), (now, record)) in changes.iter().zip(&records) {
            self.published(&user.slot, now, record.clone());
        }
        drop(writing);
        let mut failed = Vec::new();
        for (((user, _), (now, record)), old) in changes.iter().zip(&records).zip(&olds) {
            let expanded = &user.draft.expanded;
            let done = self
                .apply_live(&user.slot, (now, old), (record, expanded))
                .await;
            if let Err(error) = done {
                failed.push(format!(
                    " - Project: {}, Instance: {}: {error}",
                    record.project, record.name
                ));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let head = "The following instances failed to update (profile change still saved):";
        Err(Error::precondition(
            "INSTANCES_FAILED",
            format!("{head}\n{}", failed.join("\n")),
        ))
    }

    /// The instances that have it name it anew in the same commit.
    pub async fn rename_profile(
        &self,
        project: &str,
        old: &str,
        new: &str,
        request_id: &str,
    ) -> Result<Profile, Error> {
        name::profile(new)?;
        if old == DEFAULT_PROFILE {
            let why = "The default profile cannot be renamed";
            return Err(Error::precondition("DEFAULT_PROFILE", why));
        }
        let _gate = self.profile_gate.write().await;
        let before = self.profile(project, old)?;
        if self.profile(project, new).is_ok() {
            return Err(Error::already_exists("Profile", new));
        }
        let profile = Profile {
            name: new.to_owned(),
            ..before
        };
        let slots: Vec<Arc<Slot>> = self
            .slots(project)
            .into_iter()
            .filter(|s| s.record().profiles.iter().any(|p| p == old))
            .collect();
        let mut writing = Vec::new();
        for slot in &slots {
            writing.push(slot.writing.lock().await);
        }
        let mut tx = self.records.begin().await?;
        tx.put_profile(&profile).await?;
        let mut records = Vec::new();
        for slot in &slots {
            let now = slot.record();
            let mut record = (*now).clone();
            for name in record.profiles.iter_mut().filter(|p| p.as_str() == old) {
                new.clone_into(name);
            }
            tx.update_instance(&record).await?;
            records.push((now, record));
        }
        let users = records
            .iter()
            .map(|(_, r)| r.resource())
            .collect::<Vec<_>>();
        let mut told = profile_event("profile-renamed", &profile);
        told.attributes
            .insert("old_name".to_owned(), old.to_owned());
        let bytes = (self.encode.profile)(&profile, &users);
        self.finish(&mut tx, Some(told), request_id, bytes).await?;
        tx.commit().await?;
        self.publish_profiles(|all| {
            all.remove(&(project.to_owned(), old.to_owned()));
            all.insert((project.to_owned(), new.to_owned()), profile.clone());
        });
        for (slot, (now, record)) in slots.iter().zip(records) {
            self.published(slot, &now, record);
        }
        Ok(profile)
    }

    pub async fn delete_profile(
        &self,
        project: &str,
        name: &str,
        request_id: &str,
    ) -> Result<(), Error> {
        if name == DEFAULT_PROFILE {
            let why = "The default profile cannot be deleted";
            return Err(Error::precondition("DEFAULT_PROFILE", why));
        }
        let _gate = self.profile_gate.write().await;
        let profile = self.profile(project, name)?;
        let users = self.profile_users(project).remove(name).unwrap_or_default();
        if !users.is_empty() {
            let mut error = Error::held(profile.resource(), users);
            error.message = "Profile is currently in use".to_owned();
            return Err(error);
        }
        let mut tx = self.records.begin().await?;
        tx.delete_profile(&profile.uid).await?;
        let told = profile_event("profile-deleted", &profile);
        self.finish(&mut tx, Some(told), request_id, (self.encode.empty)())
            .await?;
        tx.commit().await?;
        self.publish_profiles(|all| drop(all.remove(&(project.to_owned(), name.to_owned()))));
        Ok(())
    }
}

/// It exists before anybody stored it.
fn default_profile(project: &str) -> Profile {
    Profile {
        uid: String::new(),
        project: project.to_owned(),
        name: DEFAULT_PROFILE.to_owned(),
        description: "Default LXD profile".to_owned(),
        config: Config::new(),
        devices: Devices::new(),
    }
}

fn profile_etag(old: &Profile, users: &[User]) -> String {
    let etags: Vec<&str> = users.iter().map(|u| u.draft.etag.as_str()).collect();
    record::etag(&(old.etag(), etags))
}
