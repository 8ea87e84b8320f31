//! Looks after the certificates a service uses: reads them again when they change, tells when
//! they end.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use berth_rpc::tls::{ClientTls, Validity};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use crate::config::TlsConfig;
use crate::tls::ServerTls;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(10);
/// Looks between two warnings of the same certificate: six hours.
const LOOKS_A_WARNING: u32 = 6 * 360;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    certificate: &'static str,
}

static EXPIRY: LazyLock<Family<Labels, Gauge>> = LazyLock::new(|| {
    let expiry = Family::default();
    crate::metrics::register(|registry| {
        registry.register(
            "berth_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, in seconds since 1970",
            Family::clone(&expiry),
        );
    });
    expiry
});

/// The certificates of one process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates {
    server: Option<Arc<ServerTls>>,
    client: Option<Arc<ClientTls>>,
}

impl Certificates {
    pub(crate) fn new(server: Option<Arc<ServerTls>>, client: Option<Arc<ClientTls>>) -> Self {
        Self { server, client }
    }

    /// Takes what the files hold now, and says in the metrics until when that is good.
    pub(crate) fn refresh(&self) {
        for (certificate, validity) in self.look() {
            EXPIRY
                .get_or_create(&Labels { certificate })
                .set(validity.not_after);
        }
    }

    /// Who may call from the next connection on.
    pub(crate) fn allow(&self, config: &TlsConfig) {
        if let Some(tls) = &self.server {
            tls.allow(config);
        }
    }

    fn look(&self) -> Vec<(&'static str, Validity)> {
        let server = self.server.iter().map(|tls| {
            tls.refresh();
            ("server", tls.validity())
        });
        let client = self.client.iter().map(|tls| {
            tls.refresh();
            ("client", tls.validity())
        });
        server.chain(client).collect()
    }

    fn warn(&self) {
        for (certificate, validity) in self.look() {
            let days = validity.days_left();
            if validity.is_over() {
                tracing::error!("the {certificate} certificate has expired: peers refuse it");
            } else if validity.ends_soon() {
                tracing::warn!("the {certificate} certificate ends in {days} days: renew it");
            }
        }
    }

    /// Until the service ends.
    pub(crate) async fn watch(self, token: CancellationToken) {
        if self.server.is_none() && self.client.is_none() {
            return;
        }
        let mut looks = 0_u32;
        loop {
            // The files may be on a slow disk.
            let this = self.clone();
            let warn = looks.is_multiple_of(LOOKS_A_WARNING);
            let looked = tokio::task::spawn_blocking(move || {
                this.refresh();
                if warn {
                    this.warn();
                }
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "looking after certificates");
            }
            looks = looks.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = token.cancelled() => return,
            }
        }
    }
}
