//! The routes: one table, from which the server is built and of which the tests walk every entry.

use actix_web::Resource;
use actix_web::web::{self, Redirect, ServiceConfig};

use super::http::readable;
use super::{docs, metrics, openai, routes};

/// A route: the pattern of its path, and what adds its methods and handler.
pub(super) struct Route {
    path: &'static str,
    resource: fn(&'static str) -> Resource,
}

impl Route {
    pub(super) const fn new(path: &'static str, resource: fn(&'static str) -> Resource) -> Self {
        Self { path, resource }
    }
}

/// The routes that the demo page has, too, below `/api`.
pub(super) const SHARED: &[Route] = &[
    Route::new("/health", |path| readable(path, routes::health)),
    Route::new("/health/live", |path| readable(path, routes::live)),
    Route::new("/health/ready", |path| readable(path, routes::ready)),
    Route::new("/extract", |path| web::resource(path).post(routes::extract)),
    Route::new("/analyze", |path| web::resource(path).post(routes::analyze)),
    Route::new("/benchmark", |path| readable(path, routes::benchmark)),
    openai::CHAT,
    openai::MODELS,
    openai::MODEL,
];

/// The routes of the API's port alone.
pub(super) const API_ONLY: &[Route] = &[
    Route::new("/openapi.json", |path| readable(path, docs::description)),
    Route::new("/docs", |path| {
        web::resource(path).to(|| async { Redirect::to("/docs/") })
    }),
    Route::new("/docs/{file:.*}", |path| readable(path, docs::page)),
    Route::new(metrics::ROUTE, |path| readable(path, metrics::metrics)),
];

/// Adds `routes`.
pub(super) fn add(config: &mut ServiceConfig, routes: &[Route]) {
    for route in routes {
        config.service((route.resource)(route.path));
    }
}

/// The patterns of all paths of the API's port.
pub fn paths() -> impl Iterator<Item = &'static str> {
    SHARED.iter().chain(API_ONLY).map(|route| route.path)
}
