//! The OpenAPI document, generated from handlers and types.

use utoipa::OpenApi;

use super::routes;

/// The OpenAPI document, served at `/openapi.json`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Medical Vision Pipeline",
        description = "A page in, its text out. Errors are {\"detail\", \"timestamp\"}. An `x-request-id` of up to 64 \
                       letters, digits, dots, dashes and underscores is taken over; every answer carries one. \
                       The limits named here are the defaults; the server's flags change them.",
    ),
    paths(routes::health, routes::extract, routes::analyze, routes::benchmark)
)]
pub struct ApiDoc;
