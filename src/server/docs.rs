//! `/docs` (embedded Swagger UI) and `/openapi.json`.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use actix_web::http::header::{self, ContentEncoding};
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, Responder};
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, serve};

use super::errors::ApiError;
use super::http::ChunkedBody;
use super::openapi::ApiDoc;

/// Swagger UI needs its own scripts and inline styles.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const DESCRIPTION: &str = "/openapi.json";

/// The OpenAPI document.
pub(super) async fn description() -> impl Responder {
    static TEXT: LazyLock<Bytes> =
        LazyLock::new(|| serde_json::to_vec(&ApiDoc::openapi()).unwrap_or_default().into());
    HttpResponse::Ok()
        .content_type("application/json")
        .body(ChunkedBody::shared(TEXT.clone()))
}

/// One file of Swagger UI.
pub(super) async fn page(path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from(DESCRIPTION)));
    let file = serve(&path, Arc::clone(&CONFIG)).map_err(|_| ApiError::Internal)?;
    let Some(file) = file else {
        return Ok(HttpResponse::NotFound().finish());
    };
    let bytes = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let mut response = HttpResponse::Ok();
    if file.gzpipped {
        response.insert_header((header::CONTENT_ENCODING, ContentEncoding::Gzip));
    }
    Ok(response
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .content_type(file.content_type)
        .body(ChunkedBody::shared(bytes)))
}
