//! Requests to the hub: redirects, the token's scope, which answers are worth another attempt.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hf_hub::api::tokio::{Api, ApiBuilder};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, LOCATION};
use reqwest::{Method, Response, StatusCode, Url, redirect};

use super::{
    DEFAULT_ENDPOINT, HubSettings, Repository, RepositoryKind,
    patience::{Failure, Gate, Patience, Wait, asked_wait},
    repository::{Subject, percent_encoded},
    settings,
    snapshot::{RepoInfo, Snapshot},
};
use crate::Result;
use crate::error::HubError;

/// A repository's description may not be larger.
const MAX_INFO_BYTES: usize = 64 << 20;
const MAX_REDIRECTS: usize = 10;
/// A hub that has not answered yet has this long to take a connection: there may be no network at all.
const FIRST_CONNECT: Duration = Duration::from_millis(3_500);
/// Bytes of the hub's own words in a message.
const MAX_WORDS: usize = 200;

/// A hub.
#[derive(Debug)]
pub struct Hub {
    pub(super) settings: HubSettings,
    api: Api,
    http: reqwest::Client,
    /// Connects in a moment or not at all.
    impatient: reqwest::Client,
    /// It has answered in this run.
    reached: AtomicBool,
    /// Why it is not asked any more.
    given_up: OnceLock<String>,
    pub(super) gate: Gate,
}

/// An answer, and what the hub itself said on the way to it.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response,
    /// `X-Repo-Commit`.
    pub commit: Option<String>,
    /// `X-Linked-Etag`, else the hub's own `ETag`, without quotes.
    pub checksum: Option<String>,
    /// `X-Linked-Size`, else the length of the hub's own answer to HEAD.
    pub size: Option<u64>,
}

impl Hub {
    /// A client for the hub of `settings`; nothing is sent yet.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        let broken = |error: &dyn std::fmt::Display| HubError::Setting {
            variable: "HF_ENDPOINT",
            reason: format!("no client can be made: {error}"),
        };
        let endpoint = settings.endpoint.as_str().trim_end_matches('/').to_owned();
        // The token is not given to hf-hub: it would follow redirects with its own rules.
        let api = ApiBuilder::from_cache(settings::cache())
            .with_endpoint(endpoint)
            .with_token(None)
            .with_progress(false)
            .build()
            .map_err(|error| broken(&error))?;
        let client = |connect: Duration| {
            reqwest::Client::builder()
                .user_agent(concat!("medical-vision-pipeline/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .connect_timeout(connect)
                .read_timeout(settings.stall)
                .build()
                .map_err(|error| broken(&error))
        };
        let (http, impatient) = (
            client(settings.stall)?,
            client(settings.stall.min(FIRST_CONNECT))?,
        );
        Ok(Self {
            settings,
            api,
            http,
            impatient,
            reached: AtomicBool::new(false),
            given_up: OnceLock::new(),
            gate: Gate::default(),
        })
    }

    /// From now on nothing is asked any more: there is no network.
    pub(super) fn give_up(&self, reason: String) -> HubError {
        HubError::NoNetwork {
            endpoint: self.endpoint().to_owned(),
            reason: self.given_up.get_or_init(|| reason).clone(),
        }
    }

    /// The address is the hub's own, not a storage host's.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.settings.endpoint.origin()
    }

    /// Files at the same time.
    pub(crate) fn jobs(&self) -> usize {
        self.settings.jobs
    }

    /// The hub's address, for people.
    pub fn endpoint(&self) -> &str {
        self.settings.endpoint.as_str().trim_end_matches('/')
    }

    /// The repository's files at its revision, which is pinned to the commit it names now.
    pub async fn snapshot(&self, repository: &Repository) -> Result<Snapshot> {
        let request = self.api.repo(repository.hf()).info_request();
        let url = request
            .query(&[("blobs", "true")])
            .build()
            .map_err(|error| HubError::Nonsense {
                what: repository.id.clone(),
                reason: format!("no address can be made of it ({error})"),
            })?
            .url()
            .clone();
        let subject = Subject {
            repository,
            file: None,
        };
        let mut patience = Patience::new(self);
        let info: RepoInfo = loop {
            match self.info(&url, subject).await {
                Ok(info) => break info,
                Err(failure) => patience.pause(subject, failure).await?,
            }
        };
        let mut snapshot = Snapshot::new(repository, info)?;
        for file in snapshot.take_unannounced() {
            let announced = self.announced(&snapshot.repository, &file).await?;
            snapshot.files.push(announced);
        }
        snapshot.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(snapshot)
    }

    async fn info(&self, url: &Url, subject: Subject<'_>) -> Result<RepoInfo, Failure> {
        let mut answer = self
            .request(Method::GET, url.clone(), HeaderMap::new(), subject)
            .await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.response.chunk().await.map_err(broken_off)? {
            if body.len() + chunk.len() > MAX_INFO_BYTES {
                return Err(nonsense(subject, "its description has no end").into());
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| {
            nonsense(
                subject,
                &format!("its description cannot be understood ({error})"),
            )
            .into()
        })
    }

    /// Where `file` of `repository` is served.
    pub(super) fn file_url(&self, repository: &Repository, file: &str) -> Result<Url, HubError> {
        let text = self.api.repo(repository.hf()).url(&percent_encoded(file));
        Url::parse(&text).map_err(|error| {
            let subject = Subject {
                repository,
                file: Some(file),
            };
            nonsense(subject, &format!("no address can be made of it ({error})"))
        })
    }

    /// One attempt, through every redirect; success statuses and 416 only.
    pub(super) async fn request(
        &self,
        method: Method,
        mut url: Url,
        headers: HeaderMap,
        subject: Subject<'_>,
    ) -> Result<Answer, Failure> {
        let (mut commit, mut checksum, mut size) = (None, None, None);
        for _ in 0..=MAX_REDIRECTS {
            let at_hub = self.is_own(&url);
            if let Some(reason) = self.given_up.get() {
                return Err(self.give_up(reason.clone()).into());
            }
            if at_hub {
                self.gate.pass().await;
            }
            let mut request = self
                .client()
                .request(method.clone(), url.clone())
                .headers(headers.clone())
                .header(ACCEPT_ENCODING, "identity");
            if at_hub && let Some(token) = self.settings.token.as_ref().and_then(|token| token.header()) {
                request = request.header(AUTHORIZATION, token);
            }
            let response = self.sent(&method, request).await?;
            let status = response.status();
            if at_hub {
                let said = |name: &HeaderName| text_of(response.headers(), name);
                commit = commit.or_else(|| said(&X_REPO_COMMIT));
                checksum = checksum.or_else(|| said(&X_LINKED_ETAG).or_else(|| said(&ETAG)).map(unquoted));
                let length = (method == Method::HEAD && !status.is_redirection())
                    .then(|| said(&reqwest::header::CONTENT_LENGTH))
                    .flatten();
                size = size.or_else(|| said(&X_LINKED_SIZE).or(length)?.parse().ok());
            }
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                url = self.redirected(&url, &response, subject)?;
                continue;
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(Answer {
                    response,
                    commit,
                    checksum,
                    size,
                });
            }
            return Err(self.refusal(&response, at_hub, subject));
        }
        Err(nonsense(subject, "it redirects in a circle").into())
    }

    fn client(&self) -> &reqwest::Client {
        match self.reached.load(Ordering::Relaxed) {
            true => &self.http,
            false => &self.impatient,
        }
    }

    async fn sent(&self, method: &Method, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let reached = self.reached.load(Ordering::Relaxed);
        let sending = request.send();
        let response = if *method == Method::HEAD {
            // Its answer has no body whose silence would be noticed.
            let late = |_| Failure::transient("the hub did not answer in time");
            tokio::time::timeout(self.settings.stall * 4, sending)
                .await
                .map_err(late)?
        } else {
            sending.await
        };
        let response = response.map_err(|error| not_sent(error, reached))?;
        self.reached.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Where an answer sends its reader.
    fn redirected(&self, from: &Url, response: &Response, subject: Subject<'_>) -> Result<Url, Failure> {
        let location = text_of(response.headers(), &LOCATION);
        let to = location.and_then(|location| from.join(&location).ok());
        let to = to.map(|to| self.mirrored(to));
        match to {
            Some(to) if from.scheme() == "https" && to.scheme() != "https" => {
                Err(nonsense(subject, "it redirects from https to something that is not").into())
            }
            Some(to) if matches!(to.scheme(), "http" | "https") => Ok(to),
            _ => Err(nonsense(subject, "it redirects to nowhere").into()),
        }
    }

    /// A mirror hands on the hub's answers, which name the hub itself: it is asked in that one's place.
    fn mirrored(&self, url: Url) -> Url {
        let rest = url
            .as_str()
            .strip_prefix(DEFAULT_ENDPOINT)
            .filter(|rest| rest.starts_with('/'));
        rest.and_then(|rest| Url::parse(&format!("{}{rest}", self.endpoint())).ok())
            .unwrap_or(url)
    }

    /// What a status other than success means.
    fn refusal(&self, response: &Response, at_hub: bool, subject: Subject<'_>) -> Failure {
        let status = response.status();
        let repository = subject.repository.id.clone();
        let with_token = self.settings.token.is_some();
        let code = text_of(response.headers(), &X_ERROR_CODE).unwrap_or_default();
        if status == StatusCode::REQUEST_TIMEOUT
            || status == StatusCode::TOO_MANY_REQUESTS
            || status.is_server_error()
        {
            let (mut reason, mut wait) = asked_wait(status, response.headers());
            if !at_hub {
                reason = reason.replacen("the hub", "the storage host", 1);
                wait = wait.map(|wait| Wait {
                    for_all: false,
                    ..wait
                });
            } else if status == StatusCode::TOO_MANY_REQUESTS && !with_token {
                reason += " (a token in HF_TOKEN raises it)";
            }
            return Failure::Transient { reason, wait };
        }
        // A signed address of the storage host, which may have run out: the hub gives a new one.
        if !at_hub {
            return Failure::transient(format!("the storage host answered HTTP {}", status.as_u16()));
        }
        let error = match (code.as_str(), status.as_u16(), subject.file) {
            ("GatedRepo", ..) => HubError::Gated {
                page: self.page(subject.repository),
                repository,
                with_token,
            },
            ("RevisionNotFound", ..) => HubError::NoRevision {
                repository,
                revision: subject.repository.revision.clone(),
            },
            ("RepoNotFound", ..) | (_, 404, None) => HubError::NoRepository {
                repository,
                endpoint: self.endpoint().to_owned(),
                with_token,
            },
            (_, 401 | 403, _) => HubError::Refused {
                repository,
                status: status.as_u16(),
                words: words(response.headers()),
                with_token,
            },
            (_, 404, Some(file)) => HubError::NoFile {
                repository,
                file: file.to_owned(),
            },
            _ => nonsense(subject, &format!("the hub answered HTTP {}", status.as_u16())),
        };
        error.into()
    }

    fn page(&self, repository: &Repository) -> String {
        let folder = match repository.kind {
            RepositoryKind::Model => "",
            RepositoryKind::Dataset => "datasets/",
        };
        format!("{}/{folder}{}", self.endpoint(), repository.id)
    }
}

const ETAG: HeaderName = reqwest::header::ETAG;
const X_REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const X_LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const X_LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const X_ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");
const X_ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

pub(super) fn text_of(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn unquoted(etag: String) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

pub(super) fn nonsense(subject: Subject<'_>, reason: &str) -> HubError {
    HubError::Nonsense {
        what: subject.name(),
        reason: reason.to_owned(),
    }
}

/// What the hub says of a refusal, for the message: ` "..."`, or nothing.
fn words(headers: &HeaderMap) -> String {
    let text = text_of(headers, &X_ERROR_MESSAGE).unwrap_or_default();
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    match text.trim() {
        "" => String::new(),
        text => format!(" {text:?}"),
    }
}

/// The message of reqwest without the address, which may hold a signature.
fn not_sent(error: reqwest::Error, reached: bool) -> Failure {
    if error.is_connect() && !reached {
        let what = if error.is_timeout() {
            "no connection in time"
        } else {
            "no connection"
        };
        return Failure::NoNetwork(with_cause(what, error));
    }
    let what = if error.is_timeout() {
        "the hub did not answer in time"
    } else if error.is_connect() {
        "no connection to the hub"
    } else {
        "the connection broke before an answer came"
    };
    Failure::transient(with_cause(what, error))
}

pub(super) fn broken_off(error: reqwest::Error) -> Failure {
    let what = if error.is_timeout() {
        "nothing came for too long"
    } else {
        "the connection broke off"
    };
    Failure::transient(with_cause(what, error))
}

fn with_cause(what: &str, error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!("{what} ({cause})")
}
