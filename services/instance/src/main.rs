//! `berth-instance`: reads its configuration, takes over running guests, serves.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use berth_instance::app::{self, App};
use berth_instance::command::Command;
use berth_instance::config::Config;
use berth_instance::host::facts::Facts;
use berth_instance::runtime::Runtime;
use berth_instance::runtime::host::Host;
use berth_instance::runtime::meter::Meters;
use berth_instance::runtime::scope::{self, Scope};
use berth_instance::store::Records;
use berth_instance::{grpc, host};
use berth_server::{Args, Reload, Server, Startup};

fn main() -> ExitCode {
    let done = match Command::from_args() {
        Some(command) => guests(&command),
        None => run(&Args::parse_for(
            "berth-instance",
            "Runs instances and keeps their configuration",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-instance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What `berth-guests.service` runs.
fn guests(command: &Command) -> anyhow::Result<()> {
    let config: Config = berth_server::load(command.config.as_deref())?.config;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let host = || monitors(&config, None, None);
        command.run(&config, host).await
    })
}

fn run(args: &Args) -> anyhow::Result<()> {
    let (config, reload): (Config, _) = match args.load() {
        Startup::Serve(config, reload) => (config, Some(reload)),
        Startup::Purge(config) => (config, None),
        Startup::Done => return Ok(()),
    };
    let threads = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    threads.block_on(async {
        match reload {
            None => remove_all(&config).await,
            Some(reload) => serve(config, reload).await,
        }
    })
}

fn monitors(
    config: &Config,
    scope: Option<Scope>,
    scope_group: Option<String>,
) -> anyhow::Result<Host> {
    let mut cgroup_parents = vec![config.cgroup_parent.clone()];
    cgroup_parents.extend(scope_group);
    let host = Host {
        run_dir: config.run_dir.clone(),
        log_dir: config.log_dir(),
        monitor: config.monitor()?,
        cgroup_parents,
        host_mount_ns: config.host_mount_ns.clone(),
        scope,
        meters: Meters::default(),
    };
    host.prepare()
        .with_context(|| format!("making {}", config.run_dir.display()))
}

async fn serve(config: Config, reload: Reload<Config>) -> anyhow::Result<()> {
    let _telemetry = berth_server::telemetry("berth-instance", &config.server)?;
    let facts = Facts::read().context("reading facts of the host")?;
    let scope = Scope::open(&config)
        .await
        .context("the scope of the guests")?;
    let unified = scope.as_ref().map(|scope| scope.group().to_owned());
    let monitors: Arc<dyn Runtime> = Arc::new(monitors(&config, scope, unified.clone())?);
    let node = config
        .node
        .clone()
        .unwrap_or_else(|| facts.hostname.clone());
    let records = Records::open(&config.server.database(), &node).await?;
    let settings = config.settings(unified);
    let app = App::open(settings, facts, records, monitors, grpc::ENCODE).await?;
    berth_instance::metrics::register(&app);
    let adopted = app.recover().await?;
    tracing::info!(adopted, "guests taken over");
    if !config.autostart_waits {
        let starting = app.clone();
        // The API is up before the first guest: a hundred of them may take their time.
        tokio::spawn(async move {
            match starting.autostart().await {
                Ok(0) => {}
                Ok(started) => tracing::info!(started, "guests started after the boot"),
                Err(error) => tracing::error!(%error, "autostart"),
            }
        });
    }
    let server = Server::new("berth-instance", &config.server)
        .probe_store(app.records.store())
        .with_reload(reload);
    grpc::serve(server, app).serve().await?;
    Ok(())
}

async fn remove_all(config: &Config) -> anyhow::Result<()> {
    let group = match config.systemd_scope {
        true => scope::present().await?,
        false => None,
    };
    let monitors = monitors(config, None, group.clone())?;
    let left = app::purge(&monitors).await?;
    host::cgroup::remove_empty_parent(&config.cgroup_parent)?;
    if group.is_some() && left.is_empty() {
        scope::end().await?;
    }
    anyhow::ensure!(
        left.is_empty(),
        "these guests could not be removed: {}",
        left.join(", ")
    );
    Ok(())
}
