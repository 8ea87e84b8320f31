use std::pin::Pin;

use berth_proto::storage::pool_service_server::PoolService;
use berth_proto::{storage as proto, types};
use berth_rpc::mask::Mask;
use berth_rpc::{Error, names};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Storage, convert};
use crate::app::create_pool::{self, NewPool};
use crate::app::update_pool::{self, PoolChange};
use crate::app::{Ask, delete_pool, holds, read};
use crate::driver;

/// Bytes and counts on the wire.
fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn pool_id(field: &str, name: &str) -> Result<String, Error> {
    Ok(names::Pool::parse(field, name)?.pool)
}

#[tonic::async_trait]
impl PoolService for Storage {
    async fn create_pool(
        &self,
        request: Request<proto::CreatePoolRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let request = request.into_inner();
        let pool = request.pool.unwrap_or_default();
        let new = NewPool {
            name: request.pool_id,
            description: pool.description,
            driver: pool.driver,
            config: pool.config.into_iter().collect(),
            validate_only: request.validate_only,
        };
        let ask = Ask {
            request_id: request.request_id.clone(),
            render: convert::pool_bytes,
        };
        let app = self.app.clone();
        let work = async move {
            let view = create_pool::create_pool(&app, new, ask).await?;
            Ok(convert::pool(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn get_pool(
        &self,
        request: Request<proto::GetPoolRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let name = pool_id("name", &request.into_inner().name)?;
        let view = read::get_pool(&self.app, &name).await?;
        Ok(Response::new(convert::pool(&view)))
    }

    async fn list_pools(
        &self,
        request: Request<proto::ListPoolsRequest>,
    ) -> Result<Response<proto::ListPoolsResponse>, Status> {
        let request = request.into_inner();
        let (views, next_page_token) =
            read::list_pools(&self.app, request.page_size, &request.page_token).await?;
        Ok(Response::new(proto::ListPoolsResponse {
            pools: views.iter().map(convert::pool).collect(),
            next_page_token,
        }))
    }

    async fn update_pool(
        &self,
        request: Request<proto::UpdatePoolRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let request = request.into_inner();
        let pool = request.pool.unwrap_or_default();
        let change = PoolChange {
            name: pool_id("pool.name", &pool.name)?,
            description: pool.description,
            config: pool.config,
            mask: Mask::from_proto(request.update_mask.as_ref()),
            etag: pool.etag,
        };
        let ask = Ask {
            request_id: request.request_id.clone(),
            render: convert::pool_bytes,
        };
        let app = self.app.clone();
        let work = async move {
            let view = update_pool::update_pool(&app, change, ask).await?;
            Ok(convert::pool(&view))
        };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn delete_pool(
        &self,
        request: Request<proto::DeletePoolRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let name = pool_id("name", &request.name)?;
        let ask = Ask {
            request_id: request.request_id.clone(),
            render: convert::empty_bytes,
        };
        let app = self.app.clone();
        let work = async move { delete_pool::delete_pool(&app, &name, &request.etag, ask).await };
        Ok(Response::new(
            self.requests.run(&request.request_id, work).await?,
        ))
    }

    async fn get_pool_resources(
        &self,
        request: Request<proto::GetPoolResourcesRequest>,
    ) -> Result<Response<proto::PoolResources>, Status> {
        let name = pool_id("name", &request.into_inner().name)?;
        let space = read::pool_resources(&self.app, &name).await?;
        Ok(Response::new(proto::PoolResources {
            space_used_bytes: count(space.used),
            space_total_bytes: count(space.total),
            inodes_used: count(space.inodes_used),
            inodes_total: count(space.inodes_total),
        }))
    }

    async fn hold_pool(
        &self,
        request: Request<proto::HoldPoolRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let request = request.into_inner();
        let name = pool_id("name", &request.name)?;
        let hold = convert::hold_from("hold", request.hold)?;
        let app = self.app.clone();
        let work = async move {
            let view = holds::hold_pool(&app, &name, &hold).await?;
            Ok(convert::pool(&view))
        };
        Ok(Response::new(self.requests.run("", work).await?))
    }

    async fn release_pool(
        &self,
        request: Request<proto::ReleasePoolRequest>,
    ) -> Result<Response<proto::Pool>, Status> {
        let request = request.into_inner();
        let name = pool_id("name", &request.name)?;
        let app = self.app.clone();
        let work = async move {
            let view = holds::release_pool(&app, &name, &request.holder).await?;
            Ok(convert::pool(&view))
        };
        Ok(Response::new(self.requests.run("", work).await?))
    }

    async fn list_drivers(
        &self,
        _request: Request<proto::ListDriversRequest>,
    ) -> Result<Response<proto::ListDriversResponse>, Status> {
        let version = env!("CARGO_PKG_VERSION");
        let drivers = driver::DRIVERS
            .iter()
            .map(|name| proto::list_drivers_response::Driver {
                name: (*name).to_owned(),
                version: version.to_owned(),
                remote: false,
            })
            .collect();
        Ok(Response::new(proto::ListDriversResponse { drivers }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<types::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<types::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let store = self.app.store.clone();
        Ok(Response::new(berth_server::watch_events(
            store,
            request.get_ref(),
        )))
    }
}
