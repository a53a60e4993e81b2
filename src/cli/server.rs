//! `server`: the REST API.

use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;

use actix_web::web::Data;
use clap::{Parser, value_parser};

use super::audit_args::AuditArgs;
use super::http_args::{HttpArgs, TlsArgs, at_most, host_name, listen_host};
use super::key_args::{KeyArgs, print_new_key};
use super::{CommonArgs, ResidentAdapterArgs, decoder, fail, print_warnings};
use crate::console::{Level, say, say_lines};
use crate::device::{Selected, gpu_memory, share_freed_memory};
use crate::documents::{MAX_DPI, MIN_DPI};
use crate::engine::{Engine, LoadOptions, Reader};
use crate::records::mebibytes;
use crate::server::{self, GpuFigures, Readiness, Reloads, ServerOptions, ServerState};
use crate::version::version;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped by SIGTERM or Ctrl-C after draining in-flight requests
  1    cannot listen, cannot use a key, TLS or audit file, cannot load the model, or in-flight requests exceeded --shutdown-seconds
  2    invalid command line
  130, 143  stopped immediately by a second Ctrl-C or SIGTERM";

/// Serve document extraction over HTTP
///
/// Routes: GET /health, /health/live, /health/ready, POST /extract, POST /analyze, GET /benchmark, /metrics, and OpenAI's /v1/chat/completions and /v1/models; /docs describes them. --demo-port adds a page that uses them.
/// Listens immediately and loads the model in the background; /health/ready tells when it is loaded. If the model cannot be loaded, the
/// process exits with code 1, so that a supervisor notices.
#[derive(Parser)]
#[command(name = "server", version = version(), after_help = EXIT_CODES)]
pub(super) struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten, next_help_heading = "Access options")]
    keys: KeyArgs,
    #[command(flatten, next_help_heading = "Audit options")]
    audit: AuditArgs,
    #[command(flatten, next_help_heading = "TLS options")]
    tls: TlsArgs,
    #[command(flatten)]
    adapter: ResidentAdapterArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Address, limits and timeouts.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server options")]
struct ServerArgs {
    /// Address to listen on. Any but a loopback address needs an API key or --compat; otherwise 127.0.0.1 is used.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MVP_HOST",
        hide_env_values = true,
        value_parser = listen_host,
        default_value_t = defaults().host
    )]
    host: String,

    /// Port to listen on (0: any free port).
    #[arg(
        long,
        value_name = "N",
        env = "MVP_PORT",
        hide_env_values = true,
        default_value_t = defaults().port
    )]
    port: u16,

    /// Port of the demo page, on the same address (0: any free port) [default: no page]
    #[arg(long, value_name = "N", env = "MVP_DEMO_PORT", hide_env_values = true)]
    demo_port: Option<u16>,

    /// Name under which a reverse proxy serves the demo page; repeatable [default: any, on a loopback address only localhost]
    #[arg(
        long,
        value_name = "NAME",
        env = "MVP_DEMO_ALLOWED_HOST",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = host_name
    )]
    demo_allowed_host: Vec<String>,

    #[command(flatten)]
    http: HttpArgs,

    /// Queue capacity, excluding the running requests (503 with Retry-After when full).
    #[arg(long, value_name = "N", env = "MVP_QUEUE", hide_env_values = true, default_value_t = defaults().queue, value_parser = at_most::<1000>(0))]
    queue: u64,

    /// Most requests that are answered together: tokens cost less, and each request takes longer [default: 8 on a GPU, 4 on a CPU]
    #[arg(long, value_name = "N", env = "MVP_MAX_BATCH", hide_env_values = true, value_parser = at_most::<64>(1))]
    max_batch: Option<u64>,

    /// Memory in MiB for keys and values of the requests that are answered together [default: half of what is free once the model is loaded]
    #[arg(long, value_name = "MIB", env = "MVP_KV_CACHE_MIB", hide_env_values = true, value_parser = at_most::<1_048_576>(1))]
    kv_cache_mib: Option<u64>,

    /// Do not keep the keys and values of pages that were read, which make further questions about them faster.
    #[arg(long, env = "MVP_NO_PREFIX_CACHE", hide_env_values = true)]
    no_prefix_cache: bool,

    /// Maximum requests of one API key in the queue, the running one included (429) [default: half of --queue]
    #[arg(long, value_name = "N", env = "MVP_MAX_PER_KEY", hide_env_values = true, value_parser = at_most::<1001>(1))]
    max_per_key: Option<u64>,

    /// Time in seconds after SIGTERM in which requests are still admitted, while /health/ready answers 503; Ctrl-C does not wait.
    #[arg(long, value_name = "N", env = "MVP_DRAIN_DELAY", hide_env_values = true, default_value_t = defaults().drain_delay_seconds, value_parser = at_most::<3600>(0))]
    drain_delay: u64,

    /// Queue timeout in seconds, from the first byte of the request (503), but at least 1 s after its last byte.
    #[arg(long, value_name = "N", env = "MVP_QUEUE_DEADLINE_SECONDS", hide_env_values = true, default_value_t = defaults().queue_deadline_seconds, value_parser = at_most::<86_400>(1))]
    queue_deadline_seconds: u64,

    /// Generation timeout in seconds (504).
    #[arg(long, value_name = "N", env = "MVP_GENERATION_DEADLINE_SECONDS", hide_env_values = true, default_value_t = defaults().generation_deadline_seconds, value_parser = at_most::<86_400>(1))]
    generation_deadline_seconds: u64,

    /// Maximum image size in megapixels, width x height as stored (400).
    #[arg(long, value_name = "N", env = "MVP_MAX_MEGAPIXELS", hide_env_values = true, default_value_t = defaults().max_megapixels, value_parser = at_most::<1000>(1))]
    max_megapixels: u64,

    /// Maximum number of pages of a request (413).
    #[arg(long, value_name = "N", env = "MVP_MAX_PAGES", hide_env_values = true, default_value_t = defaults().max_pages, value_parser = at_most::<10_000>(1))]
    max_pages: u64,

    /// Resolution in dots per inch at which PDF pages are rendered; less where the model's maximum page size says so.
    #[arg(long, value_name = "N", env = "MVP_DPI", hide_env_values = true, default_value_t = defaults().dpi, value_parser = value_parser!(u32).range(MIN_DPI..=MAX_DPI))]
    dpi: u32,

    /// Memory budget in MiB for decoding and for decoded pages in the queue, across requests; requests wait for it.
    #[arg(long, value_name = "N", env = "MVP_MAX_DECODED_MIB", hide_env_values = true, default_value_t = defaults().max_decoded_mib, value_parser = at_most::<1_048_576>(64))]
    max_decoded_mib: u64,

    /// Time in seconds after which a stream that is quiet gets a comment, so that proxies keep it open.
    #[arg(long, value_name = "N", env = "MVP_STREAM_KEEP_ALIVE_SECONDS", hide_env_values = true, default_value_t = defaults().stream_keep_alive_seconds, value_parser = at_most::<3600>(1))]
    stream_keep_alive_seconds: u64,

    /// Maximum generated text in KiB that waits for the client of a stream; more cancels the request.
    #[arg(long, value_name = "N", env = "MVP_STREAM_BUFFER_KIB", hide_env_values = true, default_value_t = defaults().stream_buffer_kib, value_parser = at_most::<1_048_576>(1))]
    stream_buffer_kib: u64,

    /// Maximum number of pictures in a chat request (400).
    #[arg(long, value_name = "N", env = "MVP_MAX_PICTURES", hide_env_values = true, default_value_t = defaults().max_pictures, value_parser = at_most::<256>(1))]
    max_pictures: u64,

    /// Maximum number of new tokens; a request may lower it, not raise it.
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", hide_env_values = true, default_value_t = defaults().max_new_tokens, value_parser = at_most::<131_072>(1))]
    max_new_tokens: u64,

    /// Allowed CORS origin (scheme, host, port); repeatable [default: none].
    #[arg(long, value_name = "ORIGIN", env = "MVP_CORS_ORIGIN", hide_env_values = true, value_delimiter = ',', value_parser = origin)]
    cors_origin: Vec<String>,
}

fn defaults() -> ServerOptions {
    ServerOptions::default()
}

/// Parses a CORS origin.
fn origin(text: &str) -> Result<String, String> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or_default();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(is_allowed) {
        return Err("an origin is http(s)://HOST or http(s)://HOST:PORT, without path or wildcard".into());
    }
    Ok(text.to_ascii_lowercase())
}

impl From<ServerArgs> for ServerOptions {
    fn from(args: ServerArgs) -> Self {
        Self {
            host: args.host,
            port: args.port,
            demo_port: args.demo_port,
            demo_allowed_hosts: args.demo_allowed_host,
            http: args.http.into(),
            queue: args.queue,
            max_batch: args.max_batch,
            max_per_key: args.max_per_key,
            drain_delay_seconds: args.drain_delay,
            queue_deadline_seconds: args.queue_deadline_seconds,
            generation_deadline_seconds: args.generation_deadline_seconds,
            max_megapixels: args.max_megapixels,
            max_pages: args.max_pages,
            dpi: args.dpi,
            max_decoded_mib: args.max_decoded_mib,
            stream_keep_alive_seconds: args.stream_keep_alive_seconds,
            stream_buffer_kib: args.stream_buffer_kib,
            max_pictures: args.max_pictures,
            max_new_tokens: args.max_new_tokens,
            cors_origin: args.cors_origin,
        }
    }
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    let (arguments, matches) = super::parse::<Arguments>();
    arguments.keys.check(&matches);
    arguments.common.start_logging(Level::INFO);
    server::forbid_core_dumps();
    share_freed_memory();
    let served = actix_web::rt::System::new().block_on(serve(arguments));
    served.unwrap_or_else(|error| fail(&error))
}

async fn serve(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments {
        server,
        keys,
        audit,
        tls,
        adapter,
        common,
    } = arguments;
    let (kv_cache_mib, prefix_cache) = (server.kv_cache_mib, !server.no_prefix_cache);
    let mut options = ServerOptions::from(server);
    let mut reloads = Reloads::new(say);
    options.http.tls = tls.load(&mut reloads)?;
    let admission = keys.admission(options.host, &mut reloads)?;
    options.host = admission.host;
    let audit = audit.open(&mut reloads)?;
    reloads.listen()?;
    let listeners = server::bind(&options)?;
    let is_open = !listeners.api.local_addr()?.ip().is_loopback();
    // A name may have another address than a moment ago.
    anyhow::ensure!(
        !(admission.only_loopback && is_open),
        "--host is not a loopback address, and there is no key"
    );
    let project = common.project()?;
    let model = common.served_model(&project)?;
    let (adapter, named_adapters) = adapter.resolve(&project, &model.path)?;
    let selected = common.select_device()?;
    let load_options = LoadOptions {
        device: selected.device,
        precision: common.precision,
        adapter,
        named_adapters,
        kv_cache_bytes: kv_cache_mib.map(|mib| mib << 20),
        prefix_cache,
        ..LoadOptions::default()
    };
    let address = listeners.api.local_addr()?;
    let (scheme, folder) = (options.http.scheme(), model.path.display());
    say(
        Level::INFO,
        &format!("listening on {scheme}://{address}; loading {folder}"),
    );
    if let Some(key) = &admission.new_key {
        let page = listeners.demo.as_ref().map(TcpListener::local_addr).transpose()?;
        print_new_key(
            key,
            page.map(|page| format!("{scheme}://{}", server::reachable(page))),
        )?;
    }
    let load = move || {
        let reader = Reader::load(&model.path, &load_options)?;
        print_warnings(reader.warnings());
        Ok(reader)
    };
    let engine = Arc::new(Engine::start(load, options.engine())?);
    let state = ServerState::new(engine, options, project.benchmarks());
    let state = state
        .with_access(admission.access)
        .with_audit(audit)
        .with_decoder(decoder())
        .with_gpu(move || gpu_figures(&selected));
    let announce = |readiness: &Readiness| say_lines(Level::INFO, &readiness.to_string());
    Ok(server::run(listeners, Data::new(state), announce).await?)
}

fn gpu_figures(selected: &Selected) -> GpuFigures {
    let Some(gpu) = &selected.gpu else {
        return GpuFigures::default();
    };
    GpuFigures {
        available: true,
        name: Some(gpu.name.clone()),
        used_mb: gpu_memory(gpu.index).map_or(0.0, |memory| mebibytes(memory.used_bytes)),
        total_mb: mebibytes(gpu.total_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_set_the_option_of_their_name() {
        let options = |flags: &[&str]| {
            let arguments = ["server"].iter().chain(flags);
            ServerOptions::from(Arguments::parse_from(arguments).server)
        };
        let default = ServerOptions::default();
        assert_eq!(format!("{:?}", options(&[])), format!("{default:?}"));
        let options = options(&[
            "--port=0",
            "--queue=3",
            "--max-batch=6",
            "--max-per-key=2",
            "--drain-delay=1",
            "--max-pictures=5",
            "--stream-keep-alive-seconds=6",
            "--stream-buffer-kib=7",
            "--stall-seconds=8",
            "--cors-origin=https://Example.org:8443",
        ]);
        assert_eq!(
            (options.port, options.queue, options.max_per_key),
            (0, 3, Some(2))
        );
        assert_eq!(options.max_batch, Some(6));
        assert_eq!((options.drain_delay_seconds, options.max_pictures), (1, 5));
        let stream = (options.stream_keep_alive_seconds, options.stream_buffer_kib);
        assert_eq!((stream, options.http.stall_seconds), ((6, 7), 8));
        assert_eq!(options.cors_origin, ["https://example.org:8443"]);
    }
}
