//! The records on both databases.

use berth_instance::model::idmap::IdRange;
use berth_instance::model::record::{Devices, Instance, Profile, Snapshot};
use berth_instance::store::{Answer, Records};

fn instance(uid: &str, name: &str, base: u32) -> Instance {
    Instance {
        uid: uid.into(),
        project: "default".into(),
        name: name.into(),
        description: "é".into(),
        architecture: "x86_64".into(),
        ephemeral: false,
        config: [("user.x".to_owned(), "1".to_owned())].into(),
        devices: Devices::new(),
        profiles: vec!["default".into()],
        create_time: 1,
        last_used_time: 0,
        generation: 7,
        running: true,
        ids: IdRange { base, len: 65_536 },
        attachments: Default::default(),
        ports: Default::default(),
    }
}

fn snapshot(uid: &str, name: &str) -> Snapshot {
    Snapshot {
        uid: uid.into(),
        name: name.into(),
        description: String::new(),
        create_time: 1,
        expire_time: 0,
        last_used_time: 0,
        ephemeral: false,
        architecture: "x86_64".into(),
        config: Default::default(),
        devices: Devices::new(),
        profiles: vec![],
        expanded_config: Default::default(),
        expanded_devices: Devices::new(),
        ids: IdRange { base: 1, len: 1 },
    }
}

#[tokio::test]
async fn records_survive_on_every_database() {
    for database in berth_testkit::databases().await.unwrap() {
        let records = Records::open(&database.config, "a").await.unwrap();
        let one = instance("u1", "c1", 1_000_000);
        let mut tx = records.begin().await.unwrap();
        tx.insert_instance(&one).await.unwrap();
        tx.insert_snapshot("u1", &snapshot("s1", "snap"))
            .await
            .unwrap();
        let profile = Profile {
            uid: "p1".into(),
            project: "default".into(),
            name: "p".into(),
            description: String::new(),
            config: Default::default(),
            devices: Devices::new(),
        };
        tx.put_profile(&profile).await.unwrap();
        tx.answer(Answer {
            request_id: "r".into(),
            bytes: vec![1, 2],
        })
        .await
        .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(
            records.instances().await.unwrap(),
            std::slice::from_ref(&one)
        );
        assert_eq!(records.snapshots().await.unwrap().len(), 1);
        assert_eq!(
            records.profiles().await.unwrap(),
            std::slice::from_ref(&profile)
        );
        assert_eq!(
            records.store().finished_request("r").await.unwrap(),
            Some(vec![1, 2])
        );

        for taken in [
            instance("u2", "c1", 2_000_000),
            instance("u3", "c3", 1_000_000),
        ] {
            let mut tx = records.begin().await.unwrap();
            assert!(tx.insert_instance(&taken).await.is_err());
        }
        let mut tx = records.begin().await.unwrap();
        let renamed = Instance {
            name: "c9".into(),
            ..one
        };
        tx.update_instance(&renamed).await.unwrap();
        assert!(
            tx.update_instance(&instance("none", "n", 5_000_000))
                .await
                .is_err()
        );
        drop(tx);
        // Dropped without a commit.
        assert_eq!(records.instances().await.unwrap()[0].name, "c1");

        records.set_boot_id("b1").await.unwrap();
        records.set_boot_id("b2").await.unwrap();
        assert_eq!(records.boot_id().await.unwrap().as_deref(), Some("b2"));
        let mut tx = records.begin().await.unwrap();
        tx.delete_instance("u1").await.unwrap();
        tx.delete_profile("p1").await.unwrap();
        tx.commit().await.unwrap();
        assert!(records.instances().await.unwrap().is_empty());
        assert!(records.snapshots().await.unwrap().is_empty());
        records.store().close().await;
        drop(records);
        database.remove().await.unwrap();
    }
}
