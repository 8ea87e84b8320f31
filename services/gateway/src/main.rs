//! `berth-gateway`: LXD's REST API and `berth.gateway.v1`.

use std::os::unix::fs::DirBuilderExt;

use anyhow::Context;
use berth_gateway::config::Config;
use berth_gateway::{Gateway, grpc, rest};
use berth_server::{Args, Server, Startup};
use berth_store::{Durability, Store};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse_for(
        "berth-gateway",
        "Presents LXD's API and coordinates the other services",
    );
    let (config, reload): (Config, _) = match args.load() {
        Startup::Serve(config, reload) => (config, reload),
        // What this service keeps are records of operations; nothing outside its state directory.
        Startup::Purge(_) | Startup::Done => return Ok(()),
    };
    let _telemetry = berth_server::telemetry("berth-gateway", &config.server)?;
    let state_dir = &config.server.state_dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(state_dir)
        .with_context(|| format!("making {}", state_dir.display()))?;
    // Steps are idempotent, so an operation that a power cut takes back is only done again.
    let database = config.server.database().with_durability(Durability::Normal);
    let store = Store::open(&database, berth_gateway::MIGRATIONS)
        .await
        .context("opening the database")?;
    let tls = config.services.tls.as_ref().map(|tls| tls.open());
    let tls = tls.transpose().context("services.tls")?;
    let app = Gateway::open(store.clone(), &config.services, tls.as_ref())?;
    app.begin().await?;
    let listener = match berth_server::Listener::unix_from_systemd("berth-rest")
        .context("the REST socket from systemd")?
        .pop()
    {
        Some(socket) => rest::listen::Listener::handed_over(socket),
        None => rest::listen::Listener::bind(&config.rest_socket, config.rest_group.as_deref())
            .with_context(|| format!("listening on {}", config.rest_socket.display()))?,
    };
    let durable = app.operations.durable().clone();
    let server = Server::new("berth-gateway", &config.server)
        .probe_store(&store)
        .with_client_tls(tls)
        .with_reload(reload)
        .add_service(grpc::gateway_server(app.clone()))
        .add_service(berth_operations::longrunning_server(durable.clone()))
        .add_service(berth_operations::watch_server(durable.clone()));
    let end = server.shutdown_token();
    let rest = tokio::spawn(listener.serve(rest::router::router(app.clone()), end.clone()));
    let served = server.serve().await;
    end.cancel();
    rest.await.context("the REST listener")?;
    durable.halt().await;
    store.close().await;
    served.context("serving")
}
