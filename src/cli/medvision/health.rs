//! `medvision health`: asks a server whether it is ready.

use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use reqwest::{Client, Url, redirect};

use crate::cli::http_args::listen_host;
use crate::cli::{self, EXIT_OK};
use crate::server::demo::ApiUrl;
use crate::server::{ErrorBody, ServerOptions, Status, TlsRefusal, reachable};

/// Maximum time of the question.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum size of the answer, bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Ask a server whether it is ready
///
/// Exit code 0 where /health/ready answers 200, else 1, with the reason on standard error. Without --url it asks the server on this
/// machine: MVP_HOST and MVP_PORT, over TLS where MVP_TLS_CERT is set; the certificate is not checked then, and a server that demands one of
/// its clients counts as ready.
#[derive(clap::Args)]
pub(super) struct HealthArgs {
    /// Address of the server
    #[arg(long, value_name = "URL", env = "MVP_API_URL", hide_env_values = true)]
    url: Option<ApiUrl>,
}

/// Runs the command.
pub(super) fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => own_server()?,
    };
    let route = url
        .route(["health", "ready"].into_iter())
        .context("the address of /health/ready")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(ask(route, args.url.is_none()))?;
    cli::print("ready\n")?;
    Ok(ExitCode::from(EXIT_OK))
}

async fn ask(route: Url, own: bool) -> anyhow::Result<()> {
    let client = Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(redirect::Policy::none())
        // On this machine, under a name that the certificate does not have.
        .danger_accept_invalid_certs(own)
        .build()
        .context("cannot make an HTTP client")?;
    let server = route.origin().ascii_serialization();
    let mut response = match client.get(route).send().await {
        Ok(response) => response,
        Err(error) => match TlsRefusal::of(&error) {
            // It answers, but tells only clients with a certificate, which this is not.
            Some(TlsRefusal::CertificateRequired) if own => return Ok(()),
            Some(refusal) => anyhow::bail!("{server}: {refusal}"),
            None => return Err(error).with_context(|| format!("no answer from {server}")),
        },
    };
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .with_context(|| format!("no answer from {server}"))?
    {
        body.extend_from_slice(&chunk);
        anyhow::ensure!(
            body.len() <= MAX_BODY_BYTES,
            "{server} is not this server: its answer is too long"
        );
    }
    if status.is_success() {
        let answer: Status =
            serde_json::from_slice(&body).with_context(|| format!("{server} is not this server"))?;
        anyhow::ensure!(answer.status == "ready", "{server} is not this server");
        return Ok(());
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => anyhow::bail!("not ready: {}", body.detail),
        Err(_) => anyhow::bail!("{server} answered {status}"),
    }
}

/// Address of the server that has this process's variables.
fn own_server() -> anyhow::Result<ApiUrl> {
    let defaults = ServerOptions::default();
    let port = match std::env::var("MVP_PORT") {
        Ok(port) => port.parse().context("MVP_PORT is not a port")?,
        Err(_) => defaults.port,
    };
    let host = match std::env::var("MVP_HOST") {
        Ok(host) => listen_host(&host).map_err(|reason| anyhow::anyhow!("MVP_HOST: {reason}"))?,
        Err(_) => defaults.host,
    };
    let address = (host.as_str(), port)
        .to_socket_addrs()
        .context("MVP_HOST")?
        .next();
    let address = reachable(address.context("MVP_HOST has no address")?);
    let has_tls = std::env::var_os("MVP_TLS_CERT").is_some_and(|file| !file.is_empty());
    let scheme = if has_tls { "https" } else { "http" };
    Ok(format!("{scheme}://{address}").parse()?)
}
