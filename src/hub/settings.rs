//! Hub endpoint, credentials and retry policy.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;
use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::error::HubError;
use crate::fs::read_text;

/// Endpoint unless `HF_ENDPOINT` is set.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Maximum size of a token file.
const MAX_TOKEN_BYTES: u64 = 4096;

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

impl HubSettings {
    /// Default of `jobs`.
    pub const JOBS: u16 = 4;
    /// Default of `retries`.
    pub const RETRIES: u32 = 6;
    /// Default of `stall`, in seconds.
    pub const STALL_SECONDS: f64 = 30.0;
    /// Default of `first_delay`, in seconds.
    pub const RETRY_SECONDS: f64 = 1.0;

    /// Reads `HF_ENDPOINT` and `HF_TOKEN` (or the token that `hf auth login` stored), as the hub's own tools do; all else
    /// has its default.
    ///
    /// # Errors
    /// [`HubError::Setting`], if a variable is not valid.
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self {
            endpoint: endpoint()?,
            token: token()?,
            jobs: usize::from(Self::JOBS),
            retries: Self::RETRIES,
            stall: Duration::from_secs_f64(Self::STALL_SECONDS),
            first_delay: Duration::from_secs_f64(Self::RETRY_SECONDS),
        })
    }

    /// Whether `HF_HUB_OFFLINE` is set to a true value.
    pub fn offline_from_env() -> bool {
        env_flag("HF_HUB_OFFLINE")
    }
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
