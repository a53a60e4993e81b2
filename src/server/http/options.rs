//! Limits and timeouts of connections and request bodies.

use std::net::IpAddr;
use std::sync::Arc;

use super::tls::Tls;

/// Maximum bytes of a request body besides the page: other fields, part headers, boundaries.
pub const FORM_OVERHEAD_BYTES: u64 = 64 * 1024;
/// Maximum bytes of a JSON body besides the pictures.
pub const JSON_OVERHEAD_BYTES: u64 = 4 * 1024 * 1024;
/// Maximum total bytes of a request's header lines.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Maximum number of header lines of a request.
pub const MAX_HEADERS: usize = 64;

/// Limits and timeouts of connections and request bodies, whatever the routes. Times are in seconds.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Body read timeout.
    pub body_deadline_seconds: u64,
    /// Minimum upload rate in bytes/s, after the first 5 s; 0: no minimum.
    pub min_body_rate: u64,
    /// Maximum upload size, MiB.
    pub max_upload_mib: u64,
    /// Maximum concurrent connections; further ones only get `/health`.
    pub max_connections: u64,
    /// Maximum concurrent connections per client address; further ones only get `/health`.
    pub max_connections_per_address: u64,
    /// Addresses of trusted reverse proxies, exempt from the per-address limit.
    pub trusted_proxy: Vec<IpAddr>,
    /// Maximum connection lifetime; the connection closes after its next response.
    pub connection_lifetime_seconds: u64,
    /// Time after which a client that reads nothing of its response is disconnected, which cancels its request.
    pub stall_seconds: u64,
    /// Maximum time of a TLS handshake, from the connection on.
    pub handshake_seconds: u64,
    /// Time to drain in-flight requests after SIGTERM.
    pub shutdown_seconds: u64,
    /// TLS of all ports; none: plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            body_deadline_seconds: 30,
            min_body_rate: 1024,
            max_upload_mib: 20,
            max_connections: 512,
            max_connections_per_address: 256,
            trusted_proxy: Vec::new(),
            connection_lifetime_seconds: 3600,
            stall_seconds: 30,
            handshake_seconds: 10,
            shutdown_seconds: 60,
            tls: None,
        }
    }
}

impl HttpOptions {
    /// Scheme of the ports' addresses.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Maximum size of an uploaded file in bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_mib * 1024 * 1024
    }

    /// Maximum size of a request body in bytes.
    pub fn max_body_bytes(&self) -> u64 {
        self.max_upload_bytes() + FORM_OVERHEAD_BYTES
    }

    /// Maximum size of a JSON body in bytes, in which base64 takes four bytes for three.
    pub fn max_json_bytes(&self) -> u64 {
        self.max_upload_bytes().div_ceil(3) * 4 + JSON_OVERHEAD_BYTES
    }
}
