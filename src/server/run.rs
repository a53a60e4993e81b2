//! Starting, readiness and shutdown.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::dev::{HttpServiceFactory, Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig};

use super::{
    access::guard,
    audit::audit,
    demo::{self, Hosts},
    http::{BindError, Listener, bind_port, drain_on_signal, exit_immediately, log_aborted, serve},
    options::ServerOptions,
    route_table::{self, API_ONLY, SHARED},
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
    /// Whether clients need a key.
    pub asks_for_keys: bool,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            model,
            api,
            demo,
            scheme,
            asks_for_client_certificates,
            asks_for_keys,
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
        let is_open = !api.ip().is_loopback() && !asks_for_client_certificates && !asks_for_keys;
        let (api, demo) = (reachable(*api), demo.map(reachable));
        writeln!(f, "Ready: {model_name}, {precision}, {device}")?;
        writeln!(f, "  API   {scheme}://{api}")?;
        if let Some(demo) = demo {
            writeln!(f, "  page  {scheme}://{demo}")?;
        }
        let key = if *asks_for_keys {
            "-H \"X-Api-Key: $KEY\" "
        } else {
            ""
        };
        if *asks_for_keys {
            writeln!(f, "  docs  curl {certificate}{key}{scheme}://{api}/openapi.json")?;
        } else {
            writeln!(f, "  docs  {scheme}://{api}/docs/")?;
        }
        writeln!(
            f,
            "  try   curl {certificate}{key}-F file=@page.png {scheme}://{api}/extract"
        )?;
        if is_open {
            writeln!(
                f,
                "  note  reachable from the network, without a key: whoever reaches it can use it"
            )?;
        }
        write!(f, "Press Ctrl-C to drain and stop, twice to stop immediately.")
    }
}

/// `address` as a program on this machine reaches it.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(loopback(address.is_ipv6()));
    }
    address
}

/// The usual loopback address, of IPv6 or of IPv4.
pub fn loopback(is_v6: bool) -> IpAddr {
    match is_v6 {
        true => Ipv6Addr::LOCALHOST.into(),
        false => Ipv4Addr::LOCALHOST.into(),
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
    let stopping = state.stopping.clone();
    let options = state.options.clone();
    let metrics = state.metrics.clone();
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
                demo::add_routes(config, hosts.clone(), |config| {
                    config.service(guarded(|config| route_table::add(config, SHARED)));
                });
            }),
        });
    }
    all.push(Listener {
        socket: api,
        cors_origins: options.cors_origin,
        add_routes: Arc::new(move |config| {
            config.app_data(state.clone()).service(guarded(|config| {
                route_table::add(config, SHARED);
                route_table::add(config, API_ONLY);
            }));
        }),
    });
    serve(options.http, metrics, stopping, all)
}

/// The routes that `add` adds, and all that are not there, behind the check of keys and the audit log.
fn guarded(add: impl FnOnce(&mut ServiceConfig)) -> impl HttpServiceFactory {
    web::scope("")
        .wrap(from_fn(guard))
        .wrap(from_fn(audit))
        .configure(add)
        .default_service(web::to(|| async { HttpResponse::NotFound().finish() }))
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
    let asks_for_keys = state.access.keys().is_some();
    let server = listen(listeners, state.clone())?;
    let draining = drain_on_signal(server.handle(), move |signal| drain(signal, state))?;
    actix_web::rt::spawn(await_model(engine.clone(), server.handle(), move |model| {
        ready(&Readiness {
            model,
            api,
            demo,
            scheme,
            asks_for_client_certificates,
            asks_for_keys,
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

/// Ends readiness, then admission. What was admitted is answered, within `--shutdown-seconds`.
async fn drain(signal: i32, state: Data<ServerState>) {
    state.stopping.set();
    // Nobody balances the load of a server that is stopped by hand, or that was never ready.
    let was_ready = matches!(state.engine.state(), EngineState::Ready(_));
    if signal == libc::SIGTERM && was_ready {
        tokio::time::sleep(Duration::from_secs(state.options.drain_delay_seconds)).await;
    }
    state.engine.close();
    // Requests whose turn will not come get an answer, too.
    let grace = Duration::from_secs(state.options.http.shutdown_seconds);
    actix_web::rt::spawn(async move {
        tokio::time::sleep(grace.mul_f64(0.9)).await;
        state.engine.reject_queued();
    });
}

async fn await_model(engine: Arc<Engine>, server: ServerHandle, ready: impl FnOnce(ModelInfo)) {
    match engine.loaded().await {
        EngineState::Ready(model) => ready(model),
        EngineState::Failed(_) | EngineState::Loading => server.stop(false).await,
    }
}
