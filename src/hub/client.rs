//! Requests to the hub: redirects, the token's scope, and which responses are worth another attempt.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hf_hub::api::tokio::{Api, ApiBuilder};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, LOCATION,
};
use reqwest::{Method, Response, StatusCode, Url, redirect};

use super::{
    DEFAULT_ENDPOINT, HubSettings, Repository, RepositoryKind,
    failure::{Failure, Wait, invalid_response, request_error},
    headers::{
        X_ERROR_CODE, X_ERROR_MESSAGE, X_LINKED_ETAG, X_LINKED_SIZE, X_REPO_COMMIT, header_text, unquoted,
    },
    rate_limit::{Gate, requested_wait},
    repository::{Subject, percent_encoded},
    settings,
};
use crate::Result;
use crate::error::HubError;

const MAX_REDIRECTS: usize = 10;
/// Connect timeout until the hub has answered once: there may be no network.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_millis(3_500);
/// Maximum length of the hub's own message in an error, in characters.
const MAX_SERVER_MESSAGE: usize = 200;

/// Client of a Hugging Face hub.
#[derive(Debug)]
pub struct Hub {
    pub(super) settings: HubSettings,
    pub(super) api: Api,
    http: reqwest::Client,
    /// Used until the hub has answered once; has a short connect timeout.
    first_contact: reqwest::Client,
    /// The hub has answered in this run.
    reached: AtomicBool,
    /// Why no further requests are sent.
    given_up: OnceLock<String>,
    pub(super) gate: Gate,
}

/// The final response, with headers of the hub itself from the redirects before it.
#[derive(Debug)]
pub(super) struct HubResponse {
    pub response: Response,
    /// `X-Repo-Commit`.
    pub commit: Option<String>,
    /// `X-Linked-Etag`, else the hub's own `ETag`, without quotes.
    pub checksum: Option<String>,
    /// `X-Linked-Size`, else the `Content-Length` of the hub's own response to HEAD.
    pub size: Option<u64>,
}

impl Hub {
    /// Builds a client; nothing is sent yet.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        let broken = |error: &dyn std::fmt::Display| HubError::Setting {
            variable: "HF_ENDPOINT",
            reason: format!("no HTTP client can be built: {error}"),
        };
        let endpoint = settings.endpoint.as_str().trim_end_matches('/').to_owned();
        // hf-hub gets no token: it follows redirects by its own rules.
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
        let (http, first_contact) = (
            client(settings.stall)?,
            client(settings.stall.min(FIRST_CONNECT_TIMEOUT))?,
        );
        Ok(Self {
            settings,
            api,
            http,
            first_contact,
            reached: AtomicBool::new(false),
            given_up: OnceLock::new(),
            gate: Gate::default(),
        })
    }

    /// Stops all further requests: there is no network.
    pub(super) fn give_up(&self, reason: String) -> HubError {
        HubError::NoNetwork {
            endpoint: self.endpoint().to_owned(),
            reason: self.given_up.get_or_init(|| reason).clone(),
        }
    }

    /// Returns whether `url` is at the hub, not at a storage host.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.settings.endpoint.origin()
    }

    /// Maximum number of concurrent downloads.
    pub(crate) fn jobs(&self) -> usize {
        self.settings.jobs
    }

    /// The hub's URL, for messages.
    pub fn endpoint(&self) -> &str {
        self.settings.endpoint.as_str().trim_end_matches('/')
    }

    /// Returns the URL of `file`.
    pub(super) fn file_url(&self, repository: &Repository, file: &str) -> Result<Url, HubError> {
        let text = self.api.repo(repository.hf()).url(&percent_encoded(file));
        Url::parse(&text).map_err(|error| {
            let subject = Subject {
                repository,
                file: Some(file),
            };
            invalid_response(subject, &format!("no URL can be built from it ({error})"))
        })
    }

    /// Makes one attempt and follows redirects. Returns success statuses and 416; other statuses are failures.
    pub(super) async fn request(
        &self,
        method: Method,
        mut url: Url,
        headers: HeaderMap,
        subject: Subject<'_>,
    ) -> Result<HubResponse, Failure> {
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
            let response = self.send(&method, request).await?;
            let status = response.status();
            if at_hub {
                let value = |name: &HeaderName| header_text(response.headers(), name);
                commit = commit.or_else(|| value(&X_REPO_COMMIT));
                checksum = checksum.or_else(|| value(&X_LINKED_ETAG).or_else(|| value(&ETAG)).map(unquoted));
                let length = (method == Method::HEAD && !status.is_redirection())
                    .then(|| value(&CONTENT_LENGTH))
                    .flatten();
                size = size.or_else(|| value(&X_LINKED_SIZE).or(length)?.parse().ok());
            }
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                url = self.redirect_target(&url, &response, subject)?;
                continue;
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(HubResponse {
                    response,
                    commit,
                    checksum,
                    size,
                });
            }
            return Err(self.refusal(&response, at_hub, subject));
        }
        Err(invalid_response(subject, "too many redirects").into())
    }

    fn client(&self) -> &reqwest::Client {
        match self.reached.load(Ordering::Relaxed) {
            true => &self.http,
            false => &self.first_contact,
        }
    }

    async fn send(&self, method: &Method, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let reached = self.reached.load(Ordering::Relaxed);
        let sending = request.send();
        let response = if *method == Method::HEAD {
            // The read timeout does not apply: the response has no body.
            let late = |_| Failure::transient("no response in time");
            tokio::time::timeout(self.settings.stall * 4, sending)
                .await
                .map_err(late)?
        } else {
            sending.await
        };
        let response = response.map_err(|error| request_error(error, reached))?;
        self.reached.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Returns the target of a redirect.
    fn redirect_target(&self, from: &Url, response: &Response, subject: Subject<'_>) -> Result<Url, Failure> {
        let location = header_text(response.headers(), &LOCATION);
        let to = location.and_then(|location| from.join(&location).ok());
        let to = to.map(|to| self.at_endpoint(to));
        match to {
            Some(to) if from.scheme() == "https" && to.scheme() != "https" => {
                Err(invalid_response(subject, "redirects from https to another scheme").into())
            }
            Some(to) if matches!(to.scheme(), "http" | "https") => Ok(to),
            _ => Err(invalid_response(subject, "redirects to an invalid location").into()),
        }
    }

    /// Replaces the hub's own host by the endpoint: mirrors pass on redirects that name the hub.
    fn at_endpoint(&self, url: Url) -> Url {
        let rest = url
            .as_str()
            .strip_prefix(DEFAULT_ENDPOINT)
            .filter(|rest| rest.starts_with('/'));
        rest.and_then(|rest| Url::parse(&format!("{}{rest}", self.endpoint())).ok())
            .unwrap_or(url)
    }

    /// Maps a status other than success to a failure.
    fn refusal(&self, response: &Response, at_hub: bool, subject: Subject<'_>) -> Failure {
        let status = response.status();
        let repository = subject.repository.id.clone();
        let with_token = self.settings.token.is_some();
        let code = header_text(response.headers(), &X_ERROR_CODE).unwrap_or_default();
        if status == StatusCode::REQUEST_TIMEOUT
            || status == StatusCode::TOO_MANY_REQUESTS
            || status.is_server_error()
        {
            let (mut reason, mut wait) = requested_wait(status, response.headers());
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
        // The signed URL may have expired: the hub gives a new one.
        if !at_hub {
            return Failure::transient(format!("the storage host answered HTTP {}", status.as_u16()));
        }
        let error = match (code.as_str(), status.as_u16(), subject.file) {
            ("GatedRepo", ..) => HubError::Gated {
                page: self.web_page(subject.repository),
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
                message: server_message(response.headers()),
                with_token,
            },
            (_, 404, Some(file)) => HubError::NoFile {
                repository,
                file: file.to_owned(),
            },
            _ => invalid_response(subject, &format!("the hub answered HTTP {}", status.as_u16())),
        };
        error.into()
    }

    fn web_page(&self, repository: &Repository) -> String {
        let folder = match repository.kind {
            RepositoryKind::Model => "",
            RepositoryKind::Dataset => "datasets/",
        };
        format!("{}/{folder}{}", self.endpoint(), repository.id)
    }
}

/// Returns the hub's own message as ` "..."`, or an empty string.
fn server_message(headers: &HeaderMap) -> String {
    let text = header_text(headers, &X_ERROR_MESSAGE).unwrap_or_default();
    let text: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_SERVER_MESSAGE)
        .collect();
    match text.trim() {
        "" => String::new(),
        text => format!(" {text:?}"),
    }
}
