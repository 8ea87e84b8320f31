//! `berth-image`: serves `berth.image.v1`.

use anyhow::Context;
use berth_image::{App, Config, ImageApi, MIGRATIONS};
use berth_server::{Args, Server, Startup};
use berth_store::Store;
use std::os::unix::fs::DirBuilderExt;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse_for(
        "berth-image",
        "Keeps images: their bytes, properties and aliases",
    );
    let (config, reload): (Config, _) = match args.load() {
        Startup::Serve(config, reload) => (config, reload),
        Startup::Purge(config) => return berth_image::purge(&config).await.context("purging"),
        Startup::Done => return Ok(()),
    };
    let _telemetry = berth_server::telemetry("berth-image", &config.server)?;
    let state_dir = &config.server.state_dir;
    // The group reads blobs in here; nobody else has business with it.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(state_dir)
        .with_context(|| format!("making {}", state_dir.display()))?;
    let store = Store::open(&config.server.database(), MIGRATIONS)
        .await
        .context("opening the database")?;
    let app = App::open(&config, store)
        .await
        .context("opening the images")?;
    app.follow(reload.subscribe());
    berth_image::metrics::register(&app);
    let served = Server::new("berth-image", &config.server)
        .probe_store(app.store())
        .with_reload(reload)
        .add_service(ImageApi::new(app.clone()).into_server())
        .serve()
        .await;
    app.flush_uses().await?;
    app.store().close().await;
    served.context("serving")
}
