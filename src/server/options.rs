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
    /// Address to listen on; anything but a loopback address is reachable by others, without a password.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MVP_HOST",
        hide_env_values = true,
        default_value = "127.0.0.1"
    )]
    pub host: String,
    /// Port to listen on; 0 picks a free one.
    #[arg(
        long,
        value_name = "N",
        env = "MVP_PORT",
        hide_env_values = true,
        default_value_t = 8000
    )]
    pub port: u16,
    /// Requests that may wait beside the one that runs; more get 503 with Retry-After.
    #[arg(long, value_name = "N", env = "MVP_QUEUE", hide_env_values = true, default_value_t = 8, value_parser = at_most::<1000>(0))]
    pub queue: u64,
    /// Seconds from a request's first byte until it runs (then 503); one that has arrived at last gets one more.
    #[arg(long, value_name = "N", env = "MVP_QUEUE_DEADLINE_SECONDS", hide_env_values = true, default_value_t = 30, value_parser = at_most::<86_400>(1))]
    pub queue_deadline_seconds: u64,
    /// Seconds one reading may take (then 504).
    #[arg(long, value_name = "N", env = "MVP_GENERATION_DEADLINE_SECONDS", hide_env_values = true, default_value_t = 300, value_parser = at_most::<86_400>(1))]
    pub generation_deadline_seconds: u64,
    /// Seconds a request's body may take to arrive (then 408).
    #[arg(long, value_name = "N", env = "MVP_BODY_DEADLINE_SECONDS", hide_env_values = true, default_value_t = 30, value_parser = at_most::<3600>(1))]
    pub body_deadline_seconds: u64,
    /// Least bytes a second of a request's body after its first 5 s (then 408); 0: any.
    #[arg(long, value_name = "N", env = "MVP_MIN_BODY_RATE", hide_env_values = true, default_value_t = 1024, value_parser = at_most::<1_048_576>(0))]
    pub min_body_rate: u64,
    /// Largest uploaded file, MiB (then 413).
    #[arg(long, value_name = "N", env = "MVP_MAX_UPLOAD_MIB", hide_env_values = true, default_value_t = 20, value_parser = at_most::<1024>(1))]
    pub max_upload_mib: u64,
    /// Largest picture, megapixels (width x height as stored; then 400).
    #[arg(long, value_name = "N", env = "MVP_MAX_MEGAPIXELS", hide_env_values = true, default_value_t = 40, value_parser = at_most::<1000>(1))]
    pub max_megapixels: u64,
    /// Memory for pictures being decoded and decoded pages that wait, MiB, all requests together; more wait for it.
    #[arg(long, value_name = "N", env = "MVP_MAX_DECODED_MIB", hide_env_values = true, default_value_t = 256, value_parser = at_most::<1_048_576>(64))]
    pub max_decoded_mib: u64,
    /// Tokens of an answer; a request may ask for fewer, not for more.
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", hide_env_values = true, default_value_t = 1024, value_parser = at_most::<131_072>(1))]
    pub max_new_tokens: u64,
    /// Connections at the same time; on more, only /health is answered.
    #[arg(long, value_name = "N", env = "MVP_MAX_CONNECTIONS", hide_env_values = true, default_value_t = 512, value_parser = at_most::<65_536>(1))]
    pub max_connections: u64,
    /// Connections of one client's address at the same time; on more, only /health is answered.
    #[arg(long, value_name = "N", env = "MVP_MAX_CONNECTIONS_PER_ADDRESS", hide_env_values = true, default_value_t = 256, value_parser = at_most::<65_536>(1))]
    pub max_connections_per_address: u64,
    /// Address of a proxy in front, whose connections are not bounded per address; repeatable. Bound clients there.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MVP_TRUSTED_PROXY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub trusted_proxy: Vec<IpAddr>,
    /// Seconds after which a connection is closed with its next answer.
    #[arg(long, value_name = "N", env = "MVP_CONNECTION_LIFETIME_SECONDS", hide_env_values = true, default_value_t = 3600, value_parser = at_most::<86_400>(1))]
    pub connection_lifetime_seconds: u64,
    /// Seconds that running requests get after SIGTERM.
    #[arg(long, value_name = "N", env = "MVP_SHUTDOWN_SECONDS", hide_env_values = true, default_value_t = 60, value_parser = at_most::<3600>(1))]
    pub shutdown_seconds: u64,
    /// Web origin (scheme, host, port) whose pages may call the server; repeatable, none by default.
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
