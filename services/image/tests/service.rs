//! Every method over a real router, on every database that can be had.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use berth_proto::image::image::Type;
use berth_proto::image::resolve_image_request::{Properties, Selector};
use berth_proto::image::*;
use berth_proto::types::{Hold, WatchEventsRequest};
use common::*;
use prost_types::FieldMask;
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use tonic::{Code, Status};

/// Runs a scenario on each database, on a service of its own.
macro_rules! scenario {
    ($name:ident, |$service:ident| $body:block) => {
        #[tokio::test]
        async fn $name() -> anyhow::Result<()> {
            for database in berth_testkit::databases().await? {
                #[allow(unused_mut, reason = "some scenarios start it again")]
                let mut $service = Service::start(database).await?;
                $body
                assert_eq!($service.files("incoming"), Vec::<String>::new());
                $service.remove().await?;
            }
            Ok(())
        }
    };
}

async fn resolve(
    service: &Service,
    selector: Selector,
    kind: Type,
    touch: bool,
) -> Result<Image, Status> {
    let request = ResolveImageRequest {
        parent: PARENT.into(),
        selector: Some(selector),
        r#type: kind.into(),
        touch,
    };
    let answer = service.client.clone().resolve_image(request).await?;
    Ok(answer.into_inner())
}

async fn get(service: &Service, name: &str) -> Result<Image, Status> {
    let request = GetImageRequest { name: name.into() };
    Ok(service
        .client
        .clone()
        .get_image(request)
        .await?
        .into_inner())
}

async fn delete(service: &Service, name: &str, request_id: &str) -> Result<(), Status> {
    let request = DeleteImageRequest {
        name: name.into(),
        etag: String::new(),
        request_id: request_id.into(),
    };
    service.client.clone().delete_image(request).await?;
    Ok(())
}

async fn hold(service: &Service, name: &str, hold: Hold) -> Result<Image, Status> {
    let request = HoldImageRequest {
        name: name.into(),
        hold: Some(hold),
    };
    Ok(service
        .client
        .clone()
        .hold_image(request)
        .await?
        .into_inner())
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask {
        paths: paths.iter().map(|p| (*p).to_owned()).collect(),
    })
}

scenario!(
    every_format_is_imported_and_exported_as_it_came,
    |service| {
        let tar = image_tar("formats");
        for (bytes, extension, media) in [
            (tar.clone(), ".tar", "application/x-tar"),
            (gzip(&tar), ".tar.gz", "application/x-tar+gzip"),
            (xz(&tar), ".tar.xz", "application/x-tar+xz"),
            (zstd(&tar), ".tar.zst", "application/x-tar+zstd"),
            (bzip2(&tar), ".tar.bz2", "application/x-tar+bzip2"),
            (
                squashfs(METADATA.as_bytes(), false),
                ".squashfs",
                "application/vnd.squashfs",
            ),
        ] {
            let fingerprint = sha256(&[&bytes]);
            let image = service.import(Upload::unified(bytes.clone())).await?;
            assert_eq!(image.fingerprint, fingerprint);
            assert_eq!(image.name, image_name(&fingerprint));
            assert_eq!(image.r#type(), Type::Container);
            assert_eq!(image.architecture, "x86_64");
            assert_eq!(image.create_time, "2015-02-18T18:36:03Z");
            assert_eq!(image.last_used_time, "0001-01-01T00:00:00Z");
            assert_eq!(image.size_bytes, bytes.len() as i64);
            assert_eq!(image.properties["description"], "Debian 12");
            let [blob] = image.blobs.as_slice() else {
                panic!("one blob")
            };
            assert_eq!(blob.media_type, media);
            assert_eq!(blob.digest, format!("sha256:{fingerprint}"));
            let path = blob.uri.strip_prefix("file://").unwrap();
            assert_eq!(std::fs::read(path)?, bytes);
            assert_eq!(std::fs::metadata(path)?.permissions().mode() & 0o777, 0o640);
            assert_eq!(get(&service, &image_name(&fingerprint[..12])).await?, image);
            let exported = export(&service.client, &image.name).await?;
            assert_eq!(exported, [(format!("{fingerprint}{extension}"), bytes)]);
        }
        let blobs = std::fs::metadata(service.state_dir.join("blobs"))?;
        assert_eq!(blobs.permissions().mode() & 0o777, 0o750);
    }
);

scenario!(split_images_share_a_rootfs, |service| {
    let rootfs = xz(&rootfs_tar("one"));
    let (meta1, meta2) = (xz(&metadata_tar("1")), gzip(&metadata_tar("2")));
    let one = service
        .import(Upload::split(meta1.clone(), rootfs.clone()))
        .await?;
    let two = service.import(Upload::split(meta2, rootfs.clone())).await?;
    assert_eq!(one.fingerprint, sha256(&[&meta1, &rootfs]));
    assert_eq!(one.blobs.len(), 2);
    assert_eq!(one.blobs[1], two.blobs[1]);
    assert_eq!(one.properties["serial"], "1");
    assert_eq!(service.files("blobs").len(), 3);
    let exported = export(&service.client, &one.name).await?;
    assert_eq!(
        exported[0],
        (format!("meta-{}.tar.xz", one.fingerprint), meta1)
    );
    assert_eq!(exported[1], (format!("{}.tar.xz", one.fingerprint), rootfs));
    delete(&service, &one.name, "").await?;
    assert_eq!(service.files("blobs").len(), 2);
    assert_eq!(export(&service.client, &two.name).await?.len(), 2);
    delete(&service, &two.name, "").await?;
    assert_eq!(service.files("blobs").len(), 0);
});

scenario!(virtual_machines_are_told_by_their_disk, |service| {
    let disk = [b"QFI\xfb".as_slice(), &noise(5000)].concat();
    let split = service
        .import(Upload::split(xz(&metadata_tar("vm")), disk))
        .await?;
    assert_eq!(split.r#type(), Type::VirtualMachine);
    assert_eq!(split.blobs[1].media_type, "application/x-qcow2");
    let tar = tar_of(&[
        Entry::File("metadata.yaml", METADATA.as_bytes()),
        Entry::File("rootfs.img", &noise(3000)),
    ]);
    let unified = service
        .import(Upload::unified(gzip(&tar)).alias("vm"))
        .await?;
    assert_eq!(unified.r#type(), Type::VirtualMachine);
    let squash = service
        .import(Upload::unified(squashfs(METADATA.as_bytes(), true)))
        .await?;
    assert_eq!(squash.r#type(), Type::VirtualMachine);
    let alias = || Selector::Alias("vm".into());
    assert!(
        resolve(&service, alias(), Type::VirtualMachine, false)
            .await
            .is_ok()
    );
    let error = resolve(&service, alias(), Type::Container, false)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let by_fingerprint = Selector::Fingerprint(unified.fingerprint);
    let error = resolve(&service, by_fingerprint, Type::Container, false)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "IMAGE_TYPE");
});

scenario!(
    the_header_wins_and_aliases_come_with_the_image_or_not_at_all,
    |service| {
        let bytes = gzip(&image_tar("header"));
        let mut upload = Upload::unified(bytes.clone())
            .alias("debian/12")
            .alias("d.12")
            .property("release", "mine")
            .property("extra", "1");
        upload.header.public = true;
        upload.header.filename = "debian.tar.gz".into();
        upload.header.profiles = vec!["default".into(), "web".into()];
        upload.header.expire_time = "2030-01-02T03:04:05Z".into();
        upload.header.expected_fingerprint = sha256(&[&bytes]).to_uppercase();
        let image = service.import(upload.clone()).await?;
        assert_eq!(image.properties["release"], "mine");
        assert_eq!(image.properties["os"], "Debian");
        assert_eq!(image.properties["extra"], "1");
        assert!(image.public);
        assert_eq!(image.expire_time, "2030-01-02T03:04:05Z");
        assert_eq!(image.profiles, ["default", "web"]);
        let aliases: Vec<_> = image.aliases.iter().map(|a| a.alias.as_str()).collect();
        assert_eq!(aliases, ["d.12", "debian/12"]);

        upload.header.aliases.clear();
        let error = service.import(upload).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert_eq!(
            error.message(),
            "Image with same fingerprint already exists"
        );

        let other = Upload::unified(gzip(&image_tar("other")))
            .alias("new")
            .alias("d.12");
        let error = service.import(other.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert!(error.message().contains("d.12"), "{error}");
        assert_eq!(service.files("blobs").len(), 1);
        let error = resolve(
            &service,
            Selector::Alias("new".into()),
            Type::Unspecified,
            false,
        )
        .await;
        assert_eq!(error.unwrap_err().code(), Code::NotFound);

        let mut wrong = Upload::unified(gzip(&image_tar("wrong")));
        wrong.header.expected_fingerprint = "ab".repeat(32);
        let error = service.import(wrong).await.unwrap_err();
        assert_eq!(field(&error), "header.expected_fingerprint");
        assert_eq!(service.files("blobs").len(), 1);
    }
);

scenario!(
    images_are_resolved_by_alias_prefix_and_properties,
    |service| {
        let mut first_digits = HashSet::new();
        let mut shared = None;
        let mut newest = String::new();
        for i in 0.. {
            let image = service
                .import(Upload::unified(image_tar(&i.to_string())))
                .await?;
            newest.clone_from(&image.fingerprint);
            let digit = image.fingerprint[..1].to_owned();
            if !first_digits.insert(digit.clone()) {
                shared = Some(digit);
                break;
            }
            // Times are kept in milliseconds, and the newest must be one.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let shared = shared.unwrap();
        for error in [
            resolve(
                &service,
                Selector::Fingerprint(shared.clone()),
                Type::Unspecified,
                false,
            )
            .await,
            get(&service, &image_name(&shared)).await,
        ] {
            let error = error.unwrap_err();
            assert_eq!(
                (error.code(), error.message()),
                (Code::FailedPrecondition, "More than one image matches")
            );
            assert_eq!(reason(&error), "AMBIGUOUS");
        }
        let properties = |pairs: &[(&str, &str)]| {
            Selector::Properties(Properties {
                properties: pairs
                    .iter()
                    .map(|(k, v)| ((*k).into(), (*v).into()))
                    .collect(),
            })
        };
        let debian = properties(&[("os", "Debian"), ("release", "bookworm")]);
        let found = resolve(&service, debian, Type::Container, false).await?;
        assert_eq!(found.fingerprint, newest);
        let none = resolve(
            &service,
            properties(&[("os", "Plan9")]),
            Type::Unspecified,
            false,
        )
        .await;
        assert_eq!(none.unwrap_err().code(), Code::NotFound);
        let empty = resolve(&service, properties(&[]), Type::Unspecified, false).await;
        assert_eq!(field(&empty.unwrap_err()), "properties");
        // A name that isn't hexadecimal is an alias tried as a fingerprint: not there, not wrong.
        let text = resolve(
            &service,
            Selector::Fingerprint("debian".into()),
            Type::Unspecified,
            false,
        )
        .await;
        assert_eq!(text.unwrap_err().code(), Code::NotFound);
    }
);

scenario!(an_update_follows_its_mask_and_etag, |service| {
    let image = service.import(Upload::unified(image_tar("update"))).await?;
    let update = |image: Image, paths: Option<FieldMask>, id: &str| {
        let request = UpdateImageRequest {
            image: Some(image),
            update_mask: paths,
            request_id: id.into(),
        };
        let mut client = service.client.clone();
        async move {
            client
                .update_image(request)
                .await
                .map(tonic::Response::into_inner)
        }
    };
    let mut change = Image {
        name: image.name.clone(),
        public: true,
        ..Default::default()
    };
    change.properties.insert("release".into(), "trixie".into());
    let one = update(change.clone(), mask(&["properties.release"]), "u1").await?;
    assert_eq!(one.properties["release"], "trixie");
    assert_eq!(one.properties["os"], "Debian");
    assert!(!one.public);
    assert_ne!(one.etag, image.etag);
    // The same request again is the same answer.
    assert_eq!(
        update(change.clone(), mask(&["properties.release"]), "u1").await?,
        one
    );

    change.etag.clone_from(&image.etag);
    let error = update(change.clone(), mask(&["*"]), "").await.unwrap_err();
    assert_eq!(
        (error.code(), reason(&error).as_str()),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    change.etag = one.etag;
    change.profiles = vec!["a".into()];
    change.expire_time = "2031-01-01T00:00:00Z".into();
    change.auto_update = true;
    let all = update(change.clone(), mask(&["*"]), "").await?;
    assert_eq!(all.properties.len(), 1);
    assert!(all.public && all.auto_update);
    assert_eq!(all.expire_time, "2031-01-01T00:00:00Z");
    assert_eq!(get(&service, &image.name).await?, all);

    for (paths, at) in [
        (&["size_bytes"][..], "update_mask"),
        (&["properties."], "update_mask"),
        (&["nonsense"], "update_mask"),
    ] {
        let error = update(change.clone(), mask(paths), "").await.unwrap_err();
        assert_eq!(field(&error), at);
    }
    change.etag.clear();
    change.properties.insert("bad\nkey".into(), "x".into());
    let error = update(change.clone(), mask(&["properties"]), "")
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    change.expire_time = "never".into();
    let error = update(change, mask(&["expire_time"]), "")
        .await
        .unwrap_err();
    assert_eq!(field(&error), "image.expire_time");
});

scenario!(what_is_held_stays_and_names_its_holders, |service| {
    let image = service.import(Upload::unified(image_tar("held"))).await?;
    let by = |holder: &str, authority: &str, expire_time: &str| Hold {
        holder: holder.into(),
        authority: authority.into(),
        expire_time: expire_time.into(),
    };
    let c1 = by("projects/default/instances/c1", "gateway", "");
    let held = hold(&service, &image.name, c1.clone()).await?;
    assert_eq!(held.holds, std::slice::from_ref(&c1));
    assert_eq!(hold(&service, &image.name, c1.clone()).await?, held);
    let error = hold(&service, &image.name, by(&c1.holder, "other", ""))
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "HOLD_AUTHORITY");
    let error = delete(&service, &image.name, "").await.unwrap_err();
    assert_eq!(
        (error.code(), reason(&error).as_str()),
        (Code::FailedPrecondition, "HELD")
    );
    assert_eq!(
        berth_rpc::Error::from(error).holders,
        std::slice::from_ref(&c1.holder)
    );

    let soon = (chrono::Utc::now() + chrono::Duration::milliseconds(150)).to_rfc3339();
    hold(&service, &image.name, by("lease", "gateway", &soon)).await?;
    let release = |holder: &str| {
        let request = ReleaseImageRequest {
            name: image.name.clone(),
            holder: holder.into(),
        };
        let mut client = service.client.clone();
        async move { client.release_image(request).await }
    };
    release(&c1.holder).await?;
    release(&c1.holder).await?;
    let error = delete(&service, &image.name, "").await.unwrap_err();
    assert_eq!(berth_rpc::Error::from(error).holders, ["lease"]);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    delete(&service, &image.name, "").await?;
    assert_eq!(service.files("blobs"), Vec::<String>::new());

    for (bad, at) in [
        (by("", "a", ""), "hold.holder"),
        (by("h", "", ""), "hold.authority"),
        (by("h", "a", "soon"), "hold.expire_time"),
        (by("h", "a", "2001-01-01T00:00:00Z"), "hold.expire_time"),
    ] {
        assert_eq!(
            field(&hold(&service, &image.name, bad).await.unwrap_err()),
            at
        );
    }
});

scenario!(a_retried_request_gets_its_first_answer, |service| {
    let upload = Upload::unified(gzip(&image_tar("retry")))
        .request_id("r-1")
        .alias("again");
    let first = service.import(upload.clone()).await?;
    assert_eq!(service.import(upload).await?, first);
    // An id counts within its method.
    delete(&service, &first.name, "r-1").await?;
    delete(&service, &first.name, "r-1").await?;
    assert_eq!(
        delete(&service, &first.name, "r-2")
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    service = Service::start(service.stop().await?).await?;
    delete(&service, &first.name, "r-1").await?;
});

scenario!(aliases_live_their_own_life, |service| {
    let one = service.import(Upload::unified(image_tar("a1"))).await?;
    let two = service.import(Upload::unified(image_tar("a2"))).await?;
    let mut client = service.client.clone();
    let create = |alias: &str, target: &str| CreateAliasRequest {
        parent: PARENT.into(),
        alias: Some(Alias {
            alias: alias.into(),
            target: target.into(),
            description: "d".into(),
            ..Default::default()
        }),
        request_id: String::new(),
    };
    let odd = "ubuntu/22.04/ä %2F";
    let made = client
        .create_alias(create(odd, &one.fingerprint[..20]))
        .await?
        .into_inner();
    assert_eq!(made.target, one.fingerprint);
    assert_eq!(made.r#type(), Type::Container);
    assert_eq!(made.name, alias_name(odd));
    let found = client
        .get_alias(GetAliasRequest {
            name: made.name.clone(),
        })
        .await?
        .into_inner();
    assert_eq!(found, made);
    assert_eq!(
        resolve(
            &service,
            Selector::Alias(odd.into()),
            Type::Container,
            false
        )
        .await?
        .aliases,
        std::slice::from_ref(&made)
    );

    let error = client
        .create_alias(create(odd, &two.fingerprint))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    let error = client
        .create_alias(create("x", &"0".repeat(64)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = client.create_alias(create("x", "")).await.unwrap_err();
    assert_eq!(field(&error), "alias.target");
    let error = client
        .create_alias(create("", &one.fingerprint))
        .await
        .unwrap_err();
    assert_eq!(field(&error), "alias.alias");
    let mut vm = create("x", &one.fingerprint);
    vm.alias.as_mut().unwrap().r#type = Type::VirtualMachine.into();
    assert_eq!(
        field(&client.create_alias(vm).await.unwrap_err()),
        "alias.type"
    );

    let update = |alias: Alias, paths: &[&str]| UpdateAliasRequest {
        alias: Some(alias),
        update_mask: mask(paths),
        request_id: String::new(),
    };
    let mut changed = made.clone();
    changed.description = "new".into();
    changed.target.clone_from(&two.fingerprint);
    let answer = client
        .update_alias(update(changed.clone(), &["description"]))
        .await?
        .into_inner();
    assert_eq!(
        (answer.description.as_str(), &answer.target),
        ("new", &one.fingerprint)
    );
    let error = client
        .update_alias(update(changed.clone(), &["*"]))
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "ETAG_MISMATCH");
    changed.etag.clear();
    let answer = client
        .update_alias(update(changed.clone(), &["*"]))
        .await?
        .into_inner();
    assert_eq!(answer.target, two.fingerprint);
    assert!(get(&service, &one.name).await?.aliases.is_empty());
    let error = client
        .update_alias(update(changed.clone(), &["alias"]))
        .await
        .unwrap_err();
    assert_eq!(field(&error), "update_mask");

    client
        .create_alias(create("taken", &one.fingerprint))
        .await?;
    let rename = |from: &str, to: &str| RenameAliasRequest {
        name: alias_name(from),
        new_alias: to.into(),
        request_id: String::new(),
    };
    let error = client.rename_alias(rename(odd, "taken")).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    let renamed = client.rename_alias(rename(odd, "..")).await?.into_inner();
    assert_eq!(renamed.name, alias_name(".."));
    assert_eq!(
        client.rename_alias(rename("..", "..")).await?.into_inner(),
        renamed
    );
    let gone = client
        .get_alias(GetAliasRequest {
            name: alias_name(odd),
        })
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);

    let drop = |name: &str| DeleteAliasRequest {
        name: alias_name(name),
        request_id: String::new(),
    };
    client.delete_alias(drop("..")).await?;
    assert_eq!(
        client.delete_alias(drop("..")).await.unwrap_err().code(),
        Code::NotFound
    );
    // The image takes what is left along.
    delete(&service, &one.name, "").await?;
    let left = client
        .list_aliases(ListAliasesRequest {
            parent: PARENT.into(),
            ..Default::default()
        })
        .await?;
    assert!(left.into_inner().aliases.is_empty());
});

scenario!(lists_come_in_pages, |service| {
    let mut all = Vec::new();
    for i in 0..7 {
        let mut upload = Upload::unified(image_tar(&format!("page {i}"))).alias(&format!("p/{i}"));
        upload.header.public = i % 2 == 0;
        all.push(service.import(upload).await?.fingerprint);
    }
    all.sort();
    let mut client = service.client.clone();
    let (mut images, mut aliases) = (Vec::new(), Vec::new());
    let (mut token, mut pages) = (String::new(), 0);
    loop {
        let request = ListImagesRequest {
            parent: PARENT.into(),
            page_size: 3,
            page_token: token,
            public_only: false,
        };
        let page = client.list_images(request).await?.into_inner();
        images.extend(page.images.into_iter().map(|i| i.fingerprint));
        token = page.next_page_token;
        pages += 1;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((images, pages), (all, 3));
    loop {
        let request = ListAliasesRequest {
            parent: PARENT.into(),
            page_size: 4,
            page_token: token,
        };
        let page = client.list_aliases(request).await?.into_inner();
        aliases.extend(page.aliases.into_iter().map(|a| a.alias));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(
        aliases,
        (0..7).map(|i| format!("p/{i}")).collect::<Vec<_>>()
    );
    let public = ListImagesRequest {
        parent: PARENT.into(),
        public_only: true,
        ..Default::default()
    };
    let public = client.list_images(public).await?.into_inner();
    assert_eq!(public.images.len(), 4);
    assert!(public.images.iter().all(|i| i.public));
    let bad = ListImagesRequest {
        parent: PARENT.into(),
        page_size: -1,
        ..Default::default()
    };
    assert_eq!(
        field(&client.list_images(bad).await.unwrap_err()),
        "page_size"
    );
    let bad = ListImagesRequest {
        parent: PARENT.into(),
        page_token: "zz".into(),
        ..Default::default()
    };
    assert_eq!(
        field(&client.list_images(bad).await.unwrap_err()),
        "page_token"
    );
});

scenario!(every_change_is_told, |service| {
    let mut client = service.client.clone();
    let mut events = client
        .watch_events(WatchEventsRequest::default())
        .await?
        .into_inner();
    let image = service
        .import(Upload::unified(image_tar("events")).alias("e"))
        .await?;
    let change = UpdateImageRequest {
        image: Some(Image {
            name: image.name.clone(),
            public: true,
            ..Default::default()
        }),
        update_mask: mask(&["public"]),
        request_id: String::new(),
    };
    client.update_image(change).await?;
    client
        .rename_alias(RenameAliasRequest {
            name: alias_name("e"),
            new_alias: "f/g".into(),
            request_id: String::new(),
        })
        .await?;
    client
        .update_alias(UpdateAliasRequest {
            alias: Some(Alias {
                name: alias_name("f/g"),
                description: "x".into(),
                ..Default::default()
            }),
            update_mask: mask(&["description"]),
            request_id: String::new(),
        })
        .await?;
    // Holding and using are no changes of the image.
    hold(
        &service,
        &image.name,
        Hold {
            holder: "h".into(),
            authority: "a".into(),
            expire_time: String::new(),
        },
    )
    .await?;
    resolve(
        &service,
        Selector::Alias("f/g".into()),
        Type::Unspecified,
        true,
    )
    .await?;
    client
        .release_image(ReleaseImageRequest {
            name: image.name.clone(),
            holder: "h".into(),
        })
        .await?;
    delete(&service, &image.name, "").await?;
    let mut seen = Vec::new();
    for _ in 0..7 {
        let event = tokio::time::timeout(std::time::Duration::from_secs(10), events.message())
            .await??
            .unwrap();
        assert_eq!(event.project, "default");
        seen.push((event.action, event.resource));
    }
    let (e, fg) = (alias_name("e"), alias_name("f/g"));
    let expected = [
        ("image-created", &image.name),
        ("image-alias-created", &e),
        ("image-updated", &image.name),
        ("image-alias-renamed", &fg),
        ("image-alias-updated", &fg),
        ("image-alias-deleted", &fg),
        ("image-deleted", &image.name),
    ];
    assert_eq!(seen, expected.map(|(a, r)| (a.to_owned(), r.clone())));
});

scenario!(only_the_default_project_is_known, |service| {
    let mut client = service.client.clone();
    let mut upload = Upload::unified(image_tar("p"));
    upload.header.parent = "projects/shop".into();
    let answers = [
        service.import(upload).await.unwrap_err(),
        get(&service, "projects/shop/images/ab").await.unwrap_err(),
        client
            .list_images(ListImagesRequest {
                parent: "projects/shop".into(),
                ..Default::default()
            })
            .await
            .unwrap_err(),
        client
            .get_alias(GetAliasRequest {
                name: "projects/shop/imageAliases/a".into(),
            })
            .await
            .unwrap_err(),
    ];
    for error in answers {
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.message().contains("shop"), "{error}");
    }
    for bad in [
        "",
        "images/ab",
        "projects/default/images/",
        "projects/default/images/a/b",
    ] {
        assert_eq!(
            field(&get(&service, bad).await.unwrap_err()),
            "name",
            "{bad}"
        );
    }
    let error = client
        .get_alias(GetAliasRequest {
            name: format!("{PARENT}/imageAliases/%zz"),
        })
        .await;
    assert_eq!(field(&error.unwrap_err()), "name");
});

scenario!(everything_is_there_after_a_restart, |service| {
    let image = service
        .import(
            Upload::split(
                gzip(&metadata_tar("r")),
                squashfs(METADATA.as_bytes(), false),
            )
            .alias("r/1"),
        )
        .await?;
    let h = Hold {
        holder: "h".into(),
        authority: "a".into(),
        expire_time: "2040-01-01T00:00:00Z".into(),
    };
    hold(&service, &image.name, h).await?;
    let used = resolve(
        &service,
        Selector::Alias("r/1".into()),
        Type::Container,
        true,
    )
    .await?;
    assert_ne!(used.last_used_time, image.last_used_time);
    assert_eq!(used.etag, image.etag);
    service = Service::start(service.stop().await?).await?;
    assert_eq!(get(&service, &image.name).await?, used);
    assert_eq!(export(&service.client, &image.name).await?.len(), 2);
});

scenario!(uses_are_written_down_together_and_soon, |service| {
    let database = service.stop().await?;
    service = Service::start_with(database, |config| config.use_flush_seconds = 1).await?;
    service
        .import(Upload::unified(image_tar("use")).alias("u"))
        .await?;
    for _ in 0..50 {
        resolve(
            &service,
            Selector::Alias("u".into()),
            Type::Unspecified,
            true,
        )
        .await?;
    }
    let written = || async {
        Ok::<_, anyhow::Error>(
            berth_image::store::load(service.app.store())
                .await?
                .images_after(None)
                .next()
                .and_then(|i| i.last_used_at),
        )
    };
    assert_eq!(written().await?, None);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while written().await?.is_none() {
        assert!(
            std::time::Instant::now() < deadline,
            "the use was not recorded"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
});

scenario!(a_page_fits_in_a_message, |service| {
    let long = "x".repeat(60_000);
    for i in 0..4 {
        let mut upload = Upload::unified(image_tar(&format!("fat {i}")));
        for key in 0..16 {
            upload = upload.property(&format!("k{key}"), &long);
        }
        service.import(upload).await?;
    }
    let mut upload = Upload::unified(image_tar("too fat"));
    for key in 0..20 {
        upload = upload.property(&format!("k{key}"), &long);
    }
    assert_eq!(
        field(&service.import(upload).await.unwrap_err()),
        "header.properties"
    );
    let (mut count, mut token) = (0, String::new());
    loop {
        let request = ListImagesRequest {
            parent: PARENT.into(),
            page_token: token,
            ..Default::default()
        };
        let page = service
            .client
            .clone()
            .list_images(request)
            .await?
            .into_inner();
        assert!(page.images.len() < 4);
        count += page.images.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(count, 4);
});
