//! Errors of downloads from a hub; each message ends with the next step.

use std::time::Duration;

use crate::error::excerpt;

/// An error of a download from a hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not a valid repository id.
    #[error("{0:?} is not the name of a repository on the hub; expected OWNER/NAME")]
    RepositoryName(String),
    /// `HF_ENDPOINT` or `HF_TOKEN` is not valid.
    #[error("{variable}: {reason}")]
    Setting {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong with it, without secret values.
        reason: String,
    },
    /// Only approved accounts have access.
    #[error("{repository} is gated: {}", gated_help(.page, *.with_token))]
    Gated {
        /// Requested repository.
        repository: String,
        /// Its web page on the hub.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// Authentication or authorization failed.
    #[error("{repository}: the hub refused the request (HTTP {status}{message}): {}", refused_help(*.with_token))]
    Refused {
        /// Requested repository.
        repository: String,
        /// 401 or 403.
        status: u16,
        /// The hub's own message, quoted after a space; may be empty.
        message: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// No such repository, or a private one.
    #[error("{repository}: no such repository on {endpoint}{}; check the name", private_help(*.with_token))]
    NoRepository {
        /// Requested repository.
        repository: String,
        /// URL of the hub.
        endpoint: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// No such branch, tag or commit.
    #[error("{repository} has no revision {revision:?}; omit --revision to use the latest")]
    NoRevision {
        /// The repository.
        repository: String,
        /// Requested revision.
        revision: String,
    },
    /// The hub lists a file that it does not serve.
    #[error(
        "{repository}: the hub lists \"{}\" but does not serve it; retry, or choose another --revision",
        excerpt(.file)
    )]
    NoFile {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
    },
    /// Files are missing in offline mode.
    #[error(
        "offline mode (--offline, HF_HUB_OFFLINE), and {0}; run once online, or pass a local copy with --source"
    )]
    Offline(String),
    /// No connection, and no response from the hub in this run.
    #[error("{endpoint} cannot be reached: {reason}; {NO_NETWORK}")]
    NoNetwork {
        /// URL of the hub.
        endpoint: String,
        /// Failure of the last attempt.
        reason: String,
    },
    /// All attempts failed.
    #[error("{what}: {reason} ({attempts} attempts); {NEXT_TIME}")]
    Unreachable {
        /// Repository or file.
        what: String,
        /// Failure of the last attempt.
        reason: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// The hub requests a wait beyond the limit.
    #[error("{what}: rate limited, retry after {} s (HTTP {status}); {NEXT_TIME}", .wait.as_secs())]
    RetryAfter {
        /// Repository or file.
        what: String,
        /// 429 or 503.
        status: u16,
        /// Requested wait.
        wait: Duration,
    },
    /// The response is not one of a Hugging Face hub.
    #[error("{what}: {reason}; is HF_ENDPOINT the address of a Hugging Face hub?")]
    InvalidResponse {
        /// Repository or file.
        what: String,
        /// What is wrong with the response.
        reason: String,
    },
    /// The hub lists a file name that leaves the folder or collides with another.
    #[error("{repository} lists a file named \"{}\", which is refused ({reason}); nothing was downloaded", excerpt(.name))]
    UnsafeName {
        /// The repository.
        repository: String,
        /// The name as listed.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The repository does not contain suitable files.
    #[error("{repository}: {reason}")]
    Unsuitable {
        /// The repository.
        repository: String,
        /// What is missing or unsupported.
        reason: String,
    },
    /// The content differs from the announced size or checksum.
    #[error("{file}: {reason}, {attempts} times; the copy was discarded. {CORRUPTION}")]
    Corrupt {
        /// The file.
        file: String,
        /// The difference.
        reason: String,
        /// Number of downloads from the first byte.
        attempts: u32,
    },
    /// Not enough disk space; checked before the download.
    #[error(
        "{folder}: not enough disk space: {needed} needed, {free} free; free some, or choose another folder with --root"
    )]
    NoSpace {
        /// Destination.
        folder: String,
        /// Needed space, formatted.
        needed: String,
        /// Free space, formatted.
        free: String,
    },
}

const NO_NETWORK: &str = "without network, give a local copy with --source, or verify local files with --offline; behind a proxy, set HTTPS_PROXY (HTTP_PROXY, ALL_PROXY, NO_PROXY)";
const NEXT_TIME: &str = "partial downloads are kept; run the same command to resume";
const CORRUPTION: &str = "A proxy or mirror modifies the data, or the hub's copy is corrupt";

fn gated_help(page: &str, with_token: bool) -> String {
    if with_token {
        format!(
            "accept its conditions at {page} with the account that HF_TOKEN belongs to, and run the command again"
        )
    } else {
        format!("accept its conditions at {page}, make a read token there and set HF_TOKEN to it")
    }
}

fn refused_help(with_token: bool) -> &'static str {
    if with_token {
        "HF_TOKEN is not valid or may not read this repository; make a read token at the hub's /settings/tokens"
    } else {
        "check the name; if it is right, set HF_TOKEN to a read token from the hub's /settings/tokens"
    }
}

fn private_help(with_token: bool) -> &'static str {
    if with_token {
        ", or HF_TOKEN may not see it"
    } else {
        ", or it is private and HF_TOKEN is not set"
    }
}
