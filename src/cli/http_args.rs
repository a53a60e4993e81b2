//! Limits and timeouts of the programs that serve HTTP.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::RangedU64ValueParser;

use crate::console::{Level, say};
use crate::server::{HttpOptions, Reloads, Tls, TlsError, TlsFiles};

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

/// TLS of the programs that serve HTTP.
#[derive(Debug, clap::Args)]
pub struct TlsArgs {
    /// Certificate of the server, PEM, and behind it those that lead to its authority: all ports speak TLS. Read anew on SIGHUP.
    #[arg(
        long,
        value_name = "FILE",
        env = "MVP_TLS_CERT",
        hide_env_values = true,
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,

    /// Key of --tls-cert, PEM, not encrypted.
    #[arg(
        long,
        value_name = "FILE",
        env = "MVP_TLS_KEY",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,

    /// Authorities of client certificates, PEM: only clients with a certificate from one of them are served.
    #[arg(
        long,
        value_name = "FILE",
        env = "MVP_TLS_CLIENT_CA",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// Reads the files, if TLS is asked for, and has `reloads` read them anew. Prints warnings.
    pub fn load(self, reloads: &mut Reloads) -> Result<Option<Arc<Tls>>, TlsError> {
        let (Some(cert), Some(key)) = (self.tls_cert, self.tls_key) else {
            return Ok(None);
        };
        let (tls, warnings) = Tls::load(TlsFiles {
            cert,
            key,
            client_ca: self.tls_client_ca,
        })?;
        for warning in warnings {
            say(Level::WARN, &warning);
        }
        let reloaded = Arc::clone(&tls);
        reloads.add("TLS certificate", move || reloaded.reload());
        Ok(Some(tls))
    }
}

/// Whole numbers from `min` to `MAX`.
pub fn at_most<const MAX: u64>(min: u64) -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(min..=MAX)
}

/// Parses an address to listen on; one of IPv6 may be in brackets, as in a URL.
pub fn listen_host(text: &str) -> Result<String, String> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match inside {
        Some(address) if address.parse::<Ipv6Addr>().is_ok() => Ok(address.to_owned()),
        None if !text.is_empty() && !text.contains(['[', ']', '/']) => Ok(text.to_owned()),
        _ => Err(
            "expected an address or a name without scheme and port, as in 127.0.0.1, ::1 or 0.0.0.0".into(),
        ),
    }
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
            tls: None,
            ..Self::default()
        }
    }
}
