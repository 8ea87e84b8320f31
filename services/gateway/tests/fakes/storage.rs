//! A storage service in memory: pools, volumes with their snapshots, holds.

use std::collections::{BTreeMap, BTreeSet};

use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::import_image_request::Message;
use berth_proto::storage::pool_service_server::PoolService;
use berth_proto::storage::volume_service_server::VolumeService;
use berth_proto::storage::{self, Pool, Snapshot, Volume};
use berth_proto::types::attachment::{Mount, mount};
use berth_proto::types::{Attachment, Event, WatchEventsRequest};
use berth_rpc::{Error, etag};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::replay::{Replaying, last};

#[derive(Debug, Default)]
pub struct State {
    pub pools: BTreeMap<String, Pool>,
    pub pool_holds: BTreeMap<String, BTreeSet<String>>,
    pub volumes: BTreeMap<String, Stored>,
    /// Images' bytes are on another host: they have to be sent.
    pub apart: bool,
    /// The bytes that were sent, by image volume.
    pub received: BTreeMap<String, Vec<u8>>,
    made: i64,
}

/// `contents` stands for all files: a restore or a copy brings it along.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub volume: Volume,
    pub contents: String,
    pub snapshots: BTreeMap<String, (Snapshot, String)>,
    pub generation: i64,
}

#[derive(Debug, Default)]
pub struct Fake(pub Replaying<State>);

fn pool_of(volume: &str) -> String {
    format!(
        "storagePools/{}",
        volume.split('/').nth(3).unwrap_or_default()
    )
}

impl State {
    fn pool(&self, name: &str) -> Result<Pool, Error> {
        let mut pool = self
            .pools
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found("Storage pool", last(name)))?;
        let mut config: Vec<_> = pool.config.iter().collect();
        config.sort();
        pool.etag = etag([format!("{config:?}{}", pool.description).as_str()]);
        pool.used_by = self.users(name);
        Ok(pool)
    }

    fn users(&self, pool: &str) -> Vec<String> {
        let volumes = self.volumes.keys().filter(|v| pool_of(v) == pool).cloned();
        volumes
            .chain(self.pool_holds.get(pool).into_iter().flatten().cloned())
            .collect()
    }

    fn shown(&self, name: &str) -> Result<Volume, Error> {
        let Some(stored) = self.volumes.get(name) else {
            self.pool(&pool_of(name))?;
            return Err(Error::not_found("Storage volume", last(name)));
        };
        let mut volume = stored.volume.clone();
        let mut config: Vec<_> = volume.config.iter().collect();
        config.sort();
        volume.etag = etag([format!("{config:?}{}", volume.description).as_str()]);
        volume.snapshot_count = stored.snapshots.len() as i32;
        volume.attachment = Some(attachment(stored, name));
        Ok(volume)
    }

    fn stored(&mut self, name: &str) -> Result<&mut Stored, Error> {
        self.shown(name)?;
        Ok(self.volumes.get_mut(name).unwrap())
    }

    fn contents_of(&self, source: &Option<Source>) -> Result<String, Error> {
        match source {
            None | Some(Source::Empty(())) => Ok("nothing".into()),
            Some(Source::Image(image)) => Ok(format!("image {}", image.fingerprint)),
            Some(Source::CopyOf(name)) => match name.split_once("/snapshots/") {
                None => Ok(self
                    .volumes
                    .get(name)
                    .ok_or_else(|| Error::not_found("Storage volume", last(name)))?
                    .contents
                    .clone()),
                Some((volume, snapshot)) => self
                    .volumes
                    .get(volume)
                    .and_then(|stored| stored.snapshots.get(snapshot))
                    .map(|(_, contents)| contents.clone())
                    .ok_or_else(|| Error::not_found("Snapshot", snapshot)),
            },
        }
    }
}

fn attachment(stored: &Stored, name: &str) -> Attachment {
    Attachment {
        volume: name.to_owned(),
        volume_uid: stored.volume.uid.clone(),
        generation: stored.generation,
        mounts: vec![Mount {
            source: Some(mount::Source::HostPath(format!(
                "/pools/{}",
                stored.volume.uid
            ))),
            can_idmap: true,
            ..Mount::default()
        }],
        needs_freeze: true,
        ..Attachment::default()
    }
}

#[tonic::async_trait]
impl PoolService for Fake {
    async fn create_pool(
        &self,
        request: Request<storage::CreatePoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let mut pool = request.pool.unwrap_or_default();
            if pool.driver != "dir" && pool.driver != "btrfs" {
                return Err(Error::invalid("pool.driver", "Unknown driver"));
            }
            pool.name = format!("storagePools/{}", request.pool_id);
            if state.pools.contains_key(&pool.name) {
                return Err(Error::already_exists("Storage pool", &request.pool_id));
            }
            pool.status = "Created".into();
            let name = pool.name.clone();
            state.pools.insert(name.clone(), pool);
            state.pool(&name)
        })
    }

    async fn get_pool(
        &self,
        request: Request<storage::GetPoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        self.0.with(|state| state.pool(&request.get_ref().name))
    }

    async fn list_pools(
        &self,
        _: Request<storage::ListPoolsRequest>,
    ) -> Result<Response<storage::ListPoolsResponse>, Status> {
        self.0.with(|state| {
            let pools = state.pools.keys().map(|name| state.pool(name));
            Ok(storage::ListPoolsResponse {
                pools: pools.collect::<Result<_, _>>()?,
                next_page_token: String::new(),
            })
        })
    }

    async fn update_pool(
        &self,
        request: Request<storage::UpdatePoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let new = request.pool.unwrap_or_default();
            let old = state.pool(&new.name)?;
            if !new.etag.is_empty() && new.etag != old.etag {
                return Err(Error::etag_mismatch("The storage pool"));
            }
            let pool = state.pools.get_mut(&new.name).unwrap();
            pool.config = new.config;
            pool.description = new.description;
            state.pool(&old.name)
        })
    }

    async fn delete_pool(
        &self,
        request: Request<storage::DeletePoolRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            state.pool(&request.name)?;
            let users: Vec<String> = state
                .users(&request.name)
                .into_iter()
                .filter(|user| !user.contains("/images/"))
                .collect();
            if !users.is_empty() {
                return Err(Error::held("The storage pool", users));
            }
            state.volumes.retain(|v, _| pool_of(v) != request.name);
            state.pools.remove(&request.name);
            Ok(())
        })
    }

    async fn get_pool_resources(
        &self,
        request: Request<storage::GetPoolResourcesRequest>,
    ) -> Result<Response<storage::PoolResources>, Status> {
        self.0.with(|state| {
            state.pool(&request.get_ref().name)?;
            Ok(storage::PoolResources {
                space_used_bytes: 1,
                space_total_bytes: 2,
                inodes_used: 3,
                inodes_total: 4,
            })
        })
    }

    async fn hold_pool(
        &self,
        request: Request<storage::HoldPoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            state.pool(&request.name)?;
            let holder = request.hold.unwrap_or_default().holder;
            let holds = state.pool_holds.entry(request.name.clone()).or_default();
            holds.insert(holder);
            state.pool(&request.name)
        })
    }

    async fn release_pool(
        &self,
        request: Request<storage::ReleasePoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            if let Some(holds) = state.pool_holds.get_mut(&request.name) {
                holds.remove(&request.holder);
            }
            state.pool(&request.name)
        })
    }

    async fn list_drivers(
        &self,
        _: Request<storage::ListDriversRequest>,
    ) -> Result<Response<storage::ListDriversResponse>, Status> {
        let driver = |name: &str| storage::list_drivers_response::Driver {
            name: name.into(),
            version: "1".into(),
            remote: false,
        };
        Ok(Response::new(storage::ListDriversResponse {
            drivers: vec![driver("dir"), driver("btrfs")],
        }))
    }

    type WatchEventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

/// Unpacked once a pool.
fn cache(state: &mut State, parent: &str, fingerprint: &str) -> String {
    let name = format!("{parent}/images/{fingerprint}");
    let stored = || Stored {
        volume: Volume {
            uid: format!("cache-{fingerprint}"),
            name: name.clone(),
            content_type: "filesystem".into(),
            ..Volume::default()
        },
        contents: format!("image {fingerprint}"),
        ..Stored::default()
    };
    state.volumes.entry(name.clone()).or_insert_with(stored);
    name
}

fn make(state: &mut State, request: storage::CreateVolumeRequest) -> Result<Volume, Error> {
    let pool = format!("storagePools/{}", last(&request.parent));
    state.pool(&pool)?;
    let name = format!(
        "{}/{}/{}",
        request.parent, request.collection, request.volume_id
    );
    if state.volumes.contains_key(&name) {
        return Err(Error::already_exists("Storage volume", &request.volume_id));
    }
    let contents = state.contents_of(&request.source)?;
    if let Some(Source::Image(image)) = &request.source {
        let cached = format!("{}/images/{}", request.parent, image.fingerprint);
        if state.apart && !state.volumes.contains_key(&cached) {
            return Err(Error::precondition("BLOB_ELSEWHERE", "no such file"));
        }
        cache(state, &request.parent, &image.fingerprint);
    }
    state.made += 1;
    let mut volume = request.volume.unwrap_or_default();
    volume.name.clone_from(&name);
    volume.uid = format!("volume-{}", state.made);
    volume.holds.extend(request.hold);
    if volume.content_type.is_empty() {
        volume.content_type = "filesystem".into();
    }
    let mut snapshots = BTreeMap::new();
    if let Some(Source::CopyOf(source)) = &request.source
        && request.with_snapshots
        && let Some(stored) = state.volumes.get(source)
    {
        snapshots = stored.snapshots.clone();
        for (id, (snapshot, _)) in &mut snapshots {
            snapshot.name = format!("{name}/snapshots/{id}");
        }
    }
    let stored = Stored {
        volume,
        contents,
        snapshots,
        generation: 1,
    };
    state.volumes.insert(name.clone(), stored);
    state.shown(&name)
}

#[tonic::async_trait]
impl VolumeService for Fake {
    async fn create_volume(
        &self,
        request: Request<storage::CreateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        self.0.once(&id, |state| make(state, request))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<storage::ImportImageRequest>>,
    ) -> Result<Response<Volume>, Status> {
        let mut stream = request.into_inner();
        let (mut header, mut bytes) = (None, Vec::new());
        while let Some(message) = stream.message().await? {
            match message.message {
                Some(Message::Header(h)) => header = Some(h),
                Some(Message::Data(data)) => bytes.extend(data),
                None => {}
            }
        }
        let header = header.ok_or_else(|| Error::invalid("header", "no header"))?;
        let image = header.image.unwrap_or_default();
        let announced: i64 = image.blobs.iter().map(|blob| blob.size_bytes).sum();
        if announced != bytes.len() as i64 {
            return Err(Error::invalid("data", "not as many bytes as announced").into());
        }
        self.0.once(&header.request_id, |state| {
            let name = cache(state, &header.parent, &image.fingerprint);
            state.received.insert(name.clone(), bytes);
            state.shown(&name)
        })
    }

    async fn get_volume(
        &self,
        request: Request<storage::GetVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        self.0.with(|state| state.shown(&request.get_ref().name))
    }

    async fn list_volumes(
        &self,
        request: Request<storage::ListVolumesRequest>,
    ) -> Result<Response<storage::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let pool = last(&request.parent);
            if pool != "-" {
                state.pool(&format!("storagePools/{pool}"))?;
            }
            let volumes = state
                .volumes
                .keys()
                .filter(|name| pool == "-" || last(&pool_of(name)) == pool)
                .filter(|name| {
                    request.collection.is_empty()
                        || name.split('/').nth(4) == Some(request.collection.as_str())
                })
                .map(|name| state.shown(name));
            Ok(storage::ListVolumesResponse {
                volumes: volumes.collect::<Result<_, _>>()?,
                next_page_token: String::new(),
            })
        })
    }

    async fn update_volume(
        &self,
        request: Request<storage::UpdateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let new = request.volume.unwrap_or_default();
            let old = state.shown(&new.name)?;
            if !new.etag.is_empty() && new.etag != old.etag {
                return Err(Error::etag_mismatch("The storage volume"));
            }
            let mask = berth_rpc::mask::Mask::from_proto(request.update_mask.as_ref());
            let config = old.config.clone().into_iter().collect();
            let stored = state.stored(&new.name)?;
            stored.volume.config = mask
                .merge_map("config", &config, &new.config, String::is_empty)
                .into_iter()
                .collect();
            if mask.has("description") {
                stored.volume.description = new.description;
            }
            state.shown(&old.name)
        })
    }

    async fn rename_volume(
        &self,
        request: Request<storage::RenameVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            state.shown(&request.name)?;
            let (parent, _) = request.name.rsplit_once('/').unwrap();
            let name = format!("{parent}/{}", request.new_volume_id);
            if state.volumes.contains_key(&name) {
                return Err(Error::already_exists(
                    "Storage volume",
                    &request.new_volume_id,
                ));
            }
            let mut stored = state.volumes.remove(&request.name).unwrap();
            stored.volume.name.clone_from(&name);
            for (id, (snapshot, _)) in &mut stored.snapshots {
                snapshot.name = format!("{name}/snapshots/{id}");
            }
            state.volumes.insert(name.clone(), stored);
            state.shown(&name)
        })
    }

    async fn delete_volume(
        &self,
        request: Request<storage::DeleteVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            if !state.volumes.contains_key(&request.name) {
                if request.allow_missing {
                    return Ok(());
                }
                state.shown(&request.name)?;
            }
            let holders: Vec<String> = state.volumes[&request.name]
                .volume
                .holds
                .iter()
                .map(|hold| hold.holder.clone())
                .filter(|holder| *holder != request.holder)
                .collect();
            if !holders.is_empty() {
                return Err(Error::held("The storage volume", holders));
            }
            state.volumes.remove(&request.name);
            Ok(())
        })
    }

    async fn create_snapshot(
        &self,
        request: Request<storage::CreateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            state.made += 1;
            let uid = format!("snapshot-{}", state.made);
            let stored = state.stored(&request.parent)?;
            if stored.snapshots.contains_key(&request.snapshot_id) {
                return Err(Error::already_exists("Snapshot", &request.snapshot_id));
            }
            let mut snapshot = request.snapshot.unwrap_or_default();
            snapshot.name = format!("{}/snapshots/{}", request.parent, request.snapshot_id);
            snapshot.uid = uid;
            snapshot.config = stored.volume.config.clone();
            let contents = stored.contents.clone();
            stored
                .snapshots
                .insert(request.snapshot_id.clone(), (snapshot.clone(), contents));
            Ok(snapshot)
        })
    }

    async fn list_snapshots(
        &self,
        request: Request<storage::ListSnapshotsRequest>,
    ) -> Result<Response<storage::ListSnapshotsResponse>, Status> {
        let parent = &request.get_ref().parent;
        let any = parent.split('/').any(|segment| segment == "-");
        self.0.with(|state| {
            if !any {
                state.stored(parent)?;
            }
            let fits = |name: &str| {
                let mut pairs = parent.split('/').zip(name.split('/'));
                pairs.all(|(wanted, there)| wanted == "-" || wanted == there)
            };
            let volumes = state.volumes.iter().filter(|(name, _)| fits(name));
            let snapshots = volumes.flat_map(|(_, stored)| stored.snapshots.values());
            Ok(storage::ListSnapshotsResponse {
                snapshots: snapshots.map(|(s, _)| s.clone()).collect(),
            })
        })
    }

    async fn update_snapshot(
        &self,
        request: Request<storage::UpdateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        let new = request.snapshot.unwrap_or_default();
        self.0.once(&request.request_id, |state| {
            let (volume, id) = new.name.split_once("/snapshots/").unwrap();
            let stored = state.stored(volume)?;
            let (snapshot, _) = stored
                .snapshots
                .get_mut(id)
                .ok_or_else(|| Error::not_found("Snapshot", id))?;
            snapshot.description = new.description;
            snapshot.expire_time = new.expire_time;
            Ok(snapshot.clone())
        })
    }

    async fn rename_snapshot(
        &self,
        request: Request<storage::RenameSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let (volume, id) = request.name.split_once("/snapshots/").unwrap();
            let stored = state.stored(volume)?;
            let (mut snapshot, contents) = stored
                .snapshots
                .remove(id)
                .ok_or_else(|| Error::not_found("Snapshot", id))?;
            snapshot.name = format!("{volume}/snapshots/{}", request.new_snapshot_id);
            stored.snapshots.insert(
                request.new_snapshot_id.clone(),
                (snapshot.clone(), contents),
            );
            Ok(snapshot)
        })
    }

    async fn delete_snapshot(
        &self,
        request: Request<storage::DeleteSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let (volume, id) = request.name.split_once("/snapshots/").unwrap();
            let removed = match state.volumes.get_mut(volume) {
                Some(stored) => stored.snapshots.remove(id).is_some(),
                None => false,
            };
            if !removed && !request.allow_missing {
                return Err(Error::not_found("Snapshot", id));
            }
            Ok(())
        })
    }

    async fn restore_volume(
        &self,
        request: Request<storage::RestoreVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        self.0.once(&request.request_id, |state| {
            let stored = state.stored(&request.name)?;
            let (_, contents) = stored
                .snapshots
                .get(&request.snapshot_id)
                .ok_or_else(|| Error::not_found("Snapshot", &request.snapshot_id))?;
            stored.contents = contents.clone();
            stored.generation += 1;
            state.shown(&request.name)
        })
    }

    async fn batch_get_usage(
        &self,
        request: Request<storage::BatchGetUsageRequest>,
    ) -> Result<Response<storage::BatchGetUsageResponse>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            // Block volumes stand for those that cannot tell.
            let usages = state
                .volumes
                .values()
                .filter(|stored| stored.volume.content_type == "filesystem")
                .filter(|stored| {
                    request.names.is_empty() || request.names.contains(&stored.volume.name)
                })
                .map(|stored| storage::batch_get_usage_response::Usage {
                    name: stored.volume.name.clone(),
                    used_bytes: 4096,
                    total_bytes: 0,
                });
            Ok(storage::BatchGetUsageResponse {
                usages: usages.collect(),
            })
        })
    }

    async fn hold_volume(
        &self,
        request: Request<storage::HoldVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let hold = request.hold.unwrap_or_default();
            let stored = state.stored(&request.name)?;
            stored.volume.holds.retain(|h| h.holder != hold.holder);
            stored.volume.holds.push(hold);
            state.shown(&request.name)
        })
    }

    async fn release_volume(
        &self,
        request: Request<storage::ReleaseVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        self.0.with(|state| {
            let stored = state.stored(&request.name)?;
            stored.volume.holds.retain(|h| h.holder != request.holder);
            state.shown(&request.name)
        })
    }
}

/// What there is, for comparing.
pub fn inventory(fake: &Fake) -> Vec<String> {
    let state = fake.0.lock();
    let pools = state.pools.values().map(|pool| {
        let config: BTreeMap<_, _> = pool.config.iter().collect();
        let holds = state
            .pool_holds
            .get(&pool.name)
            .cloned()
            .unwrap_or_default();
        format!("{} {config:?} held by {holds:?}", pool.name)
    });
    let volumes = state.volumes.values().map(|stored| {
        let config: BTreeMap<_, _> = stored.volume.config.iter().collect();
        let holders: BTreeSet<_> = stored.volume.holds.iter().map(|h| &h.holder).collect();
        let snapshots: Vec<_> = stored.snapshots.keys().collect();
        format!(
            "{} with {} {config:?} {snapshots:?} held by {holders:?}",
            stored.volume.name, stored.contents
        )
    });
    pools.chain(volumes).collect()
}
