//! One case of every saga: a world to begin with, what to arrange, and parameters.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;

use berth_gateway::App;
use berth_gateway::app::holds::Uses;
use berth_gateway::app::sagas::devices::Contents;
use berth_gateway::app::sagas::instances::{
    create, delete, rename, restore, snapshots, state, update,
};
use berth_gateway::app::sagas::{images, networks, pools, profiles, volumes};
use berth_gateway::app::wire::Wire;
use berth_proto::instance::{
    Device, ImageInfo, Instance, PlanCreateInstanceRequest, Profile, UpdateInstanceRequest,
};
use serde_json::{Value, to_value};

use crate::bed::done;
use crate::fakes::Fakes;

/// A saga to be tried.
pub struct Case {
    pub saga: &'static str,
    pub params: Value,
    /// After some point it only goes forward: a failure may leave it done.
    pub forward_only: bool,
    pub arrange: fn(App) -> Pin<Box<dyn Future<Output = ()> + Send>>,
}

const IMAGE: &[u8] = b"IMAGE one";
const PARENT: &str = "projects/default";
pub const C1: &str = "projects/default/instances/c1";
const V1: &str = "projects/default/storagePools/p1/custom/v1";

fn options(options: &[(&str, &str)]) -> HashMap<String, String> {
    options
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn device(of: &[(&str, &str)]) -> Device {
    Device {
        options: options(of),
    }
}

pub fn root(size: &str) -> Device {
    device(&[
        ("type", "disk"),
        ("path", "/"),
        ("pool", "p1"),
        ("size", size),
    ])
}

pub fn nic(network: &str) -> Device {
    device(&[("type", "nic"), ("name", "eth0"), ("network", network)])
}

fn custom(volume: &str) -> Device {
    device(&[
        ("type", "disk"),
        ("path", "/srv"),
        ("pool", "p1"),
        ("source", volume),
    ])
}

fn profile(name: &str, devices: Vec<(&str, Device)>) -> profiles::Stored {
    profiles::Stored::new(Profile {
        name: format!("{PARENT}/profiles/{name}"),
        config: options(&[("user.a", "b")]),
        devices: devices
            .into_iter()
            .map(|(n, d)| (n.to_owned(), d))
            .collect(),
        ..Profile::default()
    })
    .unwrap()
}

fn web() -> profiles::Stored {
    profile(
        "web",
        vec![
            ("root", root("1GiB")),
            ("eth0", nic("br0")),
            ("data", custom("v1")),
        ],
    )
}

fn fingerprint() -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(IMAGE))
}

pub fn creation(name: &str, profiles: &[&str], start: bool) -> create::Params {
    create::Params {
        plan: Wire(PlanCreateInstanceRequest {
            parent: PARENT.into(),
            instance_id: name.into(),
            instance: Some(Instance {
                profiles: profiles.iter().map(|p| (*p).to_owned()).collect(),
                ..Instance::default()
            }),
            image: Some(ImageInfo {
                fingerprint: fingerprint(),
                architecture: "x86_64".into(),
                ..ImageInfo::default()
            }),
            ..PlanCreateInstanceRequest::default()
        }),
        contents: Contents::Image {
            fingerprint: fingerprint(),
            blobs: Vec::new(),
        },
        start,
    }
}

/// A copy with the source's snapshot.
fn copy_of_c1(name: &str) -> create::Params {
    let mut params = creation(name, &["web"], false);
    params.plan.0.image = None;
    params.plan.0.copy_of = C1.into();
    params.contents = Contents::Copy {
        of: format!("{PARENT}/storagePools/p1/containers/c1"),
        snapshots: vec!["snap0".into()],
    };
    params
}

fn pool(name: &str) -> pools::Create {
    pools::Create {
        pool: name.into(),
        description: String::new(),
        driver: "dir".into(),
        config: BTreeMap::new(),
    }
}

fn network(name: &str) -> networks::Create {
    networks::Create {
        project: "default".into(),
        network: name.into(),
        description: String::new(),
        kind: "bridge".into(),
        config: BTreeMap::from([("ipv4.address".into(), "none".into())]),
    }
}

fn volume(name: &str, copy_of: Option<&str>) -> volumes::Create {
    volumes::Create {
        parent: format!("{PARENT}/storagePools/p1"),
        volume: name.into(),
        description: String::new(),
        content_type: "filesystem".into(),
        config: BTreeMap::new(),
        copy_of: copy_of.map(str::to_owned),
        with_snapshots: true,
    }
}

fn of_snapshot(snapshot: &str, new_name: &str) -> volumes::OfSnapshot {
    volumes::OfSnapshot {
        volume: V1.into(),
        snapshot: snapshot.into(),
        new_name: new_name.into(),
        expire_time: String::new(),
    }
}

fn snapshot(name: &str) -> snapshots::Create {
    snapshots::Create {
        instance: C1.into(),
        snapshot: name.into(),
        expire_time: String::new(),
        stateful: false,
    }
}

/// A pool, two networks, a volume with a snapshot, an image, a profile, and the stopped instance
/// c1 that has it, with a snapshot.
pub async fn world(app: &App, fakes: &Fakes) {
    fakes.image.put(IMAGE);
    done(app, pools::CREATE, &pool("p1")).await;
    done(app, networks::CREATE, &network("br0")).await;
    done(app, networks::CREATE, &network("br1")).await;
    done(app, volumes::CREATE, &volume("v1", None)).await;
    done(app, volumes::CREATE, &volume("v2", None)).await;
    done(app, volumes::CREATE_SNAPSHOT, &of_snapshot("s0", "")).await;
    done(app, profiles::CREATE, &web()).await;
    done(app, create::NAME, &creation("c1", &["web"], false)).await;
    done(app, snapshots::CREATE, &snapshot("snap0")).await;
    // Something to come back from.
    for stored in fakes.storage.0.lock().volumes.values_mut() {
        if !stored.snapshots.is_empty() {
            stored.contents = "written since".into();
        }
    }
}

fn nothing(_: App) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async {})
}

fn case(saga: &'static str, params: &impl serde::Serialize) -> Case {
    Case {
        saga,
        params: to_value(params).unwrap(),
        forward_only: false,
        arrange: nothing,
    }
}

impl Case {
    fn forward(mut self) -> Self {
        self.forward_only = true;
        self
    }

    fn after(mut self, arrange: fn(App) -> Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        self.arrange = arrange;
        self
    }
}

/// One or more of each.
pub fn all() -> Vec<Case> {
    let mut all = mine();
    all.extend(of_instances());
    all
}

fn mine() -> Vec<Case> {
    let uses = Uses {
        pools: ["p1".to_owned()].into(),
        networks: ["br0".to_owned()].into(),
    };
    let existing = |name: &str| profiles::Existing {
        project: "default".into(),
        name: format!("{PARENT}/profiles/{name}"),
        new_name: "other".into(),
        uses: uses.clone(),
    };
    vec![
        case(
            images::DELETE,
            &images::Delete {
                parent: PARENT.into(),
                fingerprint: fingerprint(),
            },
        )
        .forward(),
        case(pools::CREATE, &pool("late")).after(|app| {
            Box::pin(async move {
                let disk = device(&[("type", "disk"), ("path", "/"), ("pool", "late")]);
                let early = profile("early", vec![("root", disk)]);
                done(&app, profiles::CREATE, &early).await;
            })
        }),
        case(
            pools::DELETE,
            &pools::Delete {
                name: "storagePools/p2".into(),
            },
        )
        .forward()
        .after(|app| Box::pin(async move { done(&app, pools::CREATE, &pool("p2")).await })),
        case(networks::CREATE, &network("late")).after(|app| {
            Box::pin(async move {
                let early = profile("early", vec![("eth0", nic("late"))]);
                done(&app, profiles::CREATE, &early).await;
            })
        }),
        case(
            networks::DELETE,
            &networks::Delete {
                name: format!("{PARENT}/networks/br1"),
            },
        )
        .forward(),
        case(
            profiles::CREATE,
            &profile("p", vec![("root", root("")), ("eth0", nic("br1"))]),
        ),
        case(
            profiles::UPDATE,
            &profiles::Update {
                old: web(),
                new: profile(
                    "web",
                    vec![
                        ("root", root("2GiB")),
                        ("eth0", nic("br1")),
                        ("data", custom("v2")),
                    ],
                ),
            },
        ),
        case(profiles::RENAME, &existing("web")),
        case(profiles::DELETE, &existing("spare"))
            .forward()
            .after(|app| {
                Box::pin(async move {
                    let spare = profile("spare", vec![("root", root("")), ("eth0", nic("br0"))]);
                    done(&app, profiles::CREATE, &spare).await;
                })
            }),
        case(volumes::CREATE, &volume("v3", Some(V1))),
        case(
            volumes::DELETE,
            &volumes::Delete {
                name: format!("{PARENT}/storagePools/p1/custom/v2"),
            },
        )
        .forward(),
        case(
            volumes::MOVE,
            &volumes::Move {
                from: format!("{PARENT}/storagePools/p1/custom/v2"),
                to: volumes::Create {
                    parent: format!("{PARENT}/storagePools/p2"),
                    ..volume("v2", Some(&format!("{PARENT}/storagePools/p1/custom/v2")))
                },
            },
        )
        .forward()
        .after(|app| Box::pin(async move { done(&app, pools::CREATE, &pool("p2")).await })),
        case(volumes::CREATE_SNAPSHOT, &of_snapshot("s1", "")),
        case(volumes::RENAME_SNAPSHOT, &of_snapshot("s0", "s9")),
        case(volumes::DELETE_SNAPSHOT, &of_snapshot("s0", "")).forward(),
        case(volumes::RESTORE, &of_snapshot("s0", "")).forward(),
    ]
}

fn change(action: state::Action) -> state::Change {
    state::Change {
        action,
        force: true,
        timeout: -1,
        stateful: false,
    }
}

fn of_instances() -> Vec<Case> {
    vec![
        case(create::NAME, &creation("c2", &["web"], true)),
        case(create::NAME, &creation("c2", &["web"], false)),
        case(create::NAME, &copy_of_c1("c2")),
        case(
            delete::NAME,
            &delete::Params {
                name: C1.into(),
                force: true,
                generation: 0,
            },
        )
        .forward(),
        case(
            rename::NAME,
            &rename::Params {
                name: C1.into(),
                new: "renamed".into(),
            },
        ),
        case(
            restore::NAME,
            &restore::Params {
                instance: C1.into(),
                snapshot: "snap0".into(),
            },
        )
        .forward()
        .after(|app| {
            Box::pin(async move { done(&app, update::NAME, &described("changed")).await })
        }),
        case(
            state::NAME,
            &state::Params {
                name: C1.into(),
                change: change(state::Action::Start),
            },
        )
        .forward(),
        case(
            state::BULK,
            &state::BulkParams {
                names: vec![C1.into()],
                change: change(state::Action::Start),
            },
        )
        .forward(),
        case(snapshots::CREATE, &snapshot("snap1")),
        case(
            snapshots::DELETE,
            &snapshots::Delete {
                instance: C1.into(),
                snapshot: "snap0".into(),
            },
        )
        .forward(),
        case(
            snapshots::RENAME,
            &snapshots::Rename {
                instance: C1.into(),
                snapshot: "snap0".into(),
                new: "other".into(),
            },
        ),
        case(update::NAME, &moved_nic()).forward(),
    ]
}

fn described(value: &str) -> update::Params {
    update::Params {
        update: Wire(UpdateInstanceRequest {
            instance: Some(Instance {
                name: C1.into(),
                config: options(&[("user.described", value)]),
                profiles: vec!["web".into()],
                ..Instance::default()
            }),
            ..UpdateInstanceRequest::default()
        }),
    }
}

fn moved_nic() -> update::Params {
    let mut params = described("moved");
    let instance = params.update.0.instance.as_mut().unwrap();
    instance.devices = [
        ("eth0".to_owned(), nic("br1")),
        ("root".to_owned(), root("3GiB")),
        ("data".to_owned(), custom("v2")),
    ]
    .into();
    params
}
