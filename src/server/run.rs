//! Starting, readiness and shutdown.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix_cors::Cors;
use actix_http::HttpService;
use actix_service::{IntoServiceFactory, ServiceFactoryExt, map_config};
use actix_web::dev::{AppConfig, Server, ServerHandle, fn_service};
use actix_web::http::{Method, header};
use actix_web::middleware::{Condition, from_fn};
use actix_web::rt::net::TcpStream;
use actix_web::web::{self, Data};
use actix_web::{App, Handler, Responder};

use super::{
    docs,
    http::{Connection, ConnectionSlots, HEAD_TIMEOUT, SPARE_SLOTS, access_log, admit, finish, guard_body},
    options::ServerOptions,
    routes,
    state::ServerState,
};
use crate::console::StopSignals;
use crate::engine::{Engine, EngineState, ModelInfo};

/// Threads that serve connections; the model has its own.
const WORKERS: usize = 2;
/// Threads per worker for decoding and reading files.
const BLOCKING_THREADS: usize = 4;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Lingering close: after an answer to a request whose body was not read, the rest is discarded for this long. Otherwise the
/// kernel resets the connection, and a client that is still sending loses the answer.
const LINGER: Duration = Duration::from_secs(2);
/// File descriptors besides connections: weights, records, libraries.
const OTHER_FILES: u64 = 256;

/// Why the server failed to start or to shut down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Cannot listen on the address.
    #[error("cannot listen on {host}:{port}: {}", reason(.cause))]
    Listen {
        /// As given.
        host: String,
        /// As given.
        port: u16,
        /// Underlying I/O error, included in the text.
        cause: io::Error,
    },
    /// The model did not load.
    #[error("cannot load the model: {0}")]
    Load(String),
    /// Another error of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "port already in use; stop the other program or choose another port with --port".into()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied (ports below 1024 are privileged); choose another port with --port".into()
        }
        io::ErrorKind::AddrNotAvailable => "no such address on this machine; check --host".into(),
        _ => format!("{error}; check --host and --port"),
    }
}

/// Start-up summary: model and address.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// The loaded model.
    pub model: ModelInfo,
    /// Listening address.
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
                "  note  reachable from the network, without authentication: use a reverse proxy"
            )?;
        }
        write!(f, "Press Ctrl-C to drain and stop, twice to stop immediately.")
    }
}

/// Binds the port; connections wait until the server of [`listen`] is polled.
///
/// # Errors
/// [`RunError::Listen`].
pub fn bind(options: &ServerOptions) -> Result<TcpListener, RunError> {
    TcpListener::bind((options.host.as_str(), options.port)).map_err(|cause| RunError::Listen {
        host: options.host.clone(),
        port: options.port,
        cause,
    })
}

/// Builds the server that serves `listener`; it runs while it is polled, in a tokio or actix runtime.
///
/// # Errors
/// Errors of the operating system.
pub fn listen(listener: TcpListener, state: Data<ServerState>) -> io::Result<Server> {
    let options = state.options.clone();
    let slots = ConnectionSlots::new(&options);
    allow_open_files(options.max_connections);
    // The framework stops accepting at this number per worker; `ConnectionSlots` stays below it.
    let most = usize::try_from(options.max_connections).unwrap_or(usize::MAX);
    let most = most.saturating_add(4 * SPARE_SLOTS);
    let builder = Server::build()
        .workers(WORKERS)
        .worker_max_blocking_threads(BLOCKING_THREADS)
        .max_concurrent_connections(most)
        .shutdown_timeout(options.shutdown_seconds)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let service = move || {
        let app = App::new()
            .app_data(state.clone())
            .wrap(Condition::new(
                !state.options.cors_origin.is_empty(),
                cors(&state.options),
            ))
            .wrap(from_fn(admit))
            .wrap(from_fn(finish))
            .wrap(from_fn(guard_body))
            .wrap(from_fn(access_log))
            .configure(add_routes);
        let stopping = stopping.clone();
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(HEAD_TIMEOUT)
            .client_disconnect_timeout(LINGER)
            // A client that half-closes has disconnected: generation is cancelled.
            .h1_allow_half_closed(false)
            .on_connect_ext(|connection: &Connection, data| {
                data.insert(Arc::clone(connection.state()));
            })
            .h1(map_config(app.into_factory(), |()| AppConfig::default())
                .map_err(|error: actix_web::Error| error.error_response()));
        let slots = Arc::clone(&slots);
        fn_service(move |stream: TcpStream| {
            let address = stream.peer_addr().ok();
            let slot = slots.enter(address.map(|address| address.ip()));
            let connection = Connection::new(stream, slot);
            async move { Ok((connection, address)) }
        })
        .and_then(http)
    };
    Ok(builder.listen("medvision", listener, service)?.run())
}

/// Raises the open-file limit, often 1024, as far as the system allows.
fn allow_open_files(connections: u64) {
    let wanted = connections
        .saturating_add(2 * SPARE_SLOTS as u64)
        .saturating_add(OTHER_FILES);
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the length of the call, which fills it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 || limit.rlim_cur >= wanted {
        return;
    }
    limit.rlim_cur = wanted.min(limit.rlim_max);
    // SAFETY: `limit` is a valid rlimit for the length of the call, which changes nothing but this process's limit.
    let failed = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0;
    if failed || limit.rlim_cur < wanted {
        tracing::warn!(
            wanted,
            "the open-file limit is too low for --max-connections (ulimit -n)"
        );
    }
}

fn add_routes(config: &mut web::ServiceConfig) {
    config
        .service(readable("/health", routes::health))
        .service(web::resource("/extract").post(routes::extract))
        .service(web::resource("/analyze").post(routes::analyze))
        .service(readable("/benchmark", routes::benchmark))
        .service(readable("/openapi.json", docs::description))
        .service(web::redirect("/docs", "/docs/"))
        .service(readable("/docs/{file:.*}", docs::page));
}

/// A route for GET and HEAD.
fn readable<F, Args>(path: &str, handler: F) -> actix_web::Resource
where
    F: Handler<Args> + Clone,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).get(handler.clone()).head(handler)
}

fn cors(options: &ServerOptions) -> Cors {
    let cors = Cors::default()
        .allowed_methods([Method::GET, Method::HEAD, Method::POST])
        .allowed_headers([header::CONTENT_TYPE, header::ACCEPT])
        .allowed_header("x-request-id")
        .expose_headers(["x-request-id", "retry-after"])
        .max_age(3600);
    let origins = options.cors_origin.iter();
    origins.fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// Serves until SIGTERM or SIGINT, then drains in-flight requests; a second signal exits immediately.
///
/// `ready` is called once the model is loaded.
///
/// # Errors
/// The model cannot be loaded, or an error of the operating system.
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
        // The engine thread is inside libtorch; running destructors now would crash it.
        EngineState::Ready(_) => {
            tracing::error!("in-flight requests aborted: --shutdown-seconds exceeded");
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

/// First SIGTERM or SIGINT: rejects queued requests and drains running ones. Second: exits.
fn stop_on_signal(
    engine: Arc<Engine>,
    server: ServerHandle,
    stopped_at: Arc<OnceLock<Instant>>,
) -> io::Result<()> {
    let mut signals = StopSignals::listen()?;
    actix_web::rt::spawn(async move {
        signals.next().await;
        tracing::info!("draining in-flight requests; a second signal stops immediately");
        stopped_at.get_or_init(Instant::now);
        engine.close();
        actix_web::rt::spawn(server.stop(true));
        exit_immediately(128 + signals.next().await);
    });
    Ok(())
}

/// Exits without running destructors; nothing is buffered.
fn exit_immediately(code: i32) -> ! {
    // SAFETY: `_exit` takes any code, touches no memory of the process and does not return.
    unsafe { libc::_exit(code) }
}
