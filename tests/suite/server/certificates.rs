//! The certificates of `tests/fixtures/tls`, and clients that use them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use medical_vision::server::{HttpOptions, ServerOptions, Tls, TlsFiles};
use reqwest::blocking::ClientBuilder;
use reqwest::{Certificate, Identity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::support::PATIENCE;

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    folder.join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).expect(name)
}

/// The certificates of the chain `NAME.pem`, as the server sends them.
pub fn chain(name: &str) -> Vec<CertificateDer<'static>> {
    let chain: Result<_, _> = CertificateDer::pem_slice_iter(&read(&format!("{name}.pem"))).collect();
    chain.expect("a chain")
}

/// Copies of the fixtures, whose keys only their owner can read: `cert.pem`, `cert.key`, `authority.pem`.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// With the certificate and key of `name`.
    pub fn new(name: &str) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.put("authority.pem", "authority.pem");
        folder.renew(name);
        folder
    }

    pub fn path(&self, name: &str) -> String {
        let path = self.0.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    pub fn put(&self, source: &str, name: &str) {
        fs::write(self.path(name), read(source)).expect("a file");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).expect("permissions");
    }

    pub fn renew(&self, name: &str) {
        self.put(&format!("{name}.pem"), "cert.pem");
        self.put(&format!("{name}.key"), "cert.key");
    }

    pub fn tls(&self, asks_for_client_certificates: bool) -> Arc<Tls> {
        let files = TlsFiles {
            cert: self.path("cert.pem").into(),
            key: self.path("cert.key").into(),
            client_ca: asks_for_client_certificates.then(|| self.path("authority.pem").into()),
        };
        Tls::load(files).expect("good files").0
    }

    pub fn options(&self) -> ServerOptions {
        options(self.tls(false))
    }
}

pub fn options(tls: Arc<Tls>) -> ServerOptions {
    ServerOptions {
        http: HttpOptions {
            tls: Some(tls),
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    }
}

/// A client that trusts the fixtures' authority alone, with the certificate `identity`.
pub fn trusting(builder: ClientBuilder, identity: Option<&str>) -> ClientBuilder {
    let authority = Certificate::from_pem(&read("authority.pem")).expect("a certificate");
    let builder = builder
        .tls_built_in_root_certs(false)
        .add_root_certificate(authority);
    match identity {
        None => builder,
        Some(name) => {
            let both = [read(&format!("{name}.key")), read(&format!("{name}.pem"))].concat();
            builder.identity(Identity::from_pem(&both).expect("an identity"))
        }
    }
}

pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// A connection with its handshake done, in one of `versions`.
pub fn shake_hands(
    address: SocketAddr,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<&str>,
) -> io::Result<TlsClient> {
    let mut roots = RootCertStore::empty();
    for certificate in chain("authority") {
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_slice(&read(&format!("{name}.key"))).expect("a key");
            builder
                .with_client_auth_cert(chain(name), key)
                .expect("an identity")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut client = StreamOwned::new(connection, socket);
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock)?;
    }
    Ok(client)
}

/// A connection of a client that can both versions.
pub fn connect(address: SocketAddr) -> TlsClient {
    shake_hands(address, rustls::DEFAULT_VERSIONS, None).expect("a connection")
}

/// Sends `request`; returns all that comes back until the server closes, which must be in order.
pub fn exchange(client: &mut TlsClient, request: &[u8]) -> io::Result<String> {
    client.write_all(request)?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Reads until `text` has come.
pub fn read_until(client: &mut TlsClient, text: &str) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = client.read(&mut buffer).expect("more");
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..read]);
        let so_far = String::from_utf8_lossy(&bytes);
        if so_far.contains(text) {
            return so_far.into_owned();
        }
    }
}
