//! The OpenAPI document, generated from handlers and types.

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::http::is_health;
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
    components(schemas(openai::ChatChunk)),
    modifiers(&Keys)
)]
pub struct ApiDoc;

/// Adds how keys are sent, and how requests are refused without one.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let header = ApiKey::Header(ApiKeyValue::new("X-Api-Key"));
        components.add_security_scheme("header", SecurityScheme::ApiKey(header));
        for (path, item) in &mut document.paths.paths {
            if is_health(path) {
                continue;
            }
            let error = match openai::applies_to(path) {
                true => "OpenAiError",
                false => "ErrorBody",
            };
            let PathItem { get, post, .. } = item;
            for operation in [get.as_mut(), post.as_mut()].into_iter().flatten() {
                let keys = ["bearer", "header"].map(|name| SecurityRequirement::new(name, [""; 0]));
                operation.security = Some(keys.to_vec());
                refuse(
                    operation,
                    "401",
                    "No key, or none of this server's, where it asks for one",
                    error,
                );
                refuse(operation, "403", "The key is for other routes", error);
            }
            if let Some(operation) = post {
                refuse(
                    operation,
                    "429",
                    "The key has as many requests in the queue as it may have; see Retry-After",
                    error,
                );
            }
        }
    }
}

fn refuse(operation: &mut Operation, status: &str, description: &str, error: &str) {
    let content = Content::new(Some(Ref::from_schema_name(error)));
    let response = ResponseBuilder::new()
        .description(description)
        .content("application/json", content);
    let response = response.build().into();
    operation.responses.responses.insert(status.to_owned(), response);
}
