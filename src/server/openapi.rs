//! The OpenAPI document, generated from handlers and types.

use utoipa::OpenApi;

use super::{metrics, openai, routes};

/// The OpenAPI document, served at `/openapi.json`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Medical Vision Pipeline",
        description = "A page in, its text out. Errors are {\"detail\", \"timestamp\"}, below /v1 OpenAI's {\"error\"}. An `x-request-id` of up to 64 \
                       letters, digits, dots, dashes and underscores is taken over; every answer carries one. A valid `traceparent` of W3C Trace Context is in the log and the answer. \
                       The limits named here are the defaults; the server's flags change them.",
    ),
    paths(
        routes::health,
        routes::live,
        routes::ready,
        routes::extract,
        routes::analyze,
        routes::benchmark,
        metrics::metrics,
        openai::paths::chat_completions,
        openai::paths::list,
        openai::paths::one,
    ),
    // The chunks of a stream, which OpenAPI has no response for.
    components(schemas(openai::ChatChunk))
)]
pub struct ApiDoc;
