//! Hub endpoint, credentials and retry policy.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::FalseyValueParser;
use hf_hub::Cache;
use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::error::HubError;
use crate::fs::read_text;

/// Endpoint unless `HF_ENDPOINT` is set.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Maximum size of a token file.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Flags of the programs that download.
///
/// `HF_ENDPOINT` (the hub), `HF_TOKEN` (or the token that `hf auth login` stored) and `HF_HUB_OFFLINE` are honoured as
/// by the hub's own tools.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Download options")]
pub struct HubArgs {
    /// Do not use the network: verify local files and fail if any are missing (also HF_HUB_OFFLINE=1)
    #[arg(long, env = "MVP_OFFLINE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub offline: bool,

    /// Number of concurrent downloads
    #[arg(long, value_name = "N", env = "MVP_JOBS", default_value_t = 4, hide_env_values = true,
          value_parser = clap::value_parser!(u16).range(1..=32))]
    pub jobs: u16,

    /// Retries after an attempt that made no progress
    #[arg(long, value_name = "N", env = "MVP_RETRIES", default_value_t = 6, hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,

    /// Abort a connection after this long without data
    #[arg(long, value_name = "SECONDS", env = "MVP_STALL_SECONDS", default_value_t = 30.0, hide_env_values = true,
          value_parser = positive_seconds)]
    pub stall_seconds: f64,

    /// Initial retry delay in seconds, doubled on every retry
    #[arg(long, value_name = "SECONDS", env = "MVP_RETRY_SECONDS", default_value_t = 1.0, hide_env_values = true,
          value_parser = positive_seconds)]
    pub retry_seconds: f64,
}

fn positive_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0.001 to 86400".to_owned()),
    }
}

impl HubArgs {
    /// `--offline`, or `HF_HUB_OFFLINE` in any of its spellings.
    pub fn offline(&self) -> bool {
        self.offline || env_flag("HF_HUB_OFFLINE")
    }

    /// The settings of a run.
    pub fn settings(&self) -> Result<HubSettings, HubError> {
        Ok(HubSettings {
            endpoint: endpoint()?,
            token: token()?,
            jobs: usize::from(self.jobs),
            retries: self.retries,
            stall: Duration::from_secs_f64(self.stall_seconds),
            first_delay: Duration::from_secs_f64(self.retry_seconds),
        })
    }
}

/// Hub endpoint, credentials and retry policy.
#[derive(Clone)]
pub struct HubSettings {
    /// URL without a trailing slash.
    pub endpoint: Url,
    /// Sent to the endpoint's host and no other.
    pub token: Option<Token>,
    /// Maximum number of concurrent downloads.
    pub jobs: usize,
    /// Retries after an attempt that made no progress.
    pub retries: u32,
    /// Read timeout: maximum time without data on a connection.
    pub stall: Duration,
    /// Delay before the first retry; doubled on every further one.
    pub first_delay: Duration,
}

/// An access token. `Debug` hides it, and there is no `Display`.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Returns the `Authorization` header, marked as sensitive.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token(hidden)")
    }
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "HubSettings({}, {:?})", self.endpoint, self.token)
    }
}

fn endpoint() -> Result<Url, HubError> {
    let text = env_text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let refused = |reason: &str| HubError::Setting {
        variable: "HF_ENDPOINT",
        reason: format!("{reason}; expected a URL such as {DEFAULT_ENDPOINT}"),
    };
    let url = Url::parse(text.trim_end_matches('/')).map_err(|error| refused(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(refused("not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(refused("must not contain credentials or a query string"));
    }
    Ok(url)
}

/// Reads the token from `HF_TOKEN`, from the file in `HF_TOKEN_PATH`, or from the file that `hf auth login` wrote.
fn token() -> Result<Option<Token>, HubError> {
    let refused = |variable, reason: &str| HubError::Setting {
        variable,
        reason: reason.to_owned(),
    };
    let (variable, text) = if let Some(token) = env_text("HF_TOKEN") {
        ("HF_TOKEN", token)
    } else if env_flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
    } else if let Some(path) = env_text("HF_TOKEN_PATH") {
        let text = read_text(Path::new(&path), MAX_TOKEN_BYTES)
            .map_err(|error| refused("HF_TOKEN_PATH", &format!("cannot be read: {error}")))?;
        ("HF_TOKEN_PATH", text)
    } else {
        match cache().token() {
            Some(text) => ("the stored token", text),
            None => return Ok(None),
        }
    };
    let token = Token(text.trim().to_owned());
    if token.0.is_empty() {
        return Ok(None);
    }
    match token.0.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Some(token)),
        false => Err(refused(
            variable,
            "contains characters that are not allowed in a token",
        )),
    }
}

/// Returns hf-hub's cache folder, of which only the token is used. Without a home folder there is none.
pub(super) fn cache() -> Cache {
    if env_text("HF_HOME").is_some() || env::home_dir().is_some() {
        Cache::from_env()
    } else {
        Cache::new(PathBuf::from("/nonexistent/hub"))
    }
}

fn env_text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.trim().is_empty())
}

fn env_flag(name: &str) -> bool {
    env_text(name).is_some_and(|text| {
        matches!(
            text.trim().to_ascii_lowercase().as_str(),
            "1" | "on" | "yes" | "true"
        )
    })
}
