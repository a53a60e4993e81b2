//! OpenAI's API: `/v1/chat/completions` and `/v1/models`.
//!
//! A request's body is read within bounds (`body.rs`) and parsed once (`json.rs`); each parameter is checked and named in its error
//! (`request.rs`, `messages.rs`, `pictures.rs`). The answer is in `answer.rs`, the form of errors in `errors.rs`.

mod answer;
mod body;
mod chat;
mod errors;
mod json;
mod messages;
mod models;
mod pictures;
mod request;
pub(super) mod schema;
mod stream;

use actix_web::web;

pub use self::answer::{
    AnswerMessage, ChatChoice, ChatChunk, ChatCompletion, ChatDetails, ChatLogprobs, ChunkChoice, ChunkDelta,
    PromptTokensDetails, Usage,
};
pub use self::errors::{ErrorObject, OpenAiError, RequestError};
pub(super) use self::errors::{applies_to, with_openai_body};
pub use self::models::{Model, ModelDetails, Models};
use super::http::readable;
use super::route_table::Route;

/// The paths of these routes, for the OpenAPI document.
pub(super) mod paths {
    pub(in crate::server) use super::chat::*;
    pub(in crate::server) use super::models::*;
}

pub(super) const CHAT: Route = Route::new("/v1/chat/completions", |path| {
    web::resource(path).post(chat::chat_completions)
});
pub(super) const MODELS: Route = Route::new("/v1/models", |path| readable(path, models::list));
pub(super) const MODEL: Route = Route::new("/v1/models/{id}", |path| readable(path, models::one));
