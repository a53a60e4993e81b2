//! The REST API over the [engine](crate::engine), without tensors.
//!
//! A connection takes a slot (`http/connection_slots.rs`), and shakes hands where the server speaks TLS (`http/tls.rs`,
//! `http/handshake.rs`); its bytes are bounded before the parser sees them (`http/connection.rs`,
//! `http/framing.rs`). A request then passes, from the outside in: request id and access log (`http/logging.rs`), body limits
//! (`http/limits.rs`), header limits and uniform errors (`http/headers.rs`), admission (`http/admission.rs`), CORS if origins are
//! allowed, the check of its key (`access/`), and its handler (`routes.rs`, `docs.rs`). The handler reads the form (`upload.rs`), takes a slot in the engine's queue,
//! decodes the image (`decoding.rs`), and waits for the answer or streams it (`reading.rs`, `stream.rs`, `sse.rs`). When the client
//! disconnects, actix drops the handler or the stream, and with it the ticket, which cancels generation. The [`demo`] page is
//! another listener with the same machinery. The access log and the engine tell `metrics.rs` what they do.

mod access;
mod audit;
mod benchmark;
mod decoding;
pub mod demo;
mod docs;
mod errors;
mod http;
mod logprobs;
mod metrics;
pub mod openai;
mod openapi;
pub mod options;
mod pages;
mod reading;
mod reload;
mod route_table;
mod routes;
mod run;
mod sse;
mod state;
mod stream;
mod types;
mod upload;

pub use self::access::{Access, ApiKeys, KeyError, KeyScope, NewKey};
pub use self::audit::{AuditError, AuditLog, AuditOptions};
pub use self::errors::ApiError;
pub use self::http::{BindError, HttpOptions, Tls, TlsError, TlsFiles, TlsRefusal, forbid_core_dumps};
pub use self::logprobs::{TokenChoice, TokenInfo};
pub use self::openapi::ApiDoc;
pub use self::options::ServerOptions;
pub use self::reload::Reloads;
pub use self::route_table::paths;
pub use self::run::{Listeners, Readiness, RunError, bind, listen, loopback, reachable, run};
pub use self::state::ServerState;
pub use self::types::{
    Analysis, Benchmarks, DeltaEvent, ErrorBody, ErrorEvent, Extraction, Figures, GpuFigures, Health,
    QueuedEvent, SkippedFile, Status,
};
