//! From a form to the answer about its document, whole or streamed: common to `/extract` and `/analyze`.

use std::sync::Arc;
use std::time::Instant;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use serde::Serialize;

use super::{
    access::client,
    audit::note,
    decoding::{decode_document_page, open},
    errors::ApiError,
    http::arrival,
    logprobs::{TokenInfo, token_infos},
    metrics::Metrics,
    pages::{DocumentEvent, DocumentReading, PageOutcome, PageQuestion},
    sse::{self, frame},
    state::ServerState,
    stream::{Answered, Delta, Event, Events, Prepared},
    types::{DeltaEvent, ErrorEvent, Figures, PageResult, PageStartEvent, PageStatus, QueuedEvent},
    upload::{Upload, UploadMemory},
};
use crate::documents::DicomFacts;
use crate::engine::{EngineError, ImageSize, ModelInfo, ReadRequest, Variant};
use crate::generation::FinishReason;
use crate::records::timestamp;

/// Number of most likely tokens beside each generated one.
const ALTERNATIVES: usize = 5;

/// What the answers of both routes have in common.
pub(super) struct PageAnswer {
    pub text: String,
    pub pages: Vec<PageResult>,
    pub warnings: Vec<String>,
    pub source: Option<String>,
    pub dicom: Option<DicomFacts>,
    pub figures: Figures,
    pub model_info: ModelInfo,
    pub image: Option<ImageSize>,
    pub logprobs: Option<Vec<TokenInfo>>,
}

/// Reserves a queue slot, opens the file, decodes its pages and reads them; `shape` makes the route's answer. Dropped when the client disconnects,
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
    let opening = open(state, upload.file, upload.password);
    let document = tokio::time::timeout_at(slot.expires().into(), opening).await;
    let document = document.map_err(|_| slot.expired())??;
    let numbers = upload.pages.numbers(document.pages(), state.options.pages())?;
    let pages = numbers.len();
    let note_pages = || {
        note(http, |facts| {
            facts.pages = pages;
            if let Some(variant) = variants.get(variant) {
                facts.set_model(&variant.info);
            }
        });
    };
    let deadline_seconds = state.options.generation_deadline_seconds;
    if let Some(report) = document.report() {
        note_pages();
        let info = variants.get(variant).map(|variant| variant.info.clone());
        let answer = report_answer(report, document.dicom().cloned(), info.ok_or(ApiError::Internal)?);
        let metrics = &state.metrics;
        metrics.page(Some(document.kind().name()), true);
        return Ok(match upload.stream {
            true => sse::whole(last_event(Ok(shape(answer)), metrics)),
            false => HttpResponse::Ok().json(shape(answer)),
        });
    }
    let dicom = document.dicom().cloned();
    let shape = move |answer| {
        let dicom = dicom.clone();
        shape(PageAnswer { dicom, ..answer })
    };
    let make = move |page| {
        let mut request = ReadRequest::page(prompt.clone(), page);
        request.overrides = upload.overrides.clone();
        request.variant = variant;
        request.logprobs = upload.logprobs.then_some(ALTERNATIVES);
        for picture in &mut request.images {
            picture.bounds = asked;
        }
        request
    };
    let bounds = asked.or(of_variant);
    let quiet = state.options.stream_keep_alive();
    let comment_due = Instant::now() + quiet;
    let metrics = Arc::clone(&state.metrics);
    let [number] = numbers[..] else {
        note_pages();
        let question = PageQuestion {
            request: Box::new(make),
            bounds,
            text_limit: if upload.stream {
                state.options.stream_buffer_bytes()
            } else {
                usize::MAX
            },
        };
        let reading = DocumentReading::new(state.clone(), slot, document, numbers, question);
        let finish = move |outcomes| document_answer(outcomes, upload.logprobs).map(&shape);
        if upload.stream {
            return Ok(sse::response(reading, quiet, comment_due, move |event| {
                framed_document(event, upload.logprobs, &metrics, &finish)
            }));
        }
        return Ok(HttpResponse::Ok().json(finish(reading.outcomes().await)?));
    };
    let began = Instant::now();
    let finish = move |answered| {
        let seconds = began.elapsed().as_secs_f64();
        page_answer(answered, (number, seconds), upload.logprobs, deadline_seconds).map(&shape)
    };
    let prepare = {
        let state = state.clone();
        async move {
            let decoding = decode_document_page(&state, &document, number, bounds, 0);
            let decoded = tokio::time::timeout_at(slot.expires().into(), decoding).await;
            let (page, memory) = decoded.map_err(|_| slot.expired())??;
            // The file is gone while the model reads.
            drop(document);
            Ok(Prepared {
                slot,
                request: make(page.page),
                warnings: page.warnings.iter().map(ToString::to_string).collect(),
                memory: (Some(memory), UploadMemory::default()),
            })
        }
    };
    if upload.stream {
        let limit = state.options.stream_buffer_bytes();
        let events = Events::begin(prepare, comment_due, limit).await?;
        note_pages();
        return Ok(sse::response(events, quiet, comment_due, move |event| {
            framed(event, upload.logprobs, &metrics, &finish)
        }));
    }
    let prepared = prepare.await?;
    note_pages();
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

/// The answer that a DICOM report is, without the model.
fn report_answer(report: &str, dicom: Option<DicomFacts>, model_info: ModelInfo) -> PageAnswer {
    let page = PageResult {
        page: 1,
        status: PageStatus::Ok,
        text: report.to_owned(),
        error: None,
        width: None,
        height: None,
        resized_width: None,
        resized_height: None,
        image_tokens: None,
        seconds: 0.0,
        finish_reason: Some(FinishReason::Stop),
    };
    PageAnswer {
        text: report.to_owned(),
        pages: vec![page],
        warnings: Vec::new(),
        source: Some("sr".to_owned()),
        dicom,
        figures: Figures::none(),
        model_info,
        image: None,
        logprobs: None,
    }
}

/// The answer about the only page, whose number and time are given.
fn page_answer(
    answered: Answered,
    (page, seconds): (u32, f64),
    logprobs: bool,
    deadline_seconds: u64,
) -> Result<PageAnswer, ApiError> {
    let outcome = PageOutcome::new(page, Ok(Box::new(answered)), seconds, deadline_seconds);
    document_answer(vec![outcome], logprobs)
}

/// The answer about all pages; the first page's error if none was read.
fn document_answer(outcomes: Vec<PageOutcome>, logprobs: bool) -> Result<PageAnswer, ApiError> {
    let several = outcomes.len() > 1;
    let mut answer: Option<PageAnswer> = None;
    let (mut pages, mut first_error) = (Vec::with_capacity(outcomes.len()), None);
    for outcome in outcomes {
        pages.push(outcome.summary());
        match outcome.result {
            Ok(answered) => {
                let read = read_page(*answered, several.then_some(outcome.page), logprobs);
                match &mut answer {
                    Some(answer) => answer.add(read),
                    None => answer = Some(read),
                }
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let answer = answer.ok_or_else(|| first_error.unwrap_or(ApiError::Internal))?;
    Ok(PageAnswer { pages, ..answer })
}

fn read_page(Answered { answer, warnings }: Answered, page: Option<u32>, logprobs: bool) -> PageAnswer {
    let named = |warning: String| match page {
        Some(page) => format!("page {page}: {warning}"),
        None => warning,
    };
    PageAnswer {
        figures: Figures::from(&answer),
        image: answer.reading.images.first().copied().filter(|_| page.is_none()),
        logprobs: logprobs.then(|| token_infos(&answer.reading.logprobs)),
        text: answer.reading.text,
        pages: Vec::new(),
        warnings: warnings.into_iter().map(named).collect(),
        source: None,
        dicom: None,
        model_info: answer.model_info,
    }
}

impl PageAnswer {
    /// Adds the page after these.
    fn add(&mut self, next: Self) {
        self.text.push_str("\n\n");
        self.text.push_str(&next.text);
        self.warnings.extend(next.warnings);
        self.figures.add(&next.figures);
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.extend(next.logprobs.unwrap_or_default());
        }
    }
}

fn framed_document<T: Serialize>(
    event: DocumentEvent,
    logprobs: bool,
    metrics: &Metrics,
    finish: impl Fn(Vec<PageOutcome>) -> Result<T, ApiError>,
) -> String {
    match event {
        DocumentEvent::PageStart { page } => json_event("page_start", &PageStartEvent { page }),
        DocumentEvent::Queued { before } => json_event("queued", &QueuedEvent { before }),
        DocumentEvent::Delta(delta) => delta_event(delta, logprobs),
        DocumentEvent::PageDone(page) => json_event("page_done", &page),
        DocumentEvent::Answer(outcomes) => last_event(finish(outcomes), metrics),
    }
}

fn framed<T: Serialize>(
    event: Event,
    logprobs: bool,
    metrics: &Metrics,
    finish: impl Fn(Answered) -> Result<T, ApiError>,
) -> String {
    match event {
        Event::Queued { before } => json_event("queued", &QueuedEvent { before }),
        Event::Delta(delta) => delta_event(delta, logprobs),
        Event::Answer(answer) => last_event(answer.and_then(|answered| finish(*answered)), metrics),
    }
}

fn delta_event(delta: Delta, logprobs: bool) -> String {
    let logprobs = logprobs.then(|| token_infos(&delta.tokens));
    let text = delta.text;
    json_event("delta", &DeltaEvent { text, logprobs })
}

fn last_event(answer: Result<impl Serialize, ApiError>, metrics: &Metrics) -> String {
    match answer {
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
