//! From a form to the answer about its page, whole or streamed: common to `/extract` and `/analyze`.

use std::sync::Arc;
use std::time::Instant;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use serde::Serialize;

use super::{
    access::client,
    audit::note,
    decoding::decode,
    errors::ApiError,
    http::arrival,
    logprobs::{TokenInfo, token_infos},
    metrics::Metrics,
    sse::{self, frame},
    state::ServerState,
    stream::{Answered, Event, Events, Prepared},
    types::{DeltaEvent, ErrorEvent, Figures, QueuedEvent},
    upload::{Upload, UploadMemory},
};
use crate::engine::{EngineError, ImageSize, ModelInfo, ReadRequest, Variant};
use crate::generation::FinishReason;
use crate::processing::DecodedPage;
use crate::records::timestamp;

/// Number of most likely tokens beside each generated one.
const ALTERNATIVES: usize = 5;

/// What the answers of both routes have in common.
pub(super) struct PageAnswer {
    pub text: String,
    pub warnings: Vec<String>,
    pub figures: Figures,
    pub model_info: ModelInfo,
    pub image: Option<ImageSize>,
    pub logprobs: Option<Vec<TokenInfo>>,
}

/// Reserves a queue slot, decodes the image, then reads it; `shape` makes the route's answer. Dropped when the client disconnects,
/// which cancels each step. A stream whose image is not decoded when its first comment is due begins before that.
pub(super) async fn respond<T: Serialize>(
    http: &HttpRequest,
    state: &Data<ServerState>,
    upload: Upload,
    prompt: String,
    shape: impl Fn(PageAnswer) -> T + 'static,
) -> Result<HttpResponse, ApiError> {
    let slot = state.engine.reserve_for(client(http), arrival(http))?;
    let variants = state.engine.variants();
    let variant = variant(variants, upload.adapter.as_deref())?;
    let of_variant = variants.get(variant).and_then(|variant| variant.bounds);
    let asked = upload.min_pixels.or(upload.max_pixels).and(of_variant);
    let asked = asked.map(|bounds| bounds.overridden(upload.min_pixels, upload.max_pixels));
    let asked = asked.transpose().map_err(EngineError::Read)?;
    let note_page = || {
        note(http, |facts| {
            facts.pages = 1;
            if let Some(variant) = variants.get(variant) {
                facts.set_model(&variant.info);
            }
        });
    };
    let deadline_seconds = state.options.generation_deadline_seconds;
    let finish = move |answered| page_answer(answered, upload.logprobs, deadline_seconds).map(&shape);
    let prepare = {
        let state = state.clone();
        async move {
            let decoding = decode(&state, upload.file, asked.or(of_variant), 0);
            let decoded = tokio::time::timeout_at(slot.expires().into(), decoding).await;
            let (DecodedPage { page, warnings }, memory) = decoded.map_err(|_| slot.expired())??;
            let mut request = ReadRequest::page(prompt, page);
            request.overrides = upload.overrides;
            request.variant = variant;
            request.logprobs = upload.logprobs.then_some(ALTERNATIVES);
            for picture in &mut request.images {
                picture.bounds = asked;
            }
            Ok(Prepared {
                slot,
                request,
                warnings: warnings.iter().map(ToString::to_string).collect(),
                memory: (Some(memory), UploadMemory::default()),
            })
        }
    };
    if upload.stream {
        let quiet = state.options.stream_keep_alive();
        let limit = state.options.stream_buffer_bytes();
        let comment_due = Instant::now() + quiet;
        let events = Events::begin(prepare, comment_due, limit).await?;
        note_page();
        let metrics = Arc::clone(&state.metrics);
        return Ok(sse::response(events, quiet, comment_due, move |event| {
            framed(event, upload.logprobs, &metrics, &finish)
        }));
    }
    let prepared = prepare.await?;
    note_page();
    Ok(HttpResponse::Ok().json(finish(prepared.answer().await?)?))
}

/// Index of the variant with `adapter`: `none`, `default` or a name.
fn variant(variants: &[Variant], adapter: Option<&str>) -> Result<usize, ApiError> {
    let name = |variant: &Variant| variant.info.lora_adapter.clone();
    let found = match adapter {
        None | Some("default") => Some(0),
        Some("none") => variants.iter().position(|variant| name(variant).is_none()),
        Some(adapter) => variants
            .iter()
            .position(|variant| name(variant).as_deref() == Some(adapter)),
    };
    found.ok_or_else(|| {
        let names = variants
            .iter()
            .map(|variant| name(variant).unwrap_or_else(|| "none".into()));
        let names: Vec<String> = std::iter::once("default".to_owned()).chain(names).collect();
        ApiError::Field {
            field: "adapter",
            reason: format!("must be one of: {}", names.join(", ")),
        }
    })
}

fn page_answer(
    Answered { answer, warnings }: Answered,
    logprobs: bool,
    deadline_seconds: u64,
) -> Result<PageAnswer, ApiError> {
    if answer.reading.finish_reason == FinishReason::Deadline {
        return Err(ApiError::GenerationDeadline {
            seconds: deadline_seconds,
        });
    }
    Ok(PageAnswer {
        figures: Figures::from(&answer),
        image: answer.reading.images.first().copied(),
        logprobs: logprobs.then(|| token_infos(&answer.reading.logprobs)),
        text: answer.reading.text,
        warnings,
        model_info: answer.model_info,
    })
}

fn framed<T: Serialize>(
    event: Event,
    logprobs: bool,
    metrics: &Metrics,
    finish: impl Fn(Answered) -> Result<T, ApiError>,
) -> String {
    match event {
        Event::Queued { before } => json_event("queued", &QueuedEvent { before }),
        Event::Delta(delta) => {
            let logprobs = logprobs.then(|| token_infos(&delta.tokens));
            let text = delta.text;
            json_event("delta", &DeltaEvent { text, logprobs })
        }
        Event::Answer(answer) => match answer.and_then(|answered| finish(*answered)) {
            Ok(answer) => json_event("done", &answer),
            Err(error) => {
                metrics.rejected(&error);
                let event = ErrorEvent {
                    detail: error.to_string(),
                    timestamp: timestamp(),
                    status: error.status_code().as_u16(),
                };
                json_event("error", &event)
            }
        },
    }
}

fn json_event(name: &str, data: &impl Serialize) -> String {
    // The API's types always serialize.
    frame(Some(name), &serde_json::to_string(data).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variants(adapters: &[Option<&str>]) -> Vec<Variant> {
        let with = |adapter: &Option<&str>| Variant {
            info: ModelInfo {
                model_name: "m".into(),
                precision: "FP32".into(),
                lora_adapter: adapter.map(str::to_owned),
                device: "cpu".into(),
            },
            bounds: None,
        };
        adapters.iter().map(with).collect()
    }

    #[test]
    fn adapters_are_chosen_by_name() {
        let all = variants(&[Some("a"), None, Some("b")]);
        for (adapter, index) in [
            (None, 0),
            (Some("default"), 0),
            (Some("none"), 1),
            (Some("a"), 0),
            (Some("b"), 2),
        ] {
            assert_eq!(variant(&all, adapter).ok(), Some(index), "{adapter:?}");
        }
        let unknown = variant(&all, Some("c")).unwrap_err().to_string();
        assert_eq!(unknown, "adapter: must be one of: default, a, none, b");
        // An adapter that replaces weights of the base leaves no base beside it.
        let unknown = variant(&variants(&[Some("a")]), Some("none"))
            .unwrap_err()
            .to_string();
        assert_eq!(unknown, "adapter: must be one of: default, a");
    }
}
