//! Options and fixed limits of the server.

use std::time::Duration;

pub use super::http::options::{
    FORM_OVERHEAD_BYTES, HttpOptions, JSON_OVERHEAD_BYTES, MAX_HEADER_BYTES, MAX_HEADERS,
};
use crate::documents::DEFAULT_DPI;
use crate::engine::EngineOptions;

/// Maximum bytes of one text field.
pub const MAX_FIELD_BYTES: usize = 64 * 1024;
/// Maximum number of parts of a form.
pub const MAX_PARTS: usize = 16;
/// Maximum number of images decoded at the same time.
pub const MAX_DECODES: usize = 2;

/// Address, limits and timeouts of the server. Times are in seconds, sizes in MiB where the name says so.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0: any free port.
    pub port: u16,
    /// Port of the demo page, on the same host; none: no page.
    pub demo_port: Option<u16>,
    /// Names under which the demo page may be opened, besides loopback ones; none: any, unless it listens on a loopback address.
    pub demo_allowed_hosts: Vec<String>,
    /// Limits and timeouts of connections and bodies.
    pub http: HttpOptions,
    /// Queue capacity, excluding the running request.
    pub queue: u64,
    /// Most requests that are answered together; none: 8 on a GPU, 4 on a CPU.
    pub max_batch: Option<u64>,
    /// Maximum requests of one key in the queue, the running one included; none: half of the queue.
    pub max_per_key: Option<u64>,
    /// Time after SIGTERM in which requests are still admitted, so that load balancers notice that the server is not ready.
    pub drain_delay_seconds: u64,
    /// Queue timeout, from the first byte of the request, but at least 1 s after its last byte.
    pub queue_deadline_seconds: u64,
    /// Generation timeout.
    pub generation_deadline_seconds: u64,
    /// Maximum image size, width x height as stored.
    pub max_megapixels: u64,
    /// Maximum number of pages of a request.
    pub max_pages: u64,
    /// Resolution at which PDF pages are rendered, dots per inch.
    pub dpi: u32,
    /// Memory budget for decoding and for decoded pages in the queue, across requests.
    pub max_decoded_mib: u64,
    /// Time after which a stream that is quiet gets a comment.
    pub stream_keep_alive_seconds: u64,
    /// Maximum generated text that waits for the client of a stream; more cancels the request.
    pub stream_buffer_kib: u64,
    /// Maximum number of pictures in a chat request.
    pub max_pictures: u64,
    /// Maximum number of new tokens; a request may lower it, not raise it.
    pub max_new_tokens: u64,
    /// Allowed CORS origins: lower-case `http(s)://HOST[:PORT]`.
    pub cors_origin: Vec<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8000,
            demo_port: None,
            demo_allowed_hosts: Vec::new(),
            http: HttpOptions::default(),
            queue: 8,
            max_batch: None,
            max_per_key: None,
            drain_delay_seconds: 5,
            queue_deadline_seconds: 30,
            generation_deadline_seconds: 300,
            max_megapixels: 40,
            max_pages: 32,
            dpi: DEFAULT_DPI,
            max_decoded_mib: 256,
            stream_keep_alive_seconds: 10,
            stream_buffer_kib: 256,
            max_pictures: 16,
            max_new_tokens: 1024,
            cors_origin: Vec::new(),
        }
    }
}

impl ServerOptions {
    /// Options of the engine.
    pub fn engine(&self) -> EngineOptions {
        let per_key = self.max_per_key.unwrap_or(self.queue / 2).max(1);
        EngineOptions {
            queue: usize::try_from(self.queue).unwrap_or(usize::MAX - 1),
            max_batch: self.max_batch.and_then(|max| usize::try_from(max).ok()),
            slots_per_client: usize::try_from(per_key).unwrap_or(usize::MAX),
            queue_deadline: Duration::from_secs(self.queue_deadline_seconds),
            generation_deadline: Duration::from_secs(self.generation_deadline_seconds),
        }
    }

    /// Maximum number of pages of a request.
    pub(super) fn pages(&self) -> usize {
        usize::try_from(self.max_pages).unwrap_or(usize::MAX)
    }

    /// Memory budget for images in KiB.
    pub(super) fn decoded_kib(&self) -> u32 {
        u32::try_from(self.max_decoded_mib * 1024).unwrap_or(u32::MAX)
    }

    /// Time after which a stream that is quiet gets a comment.
    pub(super) fn stream_keep_alive(&self) -> Duration {
        Duration::from_secs(self.stream_keep_alive_seconds)
    }

    /// Maximum bytes of generated text that wait for the client of a stream.
    pub(super) fn stream_buffer_bytes(&self) -> usize {
        usize::try_from(self.stream_buffer_kib * 1024).unwrap_or(usize::MAX)
    }

    /// Bytes of uploads held in memory at the same time, all connections together, beside the one that goes on beyond them.
    pub fn upload_memory_bytes(&self) -> u64 {
        2 * self.http.max_upload_bytes()
    }
}
