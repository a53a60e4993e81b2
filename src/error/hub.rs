//! What can go wrong between here and the hub; each text ends with what to do next.

use std::time::Duration;

use crate::error::excerpt;

/// Why something could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is not that of a repository.
    #[error("{0:?} is not the name of a repository on the hub; expected OWNER/NAME")]
    RepositoryName(String),
    /// `HF_ENDPOINT` or `HF_TOKEN` cannot be used.
    #[error("{variable}: {reason}")]
    Setting {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong with it; never its value where that is secret.
        reason: String,
    },
    /// The owner lets only approved accounts in.
    #[error("{repository} is gated: {}", gated_help(.page, *.with_token))]
    Gated {
        /// What was asked for.
        repository: String,
        /// Its page on the hub.
        page: String,
        /// A token was sent.
        with_token: bool,
    },
    /// The hub wants to know who asks, or does not let them in.
    #[error("{repository}: the hub refused the request (HTTP {status}{message}): {}", refused_help(*.with_token))]
    Refused {
        /// What was asked for.
        repository: String,
        /// 401 or 403.
        status: u16,
        /// The hub's own message, quoted after a space; may be empty.
        message: String,
        /// A token was sent.
        with_token: bool,
    },
    /// No such repository, or a private one.
    #[error("{repository}: no such repository on {endpoint}{}; check the name", private_help(*.with_token))]
    NoRepository {
        /// What was asked for.
        repository: String,
        /// The hub.
        endpoint: String,
        /// A token was sent.
        with_token: bool,
    },
    /// No such branch, tag or commit.
    #[error("{repository} has no revision {revision:?}; omit --revision to use the latest")]
    NoRevision {
        /// The repository.
        repository: String,
        /// What was asked for.
        revision: String,
    },
    /// The repository's list names a file that is not there.
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
    /// The network must not be used.
    #[error(
        "offline mode (--offline, HF_HUB_OFFLINE), and {0}; run once online, or pass a local copy with --source"
    )]
    Offline(String),
    /// The hub took no connection and never answered in this run.
    #[error("{endpoint} cannot be reached: {reason}; {NO_NETWORK}")]
    NoNetwork {
        /// The hub.
        endpoint: String,
        /// The last attempt's failure.
        reason: String,
    },
    /// Every attempt failed.
    #[error("{what}: {reason} ({attempts} attempts); {NEXT_TIME}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// The last attempt's failure.
        reason: String,
        /// How many there were.
        attempts: u32,
    },
    /// The hub asks to wait longer than anyone would want to.
    #[error("{what}: rate limited, retry after {} s (HTTP {status}); {NEXT_TIME}", .wait.as_secs())]
    Wait {
        /// What was asked for.
        what: String,
        /// 429 or 503.
        status: u16,
        /// How long.
        wait: Duration,
    },
    /// The response is not one of a Hugging Face hub.
    #[error("{what}: {reason}; is HF_ENDPOINT the address of a Hugging Face hub?")]
    InvalidResponse {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The repository's list holds a name that would lie outside the folder, or that cannot be told from another.
    #[error("{repository} lists a file named \"{}\", which is refused ({reason}); nothing was downloaded", excerpt(.name))]
    UnsafeName {
        /// The repository.
        repository: String,
        /// The name as listed.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A repository without the files that were wanted.
    #[error("{repository}: {reason}")]
    Unsuitable {
        /// The repository.
        repository: String,
        /// What is missing, or too much.
        reason: String,
    },
    /// Other bytes than the hub itself announces.
    #[error("{file}: {reason}, {attempts} times; the copy was discarded. {CORRUPTION}")]
    Corrupt {
        /// The file.
        file: String,
        /// How it differs.
        reason: String,
        /// How often it was fetched from its first byte.
        attempts: u32,
    },
    /// Not enough room on the disk, found before anything was fetched.
    #[error(
        "{folder}: not enough disk space: {needed} needed, {free} free; free some, or choose another folder with --root"
    )]
    NoSpace {
        /// Where it would go.
        folder: String,
        /// For people.
        needed: String,
        /// For people.
        free: String,
    },
}

const NO_NETWORK: &str = "without network, give a local copy with --source, or check what is there with --offline; behind a proxy, set HTTPS_PROXY (HTTP_PROXY, ALL_PROXY, NO_PROXY)";
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
        "check the name; where it is right, set HF_TOKEN to a read token from the hub's /settings/tokens"
    }
}

fn private_help(with_token: bool) -> &'static str {
    if with_token {
        ", or HF_TOKEN may not see it"
    } else {
        ", or it is private and HF_TOKEN is not set"
    }
}
