//! Listening sockets, worker threads, and the middleware around every route.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_cors::Cors;
use actix_http::HttpService;
use actix_http::error::DispatchError;
use actix_service::{IntoServiceFactory, ServiceFactoryExt, map_config};
use actix_web::dev::{AppConfig, Server, fn_service};
use actix_web::http::{Method, header};
use actix_web::middleware::{Condition, from_fn};
use actix_web::rt::net::TcpStream;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{App, FromRequest, Handler, Resource, Responder};

use super::admission::{Stopping, admit};
use super::connection::{Connection, HEAD_TIMEOUT, enable_keep_alive};
use super::connection_slots::{ConnectionSlots, SPARE_SLOTS};
use super::handshake::{self, Socket};
use super::headers::finish;
use super::http_metrics::HttpMetrics;
use super::limits::guard_body;
use super::logging::access_log;
use super::options::HttpOptions;

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

/// A listening socket and the routes behind it.
pub(in crate::server) struct Listener {
    pub socket: TcpListener,
    /// Whose scripts may read the answers.
    pub cors_origins: Vec<String>,
    /// Adds the routes; called on each worker thread.
    pub add_routes: Arc<dyn Fn(&mut ServiceConfig) + Send + Sync>,
}

/// Builds the server of all `listeners`, which share connection limits, worker threads and shutdown. It runs while it is polled, in
/// a tokio or actix runtime. `metrics` is told of all requests.
pub(in crate::server) fn serve(
    options: HttpOptions,
    metrics: Arc<dyn HttpMetrics>,
    stopping: Stopping,
    listeners: Vec<Listener>,
) -> io::Result<Server> {
    allow_open_files(options.max_connections);
    // The framework stops accepting at this number per worker; `ConnectionSlots` stays below it.
    let most = usize::try_from(options.max_connections).unwrap_or(usize::MAX);
    let most = most.saturating_add(4 * SPARE_SLOTS);
    let mut builder = Server::build()
        .workers(WORKERS)
        .worker_max_blocking_threads(BLOCKING_THREADS)
        .max_concurrent_connections(most)
        .shutdown_timeout(options.shutdown_seconds)
        .disable_signals();
    let slots = ConnectionSlots::new(&options);
    let stall = Duration::from_secs(options.stall_seconds);
    let tls = options.tls.clone();
    let handshake = Duration::from_secs(options.handshake_seconds);
    let (options, about_to_stop) = (Data::new(options), Data::new(stopping));
    for listener in listeners {
        let Listener {
            socket,
            cors_origins,
            add_routes,
        } = listener;
        let (options, about_to_stop) = (options.clone(), about_to_stop.clone());
        let (slots, tls, metrics) = (Arc::clone(&slots), tls.clone(), metrics.clone());
        let stopping = builder.graceful_shutdown_signal();
        let service = move || {
            let app = App::new()
                .app_data(options.clone())
                .app_data(about_to_stop.clone())
                .app_data(metrics.clone())
                .wrap(Condition::new(!cors_origins.is_empty(), cors(&cors_origins)))
                .wrap(from_fn(admit))
                .wrap(from_fn(finish))
                .wrap(from_fn(guard_body))
                .wrap(from_fn(access_log))
                .configure(|config| add_routes(config));
            let draining = stopping.clone();
            let http = HttpService::build()
                .graceful_shutdown_signal(move || {
                    let draining = draining.clone();
                    async move { draining.notified().await }
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
            let (slots, tls, metrics) = (Arc::clone(&slots), tls.clone(), metrics.clone());
            let stopping = stopping.clone();
            fn_service(move |stream: TcpStream| {
                let address = stream.peer_addr().ok();
                let slot = slots.enter(address.map(|address| address.ip()));
                enable_keep_alive(&stream, stall);
                let tls = tls.as_ref().map(|tls| tls.current());
                let (stopping, metrics) = (stopping.clone(), metrics.clone());
                async move {
                    let socket = match tls {
                        None => Some(Socket::Plain(stream)),
                        Some(tls) => {
                            handshake::accept(stream, tls, handshake, slot.state(), stopping.notified()).await
                        }
                    };
                    // The reason is in the log; what is left of the connection is closed.
                    let socket = socket.ok_or(DispatchError::SlowRequestTimeout)?;
                    Ok((Connection::new(socket, slot, stall, metrics), address))
                }
            })
            .and_then(http)
        };
        builder = builder.listen("medvision", socket, service)?;
    }
    Ok(builder.run())
}

/// A route for GET and HEAD.
pub(in crate::server) fn readable<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args> + Clone,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).get(handler.clone()).head(handler)
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .allowed_methods([Method::GET, Method::HEAD, Method::POST])
        .allowed_headers([header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION])
        .allowed_header("x-api-key")
        .allowed_header("x-request-id")
        .allowed_header("traceparent")
        .expose_headers(["x-request-id", "traceparent", "retry-after"])
        .max_age(3600);
    let origins = origins.iter();
    origins.fold(cors, |cors, origin| cors.allowed_origin(origin))
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
