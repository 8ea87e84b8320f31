//! `berth.server.v1`: what an operator may do to any service.

use std::time::{Duration, SystemTime};

use berth_proto::server::admin_service_server::{AdminService, AdminServiceServer};
use berth_proto::server::{GetLogLevelRequest, LogLevel, SetLogLevelRequest};
use berth_rpc::tls::ROLE_URI;
use berth_rpc::{Code, Error};
use tonic::{Request, Response, Status};

use crate::telemetry::{self, log_level, override_log_level};
use crate::{ConfigError, PeerInfo};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Admin;

pub(crate) fn service() -> AdminServiceServer<Admin> {
    AdminServiceServer::new(Admin)
}

/// The role of a certificate that is as good as root here.
const OPERATOR: &str = "operator";

/// Root and the service's own user over a unix socket, an operator with a certificate.
fn permit<T>(request: &Request<T>) -> Result<(), Error> {
    let own = rustix::process::geteuid().as_raw();
    let peer = request.extensions().get::<PeerInfo>();
    let permitted = peer.is_some_and(|peer| match peer.uid {
        Some(uid) => uid == 0 || uid == own,
        None => peer
            .identities
            .iter()
            .any(|i| i.strip_prefix(ROLE_URI) == Some(OPERATOR)),
    });
    if permitted {
        Ok(())
    } else {
        Err(Error::new(
            Code::PermissionDenied,
            "NOT_AN_OPERATOR",
            "only root and the service's own user may do this over its unix socket, and over TLS an operator",
        ))
    }
}

fn shown(level: telemetry::LogLevel) -> LogLevel {
    LogLevel {
        level: level.level,
        configured_level: level.configured,
        expire_time: level.until.map(prost_types::Timestamp::from),
    }
}

fn refused(error: &ConfigError) -> Error {
    Error::invalid("level", error.to_string())
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_log_level(
        &self,
        request: Request<GetLogLevelRequest>,
    ) -> Result<Response<LogLevel>, Status> {
        permit(&request)?;
        let level = log_level().ok_or_else(|| {
            Error::new(
                Code::FailedPrecondition,
                "NO_LOGS",
                "this process has no logs",
            )
        })?;
        Ok(Response::new(shown(level)))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<LogLevel>, Status> {
        permit(&request)?;
        let by = request.extensions().get::<PeerInfo>().and_then(|p| p.uid);
        let SetLogLevelRequest { level, duration } = request.into_inner();
        let duration = match duration {
            None => None,
            Some(duration) => match Duration::try_from(duration) {
                Ok(duration) if duration >= Duration::from_secs(1) && !level.is_empty() => {
                    Some(duration)
                }
                Ok(_) if level.is_empty() => {
                    return Err(Error::invalid(
                        "duration",
                        "the configured level has no end; leave it out",
                    )
                    .into());
                }
                _ => return Err(Error::invalid("duration", "expected a second or more").into()),
            },
        };
        let now = override_log_level(&level, duration).map_err(|e| refused(&e))?;
        // At the highest level, so that it is seen whatever was asked for but off.
        tracing::error!(
            uid = by,
            level = now.level,
            seconds = now
                .until
                .and_then(|u| u.duration_since(SystemTime::now()).ok())
                .map(|left| left.as_secs()),
            "the log level was changed"
        );
        Ok(Response::new(shown(now)))
    }
}
