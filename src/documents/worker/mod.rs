//! Where PDF and DICOM are decoded: in a process with limits of its own, or in this one.
//!
//! The worker is this program, started with [`WORKER_ARGUMENT`] when the first such document is opened, and again when it ended. It holds
//! one document at a time, which is sent again where another one was in between, so that its memory does not grow with their number.

mod process;
mod protocol;

use std::io::{BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::process::run_worker;
use self::process::{Opened, TIMED_OUT};
use self::protocol::{OpenRequest, PageRequest, Reply, Request, read_reply, write_request};
use super::{DocumentPage, FileBytes, Kind, OpenOptions};
use crate::console::RateLimit;
use crate::console::panics::catch_silently;
use crate::documents;
use crate::error::DocumentError;
use crate::processing::PixelBounds;

/// First argument of a process that decodes documents.
pub const WORKER_ARGUMENT: &str = "decode-documents";

/// Maximum time for a page, and for opening a document.
const PAGE_SECONDS: u64 = 20;

/// Decodes PDF and DICOM. Clones share the worker.
#[derive(Clone)]
pub struct Decoder(Arc<Place>);

enum Place {
    /// Without limits of memory and time: for files that are trusted.
    InProcess,
    Worker {
        program: PathBuf,
        running: Mutex<Option<Worker>>,
    },
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &*self.0 {
            Place::InProcess => "Decoder(in process)",
            Place::Worker { .. } => "Decoder(worker)",
        })
    }
}

impl Decoder {
    /// Decodes in this process. A document that exhausts memory ends it: use [`Self::worker`] for files of others.
    pub fn in_process() -> Self {
        Self(Arc::new(Place::InProcess))
    }

    /// Decodes in a process of `program`, whose `main` calls [`run_worker`] when its first argument is [`WORKER_ARGUMENT`]. It may take
    /// 1 GiB of memory beyond what it has after its start, opens neither files nor sockets, and is given up after 20 s at a page.
    pub fn worker(program: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place::Worker {
            program: program.into(),
            running: Mutex::new(None),
        }))
    }

    /// Process id of the worker; `None` where none runs.
    pub fn worker_id(&self) -> Option<u32> {
        match &*self.0 {
            Place::InProcess => None,
            Place::Worker { running, .. } => lock(running).as_ref().map(|worker| worker.child.id()),
        }
    }

    /// Opens a document, and returns what it is.
    pub(super) fn open(&self, document: &Sent<'_>) -> Result<documents::Opened, DocumentError> {
        match &*self.0 {
            Place::InProcess => contained(|| Ok(document.opened()?.summary())),
            Place::Worker { program, running } => match call(program, &mut lock(running), document, None)? {
                Reply::Opened(opened) => Ok(opened),
                _ => Err(DocumentError::DecoderFailed),
            },
        }
    }

    /// Decodes a page of a document.
    pub(super) fn page(
        &self,
        document: &Sent<'_>,
        index: u32,
        bounds: Option<&PixelBounds>,
    ) -> Result<DocumentPage, DocumentError> {
        let request = PageRequest::new(index, document.options, bounds);
        match &*self.0 {
            Place::InProcess => contained(|| document.opened()?.page(&request)),
            Place::Worker { program, running } => {
                match call(program, &mut lock(running), document, Some(request))? {
                    Reply::Page(page) => Ok(*page),
                    _ => Err(DocumentError::DecoderFailed),
                }
            }
        }
    }
}

/// Runs a decoder in this process; its panic is an error.
fn contained<T>(work: impl FnOnce() -> Result<T, DocumentError>) -> Result<T, DocumentError> {
    catch_silently(work).unwrap_or_else(|place| {
        report(Some(&place));
        Err(DocumentError::DecoderFailed)
    })
}

/// A document as the worker gets it.
pub(super) struct Sent<'a> {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) bytes: &'a FileBytes,
    pub(super) options: &'a OpenOptions,
}

impl Sent<'_> {
    /// Opened in this process.
    fn opened(&self) -> Result<Opened, DocumentError> {
        Opened::open(
            self.kind,
            Arc::clone(self.bytes),
            self.options.password.as_deref(),
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left halfway is noticed as a worker that does not answer as expected.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks the worker, which is started where none runs. One that was ended from outside is replaced and asked again, once.
fn call(
    program: &Path,
    running: &mut Option<Worker>,
    document: &Sent<'_>,
    page: Option<PageRequest>,
) -> Result<Reply, DocumentError> {
    for _ in 0..2 {
        let worker = match running.take() {
            Some(worker) => worker,
            None => Worker::start(program).ok_or(DocumentError::NoWorker)?,
        };
        let mut worker = worker;
        match worker.ask(document, page.as_ref()) {
            Some(reply) => {
                *running = Some(worker);
                return match reply {
                    Reply::Failed { error, place } => {
                        report(place.as_deref());
                        Err(error)
                    }
                    reply => Ok(reply),
                };
            }
            None => match worker.end() {
                End::TimedOut => {
                    return Err(DocumentError::TooSlow {
                        seconds: PAGE_SECONDS,
                    });
                }
                End::Crashed => return Err(DocumentError::TooLarge),
                End::Ended => {}
            },
        }
    }
    Err(DocumentError::NoWorker)
}

/// Logs where a decoder panicked: a bug that somebody should report.
fn report(place: Option<&str>) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(place) = place
        && let Some(pages) = LIMIT.due()
    {
        tracing::warn!(
            place,
            pages,
            "a document's decoder panicked; its page counts as failed"
        );
    }
}

/// A running worker. Dropping it ends it.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The document that it holds.
    document: Option<u64>,
}

/// How a worker ended that did not answer.
enum End {
    TimedOut,
    /// It aborted, or met its limit of memory.
    Crashed,
    /// From outside.
    Ended,
}

impl Worker {
    fn start(program: &Path) -> Option<Self> {
        let mut command = Command::new(program);
        command.arg0("medvision").arg(WORKER_ARGUMENT);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Ctrl-C in a terminal is for the process that was started there; this one ends when its input does.
        command.process_group(0);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, "the process that decodes documents cannot be started");
                return None;
            }
        };
        let (input, output) = (child.stdin.take()?, child.stdout.take()?);
        Some(Self {
            child,
            input,
            output: BufReader::with_capacity(1 << 16, output),
            document: None,
        })
    }

    /// Sends the document, if the worker does not hold it, and the request; `None` if it does not answer.
    fn ask(&mut self, document: &Sent<'_>, page: Option<&PageRequest>) -> Option<Reply> {
        if self.document != Some(document.id) {
            self.document = None;
            let bytes = (**document.bytes).as_ref();
            let request = Request::Open(OpenRequest {
                kind: document.kind.into(),
                length: bytes.len(),
                password: document.options.password.clone(),
            });
            write_request(&mut self.input, &request).ok()?;
            self.input.write_all(bytes).ok()?;
            let reply = read_reply(&mut self.output).ok()?;
            if !matches!(reply, Reply::Opened(_)) {
                return Some(reply);
            }
            self.document = Some(document.id);
            if page.is_none() {
                return Some(reply);
            }
        }
        let request = page.map_or(Request::Describe, |page| Request::Page(page.clone()));
        write_request(&mut self.input, &request).ok()?;
        read_reply(&mut self.output).ok()
    }

    fn end(mut self) -> End {
        // One that answered nonsense still runs.
        let _ = self.child.kill();
        let Ok(status) = self.child.wait() else {
            return End::Ended;
        };
        End::of(status)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) if code == i32::from(TIMED_OUT) => Self::TimedOut,
            (_, Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE)) => {
                Self::Crashed
            }
            _ => Self::Ended,
        }
    }
}
