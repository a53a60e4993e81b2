//! The server's flags and limits, in one struct.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;

use crate::engine::EngineOptions;

/// Bytes a request may hold beside its page: other fields, part headers, boundaries.
pub const FORM_OVERHEAD_BYTES: u64 = 64 * 1024;
/// Most bytes of one text field.
pub const MAX_FIELD_BYTES: usize = 64 * 1024;
/// Most parts of a form.
pub const MAX_PARTS: usize = 8;
/// Most bytes of a request's header lines together.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Most header lines of a request.
pub const MAX_HEADERS: usize = 64;
/// Pictures decoded at the same time.
pub const MAX_DECODES: usize = 2;

/// Where the server listens and what it allows.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server options")]
pub struct ServerOptions {
    /// Address to listen on. There is no authentication: use a reverse proxy for anything but a loopback address.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MVP_HOST",
        hide_env_values = true,
        default_value = "127.0.0.1"
    )]
    pub host: String,
    /// Port to listen on (0: any free port).
    #[arg(
        long,
        value_name = "N",
        env = "MVP_PORT",
        hide_env_values = true,
        default_value_t = 8000
    )]
    pub port: u16,
    /// Queue capacity, excluding the running request (503 with Retry-After when full).
    #[arg(long, value_name = "N", env = "MVP_QUEUE", hide_env_values = true, default_value_t = 8, value_parser = at_most::<1000>(0))]
    pub queue: u64,
    /// Queue timeout in seconds, from the first byte of the request (503), but at least 1 s after its last byte.
    #[arg(long, value_name = "N", env = "MVP_QUEUE_DEADLINE_SECONDS", hide_env_values = true, default_value_t = 30, value_parser = at_most::<86_400>(1))]
    pub queue_deadline_seconds: u64,
    /// Generation timeout in seconds (504).
    #[arg(long, value_name = "N", env = "MVP_GENERATION_DEADLINE_SECONDS", hide_env_values = true, default_value_t = 300, value_parser = at_most::<86_400>(1))]
    pub generation_deadline_seconds: u64,
    /// Body read timeout in seconds (408).
    #[arg(long, value_name = "N", env = "MVP_BODY_DEADLINE_SECONDS", hide_env_values = true, default_value_t = 30, value_parser = at_most::<3600>(1))]
    pub body_deadline_seconds: u64,
    /// Minimum upload rate in bytes/s, after the first 5 s (408); 0 disables the check.
    #[arg(long, value_name = "N", env = "MVP_MIN_BODY_RATE", hide_env_values = true, default_value_t = 1024, value_parser = at_most::<1_048_576>(0))]
    pub min_body_rate: u64,
    /// Maximum upload size in MiB (413).
    #[arg(long, value_name = "N", env = "MVP_MAX_UPLOAD_MIB", hide_env_values = true, default_value_t = 20, value_parser = at_most::<1024>(1))]
    pub max_upload_mib: u64,
    /// Maximum image size in megapixels, width x height as stored (400).
    #[arg(long, value_name = "N", env = "MVP_MAX_MEGAPIXELS", hide_env_values = true, default_value_t = 40, value_parser = at_most::<1000>(1))]
    pub max_megapixels: u64,
    /// Memory budget in MiB for decoding and for decoded pages in the queue, across requests; requests wait for it.
    #[arg(long, value_name = "N", env = "MVP_MAX_DECODED_MIB", hide_env_values = true, default_value_t = 256, value_parser = at_most::<1_048_576>(64))]
    pub max_decoded_mib: u64,
    /// Maximum number of new tokens; a request may lower it, not raise it.
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", hide_env_values = true, default_value_t = 1024, value_parser = at_most::<131_072>(1))]
    pub max_new_tokens: u64,
    /// Maximum concurrent connections; further ones only get /health (503 otherwise).
    #[arg(long, value_name = "N", env = "MVP_MAX_CONNECTIONS", hide_env_values = true, default_value_t = 512, value_parser = at_most::<65_536>(1))]
    pub max_connections: u64,
    /// Maximum concurrent connections per client address; further ones only get /health (503 otherwise).
    #[arg(long, value_name = "N", env = "MVP_MAX_CONNECTIONS_PER_ADDRESS", hide_env_values = true, default_value_t = 256, value_parser = at_most::<65_536>(1))]
    pub max_connections_per_address: u64,
    /// Address of a trusted reverse proxy, exempt from the per-address limit; repeatable. Limit clients at the proxy.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MVP_TRUSTED_PROXY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub trusted_proxy: Vec<IpAddr>,
    /// Maximum connection lifetime in seconds; the connection closes after its next response.
    #[arg(long, value_name = "N", env = "MVP_CONNECTION_LIFETIME_SECONDS", hide_env_values = true, default_value_t = 3600, value_parser = at_most::<86_400>(1))]
    pub connection_lifetime_seconds: u64,
    /// Time in seconds to drain in-flight requests after SIGTERM.
    #[arg(long, value_name = "N", env = "MVP_SHUTDOWN_SECONDS", hide_env_values = true, default_value_t = 60, value_parser = at_most::<3600>(1))]
    pub shutdown_seconds: u64,
    /// Allowed CORS origin (scheme, host, port); repeatable [default: none].
    #[arg(long, value_name = "ORIGIN", env = "MVP_CORS_ORIGIN", hide_env_values = true, value_delimiter = ',', value_parser = origin)]
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
    /// The engine's share.
    pub fn engine(&self) -> EngineOptions {
        EngineOptions {
            queue: usize::try_from(self.queue).unwrap_or(usize::MAX - 1),
            queue_deadline: Duration::from_secs(self.queue_deadline_seconds),
            generation_deadline: Duration::from_secs(self.generation_deadline_seconds),
        }
    }

    /// Largest uploaded file, bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_mib * 1024 * 1024
    }

    /// Largest body, bytes.
    pub fn max_body_bytes(&self) -> u64 {
        self.max_upload_bytes() + FORM_OVERHEAD_BYTES
    }

    /// Memory of pictures, KiB.
    pub(super) fn decoded_kib(&self) -> u32 {
        u32::try_from(self.max_decoded_mib * 1024).unwrap_or(u32::MAX)
    }

    /// Bytes of uploads held in memory at the same time, all connections together, beside the one that goes on beyond them.
    pub fn upload_memory_bytes(&self) -> u64 {
        2 * self.max_upload_bytes()
    }
}

fn at_most<const MOST: u64>(least: u64) -> clap::builder::RangedU64ValueParser {
    clap::builder::RangedU64ValueParser::new().range(least..=MOST)
}

fn origin(text: &str) -> Result<String, String> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(plain) {
        return Err("an origin is http(s)://HOST or http(s)://HOST:PORT, without path or wildcard".into());
    }
    Ok(text.to_ascii_lowercase())
}
