//! The audit log: who had which document read, and when; never what is in it.
//!
//! One JSON line a request, written before its answer is sent: if that fails, the answer is 503. A stream's line is written before its
//! first event. A client that leaves before its answer has a line with status 499. Health probes and `/metrics` have none, nor
//! have more than ten requests a minute from an address that sends no right key.

use std::cell::RefCell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::{self, Data};
use actix_web::{Error, HttpMessage, HttpRequest};
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::errors::ApiError;
use super::http::{CLIENT_LEFT, is_health, request_id};
use super::metrics;
use super::state::ServerState;
use crate::console::RateLimit;
use crate::engine::ModelInfo;
use crate::fs::{hex, read_bounded, readable_by_others};
use crate::records::timestamp;
use crate::version::version;

/// Size of a salt file, bytes.
const SALT_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;
/// What a log that could not be written must take before requests are admitted again, bytes.
const PROBE_BYTES: usize = 4096;
/// Maximum time for which another program may hold the log's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Where and what to log.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// The log; lines are appended.
    pub file: PathBuf,
    /// File with a secret that keys the documents' digests: without it, whoever has a document can tell that it was read.
    pub salt_file: Option<PathBuf>,
    /// Whether to log the client's address.
    pub address: bool,
}

/// Why the audit log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {}: {error}", path.display())]
pub struct AuditError {
    flag: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// The open log.
#[derive(Debug)]
pub struct AuditLog {
    options: AuditOptions,
    salt: Option<Vec<u8>>,
    file: Mutex<File>,
    /// Whether the last line could not be written.
    failing: AtomicBool,
}

impl AuditLog {
    /// Opens the log, which is created if it is not there. Also returns warnings.
    ///
    /// # Errors
    /// The log cannot be written, or the salt cannot be read or is too short.
    pub fn open(options: AuditOptions) -> Result<(Self, Vec<String>), AuditError> {
        let mut warnings = Vec::new();
        let salt = options.salt_file.as_deref().map(|path| {
            let salt = read_salt(path).map_err(|error| AuditError {
                flag: "--audit-salt-file",
                path: path.to_owned(),
                error,
            })?;
            warnings.extend(exposed(path));
            Ok(salt)
        });
        let salt = salt.transpose()?;
        let file = Mutex::new(append_to(&options.file)?);
        warnings.extend(exposed(&options.file));
        let log = Self {
            options,
            salt,
            file,
            failing: AtomicBool::new(false),
        };
        Ok((log, warnings))
    }

    /// Opens the file anew, after it was moved away. If that fails, the old one stays open. Returns warnings.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn reopen(&self) -> Result<Vec<String>, AuditError> {
        let file = append_to(&self.options.file)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(exposed(&self.options.file).into_iter().collect())
    }

    /// Hashes a document.
    pub(super) fn hasher(&self) -> DocumentHasher {
        match &self.salt {
            None => DocumentHasher::Plain(Sha256::new()),
            // HMAC takes keys of any length.
            Some(salt) => match Hmac::new_from_slice(salt) {
                Ok(keyed) => DocumentHasher::Keyed(keyed),
                Err(_) => DocumentHasher::Plain(Sha256::new()),
            },
        }
    }

    /// Digest of a document.
    pub(super) fn digest(&self, document: &[u8]) -> String {
        let mut hasher = self.hasher();
        hasher.update(document);
        hasher.finish()
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        // A panic while it was held has left the file whole.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let result = locked(&mut file, |file| append_whole(file, line));
        self.failing.store(result.is_err(), Ordering::Release);
        result
    }

    /// Whether a line can probably be written: false after a failure, until the disk has room again.
    pub(super) fn is_writable(&self) -> bool {
        if !self.failing.load(Ordering::Acquire) {
            return true;
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = probe(&mut file).is_ok();
        self.failing.store(!has_room, Ordering::Release);
        has_room
    }
}

/// Locks the file, to which another server may write, for the length of `write`.
fn locked(file: &mut File, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = file.try_lock() {
        match error {
            TryLockError::Error(error) => return Err(error),
            TryLockError::WouldBlock if Instant::now() >= deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another program holds its lock",
                ));
            }
            TryLockError::WouldBlock => std::thread::sleep(LOCK_PATIENCE / 100),
        }
    }
    let written = write(file);
    written.and(file.unlock())
}

/// Whether the file takes a line, which is taken back. What is not a file is not tried: it takes nothing back.
fn probe(file: &mut File) -> io::Result<()> {
    let before = file.metadata()?;
    if !before.is_file() {
        return Ok(());
    }
    locked(file, |file| {
        append_whole(file, &[b'\n'; PROBE_BYTES])?;
        file.set_len(before.len())
    })
}

/// Appends `line`, or nothing.
fn append_whole(file: &mut File, line: &[u8]) -> io::Result<()> {
    let before = file.metadata()?;
    file.write_all(line).inspect_err(|_| {
        // Half a line would spoil the next.
        let _ = match before.is_file() {
            true => file.set_len(before.len()),
            // A pipe takes nothing back: the half ends where the next line begins.
            false => file.write_all(b"\n"),
        };
    })
}

/// Warns of a file that other users can read.
fn exposed(path: &Path) -> Option<String> {
    readable_by_others(path).map(|found| format!("{}: {found}", path.display()))
}

fn append_to(path: &Path) -> Result<File, AuditError> {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A FIFO that nobody reads is an error, not a wait.
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    opened.map_err(|error| AuditError {
        flag: "--audit-log",
        path: path.to_owned(),
        error,
    })
}

fn read_salt(path: &Path) -> io::Result<Vec<u8>> {
    let salt = read_bounded(path, *SALT_BYTES.end() as u64)?;
    if salt.len() < *SALT_BYTES.start() {
        let reason = "shorter than 16 bytes; head -c 32 /dev/urandom makes one";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(salt)
}

/// Hashes a document as it arrives.
pub(super) enum DocumentHasher {
    Plain(Sha256),
    Keyed(Hmac<Sha256>),
}

impl DocumentHasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(hash) => hash.update(bytes),
            Self::Keyed(hash) => hash.update(bytes),
        }
    }

    /// `sha256:HEX`, or with a salt `hmac-sha256:HEX`.
    pub(super) fn finish(self) -> String {
        match self {
            Self::Plain(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Self::Keyed(hash) => format!("hmac-sha256:{}", hex(&hash.finalize().into_bytes())),
        }
    }
}

/// What is known of a request so far, in its extensions.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub key: Option<Arc<str>>,
    pub documents: Vec<String>,
    pub pages: usize,
    pub model: Option<String>,
    pub adapter: Option<String>,
    /// Whether the request has no line: one of many without a key.
    pub unlogged: bool,
}

impl Facts {
    pub(super) fn set_model(&mut self, info: &ModelInfo) {
        self.model = Some(info.model_name.clone());
        self.adapter.clone_from(&info.lora_adapter);
    }
}

type SharedFacts = Rc<RefCell<Facts>>;

/// Adds to what is known of `request`; nothing where no log is kept.
pub(super) fn note(request: &HttpRequest, add: impl FnOnce(&mut Facts)) {
    if let Some(facts) = request.extensions().get::<SharedFacts>() {
        add(&mut facts.borrow_mut());
    }
}

#[derive(Serialize)]
struct Line<'l> {
    time: String,
    key: Option<&'l str>,
    route: &'l str,
    request_id: &'l str,
    documents: &'l [String],
    pages: usize,
    model: Option<&'l str>,
    adapter: Option<&'l str>,
    version: &'static str,
    status: u16,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'l str>,
}

/// A request without a line yet.
struct Entry {
    log: Arc<AuditLog>,
    facts: SharedFacts,
    started: Instant,
    route: String,
    request_id: String,
    address: Option<String>,
    written: bool,
}

impl Entry {
    fn line(&self, status: u16) -> Vec<u8> {
        let facts = self.facts.borrow();
        let line = Line {
            time: timestamp(),
            key: facts.key.as_deref(),
            route: &self.route,
            request_id: &self.request_id,
            documents: &facts.documents,
            pages: facts.pages,
            model: facts.model.as_deref(),
            adapter: facts.adapter.as_deref(),
            version: version(),
            status,
            seconds: (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            address: self.address.as_deref(),
        };
        // A struct of strings and numbers always serializes.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Writes the line of an answer with `status`.
    async fn write(mut self, status: u16) -> Result<(), ApiError> {
        self.written = true;
        if self.facts.borrow().unlogged {
            return Ok(());
        }
        let (log, line) = (Arc::clone(&self.log), self.line(status));
        let written = web::block(move || log.append(&line)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                log_failure(&error);
                Err(ApiError::AuditLog)
            }
            Err(_) => Err(ApiError::AuditLog),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.written || self.facts.borrow().unlogged {
            return;
        }
        let (log, line) = (Arc::clone(&self.log), self.line(CLIENT_LEFT));
        let append = move || {
            if let Err(error) = log.append(&line) {
                log_failure(&error);
            }
        };
        // The connection's thread must not wait for a disk.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(append)),
            Err(_) => append(),
        }
    }
}

fn log_failure(error: &io::Error) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(requests) = LIMIT.due() {
        tracing::error!(
            %error,
            requests,
            "the audit log cannot be written: requests are answered 503"
        );
    }
}

/// Middleware: logs a request before its answer is sent.
pub(super) async fn audit<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let state = request.app_data::<Data<ServerState>>();
    let log = state.and_then(|state| state.audit.clone());
    let pattern = request.match_pattern();
    let is_probe = is_health(request.path()) || pattern.as_deref() == Some(metrics::ROUTE);
    let Some(log) = log.filter(|_| !is_probe) else {
        return Ok(next.call(request).await?.map_into_boxed_body());
    };
    if !log.is_writable() {
        // Before any work for an answer that could not be sent.
        return Ok(request.error_response(ApiError::AuditLog));
    }
    let facts = SharedFacts::default();
    request.extensions_mut().insert(Rc::clone(&facts));
    let address = request.peer_addr().filter(|_| log.options.address);
    let entry = Entry {
        log,
        facts,
        started: Instant::now(),
        // A path that is no route is text of the client's.
        route: pattern.unwrap_or_else(|| "other".to_owned()),
        request_id: request_id(request.request()).unwrap_or_default(),
        address: address.map(|address| address.ip().to_string()),
        written: false,
    };
    match next.call(request).await {
        Ok(response) => match entry.write(response.status().as_u16()).await {
            Ok(()) => Ok(response.map_into_boxed_body()),
            Err(error) => {
                let (request, _) = response.into_parts();
                Ok(ServiceResponse::from_err(error, request))
            }
        },
        Err(error) => {
            let status = error.as_response_error().status_code().as_u16();
            entry.write(status).await?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_standard_tools() {
        let folder = tempfile::tempdir().expect("a folder");
        let salt = folder.path().join("salt");
        std::fs::write(&salt, "sixteen or more bytes").expect("a file");
        let open = |salt_file: Option<PathBuf>| {
            let options = AuditOptions {
                file: folder.path().join("audit.jsonl"),
                salt_file,
                address: false,
            };
            AuditLog::open(options).map(|(log, _)| log.digest(b"a page"))
        };
        assert_eq!(
            open(None).expect("a digest"),
            "sha256:9a8eeff1d0bc6b9b7acf170b1168d6d07f193dc770d4c1864b03e48d775e8d1a"
        );
        // printf 'a page' | openssl dgst -sha256 -hmac 'sixteen or more bytes'
        assert_eq!(
            open(Some(salt.clone())).expect("a digest"),
            "hmac-sha256:927c704ce8784eb01c1e039fde3a9a206cb58bd88307f08bfa615c76534636a4"
        );
        std::fs::write(&salt, "short").expect("a file");
        let error = open(Some(salt)).expect_err("an error").to_string();
        assert!(
            error.starts_with("--audit-salt-file ") && error.contains("16 bytes"),
            "{error}"
        );
    }
}
