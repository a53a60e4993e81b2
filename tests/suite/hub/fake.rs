//! A hub on this machine: real files over HTTP as huggingface.co serves them, with faults on order.
//!
//! As there, small files are behind a relative redirect (`/api/resolve-cache/…`), large ones behind an absolute one to a
//! signed address on another host, which runs out; a renamed repository is redirected to its new name; a refusal has
//! `X-Error-Code` and `X-Error-Message`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use medical_vision::hub::{Checksum, Hasher};
use serde_json::{Value, json};

/// What goes wrong with one answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Another status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection closes after so many bytes of the body.
    Truncate(usize),
    /// Nothing more comes after so many bytes of the body, and the connection stays open.
    Stall(usize),
    /// The connection closes without an answer.
    Reset,
    /// The header announces so many bytes more than there are.
    LieLength(usize),
    /// Other bytes of the same number.
    Garble,
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// Another range than was asked for.
    WrongRange,
    /// Every piece of 4 KiB waits so long.
    Slow(Duration),
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

#[derive(Default)]
struct State {
    /// `models/OWNER/NAME` or `datasets/OWNER/NAME`
    repositories: BTreeMap<String, Repo>,
    faults: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Fault>,
    requests: Vec<Request>,
    /// Old names of repositories with their new ones.
    renamed: HashMap<String, String>,
    /// The part of an address before the hub's own paths, as a mirror behind a reverse proxy has it.
    prefix: String,
    /// Redirects name the hub itself, as a mirror hands them on.
    names_the_hub: bool,
    /// How often a signed address can be used; none for ever.
    uses: Option<usize>,
    /// Signatures that were given, and how often each was used.
    signatures: Vec<usize>,
}

#[derive(Clone, Default)]
struct Repo {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Announced in place of the truth.
    sizes: HashMap<String, u64>,
    /// Files that lie on the disk, too large to be held.
    on_disk: HashMap<String, PathBuf>,
    /// The description gives names alone.
    terse: bool,
    /// Status and error code of every answer.
    refusal: Option<(u16, &'static str)>,
}

/// Serves until it is dropped.
pub struct FakeHub {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl FakeHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&state), Arc::clone(&ended));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (state, stop) = (Arc::clone(&shared), Arc::clone(&stop));
                thread::spawn(move || {
                    // A client that goes away is no fault of the hub.
                    let _ = serve(&stream, address, &state, &stop);
                });
            }
        });
        Self {
            address,
            state,
            ended,
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

    /// Answers everything about `repository` with `status` and the hub's error `code`.
    pub fn refuse(&self, repository: &str, status: u16, code: &'static str) {
        let mut state = self.state();
        let repo = state.repositories.entry(repository.to_owned()).or_default();
        repo.refusal = Some((status, code));
    }

    /// Publishes a large file that lies on the disk; only pieces of it can be had.
    pub fn publish_from_disk(&self, repository: &str, file: &str, path: &Path) {
        let mut state = self.state();
        let repo = state.repositories.get_mut(repository).unwrap();
        repo.files.insert(file.to_owned(), Vec::new());
        repo.on_disk.insert(file.to_owned(), path.to_owned());
    }

    /// Answers for the repository `old` with a redirect to `new`; both as `OWNER/NAME`.
    pub fn rename(&self, old: &str, new: &str) {
        self.state().renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Serves everything below `prefix`, which begins with a slash; redirects of large files name huggingface.co.
    pub fn be_a_mirror(&self, prefix: &str) {
        let mut state = self.state();
        prefix.clone_into(&mut state.prefix);
        state.names_the_hub = true;
    }

    /// Signed addresses run out after so many uses.
    pub fn sign_for(&self, uses: usize) {
        self.state().uses = Some(uses);
    }

    /// Announces another size for a file than it has.
    pub fn announce_size(&self, repository: &str, file: &str, size: u64) {
        let mut state = self.state();
        let repo = state.repositories.get_mut(repository).unwrap();
        repo.sizes.insert(file.to_owned(), size);
    }

    /// Describes `repository` by names alone, as some mirrors do.
    pub fn be_terse(&self, repository: &str) {
        self.state().repositories.get_mut(repository).unwrap().terse = true;
    }

    /// The next answers for `file` (or for "info", or for where a file is: "resolve FILE") go wrong, one fault each.
    pub fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.state();
        state.faults.entry(file.to_owned()).or_default().extend(faults);
    }

    /// Every answer for `file` (or for "info") goes wrong.
    pub fn fail_always(&self, file: &str, fault: Fault) {
        self.state().always.insert(file.to_owned(), fault);
    }

    pub fn mend(&self) {
        let mut state = self.state();
        state.always.clear();
        state.faults.clear();
    }

    /// Faults that were never asked for.
    pub fn faults_left(&self) -> usize {
        self.state().faults.values().map(VecDeque::len).sum()
    }

    /// Waits until something whose path holds `part` is asked for.
    pub fn wait_for(&self, part: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self
            .state()
            .requests
            .iter()
            .any(|request| request.path.contains(part))
        {
            assert!(Instant::now() < deadline, "nobody asks for {part}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The requests so far, which are forgotten.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Request {
    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap_or_default().to_owned();
        let (method, path) = (next(), next());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        Ok(Some(Self {
            method,
            path,
            headers,
        }))
    }

    /// The first byte asked for.
    pub fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.split_once('-')?.0.parse().ok()
    }

    /// The last byte asked for; none to the end.
    fn range_end(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.split_once('-')?.1.parse().ok()
    }

    pub fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(&format!("/{file}"))
    }

    /// It names the file, at the hub or at the storage host.
    pub fn names(&self, file: &str) -> bool {
        let path = self.path.split('?').next().unwrap_or_default();
        path.ends_with(&format!("/{file}"))
    }

    /// It went to the storage host, not to the hub.
    pub fn is_for_storage(&self) -> bool {
        self.path.contains("/storage/")
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn serve(
    stream: &TcpStream,
    hub: SocketAddr,
    state: &Mutex<State>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let (mut answer, fault) = {
            let mut state = state.lock().unwrap();
            state.requests.push(request.clone());
            answer(&request, hub, &mut state)
        };
        let mut pause = Duration::ZERO;
        let mut cut = None;
        match &fault {
            Some(Fault::Reset) => return Ok(()),
            Some(Fault::Status(status, headers)) => {
                answer = Answer {
                    status: *status,
                    headers: headers.clone(),
                    body: Vec::new(),
                };
            }
            Some(Fault::Truncate(bytes) | Fault::Stall(bytes)) => cut = Some(*bytes),
            Some(Fault::Slow(each)) => pause = *each,
            Some(Fault::Garble) => answer.body.iter_mut().for_each(|byte| *byte ^= 0x55),
            _ => {}
        }
        let mut stream = stream;
        let length = answer.body.len()
            + match fault {
                Some(Fault::LieLength(more)) => more,
                _ => 0,
            };
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {length}\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" {
            continue;
        }
        let end = cut.unwrap_or(answer.body.len()).min(answer.body.len());
        for piece in answer.body[..end].chunks(4096) {
            stream.write_all(piece)?;
            thread::sleep(pause);
        }
        if let Some(Fault::Stall(_)) = fault {
            while !stop.load(Ordering::SeqCst) && is_open(stream) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if matches!(
            fault,
            Some(Fault::Truncate(_) | Fault::Stall(_) | Fault::LieLength(_))
        ) {
            return Ok(());
        }
    }
    Ok(())
}

fn is_open(stream: &TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
    !matches!(stream.peek(&mut [0]), Ok(0))
}

fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

fn refusal(status: u16, code: &str) -> Answer {
    let message = match code {
        "GatedRepo" => "Access to model owner/tiny is restricted and you are not in the authorized list.",
        "Disabled" => "Access to this resource is disabled.",
        "" if status == 401 => "Invalid credentials in Authorization header",
        _ => "Not found",
    };
    let mut headers = vec![("X-Error-Message", message.to_owned())];
    // The hub gives no code where a token is wrong or a repository is disabled.
    if !matches!(code, "" | "Disabled") {
        headers.push(("X-Error-Code", code.to_owned()));
    }
    Answer {
        status,
        headers,
        body: Vec::new(),
    }
}

fn redirect(status: u16, location: String, mut headers: Vec<(&'static str, String)>) -> Answer {
    headers.push(("Location", location));
    Answer {
        status,
        headers,
        body: b"Redirecting".to_vec(),
    }
}

fn answer(request: &Request, hub: SocketAddr, state: &mut State) -> (Answer, Option<Fault>) {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let path = decoded(path);
    let below = path.strip_prefix(&state.prefix).map(str::to_owned);
    if let Some(path) = below.as_ref().unwrap_or(&path).strip_prefix("/storage/") {
        return stored(request, path, query, state);
    }
    let Some(path) = below else {
        return (refusal(404, ""), None);
    };
    for (old, new) in &state.renamed {
        if path.contains(&format!("/{old}/")) {
            // Relative, and with the revision that was asked for; names stay encoded.
            let asked = request.path.split('?').next().unwrap_or_default();
            let to = asked.replace(old.as_str(), new);
            let query = if query.is_empty() {
                String::new()
            } else {
                format!("?{query}")
            };
            return (redirect(307, to + &query, Vec::new()), None);
        }
    }
    if let Some(path) = path.strip_prefix("/api/resolve-cache/") {
        return cached(request, path, state);
    }
    if let Some(path) = path.strip_prefix("/api/") {
        let fault = state.next_fault("info");
        return (describe(path, state), fault);
    }
    let path = path.trim_start_matches('/');
    let file = path
        .split_once("/resolve/")
        .and_then(|(_, rest)| rest.split_once('/'));
    let fault = file.and_then(|(_, file)| state.next_fault(&format!("resolve {file}")));
    (resolve(path, hub, state), fault)
}

/// A signed address on the storage host.
fn stored(request: &Request, path: &str, query: &str, state: &mut State) -> (Answer, Option<Fault>) {
    let (key, file) = path.split_once("/-/").unwrap_or_default();
    let signature = query
        .strip_prefix("signature=secret")
        .and_then(|number| number.parse::<usize>().ok());
    let Some(used) = signature.and_then(|number| state.signatures.get_mut(number)) else {
        return (refusal(403, "AccessDenied"), None);
    };
    *used += 1;
    if state.uses.is_some_and(|uses| *used > uses) {
        return (refusal(403, "AccessDenied"), None);
    }
    let fault = state.next_fault(file);
    let repo = &state.repositories[key];
    let (bytes, path) = (repo.files[file].clone(), repo.on_disk.get(file).cloned());
    let sum = checksum(file, &bytes);
    (
        content(request, (&bytes, path.as_deref()), sum, Vec::new(), &fault),
        fault,
    )
}

/// A small file, where the hub's redirect leads: `models/OWNER/NAME/COMMIT/FILE`.
fn cached(request: &Request, path: &str, state: &mut State) -> (Answer, Option<Fault>) {
    let mut parts = path.splitn(5, '/');
    let mut next = || parts.next().unwrap_or_default();
    let (key, commit, file) = (format!("{}/{}/{}", next(), next(), next()), next(), next());
    let found = state.repositories.get(&key).filter(|repo| repo.commit == commit);
    let Some(bytes) = found.and_then(|repo| repo.files.get(file)).cloned() else {
        return (refusal(404, "EntryNotFound"), None);
    };
    let fault = state.next_fault(file);
    let headers = vec![("X-Repo-Commit", commit.to_owned())];
    (
        content(request, (&bytes, None), checksum(file, &bytes), headers, &fault),
        fault,
    )
}

/// The hub's answer for a file: where it is.
fn resolve(path: &str, hub: SocketAddr, state: &mut State) -> Answer {
    let Some((name, rest)) = path.split_once("/resolve/") else {
        return refusal(404, "");
    };
    let key = match name.starts_with("datasets/") {
        true => name.to_owned(),
        false => format!("models/{name}"),
    };
    let (revision, file) = rest.split_once('/').unwrap_or_default();
    let Some(repo) = state.repositories.get(&key).cloned() else {
        return refusal(404, "RepoNotFound");
    };
    if let Some((status, code)) = repo.refusal {
        return refusal(status, code);
    }
    if revision != "main" && revision != repo.commit {
        return refusal(404, "RevisionNotFound");
    }
    let Some(bytes) = repo.files.get(file) else {
        return refusal(404, "EntryNotFound");
    };
    let size = repo
        .on_disk
        .get(file)
        .map_or(bytes.len() as u64, |path| length(path));
    let headers = vec![
        ("X-Repo-Commit", repo.commit.clone()),
        ("X-Linked-Etag", format!("\"{}\"", checksum(file, bytes))),
        ("X-Linked-Size", size.to_string()),
    ];
    let encoded: String = file
        .bytes()
        .map(
            |byte| match byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            },
        )
        .collect();
    if is_lfs(file) {
        // Another origin, as the real hub's storage is, and a new signature each time.
        state.signatures.push(0);
        let number = state.signatures.len() - 1;
        let host = match state.names_the_hub {
            true => "https://huggingface.co".to_owned(),
            false => format!("http://localhost:{}", hub.port()),
        };
        return redirect(
            302,
            format!("{host}/storage/{key}/-/{encoded}?signature=secret{number}"),
            headers,
        );
    }
    let to = format!(
        "{}/api/resolve-cache/{key}/{}/{encoded}",
        state.prefix, repo.commit
    );
    redirect(307, to, headers)
}

impl State {
    fn next_fault(&mut self, file: &str) -> Option<Fault> {
        let next = self.faults.get_mut(file).and_then(VecDeque::pop_front);
        next.or_else(|| self.always.get(file).cloned())
    }
}

/// Weights and rows lie in large-file storage.
fn is_lfs(file: &str) -> bool {
    [".safetensors", ".parquet", ".zip", ".bin"]
        .iter()
        .any(|suffix| file.ends_with(suffix))
}

pub fn checksum(file: &str, bytes: &[u8]) -> Checksum {
    let mut hasher: Hasher = match is_lfs(file) {
        true => Checksum::sha256_hasher(),
        false => Checksum::GitBlob([0; 20]).hasher(bytes.len() as u64),
    };
    hasher.update(bytes);
    hasher.finish()
}

fn describe(path: &str, state: &State) -> Answer {
    let (key, revision) = path.split_once("/revision/").unwrap_or_default();
    let Some(repo) = state.repositories.get(key) else {
        return refusal(404, "RepoNotFound");
    };
    if let Some((status, code)) = repo.refusal {
        return refusal(status, code);
    }
    if revision != "main" && revision != repo.commit {
        return refusal(404, "RevisionNotFound");
    }
    let siblings: Vec<Value> = repo
        .files
        .iter()
        .map(|(name, bytes)| {
            let on_disk = repo.on_disk.get(name).map(|path| length(path));
            let size = repo.sizes.get(name).copied().or(on_disk);
            let size = size.unwrap_or(bytes.len() as u64);
            let sum = checksum(name, bytes).to_string();
            match is_lfs(name) {
                _ if repo.terse => json!({"rfilename": name}),
                true => json!({"rfilename": name, "size": size, "blobId": "0".repeat(40),
                               "lfs": {"sha256": sum, "size": size, "pointerSize": 134}}),
                false => json!({"rfilename": name, "size": size, "blobId": sum}),
            }
        })
        .collect();
    Answer {
        status: 200,
        headers: vec![("Content-Type", "application/json".to_owned())],
        body: json!({"sha": repo.commit, "siblings": siblings})
            .to_string()
            .into_bytes(),
    }
}

fn length(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

fn content(
    request: &Request,
    (bytes, path): (&[u8], Option<&Path>),
    etag: Checksum,
    mut headers: Vec<(&'static str, String)>,
    fault: &Option<Fault>,
) -> Answer {
    headers.push(("ETag", format!("\"{etag}\"")));
    headers.push(("Accept-Ranges", "bytes".to_owned()));
    let whole = |headers| Answer {
        status: 200,
        headers,
        body: bytes.to_vec(),
    };
    let size = path.map_or(bytes.len(), |path| length(path) as usize);
    let Some(start) = request
        .range_start()
        .filter(|_| !matches!(fault, Some(Fault::IgnoreRange)))
    else {
        return whole(headers);
    };
    let end = request.range_end().map_or(size, |last| (last + 1).min(size));
    let start = match fault {
        Some(Fault::WrongRange) => start / 2,
        _ => start,
    };
    if start >= end {
        headers.push(("Content-Range", format!("bytes */{size}")));
        return Answer {
            status: 416,
            headers,
            body: Vec::new(),
        };
    }
    headers.push(("Content-Range", format!("bytes {start}-{}/{size}", end - 1)));
    let body = match path {
        None => bytes[start..end].to_vec(),
        Some(path) => {
            let mut body = vec![0; end - start];
            let file = std::fs::File::open(path).unwrap();
            file.read_exact_at(&mut body, start as u64).unwrap();
            body
        }
    };
    Answer {
        status: 206,
        headers,
        body,
    }
}
