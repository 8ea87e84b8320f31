//! TLS at a listener: who may connect, and with which certificate the service answers.

use std::sync::{Arc, PoisonError, RwLock};

use berth_rpc::tls::{self, CertificateFiles, Material, Reloading, TlsError, Validity};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::config::TlsConfig;

/// The service's certificate and the peers it takes calls from.
#[derive(Debug)]
pub struct ServerTls {
    sides: Reloading<Sides>,
    allowed: Allowed,
}

/// One certificate, two protocols.
#[derive(Debug)]
struct Sides {
    grpc: Arc<rustls::ServerConfig>,
    metrics: Arc<rustls::ServerConfig>,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Calls: from allowed peers.
    Grpc,
    /// Reading metrics: from whoever has a certificate of the authority.
    Metrics,
}

type Allowed = Arc<RwLock<Vec<String>>>;

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn open(config: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let files = CertificateFiles {
            certificate: config.certificate.clone(),
            key: config.key.clone(),
            authority: config.client_ca.clone(),
        };
        let allowed: Allowed = Arc::new(RwLock::new(identities(config)));
        let for_build = allowed.clone();
        let build = move |material: Material| {
            Ok(Sides {
                grpc: side(&material, Some(for_build.clone()), b"h2")?,
                metrics: side(&material, None, b"http/1.1")?,
            })
        };
        Ok(Arc::new(Self {
            sides: Reloading::open("server", files, build)?,
            allowed,
        }))
    }

    /// Who may call from the next connection on.
    pub fn allow(&self, config: &TlsConfig) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = identities(config);
    }

    /// For one new connection.
    pub fn acceptor(&self, purpose: Purpose) -> tokio_rustls::TlsAcceptor {
        let sides = self.sides.get();
        tokio_rustls::TlsAcceptor::from(match purpose {
            Purpose::Grpc => sides.grpc.clone(),
            Purpose::Metrics => sides.metrics.clone(),
        })
    }

    /// Looks whether the files changed.
    pub fn refresh(&self) -> bool {
        self.sides.refresh()
    }

    /// When the certificate in force is valid.
    pub fn validity(&self) -> Validity {
        self.sides.validity()
    }
}

/// `allow`, spelt as certificates are read. What can't be spelt so was refused with the
/// configuration.
fn identities(config: &TlsConfig) -> Vec<String> {
    let allow = config.allow.iter();
    allow.filter_map(|a| tls::identity(a).ok()).collect()
}

fn side(
    material: &Material,
    allowed: Option<Allowed>,
    protocol: &[u8],
) -> Result<Arc<rustls::ServerConfig>, Error> {
    let provider = tls::provider();
    let chain =
        WebPkiClientVerifier::builder_with_provider(material.roots.clone(), provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(tls::PROTOCOLS)?
        .with_client_cert_verifier(Arc::new(PeerVerifier { chain, allowed }))
        .with_single_cert(material.chain.clone(), material.key.clone_key())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    // A resumed session would not look at certificates again.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A certificate of the authority, and one of an allowed peer.
#[derive(Debug)]
struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    allowed: Option<Allowed>,
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let Some(allowed) = &self.allowed else {
            return Ok(verified);
        };
        let peer = tls::identities(end_entity);
        let allowed = allowed.read().unwrap_or_else(PoisonError::into_inner);
        if peer.iter().any(|identity| allowed.contains(identity)) {
            return Ok(verified);
        }
        tracing::warn!(
            ?peer,
            allowed = ?*allowed,
            "a peer with a good certificate was refused: server.tls.allow does not name it"
        );
        Err(Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        ))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
