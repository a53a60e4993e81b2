//! Listening, the way to readiness, and the way out.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix_cors::Cors;
use actix_web::dev::{Extensions, Server, ServerHandle};
use actix_web::http::{Method, header};
use actix_web::middleware::{Condition, from_fn};
use actix_web::rt::net::TcpStream;
use actix_web::web::{self, Data};
use actix_web::{App, HttpServer};
use socket2::{SockRef, TcpKeepalive};
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::headers::finish;
use super::limits::guard_body;
use super::logging::access_log;
use super::openapi::ApiDoc;
use super::options::ServerOptions;
use super::routes;
use super::state::ServerState;
use crate::cli::StopSignals;
use crate::engine::{Engine, EngineState, ModelInfo};

/// Threads that serve connections; the model has its own.
const WORKERS: usize = 2;
/// Threads a worker has for decoding and reading files.
const BLOCKING_THREADS: usize = 4;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer that nobody takes keeps its connection.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Probes find out about a client that vanished without a word.
const PROBE_AFTER: Duration = Duration::from_secs(10);

/// Why the server did not start or end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {host}:{port}: {}", reason(.source))]
    Listen {
        /// As given.
        host: String,
        /// As given.
        port: u16,
        /// The operating system's word.
        source: io::Error,
    },
    /// The model did not load.
    #[error("cannot load the model: {0}")]
    Load(String),
    /// The operating system refused something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is taken; stop the program that uses it, or choose another with --port".into()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted (ports below 1024 need a privilege); choose another with --port".into()
        }
        io::ErrorKind::AddrNotAvailable => "no such address on this machine; check --host".into(),
        _ => format!("{error}; check --host and --port"),
    }
}

/// A server that can read pages: what a person wants to know at its start.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// What is loaded.
    pub model: ModelInfo,
    /// Where it listens.
    pub address: SocketAddr,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, address } = self;
        let ModelInfo {
            model_name,
            precision,
            device,
            ..
        } = model;
        writeln!(f, "Ready: {model_name}, {precision}, {device}")?;
        writeln!(f, "  API   http://{address}")?;
        writeln!(f, "  docs  http://{address}/docs/")?;
        writeln!(f, "  try   curl -F file=@page.png http://{address}/extract")?;
        if !address.ip().is_loopback() {
            writeln!(
                f,
                "  note  others on the network can reach it, and there is no password"
            )?;
        }
        write!(f, "Ctrl-C finishes what runs and ends; twice ends at once.")
    }
}

/// Takes the port; connections wait until [`listen`]'s server is polled.
///
/// # Errors
/// [`RunError::Listen`].
pub fn bind(options: &ServerOptions) -> Result<TcpListener, RunError> {
    TcpListener::bind((options.host.as_str(), options.port)).map_err(|source| RunError::Listen {
        host: options.host.clone(),
        port: options.port,
        source,
    })
}

/// Builds the server that serves `listener`; it runs while it is polled, in a tokio or actix runtime.
///
/// # Errors
/// The operating system's.
pub fn listen(listener: TcpListener, state: Data<ServerState>) -> io::Result<Server> {
    let connections = usize::try_from(state.options.max_connections).unwrap_or(usize::MAX);
    let shutdown_seconds = state.options.shutdown_seconds;
    let app = move || {
        App::new()
            .app_data(state.clone())
            .wrap(Condition::new(
                !state.options.cors_origin.is_empty(),
                cors(&state.options),
            ))
            .wrap(from_fn(finish))
            .wrap(from_fn(guard_body))
            .wrap(from_fn(access_log))
            .configure(add_routes)
    };
    let server = HttpServer::new(app)
        .workers(WORKERS)
        .worker_max_blocking_threads(BLOCKING_THREADS)
        .max_connections(connections.div_ceil(WORKERS))
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_DEADLINE)
        // A client that closes its side has left: its reading is cancelled.
        .h1_allow_half_closed(false)
        .shutdown_timeout(shutdown_seconds)
        .disable_signals()
        .on_connect(|connection, _: &mut Extensions| watch_over(connection))
        .listen(listener)?;
    Ok(server.run())
}

fn add_routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/health").get(routes::health))
        .service(web::resource("/extract").post(routes::extract))
        .service(web::resource("/analyze").post(routes::analyze))
        .service(web::resource("/benchmark").get(routes::benchmark))
        .service(web::redirect("/docs", "/docs/"))
        .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", ApiDoc::openapi()));
}

fn cors(options: &ServerOptions) -> Cors {
    let cors = Cors::default()
        .allowed_methods([Method::GET, Method::POST])
        .allowed_headers([header::CONTENT_TYPE, header::ACCEPT])
        .allowed_header("x-request-id")
        .expose_headers(["x-request-id", "retry-after"])
        .max_age(3600);
    let origins = options.cors_origin.iter();
    origins.fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// Has the kernel end connections whose other side no longer answers or no longer reads.
fn watch_over(connection: &dyn std::any::Any) {
    if let Some(stream) = connection.downcast_ref::<TcpStream>() {
        let socket = SockRef::from(stream);
        let probes = TcpKeepalive::new()
            .with_time(PROBE_AFTER)
            .with_interval(PROBE_AFTER / 2);
        // Without these the server works, and a vanished client's reading runs to its end.
        let _ = socket.set_tcp_keepalive(&probes);
        let _ = socket.set_tcp_user_timeout(Some(WRITE_DEADLINE));
    }
}

/// Serves until SIGTERM or SIGINT, then finishes what runs; a second signal ends the process at once.
///
/// `ready` is called once the model is loaded.
///
/// # Errors
/// The model does not load, or the operating system refuses something.
pub async fn run(
    listener: TcpListener,
    state: Data<ServerState>,
    ready: impl FnOnce(&Readiness) + 'static,
) -> Result<ExitCode, RunError> {
    let engine = Arc::clone(&state.engine);
    let grace = Duration::from_secs(state.options.shutdown_seconds);
    let address = listener.local_addr()?;
    let server = listen(listener, state)?;
    let stopped_at = Arc::new(OnceLock::new());
    stop_on_signal(engine.clone(), server.handle(), Arc::clone(&stopped_at))?;
    actix_web::rt::spawn(await_model(engine.clone(), server.handle(), move |model| {
        ready(&Readiness { model, address })
    }));
    server.await?;
    let overdue = stopped_at.get().is_some_and(|at: &Instant| at.elapsed() >= grace);
    match engine.state() {
        EngineState::Failed(reason) => Err(RunError::Load(reason)),
        EngineState::Ready(_) if !overdue => {
            engine.join();
            Ok(ExitCode::SUCCESS)
        }
        // The engine's thread is inside libtorch, where the process's destructors would pull the ground from under it.
        EngineState::Ready(_) => {
            tracing::error!("requests were cut off: they took longer than the time after a signal");
            exit_at_once(1)
        }
        EngineState::Loading => exit_at_once(0),
    }
}

async fn await_model(engine: Arc<Engine>, server: ServerHandle, ready: impl FnOnce(ModelInfo)) {
    match engine.loaded().await {
        EngineState::Ready(model) => ready(model),
        EngineState::Failed(_) | EngineState::Loading => server.stop(false).await,
    }
}

/// First SIGTERM or SIGINT: waiting requests are refused, running ones finish. Second: the process ends.
fn stop_on_signal(
    engine: Arc<Engine>,
    server: ServerHandle,
    stopped_at: Arc<OnceLock<Instant>>,
) -> io::Result<()> {
    let mut signals = StopSignals::listen()?;
    actix_web::rt::spawn(async move {
        signals.next().await;
        tracing::info!("stopping: what runs is finished; a second signal ends it at once");
        stopped_at.get_or_init(Instant::now);
        engine.close();
        actix_web::rt::spawn(server.stop(true));
        exit_at_once(128 + signals.next().await);
    });
    Ok(())
}

/// Ends the process without running destructors; all that is written is written already, stderr has no buffer.
fn exit_at_once(code: i32) -> ! {
    // SAFETY: `_exit` takes any code, touches no memory of the process and does not return.
    unsafe { libc::_exit(code) }
}
