//! TLS: certificate, key and authorities of client certificates, which are read from files and can be read anew while the server
//! runs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, InconsistentKeys, RootCertStore, ServerConfig};

use super::tls_refusal::TlsRefusal;
use crate::fs::{CONFIG_BYTES, read_bounded, readable_by_others};

/// The PEM files of a server that speaks TLS.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, and behind it those that lead to its authority.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authorities of client certificates; none: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// A file cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {}: {reason}", .path.display())]
pub struct TlsError {
    /// The flag that names the file.
    pub flag: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// TLS of a server: what new connections use.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.files).finish()
    }
}

impl Tls {
    /// Reads `files`. Also returns warnings, such as of an expired certificate.
    ///
    /// # Errors
    /// A file cannot be read or used, or the key is not the certificate's.
    pub fn load(files: TlsFiles) -> Result<(Arc<Self>, Vec<String>), TlsError> {
        let (config, warnings) = configure(&files)?;
        let current = RwLock::new(Arc::new(config));
        Ok((Arc::new(Self { files, current }), warnings))
    }

    /// Reads the files anew, for connections that come from now on. Returns warnings.
    ///
    /// # Errors
    /// As [`Tls::load`]; nothing has changed then.
    pub fn reload(&self) -> Result<Vec<String>, TlsError> {
        let (config, warnings) = configure(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(warnings)
    }

    /// Whether clients need a certificate.
    pub fn asks_for_client_certificates(&self) -> bool {
        self.files.client_ca.is_some()
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A file with the flag that names it.
#[derive(Clone, Copy)]
struct Named<'a> {
    flag: &'static str,
    path: &'a Path,
}

impl Named<'_> {
    fn error(self, reason: impl Into<String>) -> TlsError {
        TlsError {
            flag: self.flag,
            path: self.path.to_owned(),
            reason: reason.into(),
        }
    }

    fn read(self) -> Result<Vec<u8>, TlsError> {
        read_bounded(self.path, CONFIG_BYTES).map_err(|error| {
            self.error(match error.kind() {
                io::ErrorKind::NotFound => "no such file".to_owned(),
                io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                _ => error.to_string(),
            })
        })
    }

    /// The certificates in the file, at least one; warns of those that are not valid now.
    fn certificates(
        self,
        provider: &CryptoProvider,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        let found = found.map_err(|_| self.error("not a valid PEM file"))?;
        if found.is_empty() {
            return Err(self.error("no certificate in it; expected PEM (-----BEGIN CERTIFICATE-----)"));
        }
        for certificate in &found {
            let parsed = ParsedCertificate::try_from(certificate)
                .map_err(|_| self.error("a certificate in it is damaged, or not X.509 version 3"))?;
            if let Some(problem) = not_valid_now(&parsed, provider) {
                warnings.push(format!("{} {}: {problem}", self.flag, self.path.display()));
            }
        }
        Ok(found)
    }

    /// The key in the file; warns if others can read it.
    fn key(self, warnings: &mut Vec<String>) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = self.read()?;
        // The text of a PEM error can quote the key.
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
            self.error(match error {
                _ if bytes.windows(9).any(|window| window == b"ENCRYPTED") => {
                    "the key is encrypted; write it without a password: openssl pkey -in OLD -out NEW"
                }
                pem::Error::NoItemsFound => {
                    "no private key in it; expected PEM (-----BEGIN PRIVATE KEY-----)"
                }
                _ => "not a valid PEM file",
            })
        })?;
        let exposed = readable_by_others(self.path);
        warnings.extend(exposed.map(|found| format!("{} {}: {found}", self.flag, self.path.display())));
        Ok(key)
    }
}

fn configure(files: &TlsFiles) -> Result<(ServerConfig, Vec<String>), TlsError> {
    let named = |flag, path| Named { flag, path };
    let cert = named("--tls-cert", files.cert.as_path());
    let key = named("--tls-key", files.key.as_path());
    let provider = Arc::new(ring::default_provider());
    let mut warnings = Vec::new();

    let chain = cert.certificates(&provider, &mut warnings)?;
    if chain.first().is_some_and(|first| is_authority(first, &provider)) {
        let path = files.cert.display();
        warnings.push(format!(
            "--tls-cert {path}: its first certificate is that of an authority (CA:TRUE), which demo_ui and other strict clients \
             refuse as a server's; make one with CA:FALSE (openssl req -x509 -addext basicConstraints=critical,CA:FALSE)"
        ));
    }
    let signing_key = provider
        .key_provider
        .load_private_key(key.key(&mut warnings)?)
        .map_err(|_| key.error("damaged, or not RSA (2048 to 4096 bits), ECDSA (P-256, P-384) or Ed25519"))?;
    let certified = CertifiedKey::new(chain, signing_key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(_) => {
            let cert = files.cert.display();
            return Err(key.error(format!("not the key of the first certificate in {cert}")));
        }
    }
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| cert.error(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let authorities = named("--tls-client-ca", path);
            let mut roots = RootCertStore::empty();
            for certificate in authorities.certificates(&provider, &mut warnings)? {
                roots
                    .add(certificate)
                    .map_err(|error| authorities.error(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| authorities.error(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, warnings))
}

/// Why a client without authorities refuses `certificate`: first of all for its dates, then for its use, at last for its issuer.
fn refusal(certificate: &ParsedCertificate<'_>, provider: &CryptoProvider) -> Option<rustls::Error> {
    let verified = verify_server_cert_signed_by_trust_anchor(
        certificate,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        provider.signature_verification_algorithms.all,
    );
    verified.err()
}

/// Whether `certificate` is an authority's, if it is valid now.
fn is_authority(certificate: &CertificateDer<'_>, provider: &CryptoProvider) -> bool {
    let parsed = ParsedCertificate::try_from(certificate).ok();
    let refused = parsed.and_then(|parsed| refusal(&parsed, provider));
    refused.is_some_and(|error| TlsRefusal::of_tls(&error) == Some(TlsRefusal::AuthorityAsServer))
}

/// Why `certificate` is not valid now, if it is not. Anything else that a client could object to is not looked at.
fn not_valid_now(certificate: &ParsedCertificate<'_>, provider: &CryptoProvider) -> Option<String> {
    let date = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).ok()?;
        Some(DateTime::<Utc>::from_timestamp(seconds, 0)?.format("%Y-%m-%d"))
    };
    let Some(rustls::Error::InvalidCertificate(error)) = refusal(certificate, provider) else {
        return None;
    };
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            Some(format!("a certificate in it expired on {}", date(not_after)?))
        }
        CertificateError::NotValidYetContext { not_before, .. } => Some(format!(
            "a certificate in it is not valid before {}",
            date(not_before)?
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with the test certificates, whose keys only their owner can read.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
        for entry in fs::read_dir(source).expect("the fixtures") {
            let path = entry.expect("a file").path();
            let copy = folder.path().join(path.file_name().expect("a name"));
            fs::copy(&path, &copy).expect("a copy");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).expect("permissions");
        }
        folder
    }

    fn files(folder: &Path, cert: &str, key: &str, client_ca: Option<&str>) -> TlsFiles {
        TlsFiles {
            cert: folder.join(cert),
            key: folder.join(key),
            client_ca: client_ca.map(|name| folder.join(name)),
        }
    }

    #[test]
    fn good_files_are_taken_without_a_warning() {
        let folder = folder();
        for (cert, key) in [("server.pem", "server.key"), ("renewed.pem", "renewed.key")] {
            let files = files(folder.path(), cert, key, Some("authority.pem"));
            let (_, warnings) = Tls::load(files).expect(cert);
            assert_eq!(warnings, Vec::<String>::new());
        }
        // Both in one file.
        let [cert, key] =
            ["server.pem", "server.key"].map(|name| fs::read(folder.path().join(name)).expect(name));
        fs::write(folder.path().join("both"), [key, cert].concat()).expect("a file");
        Tls::load(files(folder.path(), "both", "both", None)).expect("both");
    }

    #[test]
    fn an_authoritys_certificate_is_warned_of() {
        let folder = folder();
        let files = files(folder.path(), "self-signed.pem", "self-signed.key", None);
        let (_, warnings) = Tls::load(files).expect("good files");
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        assert!(
            warning.contains("self-signed.pem") && warning.contains("CA:FALSE"),
            "{warning}"
        );
    }

    #[test]
    fn bad_files_are_named_with_what_is_wrong() {
        let folder = folder();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("a file");
        write("empty", b"");
        write("text", b"CANARY");
        write("cut.pem", b"-----BEGIN CERTIFICATE-----\nCANARY");
        write("cut.key", b"-----BEGIN PRIVATE KEY-----\nCANARY\n");
        write(
            "odd.pem",
            b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        );
        write(
            "odd.key",
            b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
        );
        write(
            "old.key",
            b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
        );
        write("large", &vec![b'\n'; CONFIG_BYTES as usize + 1]);
        let good = ("server.pem", "server.key");
        for ((cert, key), client_ca, flag, file, reason) in [
            (("absent", good.1), None, "--tls-cert", "absent", "no such file"),
            (("empty", good.1), None, "--tls-cert", "empty", "no certificate"),
            (("text", good.1), None, "--tls-cert", "text", "no certificate"),
            (
                ("server.key", good.1),
                None,
                "--tls-cert",
                "server.key",
                "no certificate",
            ),
            (("cut.pem", good.1), None, "--tls-cert", "cut.pem", "PEM"),
            (("odd.pem", good.1), None, "--tls-cert", "odd.pem", "damaged"),
            (("large", good.1), None, "--tls-cert", "large", "bytes"),
            ((".", good.1), None, "--tls-cert", "/.", "a folder"),
            ((good.0, "absent"), None, "--tls-key", "absent", "no such file"),
            ((good.0, "empty"), None, "--tls-key", "empty", "no private key"),
            (
                (good.0, "server.pem"),
                None,
                "--tls-key",
                "server.pem",
                "no private key",
            ),
            ((good.0, "cut.key"), None, "--tls-key", "cut.key", "PEM"),
            ((good.0, "odd.key"), None, "--tls-key", "odd.key", "damaged"),
            (
                (good.0, "encrypted.key"),
                None,
                "--tls-key",
                "encrypted.key",
                "encrypted",
            ),
            ((good.0, "old.key"), None, "--tls-key", "old.key", "encrypted"),
            (
                (good.0, "renewed.key"),
                None,
                "--tls-key",
                "renewed.key",
                "server.pem",
            ),
            (
                (good.0, "expired.key"),
                None,
                "--tls-key",
                "expired.key",
                "server.pem",
            ),
            (good, Some("absent"), "--tls-client-ca", "absent", "no such file"),
            (good, Some("empty"), "--tls-client-ca", "empty", "no certificate"),
            (good, Some("odd.pem"), "--tls-client-ca", "odd.pem", "damaged"),
        ] {
            let error = Tls::load(files(folder.path(), cert, key, client_ca)).expect_err(file);
            let text = error.to_string();
            assert_eq!(error.flag, flag, "{text}");
            assert!(text.contains(file) && text.contains(reason), "{file}: {text}");
            assert!(!text.contains("CANARY") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn dates_and_permissions_are_warned_of() {
        let folder = folder();
        let expired = files(folder.path(), "expired.pem", "expired.key", None);
        let (tls, warnings) = Tls::load(expired).expect("taken");
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(
            warning.contains("expired.pem") && warning.contains("2021-01-01"),
            "{warning}"
        );
        for mode in [0o604, 0o604, 0o644] {
            let key = folder.path().join("expired.key");
            fs::set_permissions(key, fs::Permissions::from_mode(mode)).expect("permissions");
            let warnings = tls.reload().expect("taken");
            let told = warnings
                .iter()
                .filter(|text| text.contains("expired.key") && text.contains("chmod 600"));
            assert_eq!(told.count(), 1, "{warnings:?}");
        }
        let ca = files(folder.path(), "server.pem", "server.key", Some("expired.pem"));
        let (_, warnings) = Tls::load(ca).expect("taken");
        assert!(
            warnings.iter().any(|text| text.contains("--tls-client-ca")),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_failed_reload_changes_nothing() {
        let folder = folder();
        let (tls, _) = Tls::load(files(folder.path(), "server.pem", "server.key", None)).expect("taken");
        let before = tls.current();
        // Half of a renewal: the certificate is new, the key is not.
        fs::copy(
            folder.path().join("renewed.pem"),
            folder.path().join("server.pem"),
        )
        .expect("a copy");
        assert!(tls.reload().is_err());
        assert!(Arc::ptr_eq(&before, &tls.current()));
        fs::copy(
            folder.path().join("renewed.key"),
            folder.path().join("server.key"),
        )
        .expect("a copy");
        tls.reload().expect("whole now");
        assert!(!Arc::ptr_eq(&before, &tls.current()));
    }
}
