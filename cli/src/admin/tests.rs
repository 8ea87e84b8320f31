//! The choices and the preseed's reading; the rest runs against a server in tests/e2e.

use super::Init;
use super::auto::{Present, choose};
use super::preseed::Preseed;
use super::questions::{Questions, ask};

fn fresh() -> Present {
    Present {
        links: vec!["lo".into()],
        drivers: vec!["dir".into(), "btrfs".into()],
        ..Present::default()
    }
}

#[test]
fn scalars_keep_the_text_they_were_written_with() {
    let text = "config:\n  core.x: 15\nstorage_pools:\n- name: p\n  driver: dir\n  config:\n    \
                a: true\n    b: 0600\n    c: 1.10\n    d: \"q\"\nnetworks:\nprofiles: []\n";
    let preseed = Preseed::parse(text).unwrap();
    assert_eq!(preseed.config["core.x"], "15");
    let config = &preseed.storage_pools[0].config;
    assert_eq!(
        (
            config["a"].as_str(),
            config["b"].as_str(),
            config["c"].as_str(),
            config["d"].as_str()
        ),
        ("true", "0600", "1.10", "q")
    );
}

#[test]
fn an_unknown_field_is_named() {
    let error = Preseed::parse("networks:\n- name: n\n  foo: bar\n").unwrap_err();
    assert!(format!("{error:#}").contains("`foo`"), "{error:#}");
    let error = Preseed::parse("netwroks: []\n").unwrap_err();
    assert!(format!("{error:#}").contains("`netwroks`"), "{error:#}");
}

#[test]
fn a_document_of_nothing_asks_for_nothing() {
    for text in ["", "\n", "# only this\n", "---\n"] {
        assert_eq!(Preseed::parse(text).unwrap(), Preseed::default());
    }
}

#[test]
fn auto_makes_a_pool_a_bridge_and_the_default_profile() {
    let preseed = choose(&Init::default(), &fresh()).unwrap();
    assert_eq!(preseed.storage_pools[0].driver, "btrfs");
    assert_eq!(preseed.networks[0].name, "berthbr0");
    let devices = &preseed.profiles[0].devices;
    assert_eq!(devices["root"]["pool"], "default");
    assert_eq!(devices["eth0"]["network"], "berthbr0");
}

#[test]
fn auto_a_second_time_has_nothing_to_do() {
    let present = Present {
        pools: vec!["default".into()],
        managed: vec!["berthbr0".into()],
        devices: vec!["root".into(), "eth0".into()],
        ..fresh()
    };
    assert_eq!(
        choose(&Init::default(), &present).unwrap(),
        Preseed::default()
    );
}

#[test]
fn a_name_that_is_taken_by_a_link_is_passed_over() {
    let present = Present {
        links: vec!["berthbr0".into()],
        ..fresh()
    };
    assert_eq!(
        choose(&Init::default(), &present).unwrap().networks[0].name,
        "berthbr1"
    );
}

#[test]
fn a_driver_the_server_lacks_is_refused_by_name() {
    let flags = Init {
        storage_backend: Some("zfs".into()),
        ..Init::default()
    };
    let error = choose(&flags, &fresh()).unwrap_err().to_string();
    assert!(error.contains("zfs") && error.contains("btrfs"), "{error}");
}

#[test]
fn answers_become_a_preseed_and_wrong_ones_are_asked_again() {
    let answers = "yes\nmine\nbtrfs\nno\n0\n5\nyes\nbr9\n10.1.2.3\n10.1.2.1/24\nno\nnone\nyes\n";
    let mut out = Vec::new();
    let mut questions = Questions::new(answers.as_bytes(), &mut out);
    let (preseed, print) = ask(&mut questions, &fresh()).unwrap();
    assert!(print);
    assert_eq!(preseed.storage_pools[0].name, "mine");
    assert_eq!(preseed.storage_pools[0].config["size"], "5GiB");
    assert_eq!(preseed.networks[0].config["ipv4.address"], "10.1.2.1/24");
    assert!(!preseed.networks[0].config.contains_key("ipv4.nat"));
    assert_eq!(preseed.profiles[0].devices["eth0"]["network"], "br9");
    let shown = String::from_utf8(out).unwrap();
    assert_eq!(shown.matches("Invalid input").count(), 2, "{shown}");
}

#[test]
fn input_that_ends_early_is_an_error() {
    let mut questions = Questions::new("yes\n".as_bytes(), Vec::new());
    assert!(ask(&mut questions, &fresh()).is_err());
}
