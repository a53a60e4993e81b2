//! `medvision health`: asks a server whether it is ready.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use reqwest::{Client, Url, redirect};

use crate::cli::{self, EXIT_OK};
use crate::server::{ErrorBody, ServerOptions};

/// Maximum time of the question.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ask a server whether it is ready
///
/// Exit code 0 where /health/ready answers 200, else 1, with the reason on standard error. Without --url it asks the server on this
/// machine, on the port of MVP_PORT, over TLS where MVP_TLS_CERT is set; the certificate is not checked then.
#[derive(clap::Args)]
pub(super) struct HealthArgs {
    /// Address of the server
    #[arg(long, value_name = "URL", env = "MVP_API_URL", hide_env_values = true)]
    url: Option<Url>,
}

/// Runs the command.
pub(super) fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => own_server()?,
    };
    let url = url.join("/health/ready").context("--url")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(ask(url, args.url.is_none()))?;
    cli::print("ready\n")?;
    Ok(ExitCode::from(EXIT_OK))
}

async fn ask(url: Url, own: bool) -> anyhow::Result<()> {
    let client = Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(redirect::Policy::none())
        // On this machine, under a name that the certificate does not have.
        .danger_accept_invalid_certs(own)
        .build()
        .context("cannot make an HTTP client")?;
    let response = client.get(url.clone()).send().await;
    let response =
        response.with_context(|| format!("no answer from {}", url.origin().ascii_serialization()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    match response.json::<ErrorBody>().await {
        Ok(body) => anyhow::bail!("not ready: {}", body.detail),
        Err(_) => anyhow::bail!("{url} answered {status}"),
    }
}

/// Address of the server that has this process's variables.
fn own_server() -> anyhow::Result<Url> {
    let port = match std::env::var("MVP_PORT") {
        Ok(port) => port.parse().context("MVP_PORT is not a port")?,
        Err(_) => ServerOptions::default().port,
    };
    let has_tls = std::env::var_os("MVP_TLS_CERT").is_some_and(|file| !file.is_empty());
    let scheme = if has_tls { "https" } else { "http" };
    Ok(Url::parse(&format!("{scheme}://127.0.0.1:{port}"))?)
}
