//! Who gets in over TLS and whom a client believes: good and bad certificates of every kind, and
//! certificates that change while connections are open.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::path::Path;
use std::sync::Arc;

use berth_rpc::tls::{CertificateFiles, ClientTls};
use berth_rpc::{Channel, connect_with};
use berth_server::{Listener, Purpose, Rules, ServerTls, TlsConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// What a certificate says.
#[derive(Clone)]
struct Leaf {
    role: &'static str,
    host: &'static str,
    from: i64,
    days: i64,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    fn of(role: &'static str) -> Self {
        Self {
            role,
            host: "localhost",
            from: -1,
            days: 30,
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::new(vec![self.host.to_owned()]).unwrap();
        let uri = format!("spiffe://berth/{}", self.role);
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        params.not_before = OffsetDateTime::now_utc() + Duration::days(self.from);
        params.not_after = params.not_before + Duration::days(self.days);
        params.extended_key_usages = self.usages.clone();
        params
    }

    /// Writes `NAME.crt` and `NAME.key`, signed by `by` or by itself.
    fn write(&self, dir: &Path, name: &str, by: Option<&Authority>) {
        let pair = KeyPair::generate().unwrap();
        let signed = match by {
            Some(by) => self.params().signed_by(&pair, by).unwrap(),
            None => self.params().self_signed(&pair).unwrap(),
        };
        std::fs::write(dir.join(format!("{name}.crt")), signed.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), pair.serialize_pem()).unwrap();
    }
}

/// A server on a port of its own, and certificates in a directory.
struct Bed {
    dir: TempDir,
    ca: Authority,
    tls: Arc<ServerTls>,
    port: u16,
}

fn config(dir: &Path) -> TlsConfig {
    TlsConfig {
        certificate: dir.join("server.crt"),
        key: dir.join("server.key"),
        client_ca: dir.join("ca.crt"),
        allow: vec!["gateway".to_owned(), "client".to_owned()],
    }
}

impl Bed {
    async fn new(server: &Leaf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority();
        std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
        server.write(dir.path(), "server", Some(&ca));
        let tls = ServerTls::open(&config(dir.path())).unwrap();
        let rules = Rules {
            mode: 0o600,
            tls: Some(tls.clone()),
            insecure_tcp: false,
            purpose: Purpose::Grpc,
        };
        let listener = Listener::bind("tls:127.0.0.1:0", &rules).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await.unwrap();
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = accepted.finish().await {
                        sender
                            .send(Ok::<_, std::io::Error>(connection))
                            .await
                            .unwrap();
                    }
                });
            }
        });
        let (_, health) = tonic_health::server::health_reporter();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(health)
                .serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(receiver)),
        );
        Self { dir, ca, tls, port }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn address(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// A channel with the certificate `client` that believes `ca.crt`.
    fn channel(&self) -> Channel {
        let tls = ClientTls::open(CertificateFiles {
            certificate: self.dir().join("client.crt"),
            key: self.dir().join("client.key"),
            authority: self.dir().join("ca.crt"),
        })
        .unwrap();
        connect_with(&self.address(), Some(&tls)).unwrap()
    }

    async fn call(&self) -> Result<(), String> {
        call(self.channel()).await
    }
}

async fn call(channel: Channel) -> Result<(), String> {
    let check = HealthCheckRequest::default();
    match HealthClient::new(channel).check(check).await {
        Ok(_) => Ok(()),
        Err(status) => {
            let mut said = status.to_string();
            let mut source = std::error::Error::source(&status);
            while let Some(error) = source {
                said += &format!(": {error}");
                source = error.source();
            }
            Err(said)
        }
    }
}

#[tokio::test]
async fn allowed_roles_get_in() {
    let bed = Bed::new(&Leaf::of("image")).await;
    for role in ["gateway", "client"] {
        Leaf::of(role).write(bed.dir(), "client", Some(&bed.ca));
        bed.call().await.unwrap();
    }
}

#[tokio::test]
async fn bad_callers_are_refused() {
    let bed = Bed::new(&Leaf::of("image")).await;
    let other = authority();
    let gateway = Leaf::of("gateway");
    let cases: [(&str, Leaf, Option<&Authority>); 7] = [
        ("self-signed", gateway.clone(), None),
        ("of another authority", gateway.clone(), Some(&other)),
        (
            "expired",
            Leaf {
                from: -10,
                days: 9,
                ..gateway.clone()
            },
            Some(&bed.ca),
        ),
        (
            "not yet valid",
            Leaf {
                from: 1,
                ..gateway.clone()
            },
            Some(&bed.ca),
        ),
        ("of another role", Leaf::of("image"), Some(&bed.ca)),
        (
            "of a role with a longer name",
            Leaf::of("gateway2"),
            Some(&bed.ca),
        ),
        (
            "for servers only",
            Leaf {
                usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
                ..gateway.clone()
            },
            Some(&bed.ca),
        ),
    ];
    for (what, leaf, by) in cases {
        leaf.write(bed.dir(), "client", by);
        let error = bed.call().await.expect_err(what);
        println!("{what}: {error}");
    }
    // The server was not what was wrong.
    gateway.write(bed.dir(), "client", Some(&bed.ca));
    bed.call().await.unwrap();
}

#[tokio::test]
async fn callers_that_show_nothing_are_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bed = Bed::new(&Leaf::of("image")).await;
    let plain = connect_with(&format!("http://localhost:{}", bed.port), None).unwrap();
    call(plain).await.expect_err("plain text");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(bed.ca.der().clone()).unwrap();
    let handshake = async |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let client = rustls::ClientConfig::builder_with_provider(berth_rpc::tls::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", bed.port)).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let name = "localhost".try_into().unwrap();
        let mut stream = connector.connect(name, stream).await?;
        // In TLS 1.3 a client learns only by reading that it was not liked.
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await?;
        let mut one = [0_u8; 1];
        stream.read_exact(&mut one).await
    };
    let error = handshake(&[&rustls::version::TLS13]).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    let error = handshake(&[&rustls::version::TLS12]).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn bad_servers_are_not_believed() {
    let other = authority();
    let image = Leaf::of("image");
    let cases = [
        (
            "NotValidForName",
            Leaf {
                host: "elsewhere.example",
                ..image.clone()
            },
        ),
        (
            "expired",
            Leaf {
                from: -10,
                days: 9,
                ..image.clone()
            },
        ),
        (
            "purpose",
            Leaf {
                usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
                ..image.clone()
            },
        ),
    ];
    for (why, leaf) in cases {
        let bed = Bed::new(&leaf).await;
        Leaf::of("gateway").write(bed.dir(), "client", Some(&bed.ca));
        let error = bed.call().await.unwrap_err();
        println!("{why}: {error}");
        let wanted = why.to_lowercase();
        let said = error.to_lowercase();
        assert!(
            said.contains(&wanted)
                || (why == "NotValidForName" && said.contains("not valid for name")),
            "{why}: {error}"
        );
    }
    let bed = Bed::new(&image).await;
    Leaf::of("gateway").write(bed.dir(), "client", Some(&bed.ca));
    std::fs::write(bed.dir().join("ca.crt"), other.pem()).unwrap();
    let error = bed.call().await.unwrap_err();
    // Both authorities have the same name, so it is the signature that does not fit.
    assert!(
        error.contains("invalid peer certificate: BadSignature"),
        "{error}"
    );
}

#[tokio::test]
async fn a_new_certificate_is_taken_and_old_connections_live_on() {
    let bed = Bed::new(&Leaf::of("image")).await;
    Leaf::of("gateway").write(bed.dir(), "client", Some(&bed.ca));
    let old = bed.channel();
    call(old.clone()).await.unwrap();

    let next = authority();
    std::fs::write(bed.dir().join("ca.crt"), next.pem()).unwrap();
    Leaf::of("image").write(bed.dir(), "server", Some(&next));
    assert!(bed.tls.refresh());
    assert!(!bed.tls.refresh(), "nothing changed since");

    call(old).await.unwrap();
    // A client of the old authority, and a certificate of it, are not taken any more.
    bed.call().await.unwrap_err();
    Leaf::of("gateway").write(bed.dir(), "client", Some(&next));
    bed.call().await.unwrap();
}

#[tokio::test]
async fn a_client_takes_its_new_certificate_at_the_next_connection() {
    let bed = Bed::new(&Leaf::of("image")).await;
    Leaf::of("nobody").write(bed.dir(), "client", Some(&bed.ca));
    let channel = bed.channel();
    call(channel.clone()).await.unwrap_err();
    Leaf::of("gateway").write(bed.dir(), "client", Some(&bed.ca));
    call(channel).await.unwrap();
}

/// What it is, and what makes it.
type Breakage<'a> = (&'static str, Box<dyn Fn() + 'a>);

#[tokio::test]
async fn broken_new_files_leave_the_old_in_use() {
    let bed = Bed::new(&Leaf::of("image")).await;
    Leaf::of("gateway").write(bed.dir(), "client", Some(&bed.ca));
    let good = ["server.crt", "server.key", "ca.crt"]
        .map(|file| (file, std::fs::read(bed.dir().join(file)).unwrap()));
    let restore = || {
        for (file, bytes) in &good {
            std::fs::write(bed.dir().join(file), bytes).unwrap();
        }
    };
    let before = bed.tls.validity();
    let expired = Leaf {
        from: -10,
        days: 9,
        ..Leaf::of("image")
    };
    let breakages: [Breakage<'_>; 6] = [
        (
            "garbage",
            Box::new(|| std::fs::write(bed.dir().join("server.crt"), "garbage").unwrap()),
        ),
        (
            "an empty authority",
            Box::new(|| std::fs::write(bed.dir().join("ca.crt"), "").unwrap()),
        ),
        (
            "no key",
            Box::new(|| std::fs::remove_file(bed.dir().join("server.key")).unwrap()),
        ),
        (
            "another's key",
            Box::new(|| {
                let key = KeyPair::generate().unwrap().serialize_pem();
                std::fs::write(bed.dir().join("server.key"), key).unwrap();
            }),
        ),
        (
            "an expired one",
            Box::new(|| expired.write(bed.dir(), "server", Some(&bed.ca))),
        ),
        (
            "half a certificate",
            Box::new(|| {
                let whole = &good[0].1;
                std::fs::write(bed.dir().join("server.crt"), &whole[..whole.len() / 2]).unwrap();
            }),
        ),
    ];
    for (what, break_it) in &breakages {
        break_it();
        assert!(!bed.tls.refresh(), "{what} was taken");
        assert_eq!(bed.tls.validity(), before, "{what}");
        restore();
        bed.call().await.unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    restore();
    assert!(bed.tls.refresh(), "good files are taken again");
}

#[tokio::test]
async fn who_is_allowed_can_change() {
    let bed = Bed::new(&Leaf::of("image")).await;
    Leaf::of("backup").write(bed.dir(), "client", Some(&bed.ca));
    bed.call().await.unwrap_err();
    let mut config = config(bed.dir());
    config.allow = vec!["backup".to_owned()];
    bed.tls.allow(&config);
    bed.call().await.unwrap();
    Leaf::of("gateway").write(bed.dir(), "client", Some(&bed.ca));
    bed.call().await.unwrap_err();
    config.allow = vec!["dns:localhost".to_owned()];
    bed.tls.allow(&config);
    bed.call().await.unwrap();
}

#[tokio::test]
async fn plain_tcp_is_for_loopback_unless_the_key_says_so() {
    let rules = |insecure_tcp, purpose| Rules {
        mode: 0o600,
        tls: None,
        insecure_tcp,
        purpose,
    };
    let bind = async |address, insecure, purpose| {
        Listener::bind(address, &rules(insecure, purpose))
            .await
            .map(drop)
    };
    bind("tcp:127.0.0.1:0", false, Purpose::Grpc).await.unwrap();
    let error = bind("tcp:0.0.0.0:0", false, Purpose::Grpc)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("server.insecure_tcp"), "{error}");
    bind("tcp:0.0.0.0:0", true, Purpose::Grpc).await.unwrap();
    bind("tcp:0.0.0.0:0", false, Purpose::Metrics)
        .await
        .unwrap();
    let error = bind("tls:127.0.0.1:0", true, Purpose::Grpc)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("[server.tls]"), "{error}");
}
