//! Connections, request heads and bodies within bounds, and what every response has: independent of the routes.

mod admission;
mod chunked_body;
mod connection;
mod connection_slots;
mod framing;
mod headers;
mod limits;
mod logging;

pub use self::logging::forbid_core_dumps;

pub(super) use self::admission::{admit, arrival};
pub(super) use self::chunked_body::ChunkedBody;
pub(super) use self::connection::{Connection, HEAD_TIMEOUT};
pub(super) use self::connection_slots::{ConnectionSlots, SPARE_SLOTS};
pub(super) use self::headers::{SAFE_HEADERS, finish};
pub(super) use self::limits::{GuardedBody, body_error, guard_body};
pub(super) use self::logging::access_log;
