//! `berth-network`: arguments, configuration, telemetry, then serving.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use berth_network::app::App;
use berth_network::config::Config;
use berth_network::grpc;
use berth_network::host::Linux;
use berth_network::store::{MIGRATIONS, Networks};
use berth_server::{Args, Server, Startup};
use berth_store::Store;
use tokio::sync::Notify;

fn main() -> anyhow::Result<()> {
    let args = Args::parse_for("berth-network", "Bridges, DHCP, DNS and NAT for guests");
    let startup = args.load::<Config>("BERTH_NETWORK")?;
    let (config, purge) = match startup {
        Startup::Done => return Ok(()),
        Startup::Serve(config) => (config, false),
        Startup::Purge(config) => (config, true),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(config, purge))
}

async fn run(config: Config, purge: bool) -> anyhow::Result<()> {
    let _telemetry = berth_server::telemetry("berth-network", &config.server)?;
    std::fs::create_dir_all(&config.server.state_dir)
        .with_context(|| format!("make {}", config.server.state_dir.display()))?;
    let changed = Arc::new(Notify::new());
    let host = Linux::open(config.host()?, changed.clone())?;
    if purge {
        return host.purge().await.context("purge");
    }
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
        .add_service(networks)
        .add_service(ports)
        .serve()
        .await?;
    Ok(())
}
