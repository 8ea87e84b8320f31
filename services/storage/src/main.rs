//! `berth-storage`: pools, volumes, snapshots.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use berth_server::{Args, Server, Startup};
use berth_storage::{App, Config, MIGRATIONS, Storage, host, metrics, purge, reconcile};
use berth_store::Store;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-storage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse_for(
        "berth-storage",
        "Storage pools, volumes and snapshots for Berth",
    );
    let (config, reload): (Config, _) = match args.load() {
        Startup::Serve(config, reload) => (config, Some(reload)),
        Startup::Purge(config) => (config, None),
        Startup::Done => return Ok(()),
    };
    host::raise_descriptor_limit();
    if config.private_mounts {
        host::mount::private_mounts().context("taking a mount namespace of its own")?;
    }
    // Threads exist only from here on.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let _telemetry = berth_server::telemetry("berth-storage", &config.server)?;
        let Some(reload) = reload else {
            return purge(&config).await.map_err(Into::into);
        };
        let store = Store::open(&config.server.database(), MIGRATIONS).await?;
        let app = App::start(store.clone(), &config).await?;
        app.follow(reload.subscribe());
        metrics::register(&app);
        let every = Duration::from_secs(config.reconcile_seconds);
        tokio::spawn(reconcile::run(Arc::clone(&app), every));
        let storage = Storage::new(app);
        Server::new("berth-storage", &config.server)
            .probe_store(&store)
            .with_reload(reload)
            .add_service(storage.pool_service())
            .add_service(storage.volume_service())
            .serve()
            .await?;
        Ok(())
    })
}
