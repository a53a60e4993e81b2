//! A hub on this machine that serves files over HTTP as huggingface.co does, and injects faults.
//!
//! As on huggingface.co, small files are behind a relative redirect (`/api/resolve-cache/…`), large ones behind an absolute
//! redirect to a signed URL on another host, which expires. A renamed repository is redirected to its new name. An error
//! response has `X-Error-Code` and `X-Error-Message`.

mod connection;
mod request;
mod routes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use self::connection::serve;
pub use self::request::Request;
pub use self::routes::checksum;

/// A fault of one response.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Closes the connection after this many bytes of the body.
    Truncate(usize),
    /// Stalls after this many bytes of the body; the connection stays open.
    Stall(usize),
    /// Closes the connection without a response.
    Reset,
    /// Announces this many more bytes than it sends.
    WrongLength(usize),
    /// Sends other bytes of the same number.
    Corrupt,
    /// Sends the whole file instead of the requested range.
    IgnoreRange,
    /// Sends another range than the requested one.
    WrongRange,
    /// Waits this long after every 4 KiB.
    Slow(Duration),
}

#[derive(Default)]
struct State {
    /// `models/OWNER/NAME` or `datasets/OWNER/NAME`
    repositories: BTreeMap<String, Repo>,
    faults: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Fault>,
    requests: Vec<Request>,
    /// New names of repositories by their old names.
    renamed: HashMap<String, String>,
    /// Path before the hub's own paths, as of a mirror behind a reverse proxy.
    prefix: String,
    /// Redirects lead to huggingface.co, as a mirror passes them on.
    redirects_to_hub: bool,
    /// Maximum number of uses of a signed URL; `None` for no limit.
    max_uses: Option<usize>,
    /// Number of uses of each signature.
    signatures: Vec<usize>,
}

#[derive(Clone, Default)]
struct Repo {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Announced sizes that are wrong.
    sizes: HashMap<String, u64>,
    /// Files on disk, too large for memory.
    on_disk: HashMap<String, PathBuf>,
    /// The description lists names without sizes and checksums.
    names_only: bool,
    /// Status and error code of every response.
    refusal: Option<(u16, &'static str)>,
}

/// The fake hub; it serves until it is dropped.
pub struct FakeHub {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

impl FakeHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&state), Arc::clone(&stopped));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (state, stop) = (Arc::clone(&shared), Arc::clone(&stop));
                thread::spawn(move || {
                    // A client may disconnect.
                    let _ = serve(&stream, address, &state, &stop);
                });
            }
        });
        Self {
            address,
            state,
            stopped,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Publishes `files` as the commit that starts with `commit`.
    pub fn publish(&self, repository: &str, commit: char, files: &[(&str, Vec<u8>)]) {
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.clone()));
        let repo = Repo {
            commit: commit.to_string().repeat(40),
            files: files.collect(),
            ..Repo::default()
        };
        self.state().repositories.insert(repository.to_owned(), repo);
    }

    /// Answers all requests for `repository` with `status` and the error `code`.
    pub fn refuse(&self, repository: &str, status: u16, code: &'static str) {
        let mut state = self.state();
        let repo = state.repositories.entry(repository.to_owned()).or_default();
        repo.refusal = Some((status, code));
    }

    /// Publishes a large file on disk; it is served by range only.
    pub fn publish_from_disk(&self, repository: &str, file: &str, path: &Path) {
        let mut state = self.state();
        let repo = state.repositories.get_mut(repository).unwrap();
        repo.files.insert(file.to_owned(), Vec::new());
        repo.on_disk.insert(file.to_owned(), path.to_owned());
    }

    /// Redirects the repository `old` to `new`; both as `OWNER/NAME`.
    pub fn rename(&self, old: &str, new: &str) {
        self.state().renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Serves everything below `prefix`, which starts with a slash; large files are redirected to huggingface.co.
    pub fn act_as_mirror(&self, prefix: &str) {
        let mut state = self.state();
        prefix.clone_into(&mut state.prefix);
        state.redirects_to_hub = true;
    }

    /// Signed URLs expire after this many uses.
    pub fn expire_urls_after(&self, uses: usize) {
        self.state().max_uses = Some(uses);
    }

    /// Announces a wrong size for a file.
    pub fn announce_size(&self, repository: &str, file: &str, size: u64) {
        let mut state = self.state();
        let repo = state.repositories.get_mut(repository).unwrap();
        repo.sizes.insert(file.to_owned(), size);
    }

    /// Lists the files of `repository` without sizes and checksums, as some mirrors do.
    pub fn list_names_only(&self, repository: &str) {
        self.state().repositories.get_mut(repository).unwrap().names_only = true;
    }

    /// Queues faults for the next responses for `file`, for "info" (the description), or for "resolve FILE" (the redirect).
    pub fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.state();
        state.faults.entry(file.to_owned()).or_default().extend(faults);
    }

    /// Applies a fault to every response for `file` (or "info").
    pub fn fail_always(&self, file: &str, fault: Fault) {
        self.state().always.insert(file.to_owned(), fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        state.always.clear();
        state.faults.clear();
    }

    /// Returns the number of queued faults.
    pub fn pending_faults(&self) -> usize {
        self.state().faults.values().map(VecDeque::len).sum()
    }

    /// Waits for a request whose path contains `part`.
    pub fn wait_for(&self, part: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self
            .state()
            .requests
            .iter()
            .any(|request| request.path.contains(part))
        {
            assert!(Instant::now() < deadline, "no request for {part}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the requests so far.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn next_fault(&mut self, file: &str) -> Option<Fault> {
        let next = self.faults.get_mut(file).and_then(VecDeque::pop_front);
        next.or_else(|| self.always.get(file).cloned())
    }
}
