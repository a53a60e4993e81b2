//! Starting, readiness and shutdown.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::web::{self, Data, ServiceConfig};

use super::{
    demo::{self, Hosts},
    docs,
    http::{BindError, Listener, bind_port, drain_on_signal, exit_immediately, log_aborted, readable, serve},
    openai,
    options::ServerOptions,
    routes,
    state::ServerState,
};
use crate::engine::{Engine, EngineState, ModelInfo};

/// Why the server failed to start or to shut down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Cannot listen on the address.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The model did not load.
    #[error("cannot load the model: {0}")]
    Load(String),
    /// Another error of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Start-up summary: model and address.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// The loaded model.
    pub model: ModelInfo,
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the demo page.
    pub demo: Option<SocketAddr>,
    /// Scheme of both addresses: `http` or `https`.
    pub scheme: &'static str,
    /// Whether clients need a certificate.
    pub asks_for_client_certificates: bool,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            model,
            api,
            demo,
            scheme,
            asks_for_client_certificates,
        } = self;
        let ModelInfo {
            model_name,
            precision,
            device,
            ..
        } = model;
        let certificate = if *asks_for_client_certificates {
            "--cert client.pem --key client.key "
        } else {
            ""
        };
        writeln!(f, "Ready: {model_name}, {precision}, {device}")?;
        writeln!(f, "  API   {scheme}://{api}")?;
        writeln!(f, "  docs  {scheme}://{api}/docs/")?;
        if let Some(demo) = demo {
            writeln!(f, "  page  {scheme}://{demo}")?;
        }
        writeln!(
            f,
            "  try   curl {certificate}-F file=@page.png {scheme}://{api}/extract"
        )?;
        if !api.ip().is_loopback() && !asks_for_client_certificates {
            writeln!(
                f,
                "  note  reachable from the network, without authentication: use a reverse proxy"
            )?;
        }
        write!(f, "Press Ctrl-C to drain and stop, twice to stop immediately.")
    }
}

/// The listening sockets of a server.
#[derive(Debug)]
pub struct Listeners {
    /// The API.
    pub api: TcpListener,
    /// The demo page.
    pub demo: Option<TcpListener>,
}

/// Binds the ports; connections wait until the server of [`listen`] is polled.
///
/// # Errors
/// [`RunError::Listen`].
pub fn bind(options: &ServerOptions) -> Result<Listeners, RunError> {
    let bind = |port, flag| bind_port(&options.host, port, flag);
    Ok(Listeners {
        api: bind(options.port, "--port")?,
        demo: options
            .demo_port
            .map(|port| bind(port, "--demo-port"))
            .transpose()?,
    })
}

/// Builds the server that serves `listeners`; it runs while it is polled, in a tokio or actix runtime.
///
/// # Errors
/// Errors of the operating system.
pub fn listen(listeners: Listeners, state: Data<ServerState>) -> io::Result<Server> {
    let options = state.options.clone();
    let Listeners { api, demo } = listeners;
    let mut all = Vec::new();
    if let Some(socket) = demo {
        let hosts = Hosts::new(
            socket.local_addr()?,
            &options.demo_allowed_hosts,
            "--demo-allowed-host",
        );
        let (hosts, state) = (Data::new(hosts), state.clone());
        all.push(Listener {
            socket,
            cors_origins: Vec::new(),
            add_routes: Arc::new(move |config| {
                config.app_data(state.clone());
                demo::add_routes(config, hosts.clone(), add_api);
            }),
        });
    }
    all.push(Listener {
        socket: api,
        cors_origins: options.cors_origin,
        add_routes: Arc::new(move |config| {
            config
                .app_data(state.clone())
                .configure(add_api)
                .configure(add_docs);
        }),
    });
    serve(options.http, all)
}

/// The routes that the demo page has, too, below `/api`.
fn add_api(config: &mut ServiceConfig) {
    config
        .service(readable("/health", routes::health))
        .service(web::resource("/extract").post(routes::extract))
        .service(web::resource("/analyze").post(routes::analyze))
        .service(readable("/benchmark", routes::benchmark))
        .configure(openai::add_routes);
}

fn add_docs(config: &mut ServiceConfig) {
    config
        .service(readable("/openapi.json", docs::description))
        .service(web::redirect("/docs", "/docs/"))
        .service(readable("/docs/{file:.*}", docs::page));
}

/// Serves until SIGTERM or SIGINT, then drains in-flight requests; a second signal exits immediately.
///
/// `ready` is called once the model is loaded.
///
/// # Errors
/// The model cannot be loaded, or an error of the operating system.
pub async fn run(
    listeners: Listeners,
    state: Data<ServerState>,
    ready: impl FnOnce(&Readiness) + 'static,
) -> Result<ExitCode, RunError> {
    let engine = Arc::clone(&state.engine);
    let grace = Duration::from_secs(state.options.http.shutdown_seconds);
    let api = listeners.api.local_addr()?;
    let demo = listeners.demo.as_ref().map(TcpListener::local_addr).transpose()?;
    let http = &state.options.http;
    let scheme = http.scheme();
    let asks_for_client_certificates = http
        .tls
        .as_ref()
        .is_some_and(|tls| tls.asks_for_client_certificates());
    let server = listen(listeners, state)?;
    let closing = engine.clone();
    // Rejects queued requests.
    let draining = drain_on_signal(server.handle(), move || closing.close())?;
    actix_web::rt::spawn(await_model(engine.clone(), server.handle(), move |model| {
        ready(&Readiness {
            model,
            api,
            demo,
            scheme,
            asks_for_client_certificates,
        })
    }));
    server.await?;
    match engine.state() {
        EngineState::Failed(reason) => Err(RunError::Load(reason)),
        EngineState::Ready(_) if !draining.is_overdue(grace) => {
            engine.join();
            Ok(ExitCode::SUCCESS)
        }
        // The engine thread is inside libtorch; running destructors now would crash it.
        EngineState::Ready(_) => {
            log_aborted();
            exit_immediately(1)
        }
        EngineState::Loading => exit_immediately(0),
    }
}

async fn await_model(engine: Arc<Engine>, server: ServerHandle, ready: impl FnOnce(ModelInfo)) {
    match engine.loaded().await {
        EngineState::Ready(model) => ready(model),
        EngineState::Failed(_) | EngineState::Loading => server.stop(false).await,
    }
}
