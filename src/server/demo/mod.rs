//! The demo page: its files and, below `/api`, the routes of the API that it uses.
//!
//! `server --demo-port` serves it with the API's own handlers; `demo_ui` forwards to an API elsewhere (`forward.rs`). Either way
//! page and API have one origin, so that no CORS is needed, and requests of other sites are refused (`hosts.rs`).

mod api_url;
mod assets;
mod errors;
mod forward;
mod hosts;
mod run;

use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig};

pub use self::api_url::ApiUrl;
pub use self::run::{DemoOptions, bind, listen, run};

pub(super) use self::hosts::Hosts;
use super::access::refuse_key_in_address;
use super::http::readable;

/// Adds the page and, below `/api`, the routes that `add_api` adds.
pub(super) fn add_routes(
    config: &mut ServiceConfig,
    hosts: Data<Hosts>,
    add_api: impl FnOnce(&mut ServiceConfig),
) {
    let api = web::scope("/api")
        .configure(add_api)
        .default_service(web::to(|| async { Err::<String, _>(errors::DemoError::NoRoute) }));
    let page = web::scope("")
        .wrap(from_fn(refuse_key_in_address))
        .wrap(from_fn(hosts::check_host))
        .service(api)
        .service(readable("/{file:.*}", assets::asset));
    config.app_data(hosts).service(page);
}
