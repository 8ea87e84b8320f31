//! The measurements themselves, each the wall time a REST client sees.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::{Value, json};

use super::memory::Daemons;
use super::report::{Measured, Unit};
use crate::rest::Client;

/// How much to do.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Plan {
    pub(super) rounds: u32,
    pub(super) fleet: u32,
    pub(super) callers: u32,
}

/// Execs, state reads and lists are quick and vary; they are repeated in every round.
const REPEATS: u32 = 4;

pub(super) async fn all(
    socket: &Path,
    daemons: &Daemons,
    image: &Path,
    plan: Plan,
) -> Result<Measured> {
    let mut client = Client::new(socket);
    let mut measured = Measured::default();
    let started = Instant::now();
    let fingerprint = client.upload_image(image).await?;
    measured.add("image import", Unit::Milliseconds, milliseconds(started));
    // The first launch unpacks the image into the pool; it is shown apart from the others.
    one_by_one(
        &mut client,
        "first",
        &fingerprint,
        &mut Measured::default(),
        &mut measured,
    )
    .await?;
    for round in 0..plan.rounds {
        let mut discarded = Measured::default();
        let name = format!("bench-{round}");
        one_by_one(
            &mut client,
            &name,
            &fingerprint,
            &mut measured,
            &mut discarded,
        )
        .await?;
    }
    side_by_side(socket, daemons, &fingerprint, plan, &mut measured).await?;
    let daemon = daemons.size()?;
    measured.add(
        "daemon memory (PSS)",
        Unit::Megabytes,
        daemon.pss as f64 / 1024.0,
    );
    measured.add(
        "daemon memory (RSS)",
        Unit::Megabytes,
        daemon.rss as f64 / 1024.0,
    );
    Ok(measured)
}

/// One life of one instance. `first` takes the launch alone.
async fn one_by_one(
    client: &mut Client,
    name: &str,
    fingerprint: &str,
    measured: &mut Measured,
    first: &mut Measured,
) -> Result<()> {
    let path = format!("/1.0/instances/{name}");
    let begun = Instant::now();
    create(client, name, fingerprint).await?;
    measured.add("create", Unit::Milliseconds, milliseconds(begun));
    let starting = Instant::now();
    set_state(client, name, "start", false).await?;
    measured.add("start", Unit::Milliseconds, milliseconds(starting));
    measured.add("launch", Unit::Milliseconds, milliseconds(begun));
    first.add("first launch", Unit::Milliseconds, milliseconds(begun));

    for _ in 0..REPEATS {
        let begun = Instant::now();
        let done = client.exec(name, &["echo", "hello"]).await?;
        measured.add("exec", Unit::Milliseconds, milliseconds(begun));
        ensure!(
            done.code == 0 && done.stdout == b"hello\n",
            "exec answered {done:?}"
        );
        let begun = Instant::now();
        let state = client.get(&format!("{path}/state")).await?;
        measured.add("state", Unit::Milliseconds, milliseconds(begun));
        ensure!(state["status"] == "Running", "state is {}", state["status"]);
    }
    let begun = Instant::now();
    let snapshot = json!({"name": "s0", "stateful": false});
    client
        .change(Method::POST, &format!("{path}/snapshots"), Some(snapshot))
        .await?;
    measured.add("snapshot", Unit::Milliseconds, milliseconds(begun));
    let begun = Instant::now();
    set_state(client, name, "stop", true).await?;
    measured.add("forced stop", Unit::Milliseconds, milliseconds(begun));
    let begun = Instant::now();
    client
        .change(Method::PUT, &path, Some(json!({"restore": "s0"})))
        .await?;
    measured.add("restore", Unit::Milliseconds, milliseconds(begun));
    let begun = Instant::now();
    delete(client, name).await?;
    measured.add("delete", Unit::Milliseconds, milliseconds(begun));
    Ok(())
}

/// A fleet launched by several callers, listed, weighed and removed.
async fn side_by_side(
    socket: &Path,
    daemons: &Daemons,
    fingerprint: &str,
    plan: Plan,
    measured: &mut Measured,
) -> Result<()> {
    let begun = Instant::now();
    each(socket, plan, 0, async |client, name| {
        create(client, name, fingerprint).await?;
        set_state(client, name, "start", false).await
    })
    .await?;
    let rate = f64::from(plan.fleet) / begun.elapsed().as_secs_f64();
    measured.add("parallel launches", Unit::PerSecond, rate);

    let mut client = Client::new(socket);
    for _ in 0..plan.rounds.min(10) * REPEATS {
        let begun = Instant::now();
        let list = client.get("/1.0/instances?recursion=2").await?;
        measured.add("list with state", Unit::Milliseconds, milliseconds(begun));
        let running = list.as_array().map_or(0, |all| {
            all.iter()
                .filter(|instance| instance["state"]["status"] == "Running")
                .count()
        });
        ensure!(
            running >= plan.fleet as usize,
            "{running} of {} instances listed as running",
            plan.fleet
        );
    }
    let (count, size) = daemons.monitors()?;
    if count < u64::from(plan.fleet) {
        bail!("{count} monitors found for {} instances", plan.fleet);
    }
    let each_one = size.pss as f64 / 1024.0 / count as f64;
    measured.add("memory per instance (PSS)", Unit::Megabytes, each_one);

    // A guest that has just begun still asks for its address; its DHCP client then waits in the kernel for
    // grace periods of its packet sockets, and its end waits for it. These have their address.
    let settled = plan.rounds.min(plan.fleet / 2);
    for number in 0..settled {
        let name = format!("fleet-{number}");
        let begun = Instant::now();
        set_state(&mut client, &name, "stop", true).await?;
        let took = milliseconds(begun);
        measured.add("forced stop, settled guest", Unit::Milliseconds, took);
        delete(&mut client, &name).await?;
    }

    let begun = Instant::now();
    each(socket, plan, settled, async |client, name| {
        set_state(client, name, "stop", true).await?;
        delete(client, name).await
    })
    .await?;
    let rate = f64::from(plan.fleet - settled) / begun.elapsed().as_secs_f64();
    measured.add("parallel stops and deletes", Unit::PerSecond, rate);
    Ok(())
}

/// Does `work` for every name of the fleet from number `first` on, dealt out to the callers in advance.
async fn each(
    socket: &Path,
    plan: Plan,
    first: u32,
    work: impl AsyncFn(&mut Client, &str) -> Result<()>,
) -> Result<()> {
    let callers = (0..plan.callers).map(|caller| {
        let work = &work;
        async move {
            let mut client = Client::new(socket);
            for number in (first + caller..plan.fleet).step_by(plan.callers as usize) {
                let name = format!("fleet-{number}");
                work(&mut client, &name)
                    .await
                    .with_context(|| name.clone())?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(callers).await?;
    Ok(())
}

async fn create(client: &mut Client, name: &str, fingerprint: &str) -> Result<Value> {
    let body = json!({
        "name": name, "type": "container",
        "source": {"type": "image", "fingerprint": fingerprint},
    });
    client
        .change(Method::POST, "/1.0/instances", Some(body))
        .await
}

async fn delete(client: &mut Client, name: &str) -> Result<()> {
    let path = format!("/1.0/instances/{name}");
    client.change(Method::DELETE, &path, None).await?;
    Ok(())
}

async fn set_state(client: &mut Client, name: &str, action: &str, force: bool) -> Result<()> {
    let body = json!({"action": action, "timeout": 60, "force": force});
    client
        .change(
            Method::PUT,
            &format!("/1.0/instances/{name}/state"),
            Some(body),
        )
        .await?;
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
