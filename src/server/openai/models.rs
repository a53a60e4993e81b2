//! `/v1/models`: the model, and each adapter with it.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, Path};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{OpenAiError, RequestError, shortened};
use crate::engine::{EngineError, ModelInfo, Variant};
use crate::server::errors::ApiError;
use crate::server::state::ServerState;

/// Name of the variant that the server attached by itself.
const DEFAULT: &str = "default";

/// Response of `/v1/models`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Models {
    /// "list".
    pub object: String,
    /// The default first.
    pub data: Vec<Model>,
}

/// The model with one of its adapters, or without.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// The adapter's name, or the model's without one: `model` of a request.
    pub id: String,
    /// "model".
    pub object: String,
    /// Start of the server, Unix seconds.
    pub created: i64,
    /// "medvision".
    pub owned_by: String,
    /// What OpenAI's form has no place for.
    pub medvision: ModelDetails,
}

/// Details of a model.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ModelDetails {
    /// Metadata.
    #[serde(flatten)]
    pub info: ModelInfo,
    /// Whether `"model": "default"` is this one.
    pub default: bool,
    /// Minimum width x height that the model sees, pixels.
    pub min_pixels: Option<u64>,
    /// Maximum width x height that the model sees, pixels.
    pub max_pixels: Option<u64>,
}

impl Model {
    fn new(index: usize, variant: &Variant, created: i64) -> Self {
        Self {
            id: name(variant).to_owned(),
            object: "model".to_owned(),
            created,
            owned_by: "medvision".to_owned(),
            medvision: ModelDetails {
                info: variant.info.clone(),
                default: index == 0,
                min_pixels: variant.bounds.map(|bounds| bounds.min_pixels),
                max_pixels: variant.bounds.map(|bounds| bounds.max_pixels),
            },
        }
    }
}

/// Name of a variant in requests and answers.
pub(super) fn name(variant: &Variant) -> &str {
    let ModelInfo {
        model_name,
        lora_adapter,
        ..
    } = &variant.info;
    lora_adapter.as_ref().unwrap_or(model_name)
}

/// Index of the variant called `wanted`.
pub(super) fn find(variants: &[Variant], wanted: &str) -> Option<usize> {
    if wanted == DEFAULT {
        return (!variants.is_empty()).then_some(0);
    }
    variants.iter().position(|variant| name(variant) == wanted)
}

/// 404 that lists the names.
pub(super) fn not_found(variants: &[Variant], wanted: &str) -> RequestError {
    let names: Vec<String> = variants
        .iter()
        .map(|variant| format!("`{}`", name(variant)))
        .collect();
    let message = format!(
        "the model `{}` does not exist; this server has {}, and `{DEFAULT}` for {}",
        shortened(wanted),
        names.join(", "),
        names.first().map_or("none", String::as_str),
    );
    RequestError::new("model_not_found", "model", message).with_status(StatusCode::NOT_FOUND)
}

/// The variants, once the model is loaded.
pub(super) fn loaded(state: &ServerState) -> Result<&[Variant], ApiError> {
    match state.engine.variants() {
        [] => Err(EngineError::NotReady.into()),
        variants => Ok(variants),
    }
}

/// Lists the model, and each adapter with it.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_models",
    responses(
        (status = 200, description = "What `model` of a request can name", body = Models),
        (status = 503, description = "Model not loaded; see Retry-After", body = OpenAiError),
    )
)]
pub(in crate::server) async fn list(state: Data<ServerState>) -> Result<Json<Models>, ApiError> {
    let variants = loaded(&state)?.iter().enumerate();
    let data = variants.map(|(index, variant)| Model::new(index, variant, state.started));
    Ok(Json(Models {
        object: "list".to_owned(),
        data: data.collect(),
    }))
}

/// Describes one of the models.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "retrieve_model",
    params(("id" = String, Path, description = "A name from /v1/models, or `default`")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "No model of this name", body = OpenAiError),
        (status = 503, description = "Model not loaded; see Retry-After", body = OpenAiError),
    )
)]
pub(in crate::server) async fn one(
    state: Data<ServerState>,
    id: Path<String>,
) -> Result<Json<Model>, ApiError> {
    let variants = loaded(&state)?;
    let index = find(variants, &id).ok_or_else(|| not_found(variants, &id))?;
    Ok(Json(Model::new(index, &variants[index], state.started)))
}
