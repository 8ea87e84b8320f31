//! `--health`: asks the service that runs with this configuration whether it serves. For
//! container engines and scripts, which have no gRPC client of their own.

use std::time::Duration;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::ServerConfig;

const PATIENCE: Duration = Duration::from_secs(5);

/// What is wrong with it, if anything.
pub(crate) fn probe(server: &ServerConfig) -> Result<(), String> {
    let address = address(&server.listen)?;
    // A thread of its own: the caller may be inside a runtime, which must not be blocked on.
    std::thread::scope(|scope| scope.spawn(|| ask_here(&address)).join())
        .unwrap_or_else(|_| Err("the question failed".to_owned()))
}

/// Where it can be asked: a socket rather than a port.
fn address(listen: &[String]) -> Result<String, String> {
    let unix = listen.iter().find(|at| at.starts_with("unix:")).cloned();
    let tcp = || {
        let port = listen.iter().find_map(|at| at.strip_prefix("tcp:"))?;
        Some(format!("http://{port}"))
    };
    unix.or_else(tcp)
        .ok_or_else(|| "server.listen has no unix: or tcp: address to ask at".to_owned())
}

fn ask_here(address: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let asked = tokio::time::timeout(PATIENCE, ask(address)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    })
}

async fn ask(address: &str) -> Result<(), String> {
    let channel = berth_rpc::connect(address).map_err(|e| e.to_string())?;
    // An empty name asks for the server as a whole.
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await
        .map_err(|status| format!("{address}: {}", status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(format!("{address}: {}", status.as_str_name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_asked_before_a_port() {
        let list = |text: &[&str]| text.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let both = list(&["tls:0.0.0.0:1", "tcp:127.0.0.1:2", "unix:/s"]);
        assert_eq!(address(&both).unwrap(), "unix:/s");
        assert_eq!(address(&both[..2]).unwrap(), "http://127.0.0.1:2");
        assert!(address(&both[..1]).unwrap_err().contains("server.listen"));
    }

    #[tokio::test]
    async fn tells_who_serves_from_who_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let server = ServerConfig {
            listen: vec![format!("unix:{}", socket.display())],
            ..ServerConfig::default()
        };
        let refused = probe(&server).unwrap_err();
        assert!(refused.contains("unix:"), "{refused}");
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming);
        tokio::spawn(serving);
        let ask = || {
            let server = server.clone();
            tokio::task::spawn_blocking(move || probe(&server))
        };
        assert_eq!(ask().await.unwrap(), Ok(()));
        let down = tonic_health::ServingStatus::NotServing;
        reporter.set_service_status("", down).await;
        let refused = ask().await.unwrap().unwrap_err();
        assert!(refused.contains("NOT_SERVING"), "{refused}");
    }
}
