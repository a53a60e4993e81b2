//! Connections, request heads and bodies within bounds, and what every response has: independent of the routes.

mod admission;
mod bind;
mod chunked_body;
mod connection;
mod connection_slots;
mod framing;
mod handshake;
mod headers;
mod http_metrics;
mod limits;
mod listen;
mod logging;
pub(super) mod options;
mod shutdown;
mod tls;
mod tls_refusal;
mod trace_parent;

pub use self::bind::BindError;
pub use self::logging::forbid_core_dumps;
pub use self::options::HttpOptions;
pub use self::tls::{Tls, TlsError, TlsFiles};
pub use self::tls_refusal::TlsRefusal;

pub(super) use self::admission::{Stopping, arrival, is_health};
pub(super) use self::bind::bind_port;
pub(super) use self::chunked_body::ChunkedBody;
pub(super) use self::connection::HEAD_TIMEOUT;
pub(super) use self::headers::SAFE_HEADERS;
pub(super) use self::http_metrics::HttpMetrics;
pub(super) use self::limits::{GuardedBody, body_error};
pub(super) use self::listen::{Listener, readable, serve};
pub(super) use self::logging::{CLIENT_LEFT, request_id};
pub(super) use self::shutdown::{drain_on_signal, exit_immediately, log_aborted};
