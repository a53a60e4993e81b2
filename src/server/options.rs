//! Options and fixed limits of the server.

use std::net::IpAddr;
use std::time::Duration;

use crate::engine::EngineOptions;

/// Maximum bytes of a request body besides the page: other fields, part headers, boundaries.
pub const FORM_OVERHEAD_BYTES: u64 = 64 * 1024;
/// Maximum bytes of one text field.
pub const MAX_FIELD_BYTES: usize = 64 * 1024;
/// Maximum number of parts of a form.
pub const MAX_PARTS: usize = 8;
/// Maximum total bytes of a request's header lines.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Maximum number of header lines of a request.
pub const MAX_HEADERS: usize = 64;
/// Maximum number of images decoded at the same time.
pub const MAX_DECODES: usize = 2;

/// Address, limits and timeouts of the server. Times are in seconds, sizes in MiB where the name says so.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0: any free port.
    pub port: u16,
    /// Queue capacity, excluding the running request.
    pub queue: u64,
    /// Queue timeout, from the first byte of the request, but at least 1 s after its last byte.
    pub queue_deadline_seconds: u64,
    /// Generation timeout.
    pub generation_deadline_seconds: u64,
    /// Body read timeout.
    pub body_deadline_seconds: u64,
    /// Minimum upload rate in bytes/s, after the first 5 s; 0: no minimum.
    pub min_body_rate: u64,
    /// Maximum upload size.
    pub max_upload_mib: u64,
    /// Maximum image size, width x height as stored.
    pub max_megapixels: u64,
    /// Memory budget for decoding and for decoded pages in the queue, across requests.
    pub max_decoded_mib: u64,
    /// Maximum number of new tokens; a request may lower it, not raise it.
    pub max_new_tokens: u64,
    /// Maximum concurrent connections; further ones only get `/health`.
    pub max_connections: u64,
    /// Maximum concurrent connections per client address; further ones only get `/health`.
    pub max_connections_per_address: u64,
    /// Addresses of trusted reverse proxies, exempt from the per-address limit.
    pub trusted_proxy: Vec<IpAddr>,
    /// Maximum connection lifetime; the connection closes after its next response.
    pub connection_lifetime_seconds: u64,
    /// Time to drain in-flight requests after SIGTERM.
    pub shutdown_seconds: u64,
    /// Allowed CORS origins: lower-case `http(s)://HOST[:PORT]`.
    pub cors_origin: Vec<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8000,
            queue: 8,
            queue_deadline_seconds: 30,
            generation_deadline_seconds: 300,
            body_deadline_seconds: 30,
            min_body_rate: 1024,
            max_upload_mib: 20,
            max_megapixels: 40,
            max_decoded_mib: 256,
            max_new_tokens: 1024,
            max_connections: 512,
            max_connections_per_address: 256,
            trusted_proxy: Vec::new(),
            connection_lifetime_seconds: 3600,
            shutdown_seconds: 60,
            cors_origin: Vec::new(),
        }
    }
}

impl ServerOptions {
    /// Options of the engine.
    pub fn engine(&self) -> EngineOptions {
        EngineOptions {
            queue: usize::try_from(self.queue).unwrap_or(usize::MAX - 1),
            queue_deadline: Duration::from_secs(self.queue_deadline_seconds),
            generation_deadline: Duration::from_secs(self.generation_deadline_seconds),
        }
    }

    /// Maximum size of an uploaded file in bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_mib * 1024 * 1024
    }

    /// Maximum size of a request body in bytes.
    pub fn max_body_bytes(&self) -> u64 {
        self.max_upload_bytes() + FORM_OVERHEAD_BYTES
    }

    /// Memory budget for images in KiB.
    pub(super) fn decoded_kib(&self) -> u32 {
        u32::try_from(self.max_decoded_mib * 1024).unwrap_or(u32::MAX)
    }

    /// Bytes of uploads held in memory at the same time, all connections together, beside the one that goes on beyond them.
    pub fn upload_memory_bytes(&self) -> u64 {
        2 * self.max_upload_bytes()
    }
}
