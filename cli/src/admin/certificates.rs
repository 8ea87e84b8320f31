//! `berth admin certificates`: an authority of one's own, and a certificate for each role.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_cert::der::{DecodePem, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Roles that serve; the gateway calls as well.
const SERVICES: [&str; 5] = ["gateway", "image", "storage", "network", "instance"];
/// The role of a caller that is no service: a person, a program in another language.
const CLIENT: &str = "client";
/// What roles are as URIs in certificates.
const ROLE_URI: &str = "spiffe://berth/";
/// How long the authority lasts.
const AUTHORITY_DAYS: i64 = 3650;
/// Clocks differ.
const BACKDATED: Duration = Duration::minutes(5);

/// Verbs of `berth admin certificates`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an authority, and a key and certificate for each service and one client.
    ///
    /// Where the directory has an authority already, that one signs. Files that are there are
    /// never overwritten.
    Create(Create),
    /// Sign new keys for the certificates in the directory, with the same names.
    ///
    /// Running services take them up by themselves once they are at the paths of their
    /// configuration.
    Renew(Renew),
}

/// Flags of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Directory to write into: `ca.crt`, `ca.key`, and `ROLE.crt` and `ROLE.key` of each role.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Roles to make certificates for.
    #[arg(
        long,
        value_name = "ROLE",
        value_delimiter = ',',
        default_values_t = SERVICES.iter().chain([&CLIENT]).map(|s| (*s).to_owned())
    )]
    services: Vec<String>,
    /// Name or address under which services are reached, of all of them or as ROLE=HOST of one;
    /// may be repeated [default: localhost, 127.0.0.1, ::1].
    #[arg(long, value_name = "[ROLE=]HOST")]
    host: Vec<String>,
    /// Days that the certificates are valid.
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=825))]
    days: u16,
}

/// Flags of `renew`.
#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// Directory that `create` wrote.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Roles to renew [default: all that are there].
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    services: Vec<String>,
    /// Days that the certificates are valid.
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=825))]
    days: u16,
}

/// Runs one verb.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(flags) => create(&flags),
        Command::Renew(flags) => renew(&flags),
    }
}

fn create(flags: &Create) -> anyhow::Result<()> {
    for role in &flags.services {
        check_role(role)?;
    }
    let hosts = hosts(&flags.host, &flags.services)?;
    let dir = &flags.out;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .with_context(|| format!("making {}", dir.display()))?;
    for role in &flags.services {
        for file in [certificate(dir, role), key(dir, role)] {
            ensure!(
                !file.exists(),
                "{} is there already; `renew` replaces certificates",
                file.display()
            );
        }
    }
    let authority = if dir.join("ca.crt").exists() || dir.join("ca.key").exists() {
        Authority::read(dir)?
    } else {
        Authority::create(dir)?
    };
    for role in &flags.services {
        let names = hosts
            .iter()
            .filter(|(of, _)| of.as_ref().is_none_or(|of| of == role))
            .map(|(_, name)| name.clone());
        issue(dir, &authority, role, names.collect(), flags.days)?;
    }
    Ok(())
}

fn renew(flags: &Renew) -> anyhow::Result<()> {
    let dir = &flags.out;
    let authority = Authority::read(dir)?;
    let roles = if flags.services.is_empty() {
        roles_in(dir)?
    } else {
        flags.services.clone()
    };
    ensure!(!roles.is_empty(), "{} has no certificates", dir.display());
    for role in &roles {
        check_role(role)?;
        let names = names_of(&certificate(dir, role))?;
        issue(dir, &authority, role, names, flags.days)?;
    }
    Ok(())
}

fn check_role(role: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    ensure!(
        !role.is_empty() && role != "ca" && role.chars().all(plain),
        "--services: {role:?} is no role; roles are {}, {CLIENT} and others of [a-z0-9_-]",
        SERVICES.join(", ")
    );
    Ok(())
}

/// `--host` taken apart: for which role, and the name.
fn hosts(given: &[String], roles: &[String]) -> anyhow::Result<Vec<(Option<String>, SanType)>> {
    if given.is_empty() {
        let local = ["localhost", "127.0.0.1", "::1"].map(san);
        return local.into_iter().map(|name| Ok((None, name?))).collect();
    }
    given
        .iter()
        .map(|host| match host.split_once('=') {
            Some((role, _)) if !roles.iter().any(|r| r == role) => {
                bail!("--host {host}: {role:?} is not among --services")
            }
            Some((role, name)) => Ok((Some(role.to_owned()), san(name)?)),
            None => Ok((None, san(host)?)),
        })
        .collect()
}

fn san(name: &str) -> anyhow::Result<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '*');
    ensure!(
        !name.is_empty() && name.chars().all(plain),
        "--host: {name:?} is neither a name nor an address"
    );
    Ok(SanType::DnsName(name.try_into()?))
}

fn certificate(dir: &Path, role: &str) -> PathBuf {
    dir.join(format!("{role}.crt"))
}

fn key(dir: &Path, role: &str) -> PathBuf {
    dir.join(format!("{role}.key"))
}

/// Who signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn create(dir: &Path) -> anyhow::Result<Self> {
        let pair = KeyPair::generate()?;
        let params = Self::params();
        let certificate = params.self_signed(&pair)?;
        write(&dir.join("ca.key"), 0o600, &pair.serialize_pem())?;
        write(&dir.join("ca.crt"), 0o644, &certificate.pem())?;
        say(&dir.join("ca.crt"), AUTHORITY_DAYS);
        Ok(Self {
            issuer: Issuer::new(params, pair),
        })
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Berth certificate authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::now_utc() - BACKDATED;
        params.not_after = OffsetDateTime::now_utc() + Duration::days(AUTHORITY_DAYS);
        params
    }

    /// One that [`Self::create`] made: what signs says no more of itself than its name and key.
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let text = |file: &str| {
            let path = dir.join(file);
            fs::read_to_string(&path)
                .with_context(|| format!("{} (`create` makes an authority)", path.display()))
        };
        let pair = KeyPair::from_pem(&text("ca.key")?).context("ca.key")?;
        let found = parse(&dir.join("ca.crt"), &text("ca.crt")?)?.tbs_certificate;
        ensure!(
            found.subject_public_key_info.to_der()?
                == rcgen::PublicKeyData::subject_public_key_info(&pair),
            "ca.key is not the key of ca.crt"
        );
        let left = found.validity.not_after.to_system_time();
        ensure!(left > std::time::SystemTime::now(), "ca.crt has expired");
        let params = Self::params();
        let ours = params.self_signed(&pair)?.pem();
        ensure!(
            parse(Path::new("ca.crt"), &ours)?.tbs_certificate.subject == found.subject,
            "ca.crt was not made by this command: sign with the tools that made it"
        );
        Ok(Self {
            issuer: Issuer::new(params, pair),
        })
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// A new key and certificate. The key is written first: a service that looks in between finds a
/// pair that doesn't fit, and goes on with the old one until it does.
fn issue(
    dir: &Path,
    authority: &Authority,
    role: &str,
    hosts: Vec<SanType>,
    days: u16,
) -> anyhow::Result<()> {
    let serves = role != CLIENT;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("berth {role}"));
    params.subject_alt_names = vec![SanType::URI(format!("{ROLE_URI}{role}").try_into()?)];
    params.extended_key_usages = Vec::new();
    if serves {
        params.subject_alt_names.extend(hosts);
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    // Of the services the gateway alone calls; roles of one's own are callers that may serve.
    if !SERVICES.contains(&role) || role == "gateway" {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::now_utc() - BACKDATED;
    params.not_after = OffsetDateTime::now_utc() + Duration::days(days.into());
    let pair = KeyPair::generate()?;
    let signed = params.signed_by(&pair, &authority.issuer)?;
    write(&key(dir, role), 0o600, &pair.serialize_pem())?;
    write(&certificate(dir, role), 0o644, &signed.pem())?;
    say(&certificate(dir, role), days.into());
    Ok(())
}

fn say(path: &Path, days: i64) {
    println!("{} is valid for {days} days", path.display());
}

/// Whole or not at all; owner and mode of a file that is replaced stay.
fn write(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let context = || format!("writing {}", path.display());
    let new = path.with_extension(format!(
        "{}.new",
        path.extension().unwrap_or_default().to_string_lossy()
    ));
    if new.exists() {
        fs::remove_file(&new).with_context(context)?;
    }
    let old = fs::metadata(path).ok();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .with_context(context)?;
    if let Some(old) = old {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())).with_context(context)?;
        file.set_permissions(old.permissions())
            .with_context(context)?;
    }
    file.write_all(text.as_bytes()).with_context(context)?;
    file.sync_all().with_context(context)?;
    fs::rename(&new, path).with_context(context)
}

fn roles_in(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut roles = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|s| s.to_str());
        if let Some(role) = stem
            && role != "ca"
            && path.extension().is_some_and(|e| e == "crt")
        {
            roles.push(role.to_owned());
        }
    }
    roles.sort();
    Ok(roles)
}

/// The names and addresses in a certificate, without its role.
fn names_of(path: &Path) -> anyhow::Result<Vec<SanType>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let parsed = parse(path, &text)?.tbs_certificate;
    let Some((_, names)) = parsed.get::<SubjectAltName>()? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for name in names.0 {
        match name {
            GeneralName::DnsName(name) => found.push(san(name.as_str())?),
            GeneralName::IpAddress(bytes) => {
                found.push(SanType::IpAddress(address(bytes.as_bytes())?));
            }
            GeneralName::UniformResourceIdentifier(_) => {}
            other => bail!("{}: the name {other:?} can't be kept", path.display()),
        }
    }
    Ok(found)
}

fn parse(path: &Path, text: &str) -> anyhow::Result<x509_cert::Certificate> {
    x509_cert::Certificate::from_pem(text)
        .with_context(|| format!("{} is no certificate", path.display()))
}

fn address(bytes: &[u8]) -> anyhow::Result<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(four));
    }
    let sixteen = <[u8; 16]>::try_from(bytes).context("an address of neither 4 nor 16 bytes")?;
    Ok(IpAddr::from(sixteen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn flags(dir: &Path, services: &[&str], host: &[&str]) -> Create {
        Create {
            out: dir.to_owned(),
            services: services.iter().map(|s| (*s).to_owned()).collect(),
            host: host.iter().map(|s| (*s).to_owned()).collect(),
            days: 30,
        }
    }

    #[test]
    fn keys_are_secret_and_renewal_keeps_names() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let roles = ["image", "gateway", "client"];
        create(&flags(dir, &roles, &["image=img.example", "10.0.0.3"])).unwrap();
        for key in ["ca.key", "image.key", "gateway.key", "client.key"] {
            assert_eq!(
                fs::metadata(dir.join(key)).unwrap().mode() & 0o777,
                0o600,
                "{key}"
            );
        }
        let image = names_of(&certificate(dir, "image")).unwrap();
        assert_eq!(image.len(), 2, "{image:?}");
        assert_eq!(names_of(&certificate(dir, "gateway")).unwrap().len(), 1);
        assert_eq!(names_of(&certificate(dir, "client")).unwrap().len(), 0);

        let before = fs::read(key(dir, "image")).unwrap();
        let authority = fs::read(dir.join("ca.crt")).unwrap();
        renew(&Renew {
            out: dir.to_owned(),
            services: Vec::new(),
            days: 7,
        })
        .unwrap();
        assert_ne!(fs::read(key(dir, "image")).unwrap(), before);
        assert_eq!(fs::read(dir.join("ca.crt")).unwrap(), authority);
        assert_eq!(names_of(&certificate(dir, "image")).unwrap(), image);
    }

    #[test]
    fn nothing_is_overwritten_and_a_later_role_has_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        create(&flags(dir, &["image"], &[])).unwrap();
        let error = create(&flags(dir, &["network", "image"], &[])).unwrap_err();
        assert!(error.to_string().contains("image.crt"), "{error}");
        assert!(!certificate(dir, "network").exists());
        let authority = fs::read(dir.join("ca.crt")).unwrap();
        create(&flags(dir, &["network"], &[])).unwrap();
        assert_eq!(fs::read(dir.join("ca.crt")).unwrap(), authority);
    }

    #[test]
    fn wrong_flags_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (services, host, says) in [
            (&["Image"][..], &[][..], "Image"),
            (&["ca"], &[], "ca"),
            (&["image"], &["a b"], "a b"),
            (&["image"], &["storage=x"], "storage"),
        ] {
            let error = create(&flags(dir.path(), services, host)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        let other = tempfile::tempdir().unwrap();
        create(&flags(dir.path(), &["image"], &[])).unwrap();
        create(&flags(other.path(), &["image"], &[])).unwrap();
        fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        let error = create(&flags(dir.path(), &["network"], &[])).unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}
