//! `demo_ui`: the demo page in front of a running API.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;

use super::http_args::{HttpArgs, TlsArgs, host_name, listen_host};
use super::{CommonArgs, fail};
use crate::console::{Level, say, say_lines};
use crate::server::demo::{self, DemoOptions};
use crate::server::{self, HttpOptions, Reloads};
use crate::version::version;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped by SIGTERM or Ctrl-C after draining in-flight requests
  1    cannot listen, cannot use a TLS file, or in-flight requests exceeded --shutdown-seconds
  2    invalid command line
  130, 143  stopped immediately by a second Ctrl-C or SIGTERM";

/// Serve the demo page, which reads documents in the browser
///
/// Serves the page and forwards its requests below /api to the API of a running `server`, so that the browser talks to one address.
/// Other routes are not forwarded; a key that a visitor enters is passed on. `server --demo-port` serves the
/// same page without this program.
#[derive(Parser)]
#[command(name = "demo_ui", version = version(), after_help = EXIT_CODES)]
pub(super) struct Arguments {
    #[command(flatten)]
    demo: DemoArgs,
    #[command(flatten, next_help_heading = "TLS options")]
    tls: TlsArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Addresses and limits.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Page options")]
struct DemoArgs {
    /// Address of the API: http(s)://HOST or http(s)://HOST:PORT
    #[arg(long, value_name = "URL", env = "MVP_API_URL", hide_env_values = true, default_value = DemoOptions::API_URL)]
    api_url: String,

    /// Address to listen on. Whoever reaches it can use an API that asks for no key.
    #[arg(long, value_name = "ADDRESS", env = "MVP_HOST", hide_env_values = true, value_parser = listen_host, default_value = DemoOptions::HOST)]
    host: String,

    /// Port to listen on (0: any free port).
    #[arg(long, value_name = "N", env = "MVP_DEMO_PORT", hide_env_values = true, default_value_t = DemoOptions::PORT)]
    port: u16,

    /// Name under which a reverse proxy serves the page; repeatable [default: any, on a loopback address only localhost]
    #[arg(
        long,
        value_name = "NAME",
        env = "MVP_DEMO_ALLOWED_HOST",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = host_name
    )]
    allowed_host: Vec<String>,

    #[command(flatten)]
    http: HttpArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    let (arguments, _) = super::parse::<Arguments>();
    arguments.common.start_logging(Level::INFO);
    server::forbid_core_dumps();
    let served = actix_web::rt::System::new().block_on(serve(arguments.demo, arguments.tls));
    served.unwrap_or_else(|error| fail(&error))
}

async fn serve(args: DemoArgs, tls: TlsArgs) -> anyhow::Result<ExitCode> {
    let mut options = DemoOptions {
        api_url: args.api_url.parse()?,
        host: args.host,
        port: args.port,
        allowed_hosts: args.allowed_host,
        http: HttpOptions::from(args.http),
    };
    let mut reloads = Reloads::new(say);
    options.http.tls = tls.load(&mut reloads)?;
    reloads.listen()?;
    let listener = demo::bind(&options)?;
    say_lines(Level::INFO, &summary(listener.local_addr()?, &options));
    Ok(demo::run(listener, &options).await?)
}

fn summary(address: SocketAddr, options: &DemoOptions) -> String {
    let scheme = options.http.scheme();
    let mut summary = format!(
        "Demo page: {scheme}://{address}, for the API at {}",
        options.api_url
    );
    let tls = options.http.tls.as_ref();
    if !address.ip().is_loopback() && !tls.is_some_and(|tls| tls.asks_for_client_certificates()) {
        summary += "\n  note  reachable from the network: who opens the page can use the API, with a key where the API asks for one";
    }
    summary + "\nPress Ctrl-C to drain and stop, twice to stop immediately."
}
