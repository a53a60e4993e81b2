//! The server of `demo_ui`: the page, and the API behind it.

use std::future::ready;
use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::web::Data;

use super::api_url::ApiUrl;
use super::forward::{self, Api};
use super::hosts::Hosts;
use crate::server::http::{
    HttpOptions, Listener, Stopping, bind_port, drain_on_signal, exit_immediately, log_aborted, serve,
};
use crate::server::run::RunError;

/// Options of `demo_ui`.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0: any free port.
    pub port: u16,
    /// Where requests below `/api` go.
    pub api_url: ApiUrl,
    /// Names under which the page may be opened, besides loopback ones; none: any, unless it listens on a loopback address.
    pub allowed_hosts: Vec<String>,
    /// Limits and timeouts of connections and bodies.
    pub http: HttpOptions,
}

impl DemoOptions {
    /// Default host.
    pub const HOST: &str = "127.0.0.1";
    /// Default port.
    pub const PORT: u16 = 7860;
    /// Default address of the API.
    pub const API_URL: &str = "http://127.0.0.1:8000";
}

/// Binds the port; connections wait until the server of [`listen`] is polled.
///
/// # Errors
/// [`RunError::Listen`].
pub fn bind(options: &DemoOptions) -> Result<TcpListener, RunError> {
    Ok(bind_port(&options.host, options.port, "--port")?)
}

/// Builds the server that serves `listener`; it runs while it is polled, in a tokio or actix runtime.
///
/// # Errors
/// Errors of the operating system, or no client for the API can be built.
pub fn listen(listener: TcpListener, options: &DemoOptions) -> io::Result<Server> {
    let hosts = Hosts::new(listener.local_addr()?, &options.allowed_hosts, "--allowed-host");
    let hosts = Data::new(hosts);
    let api = Data::new(Api::new(options.api_url.clone())?);
    let page = Listener {
        socket: listener,
        cors_origins: Vec::new(),
        add_routes: Arc::new(move |config| {
            config.app_data(api.clone());
            super::add_routes(config, hosts.clone(), forward::add_routes);
        }),
    };
    serve(
        options.http.clone(),
        Arc::new(()),
        Stopping::default(),
        vec![page],
    )
}

/// Serves until SIGTERM or SIGINT, then drains in-flight requests; a second signal exits immediately.
///
/// # Errors
/// Errors of the operating system.
pub async fn run(listener: TcpListener, options: &DemoOptions) -> Result<ExitCode, RunError> {
    let server = listen(listener, options)?;
    let draining = drain_on_signal(server.handle(), |_| ready(()))?;
    server.await?;
    if draining.is_overdue(Duration::from_secs(options.http.shutdown_seconds)) {
        log_aborted();
        exit_immediately(1);
    }
    Ok(ExitCode::SUCCESS)
}
