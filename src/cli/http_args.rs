//! Limits and timeouts of the programs that serve HTTP.

use std::net::IpAddr;

use clap::builder::RangedU64ValueParser;

use crate::server::HttpOptions;

/// Limits and timeouts of connections and request bodies.
#[derive(Debug, clap::Args)]
pub struct HttpArgs {
    /// Body read timeout in seconds (408).
    #[arg(long, value_name = "N", env = "MVP_BODY_DEADLINE_SECONDS", hide_env_values = true, default_value_t = HttpOptions::default().body_deadline_seconds, value_parser = at_most::<3600>(1))]
    body_deadline_seconds: u64,

    /// Minimum upload rate in bytes/s, after the first 5 s (408); 0 disables the check.
    #[arg(long, value_name = "N", env = "MVP_MIN_BODY_RATE", hide_env_values = true, default_value_t = HttpOptions::default().min_body_rate, value_parser = at_most::<1_048_576>(0))]
    min_body_rate: u64,

    /// Maximum upload size in MiB (413).
    #[arg(long, value_name = "N", env = "MVP_MAX_UPLOAD_MIB", hide_env_values = true, default_value_t = HttpOptions::default().max_upload_mib, value_parser = at_most::<1024>(1))]
    max_upload_mib: u64,

    /// Maximum concurrent connections; further ones only get /health (503 otherwise).
    #[arg(long, value_name = "N", env = "MVP_MAX_CONNECTIONS", hide_env_values = true, default_value_t = HttpOptions::default().max_connections, value_parser = at_most::<65_536>(1))]
    max_connections: u64,

    /// Maximum concurrent connections per client address; further ones only get /health (503 otherwise).
    #[arg(long, value_name = "N", env = "MVP_MAX_CONNECTIONS_PER_ADDRESS", hide_env_values = true, default_value_t = HttpOptions::default().max_connections_per_address, value_parser = at_most::<65_536>(1))]
    max_connections_per_address: u64,

    /// Address of a trusted reverse proxy, exempt from the per-address limit; repeatable. Limit clients at the proxy.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MVP_TRUSTED_PROXY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    trusted_proxy: Vec<IpAddr>,

    /// Maximum connection lifetime in seconds; the connection closes after its next response.
    #[arg(long, value_name = "N", env = "MVP_CONNECTION_LIFETIME_SECONDS", hide_env_values = true, default_value_t = HttpOptions::default().connection_lifetime_seconds, value_parser = at_most::<86_400>(1))]
    connection_lifetime_seconds: u64,

    /// Time in seconds after which a client that reads nothing of its response is disconnected, which cancels its request.
    #[arg(long, value_name = "N", env = "MVP_STALL_SECONDS", hide_env_values = true, default_value_t = HttpOptions::default().stall_seconds, value_parser = at_most::<3600>(1))]
    stall_seconds: u64,

    /// Time in seconds to drain in-flight requests after SIGTERM.
    #[arg(long, value_name = "N", env = "MVP_SHUTDOWN_SECONDS", hide_env_values = true, default_value_t = HttpOptions::default().shutdown_seconds, value_parser = at_most::<3600>(1))]
    shutdown_seconds: u64,
}

/// Whole numbers from `min` to `MAX`.
pub fn at_most<const MAX: u64>(min: u64) -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(min..=MAX)
}

/// Parses a host name, without scheme and port.
pub fn host_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    if text.is_empty() || !text.chars().all(is_allowed) {
        return Err("a name is HOST, without scheme, port and path".into());
    }
    Ok(text.to_ascii_lowercase())
}

impl From<HttpArgs> for HttpOptions {
    fn from(args: HttpArgs) -> Self {
        Self {
            body_deadline_seconds: args.body_deadline_seconds,
            min_body_rate: args.min_body_rate,
            max_upload_mib: args.max_upload_mib,
            max_connections: args.max_connections,
            max_connections_per_address: args.max_connections_per_address,
            trusted_proxy: args.trusted_proxy,
            connection_lifetime_seconds: args.connection_lifetime_seconds,
            stall_seconds: args.stall_seconds,
            shutdown_seconds: args.shutdown_seconds,
        }
    }
}
