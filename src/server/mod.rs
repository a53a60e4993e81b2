//! The REST API over the [engine](crate::engine); it knows nothing of tensors.
//!
//! A client's connection takes a place (`places.rs`); its bytes are followed before the parser sees them (`connection.rs`,
//! `framing.rs`). A request passes, from the outside in: its id and log line (`logging.rs`), the bounds on its body
//! (`limits.rs`), header bounds and uniform errors (`headers.rs`), what its connection's place allows (`admission.rs`), CORS
//! where origins are allowed, its handler (`routes.rs`, `docs.rs`). The handler
//! reads the form (`upload.rs`), takes a place in the engine's queue, decodes the picture, and waits. When the client
//! leaves, actix drops the handler, and with it the ticket: that cancels the reading.

mod admission;
mod benchmark;
mod connection;
mod docs;
mod errors;
mod framing;
mod headers;
mod limits;
mod logging;
mod openapi;
pub mod options;
mod pieces;
mod places;
mod routes;
mod run;
mod state;
mod types;
mod upload;

pub use self::errors::ApiError;
pub use self::logging::forbid_core_dumps;
pub use self::openapi::ApiDoc;
pub use self::options::ServerOptions;
pub use self::run::{Readiness, RunError, bind, listen, run};
pub use self::state::ServerState;
pub use self::types::{
    Analysis, Benchmarks, ErrorBody, Extraction, Figures, GpuFigures, Health, LoadedModel, SkippedFile,
};
