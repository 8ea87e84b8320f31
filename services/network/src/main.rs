//! `berth-network`: arguments, configuration, telemetry, then serving.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use berth_network::app::App;
use berth_network::config::Config;
use berth_network::grpc;
use berth_network::host::Linux;
use berth_network::store::{MIGRATIONS, Networks};
use berth_server::{Args, Reload, Server, Startup};
use berth_store::Store;
use tokio::sync::Notify;

fn main() -> anyhow::Result<()> {
    let args = Args::parse_for("berth-network", "Bridges, DHCP, DNS and NAT for guests");
    let (config, reload): (Config, _) = match args.load() {
        Startup::Done => return Ok(()),
        Startup::Serve(config, reload) => (config, Some(reload)),
        Startup::Purge(config) => (config, None),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(config, reload))
}

async fn run(config: Config, reload: Option<Reload<Config>>) -> anyhow::Result<()> {
    let _telemetry = berth_server::telemetry("berth-network", &config.server)?;
    std::fs::create_dir_all(&config.server.state_dir)
        .with_context(|| format!("make {}", config.server.state_dir.display()))?;
    let changed = Arc::new(Notify::new());
    let host = Linux::open(config.host(), changed.clone())?;
    let Some(reload) = reload else {
        return host.purge().await.context("purge");
    };
    let store = Store::open(&config.server.database(), MIGRATIONS)
        .await
        .context("open the database")?;
    let app = App::new(Networks::new(store.clone(), &config.node), Arc::new(host));
    app.recover().await?;
    let every = Duration::from_secs(config.reconcile_seconds);
    tokio::spawn(app.clone().keep_reconciled(every, changed));
    let (networks, ports) = grpc::services(&app);
    Server::new("berth-network", &config.server)
        .probe_store(&store)
        .with_reload(reload)
        .add_service(networks)
        .add_service(ports)
        .serve()
        .await?;
    Ok(())
}
