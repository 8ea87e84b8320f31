//! Mutual TLS: certificates that are read again when their files change, and who a peer is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What a role's certificate carries as its URI, with the role at the end.
pub const ROLE_URI: &str = "spiffe://berth/";

/// Three PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// This side's certificate, then those that lead to the authority's.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that the other side's certificate may come from.
    pub authority: PathBuf,
}

/// What is wrong with a certificate's files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file doesn't hold what it should.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The files don't go together.
    #[error("{certificate} and {key}: {source}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities can't be used.
    #[error("{path}: {why}")]
    Authority {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// From when until when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before this.
    pub not_before: i64,
    /// Not after this.
    pub not_after: i64,
}

impl Validity {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        now() > self.not_after
    }

    /// Whether less than a fifth of it is left.
    pub fn ends_soon(&self) -> bool {
        let length = self.not_after.saturating_sub(self.not_before);
        self.not_after.saturating_sub(now()) < length / 5
    }

    /// Whole days that are left; negative when it has ended.
    pub fn days_left(&self) -> i64 {
        self.not_after.saturating_sub(now()).div_euclid(86_400)
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// What the three files hold.
#[derive(Debug)]
pub struct Material {
    /// This side's certificate, then those that lead to the authority's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The authorities.
    pub roots: Arc<RootCertStore>,
    /// When this side's certificate is valid.
    pub validity: Validity,
}

impl Material {
    fn read(files: &CertificateFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate)?;
        let text = text(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|e| TlsError::Content {
            path: files.key.clone(),
            why: format!("no private key in PEM form: {e}"),
        })?;
        let authority = |why: String| TlsError::Authority {
            path: files.authority.clone(),
            why,
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&files.authority)? {
            roots.add(root).map_err(|e| authority(e.to_string()))?;
        }
        let validity = validity(&chain[0]).map_err(|why| TlsError::Content {
            path: files.certificate.clone(),
            why,
        })?;
        Ok(Self {
            chain,
            key,
            roots: Arc::new(roots),
            validity,
        })
    }
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: String| TlsError::Content {
        path: path.to_owned(),
        why,
    };
    let text = text(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e| content(e.to_string()))?;
    if found.is_empty() {
        return Err(content("no certificate in PEM form".to_owned()));
    }
    Ok(found)
}

fn text(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn validity(certificate: &[u8]) -> Result<Validity, String> {
    let parsed =
        Certificate::from_der(certificate).map_err(|e| format!("no X.509 certificate: {e}"))?;
    let seconds = |time: x509_cert::time::Time| {
        i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
    };
    let validity = parsed.tbs_certificate.validity;
    Ok(Validity {
        not_before: seconds(validity.not_before),
        not_after: seconds(validity.not_after),
    })
}

/// The names a certificate bears that can be an identity: its URIs as they are, its DNS names as
/// `dns:NAME`.
pub fn identities(certificate: &[u8]) -> Vec<String> {
    let Ok(parsed) = Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some((_, names))) = parsed.tbs_certificate.get::<SubjectAltName>() else {
        return Vec::new();
    };
    let names = names.0.into_iter();
    names
        .filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
            GeneralName::DnsName(name) => Some(format!("dns:{}", name.as_str().to_lowercase())),
            _ => None,
        })
        .collect()
}

/// A role's name, a whole URI or `dns:NAME`, as [`identities`] spells it.
///
/// # Errors
/// When it is none of these; the sentence says so.
pub fn identity(written: &str) -> Result<String, String> {
    let role = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(name) = written.strip_prefix("dns:") {
        if !name.is_empty() {
            return Ok(format!("dns:{}", name.to_lowercase()));
        }
    } else if written.contains("://") {
        return Ok(written.to_owned());
    } else if !written.is_empty() && written.chars().all(role) {
        return Ok(format!("{ROLE_URI}{written}"));
    }
    Err(format!(
        "{written:?} is no role (`gateway`), URI (`spiffe://berth/gateway`) or `dns:NAME`"
    ))
}

/// The cryptography that both sides use.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Both sides are of this kind, and the older protocol hides client certificates from nobody.
pub const PROTOCOLS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What tells one state of a file from another.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 3];

fn stamp(files: &CertificateFiles) -> Stamp {
    [&files.certificate, &files.key, &files.authority].map(|path| {
        let m = std::fs::metadata(path).ok()?;
        let (seconds, nanos) = (m.mtime(), m.mtime_nsec());
        Some((m.dev(), m.ino(), m.size(), seconds, nanos))
    })
}

type Build<T> = Box<dyn Fn(Material) -> Result<T, rustls::Error> + Send + Sync>;

/// Something made from certificates' files, made again when they change. What cannot be used
/// leaves what is there in force.
pub struct Reloading<T> {
    what: &'static str,
    files: CertificateFiles,
    build: Build<T>,
    current: RwLock<Current<T>>,
}

struct Current<T> {
    value: Arc<T>,
    validity: Validity,
    /// Of the files as they were last tried, whatever came of it.
    tried: Stamp,
}

impl<T> std::fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloading")
            .field("what", &self.what)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl<T> Reloading<T> {
    /// Reads the files. `what` names the certificate in logs.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn open(
        what: &'static str,
        files: CertificateFiles,
        build: impl Fn(Material) -> Result<T, rustls::Error> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let build: Build<T> = Box::new(build);
        let tried = stamp(&files);
        let (value, validity) = make(&files, &build)?;
        if validity.is_over() {
            tracing::error!(
                path = %files.certificate.display(),
                "the {what} certificate has expired: peers will refuse it"
            );
        }
        let value = Arc::new(value);
        Ok(Self {
            what,
            files,
            build,
            current: RwLock::new(Current {
                value,
                validity,
                tried,
            }),
        })
    }

    /// What is in force.
    pub fn get(&self) -> Arc<T> {
        self.read().value.clone()
    }

    /// When the certificate in force is valid.
    pub fn validity(&self) -> Validity {
        self.read().validity
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current<T>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the files changed since the last look, and takes what they hold now. Logs
    /// both outcomes. Gives whether something new is in force.
    pub fn refresh(&self) -> bool {
        let now = stamp(&self.files);
        if now == self.read().tried {
            return false;
        }
        let made = make(&self.files, &self.build).and_then(|(value, validity)| {
            if validity.is_over() {
                return Err(TlsError::Content {
                    path: self.files.certificate.clone(),
                    why: "the certificate has expired".to_owned(),
                });
            }
            Ok((value, validity))
        });
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.tried = now;
        match made {
            Ok((value, validity)) => {
                current.value = Arc::new(value);
                current.validity = validity;
                tracing::info!(
                    days_left = validity.days_left(),
                    "the {} certificate was read again",
                    self.what
                );
                true
            }
            Err(error) => {
                tracing::error!(%error, "the old {} certificate stays in use", self.what);
                false
            }
        }
    }
}

fn make<T>(files: &CertificateFiles, build: &Build<T>) -> Result<(T, Validity), TlsError> {
    let material = Material::read(files)?;
    let validity = material.validity;
    let value = build(material).map_err(|source| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })?;
    Ok((value, validity))
}

/// A caller's certificate and the authority it believes servers by.
#[derive(Debug)]
pub struct ClientTls(Reloading<Arc<rustls::ClientConfig>>);

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn open(files: CertificateFiles) -> Result<Arc<Self>, TlsError> {
        let build = |material: Material| {
            let mut config = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(PROTOCOLS)?
                .with_root_certificates(material.roots)
                .with_client_auth_cert(material.chain, material.key)?;
            config.alpn_protocols = vec![b"h2".to_vec()];
            // A resumed session would not look at certificates again.
            config.resumption = rustls::client::Resumption::disabled();
            Ok(Arc::new(config))
        };
        Ok(Arc::new(Self(Reloading::open("client", files, build)?)))
    }

    /// For a new connection: what the files hold now, if that can be used.
    pub fn config(&self) -> Arc<rustls::ClientConfig> {
        self.0.refresh();
        (*self.0.get()).clone()
    }

    /// Looks whether the files changed.
    pub fn refresh(&self) -> bool {
        self.0.refresh()
    }

    /// When the certificate in force is valid.
    pub fn validity(&self) -> Validity {
        self.0.validity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_short_for_uris() {
        assert_eq!(identity("gateway").unwrap(), "spiffe://berth/gateway");
        assert_eq!(identity("spiffe://a/b").unwrap(), "spiffe://a/b");
        assert_eq!(identity("dns:Gw.Example").unwrap(), "dns:gw.example");
        for wrong in ["", "dns:", "a b", "uri:x"] {
            assert!(identity(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fifth_of_the_time_left_is_soon() {
        let at = |before: i64, after: i64| Validity {
            not_before: now() - before,
            not_after: now() + after,
        };
        assert!(!at(10, 90 * 86_400).ends_soon());
        assert!(at(81 * 86_400, 9 * 86_400).ends_soon());
        assert!(!at(81 * 86_400, 9 * 86_400).is_over());
        assert!(at(10, -1).is_over());
        assert_eq!(at(10, -1).days_left(), -1);
    }
}
