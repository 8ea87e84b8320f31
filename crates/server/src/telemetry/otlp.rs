//! Where telemetry goes, by OpenTelemetry's standard environment variables.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::ConfigError;

/// Debian's bundle of authorities, where nothing else is named.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    fn upper(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }
}

/// Where one signal goes.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub(super) endpoint: String,
    pub(super) channel: Channel,
    pub(super) timeout: Duration,
    /// For the exporter that is ours; the SDK's read the variable themselves.
    pub(super) headers: MetadataMap,
    pub(super) gzip: bool,
}

/// The variables that begin with `OTEL_`; an empty one counts as unset, as the specification says.
#[derive(Debug, Clone, Default)]
pub(super) struct Variables(BTreeMap<String, String>);

fn bad(name: &str, why: impl std::fmt::Display) -> ConfigError {
    ConfigError::Value(format!("{name}: {why}"))
}

impl Variables {
    pub(super) fn of_process() -> Self {
        Self::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(
            pairs
                .into_iter()
                .filter(|(name, value)| name.starts_with("OTEL_") && !value.trim().is_empty())
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.trim())
    }

    /// A signal's own variable, or the one for all three: `OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT`.
    fn exporter(&self, signal: Signal, what: &str) -> Option<(String, &str)> {
        [
            format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.upper()),
            format!("OTEL_EXPORTER_OTLP_{what}"),
        ]
        .into_iter()
        .find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    pub(super) fn disabled(&self) -> bool {
        self.get("OTEL_SDK_DISABLED")
            .is_some_and(|v| v.eq_ignore_ascii_case("true"))
    }

    /// A number of milliseconds.
    pub(super) fn millis(&self, name: &str, default: Duration) -> Result<Duration, ConfigError> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => match text.parse::<u64>() {
                Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
                _ => Err(bad(
                    name,
                    format!("{text:?} is no number of milliseconds above 0"),
                )),
            },
        }
    }

    /// A number above zero.
    pub(super) fn count(&self, name: &str, default: usize) -> Result<usize, ConfigError> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => match text.parse::<usize>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(bad(name, format!("{text:?} is no number above 0"))),
            },
        }
    }

    /// The SDK reads these itself, but takes what it does not understand for "all of them".
    pub(super) fn check_sampler(&self) -> Result<(), ConfigError> {
        let name = "OTEL_TRACES_SAMPLER";
        match self.get(name) {
            None
            | Some(
                "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off",
            ) => Ok(()),
            Some("traceidratio" | "parentbased_traceidratio") => {
                let name = "OTEL_TRACES_SAMPLER_ARG";
                match self.get(name).map(str::parse::<f64>) {
                    Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => Ok(()),
                    _ => Err(bad(name, "expected a number from 0 to 1")),
                }
            }
            Some(other) => Err(bad(
                name,
                format!(
                    "{other:?} is none of always_on, always_off, traceidratio and the same after \
                     parentbased_"
                ),
            )),
        }
    }

    /// Whether metrics point at traces.
    pub(super) fn exemplars(&self) -> Result<bool, ConfigError> {
        match self.get("OTEL_METRICS_EXEMPLAR_FILTER") {
            None | Some("trace_based") => Ok(true),
            Some("always_off") => Ok(false),
            Some(other) => Err(bad(
                "OTEL_METRICS_EXEMPLAR_FILTER",
                format!("{other:?} is neither trace_based nor always_off"),
            )),
        }
    }

    /// Where `signal` goes, if anywhere: a service that is told of no collector looks for none.
    pub(super) fn destination(&self, signal: Signal) -> Result<Option<Destination>, ConfigError> {
        if self.disabled() {
            return Ok(None);
        }
        let exporter = format!("OTEL_{}_EXPORTER", signal.upper());
        let endpoint = match (self.get(&exporter), self.exporter(signal, "ENDPOINT")) {
            (Some("none"), _) | (None, None) => return Ok(None),
            (Some("otlp") | None, Some((name, endpoint))) => (name, endpoint.to_owned()),
            (Some("otlp"), None) => (exporter, "http://localhost:4317".to_owned()),
            (Some(other), _) => {
                return Err(bad(
                    &exporter,
                    format!("{other:?} is neither otlp nor none"),
                ));
            }
        };
        if let Some((name, protocol)) = self.exporter(signal, "PROTOCOL")
            && protocol != "grpc"
        {
            return Err(bad(
                &name,
                format!("{protocol:?} is not supported; grpc is"),
            ));
        }
        if signal == Signal::Metrics
            && let Some(preference) = self.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE")
            && !preference.eq_ignore_ascii_case("cumulative")
        {
            return Err(bad(
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
                format!("{preference:?} is not supported; cumulative is"),
            ));
        }
        let gzip = match self.exporter(signal, "COMPRESSION") {
            None => false,
            Some((_, "none")) => false,
            Some((_, "gzip")) => true,
            Some((name, other)) => {
                return Err(bad(&name, format!("{other:?} is neither gzip nor none")));
            }
        };
        let timeout = match self.exporter(signal, "TIMEOUT") {
            None => Duration::from_secs(10),
            Some((name, _)) => self.millis(&name, Duration::from_secs(10))?,
        };
        let headers = match self.exporter(signal, "HEADERS") {
            None => MetadataMap::new(),
            Some((name, text)) => headers(text).map_err(|why| bad(&name, why))?,
        };
        let (name, address) = endpoint;
        let address = self.with_scheme(signal, address);
        let mut endpoint = Endpoint::from_shared(address.clone())
            .map_err(|e| bad(&name, format!("{address:?}: {e}")))?
            .connect_timeout(timeout)
            .timeout(timeout);
        if endpoint.uri().host().is_none_or(str::is_empty) && !address.starts_with("unix:") {
            return Err(bad(&name, format!("{address:?} names no host")));
        }
        match endpoint.uri().scheme_str() {
            _ if address.starts_with("unix:") => {}
            Some("http") => {}
            Some("https") => {
                let tls = self.tls(signal)?;
                endpoint = endpoint
                    .tls_config(tls)
                    .map_err(|e| bad(&name, format!("{address:?}: {e}")))?;
            }
            _ => {
                return Err(bad(
                    &name,
                    format!("{address:?}: expected http://, https:// or unix:"),
                ));
            }
        }
        Ok(Some(Destination {
            endpoint: address,
            channel: endpoint.connect_lazy(),
            timeout,
            headers,
            gzip,
        }))
    }

    /// `host:port` alone is https, unless `INSECURE` says otherwise.
    fn with_scheme(&self, signal: Signal, address: String) -> String {
        if address.contains("://") || address.starts_with("unix:") {
            return address;
        }
        let insecure = self
            .exporter(signal, "INSECURE")
            .is_some_and(|(_, v)| v.eq_ignore_ascii_case("true"));
        format!("{}://{address}", if insecure { "http" } else { "https" })
    }

    fn tls(&self, signal: Signal) -> Result<ClientTlsConfig, ConfigError> {
        let read = |name: &str, path: &str| {
            std::fs::read(path).map_err(|e| bad(name, format!("{path}: {e}")))
        };
        let authorities = match self.exporter(signal, "CERTIFICATE") {
            Some((name, path)) => read(&name, path)?,
            None => read(
                "OTEL_EXPORTER_OTLP_CERTIFICATE is not set, and",
                SYSTEM_AUTHORITIES,
            )?,
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities));
        match (
            self.exporter(signal, "CLIENT_CERTIFICATE"),
            self.exporter(signal, "CLIENT_KEY"),
        ) {
            (None, None) => {}
            (Some((cert_name, cert)), Some((key_name, key))) => {
                tls = tls.identity(Identity::from_pem(
                    read(&cert_name, cert)?,
                    read(&key_name, key)?,
                ));
            }
            (Some((name, _)), None) => return Err(bad(&name, "a client key is missing")),
            (None, Some((name, _))) => return Err(bad(&name, "a client certificate is missing")),
        }
        Ok(tls)
    }
}

/// `key=value,key=value`, values percent-encoded.
fn headers(text: &str) -> Result<MetadataMap, String> {
    let mut map = MetadataMap::new();
    for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        // Values hold secrets: the message names the key alone.
        let (key, value) = pair
            .split_once('=')
            .ok_or("a header has no value: expected name=value,name=value")?;
        let key = key.trim().to_ascii_lowercase();
        let name = MetadataKey::<Ascii>::from_bytes(key.as_bytes())
            .map_err(|_| format!("{key:?} is no name of a header"))?;
        let value: MetadataValue<Ascii> = decode(value.trim())
            .and_then(|v| v.parse().ok())
            .ok_or_else(|| format!("the value of {key:?} is malformed"))?;
        map.insert(name, value);
    }
    Ok(map)
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digits = text.get(at + 1..at + 3)?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables::from_pairs(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        )
    }

    fn goes(pairs: &[(&str, &str)], signal: Signal) -> Option<String> {
        variables(pairs)
            .destination(signal)
            .unwrap_or_else(|e| panic!("{pairs:?}: {e}"))
            .map(|d| d.endpoint)
    }

    #[tokio::test]
    async fn each_signal_goes_where_its_variables_say() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        let logs = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4317");
        assert_eq!(goes(&[], Signal::Traces), None);
        assert_eq!(
            goes(&[all, logs], Signal::Traces).as_deref(),
            Some("http://collector:4317")
        );
        assert_eq!(
            goes(&[all, logs], Signal::Logs).as_deref(),
            Some("http://logs:4317")
        );
        assert_eq!(goes(&[logs], Signal::Metrics), None);
        assert_eq!(
            goes(&[all, ("OTEL_METRICS_EXPORTER", "none")], Signal::Metrics),
            None
        );
        assert_eq!(
            goes(&[("OTEL_TRACES_EXPORTER", "otlp")], Signal::Traces).as_deref(),
            Some("http://localhost:4317")
        );
        assert_eq!(
            goes(&[all, ("OTEL_SDK_DISABLED", "TRUE")], Signal::Traces),
            None
        );
        assert_eq!(
            goes(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], Signal::Traces),
            None
        );
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
        let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
        assert_eq!(
            goes(&[bare, insecure], Signal::Traces).as_deref(),
            Some("http://collector:4317")
        );
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        for (pairs, wants) in [
            (
                vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x")],
                "OTEL_EXPORTER_OTLP_ENDPOINT",
            ),
            (
                vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://")],
                "OTEL_EXPORTER_OTLP_ENDPOINT",
            ),
            (
                vec![all, ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "soon")],
                "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
            ),
            (
                vec![all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ),
            (
                vec![all, ("OTEL_METRICS_EXPORTER", "prometheus")],
                "OTEL_METRICS_EXPORTER",
            ),
            (
                vec![all, ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")],
                "OTEL_EXPORTER_OTLP_COMPRESSION",
            ),
            (
                vec![
                    all,
                    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
                ],
                "TEMPORALITY",
            ),
            (
                vec![all, ("OTEL_EXPORTER_OTLP_HEADERS", "token")],
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
            (
                vec![
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
                    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
                ],
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
            ),
        ] {
            let error = variables(&pairs)
                .destination(Signal::Metrics)
                .unwrap_err()
                .to_string();
            assert!(error.contains(wants), "{pairs:?}: {error}");
        }
    }

    #[test]
    fn a_sampler_that_the_sdk_would_not_understand_is_refused() {
        let check = |sampler: &str, arg: &str| {
            variables(&[
                ("OTEL_TRACES_SAMPLER", sampler),
                ("OTEL_TRACES_SAMPLER_ARG", arg),
            ])
            .check_sampler()
        };
        check("", "").unwrap();
        check("parentbased_always_off", "").unwrap();
        check("traceidratio", "0.25").unwrap();
        for (sampler, arg) in [("xray", ""), ("traceidratio", ""), ("traceidratio", "25")] {
            let error = check(sampler, arg).unwrap_err().to_string();
            assert!(error.starts_with("OTEL_TRACES_SAMPLER"), "{error}");
        }
    }

    #[test]
    fn headers_are_decoded_and_secrets_not_shown() {
        let map = headers("authorization=Basic%20abc%3D, x-tenant = berth").unwrap();
        assert_eq!(map.get("authorization").unwrap(), "Basic abc=");
        assert_eq!(map.get("x-tenant").unwrap(), "berth");
        let error = headers("authorization=secret%zz").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}
