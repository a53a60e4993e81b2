//! The worker's side: limits, requests, answers.

use std::io::{self, BufReader, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::PAGE_SECONDS;
use super::protocol::{OpenRequest, PageRequest, Reply, Request, WireKind, read_request, write_reply};
use crate::console::panics::catch_silently;
use crate::documents::dicom::DicomFile;
use crate::documents::pdf::{PdfFile, RenderOptions};
use crate::documents::{self, DocumentPage, FileBytes, Kind};
use crate::error::DocumentError;

/// Exit code of a worker that a page took too long.
pub(super) const TIMED_OUT: u8 = 124;

/// Memory that decoding may take beyond what the process has after its start.
const MEMORY_BYTES: u64 = 1 << 30;

/// A document, opened in this process.
pub(super) enum Opened {
    Pdf(PdfFile),
    Dicom(DicomFile),
}

impl Opened {
    pub(super) fn open(kind: Kind, bytes: FileBytes, password: Option<&str>) -> Result<Self, DocumentError> {
        Self::open_as(kind.into(), bytes, password)
    }

    fn open_as(kind: WireKind, bytes: FileBytes, password: Option<&str>) -> Result<Self, DocumentError> {
        match kind {
            WireKind::Pdf => Ok(Self::Pdf(PdfFile::open(bytes, password)?)),
            WireKind::Dicom => Ok(Self::Dicom(DicomFile::open(bytes)?)),
        }
    }

    /// What the process that asked is told.
    pub(super) fn summary(&self) -> documents::Opened {
        match self {
            Self::Pdf(pdf) => documents::Opened {
                pages: pdf.pages(),
                ..documents::Opened::default()
            },
            Self::Dicom(dicom) => documents::Opened {
                pages: dicom.facts().frames,
                dicom: Some(dicom.facts().clone()),
                report: dicom.report().map(str::to_owned),
            },
        }
    }

    pub(super) fn page(&self, request: &PageRequest) -> Result<DocumentPage, DocumentError> {
        let bounds = request.bounds();
        let options = RenderOptions {
            limits: request.limits(),
            dpi: request.dpi,
            bounds: bounds.as_ref(),
        };
        match self {
            Self::Pdf(pdf) => pdf.page(request.index, &options),
            Self::Dicom(dicom) => dicom.page(request.index, &options),
        }
    }
}

/// `main` of a worker: answers requests on standard input until it ends.
pub fn run_worker() -> ExitCode {
    if let Err(error) = limit() {
        // Standard error is nowhere; without its limits it does not decode.
        drop(error);
        return ExitCode::FAILURE;
    }
    let watchdog = Watchdog::start();
    match watchdog.and_then(|watchdog| serve(io::stdin().lock(), io::stdout().lock(), watchdog)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// From now on the process opens no files and sockets, takes bounded memory, and leaves no core dump, which would hold the document.
fn limit() -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kibibytes = size.and_then(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let memory = (kibibytes.ok_or(io::ErrorKind::InvalidData)? << 10) + MEMORY_BYTES;
    for (resource, most) in [(Resource::As, memory), (Resource::Core, 0), (Resource::Nofile, 0)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}

/// Ends the process when a request takes too long.
struct Watchdog {
    start: Instant,
    /// Milliseconds since `start`; 0: nothing runs.
    deadline: Arc<AtomicU64>,
}

impl Watchdog {
    fn start() -> io::Result<Self> {
        let watchdog = Self {
            start: Instant::now(),
            deadline: Arc::default(),
        };
        let (start, deadline) = (watchdog.start, Arc::clone(&watchdog.deadline));
        let watch = move || {
            loop {
                std::thread::sleep(Duration::from_millis(100));
                let due = deadline.load(Ordering::Acquire);
                if due != 0 && start.elapsed().as_millis() as u64 > due {
                    // SAFETY: `_exit` ends the process at once, without handlers that the decoder's thread could disturb.
                    unsafe { libc::_exit(TIMED_OUT.into()) };
                }
            }
        };
        // A small stack, which counts as memory.
        std::thread::Builder::new().stack_size(64 << 10).spawn(watch)?;
        Ok(watchdog)
    }

    fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let due = self.start.elapsed() + Duration::from_secs(PAGE_SECONDS);
        self.deadline.store(due.as_millis() as u64, Ordering::Release);
        let result = work();
        self.deadline.store(0, Ordering::Release);
        result
    }
}

fn serve(input: impl Read, mut output: impl Write, watchdog: Watchdog) -> io::Result<()> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut opened: Option<Opened> = None;
    while let Some(request) = read_request(&mut input)? {
        let reply = match request {
            Request::Open(request) => {
                opened = None;
                let bytes = read_file(&mut input, &request)?;
                let open = || Opened::open_as(request.kind, bytes, request.password.as_deref());
                match watchdog.during(|| answered(open)) {
                    Ok(document) => {
                        let summary = document.summary();
                        opened = Some(document);
                        Reply::Opened(summary)
                    }
                    Err(failed) => failed,
                }
            }
            Request::Describe => Reply::Opened(opened.as_ref().map(Opened::summary).unwrap_or_default()),
            Request::Page(request) => match &opened {
                None => Reply::Failed {
                    error: DocumentError::DecoderFailed,
                    place: None,
                },
                Some(document) => watchdog
                    .during(|| answered(|| document.page(&request)))
                    .map_or_else(|failed| failed, |page| Reply::Page(Box::new(page))),
            },
        };
        write_reply(&mut output, &reply)?;
    }
    Ok(())
}

fn read_file(input: &mut impl Read, request: &OpenRequest) -> io::Result<FileBytes> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(request.length)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(request.length, 0);
    input.read_exact(&mut bytes)?;
    Ok(Arc::new(bytes))
}

/// The result of `work`; an error and a panic as the answer that tells of them.
fn answered<T>(work: impl FnOnce() -> Result<T, DocumentError>) -> Result<T, Reply> {
    match catch_silently(work) {
        Ok(result) => result.map_err(|error| Reply::Failed { error, place: None }),
        Err(place) => Err(Reply::Failed {
            error: DocumentError::DecoderFailed,
            place: Some(place),
        }),
    }
}
