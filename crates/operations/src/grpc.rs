//! The standard operations services.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::google::rpc;
use berth_proto::longrunning as lr;
use berth_proto::longrunning::operations_server::{Operations as OperationsApi, OperationsServer};
use berth_proto::operation as pb;
use berth_proto::operation::operation_watch_service_server::{
    OperationWatchService, OperationWatchServiceServer,
};
use berth_rpc::{Error, names};
use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::registry::Operations;
use crate::{Record, State};

const HISTORY: i64 = 1000;

/// Serves `google.longrunning.Operations`.
pub fn longrunning_server<A: Send + Sync + 'static>(
    operations: Arc<Operations<A>>,
) -> OperationsServer<impl OperationsApi> {
    OperationsServer::new(Api { operations })
}

/// Serves `berth.operation.v1.OperationWatchService`.
pub fn watch_server<A: Send + Sync + 'static>(
    operations: Arc<Operations<A>>,
) -> OperationWatchServiceServer<impl OperationWatchService> {
    OperationWatchServiceServer::new(Api { operations })
}

struct Api<A> {
    operations: Arc<Operations<A>>,
}

/// An operation on the wire.
pub fn to_proto(record: &Record) -> lr::Operation {
    let state = match record.state {
        State::Pending => pb::operation_metadata::State::Pending,
        State::Running => pb::operation_metadata::State::Running,
        State::Unwinding => pb::operation_metadata::State::Unwinding,
        State::Succeeded => pb::operation_metadata::State::Succeeded,
        State::Failed => pb::operation_metadata::State::Failed,
        State::Cancelled => pb::operation_metadata::State::Cancelled,
    };
    let metadata = pb::OperationMetadata {
        id: record.id.clone(),
        verb: record.verb.clone(),
        description: record.description.clone(),
        project: record.project.clone(),
        state: state.into(),
        step: record.step.clone(),
        resources: record
            .resources
            .iter()
            .map(|(kind, names)| {
                (
                    kind.clone(),
                    pb::operation_metadata::Resources {
                        names: names.clone(),
                    },
                )
            })
            .collect(),
        metadata_json: serde_json::Value::Object(record.metadata.clone()).to_string(),
        may_cancel: record.may_cancel,
        create_time: record.created_at.clone(),
        update_time: record.updated_at.clone(),
        error: record
            .failure
            .as_ref()
            .map(|f| f.message.clone())
            .unwrap_or_default(),
        traceparent: record.traceparent.clone(),
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/berth.operation.v1.OperationMetadata".to_owned(),
        value: metadata.encode_to_vec(),
    };
    let result = match record.state {
        State::Succeeded => Some(lr::operation::Result::Response(any.clone())),
        State::Failed | State::Cancelled => {
            let failure = record.failure.clone();
            Some(lr::operation::Result::Error(rpc::Status {
                code: failure
                    .as_ref()
                    .map_or(tonic::Code::Cancelled as i32, |f| f.code),
                message: failure.map_or_else(|| "cancelled".to_owned(), |f| f.message),
                details: Vec::new(),
            }))
        }
        State::Pending | State::Running | State::Unwinding => None,
    };
    lr::Operation {
        name: format!("operations/{}", record.id),
        metadata: Some(any),
        done: record.state.is_final(),
        result,
    }
}

impl<A: Send + Sync + 'static> Api<A> {
    async fn find(&self, name: &str) -> Result<crate::Operation, Error> {
        let id = names::Operation::parse("name", name)?.operation;
        self.operations
            .find(&id)
            .await?
            .ok_or_else(|| Error::not_found("Operation", id))
    }
}

#[tonic::async_trait]
impl<A: Send + Sync + 'static> OperationsApi for Api<A> {
    async fn list_operations(
        &self,
        request: Request<lr::ListOperationsRequest>,
    ) -> Result<Response<lr::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        if !request.filter.is_empty() {
            return Err(Error::unimplemented("filter is not supported on operations").into());
        }
        let size = berth_rpc::page::size(request.page_size)?;
        let after = berth_rpc::page::decode(&request.page_token)?;
        let mut all = self.operations.history(HISTORY).await?;
        let stored: std::collections::HashSet<String> = all.iter().map(|r| r.id.clone()).collect();
        all.extend(
            self.operations
                .list()
                .into_iter()
                .filter(|r| !stored.contains(&r.id)),
        );
        let key = |r: &Record| format!("{} {}", r.created_at, r.id);
        all.sort_by_key(|r| std::cmp::Reverse(key(r)));
        if let Some(after) = after {
            all.retain(|r| key(r) < after);
        }
        let more = all.len() > size;
        all.truncate(size);
        let next = match all.last() {
            Some(last) if more => berth_rpc::page::encode(&key(last)),
            _ => String::new(),
        };
        Ok(Response::new(lr::ListOperationsResponse {
            operations: all.iter().map(to_proto).collect(),
            next_page_token: next,
        }))
    }

    async fn get_operation(
        &self,
        request: Request<lr::GetOperationRequest>,
    ) -> Result<Response<lr::Operation>, Status> {
        let operation = self.find(&request.get_ref().name).await?;
        Ok(Response::new(to_proto(&operation.record())))
    }

    async fn delete_operation(
        &self,
        request: Request<lr::DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let id = names::Operation::parse("name", &request.get_ref().name)?.operation;
        self.operations.delete(&id).await?;
        Ok(Response::new(()))
    }

    async fn cancel_operation(
        &self,
        request: Request<lr::CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let id = names::Operation::parse("name", &request.get_ref().name)?.operation;
        self.operations.cancel(&id)?;
        Ok(Response::new(()))
    }

    async fn wait_operation(
        &self,
        request: Request<lr::WaitOperationRequest>,
    ) -> Result<Response<lr::Operation>, Status> {
        let request = request.into_inner();
        let operation = self.find(&request.name).await?;
        let timeout = match request.timeout {
            None => None,
            Some(t) => Some(
                Duration::try_from(t)
                    .map_err(|_| Error::invalid("timeout", "timeout must not be negative"))?,
            ),
        };
        Ok(Response::new(to_proto(&operation.wait(timeout).await)))
    }
}

#[tonic::async_trait]
impl<A: Send + Sync + 'static> OperationWatchService for Api<A> {
    type WatchOperationStream =
        Pin<Box<dyn Stream<Item = Result<lr::Operation, Status>> + Send + 'static>>;

    async fn watch_operation(
        &self,
        request: Request<pb::WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let operation = self.find(&request.get_ref().name).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            let mut changes = operation.watch();
            loop {
                let record = operation.record();
                if sender.send(Ok(to_proto(&record))).await.is_err() || record.state.is_final() {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::ReceiverStream::new(receiver),
        )))
    }
}
