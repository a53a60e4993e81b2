//! The fake hub's answers: descriptions, redirects to files, and the files.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;

use medical_vision::hub::{Checksum, Hasher};
use serde_json::{Value, json};

use super::{Fault, Request, State};

pub(super) struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// Decodes percent-encoding.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

fn error(status: u16, code: &str) -> Response {
    let message = match code {
        "GatedRepo" => "Access to model owner/tiny is restricted and you are not in the authorized list.",
        "Disabled" => "Access to this resource is disabled.",
        "" if status == 401 => "Invalid credentials in Authorization header",
        _ => "Not found",
    };
    let mut headers = vec![("X-Error-Message", message.to_owned())];
    // The hub sends no code for an invalid token or a disabled repository.
    if !matches!(code, "" | "Disabled") {
        headers.push(("X-Error-Code", code.to_owned()));
    }
    Response {
        status,
        headers,
        body: Vec::new(),
    }
}

fn redirect(status: u16, location: String, mut headers: Vec<(&'static str, String)>) -> Response {
    headers.push(("Location", location));
    Response {
        status,
        headers,
        body: b"Redirecting".to_vec(),
    }
}

/// Routes a request. Returns the response and the fault to apply to it.
pub(super) fn route(request: &Request, hub: SocketAddr, state: &mut State) -> (Response, Option<Fault>) {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let path = decoded(path);
    let below = path.strip_prefix(&state.prefix).map(str::to_owned);
    if let Some(path) = below.as_ref().unwrap_or(&path).strip_prefix("/storage/") {
        return storage_file(request, path, query, state);
    }
    let Some(path) = below else {
        return (error(404, ""), None);
    };
    for (old, new) in &state.renamed {
        if path.contains(&format!("/{old}/")) {
            // Relative, with the requested revision; names stay encoded.
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
        return small_file(request, path, state);
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

/// Serves a signed URL of the storage host.
fn storage_file(request: &Request, path: &str, query: &str, state: &mut State) -> (Response, Option<Fault>) {
    let (key, file) = path.split_once("/-/").unwrap_or_default();
    let signature = query
        .strip_prefix("signature=secret")
        .and_then(|number| number.parse::<usize>().ok());
    let Some(used) = signature.and_then(|number| state.signatures.get_mut(number)) else {
        return (error(403, "AccessDenied"), None);
    };
    *used += 1;
    if state.max_uses.is_some_and(|max| *used > max) {
        return (error(403, "AccessDenied"), None);
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

/// Serves a small file, the target of the hub's redirect: `models/OWNER/NAME/COMMIT/FILE`.
fn small_file(request: &Request, path: &str, state: &mut State) -> (Response, Option<Fault>) {
    let mut parts = path.splitn(5, '/');
    let mut next = || parts.next().unwrap_or_default();
    let (key, commit, file) = (format!("{}/{}/{}", next(), next(), next()), next(), next());
    let found = state.repositories.get(&key).filter(|repo| repo.commit == commit);
    let Some(bytes) = found.and_then(|repo| repo.files.get(file)).cloned() else {
        return (error(404, "EntryNotFound"), None);
    };
    let fault = state.next_fault(file);
    let headers = vec![("X-Repo-Commit", commit.to_owned())];
    (
        content(request, (&bytes, None), checksum(file, &bytes), headers, &fault),
        fault,
    )
}

/// Redirects to where a file is served.
fn resolve(path: &str, hub: SocketAddr, state: &mut State) -> Response {
    let Some((name, rest)) = path.split_once("/resolve/") else {
        return error(404, "");
    };
    let key = match name.starts_with("datasets/") {
        true => name.to_owned(),
        false => format!("models/{name}"),
    };
    let (revision, file) = rest.split_once('/').unwrap_or_default();
    let Some(repo) = state.repositories.get(&key).cloned() else {
        return error(404, "RepoNotFound");
    };
    if let Some((status, code)) = repo.refusal {
        return error(status, code);
    }
    if revision != "main" && revision != repo.commit {
        return error(404, "RevisionNotFound");
    }
    let Some(bytes) = repo.files.get(file) else {
        return error(404, "EntryNotFound");
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
        // Another origin, as with the real storage host, and a new signature each time.
        state.signatures.push(0);
        let number = state.signatures.len() - 1;
        let host = match state.redirects_to_hub {
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

/// Returns whether a file is in large-file storage: weights, rows and archives.
fn is_lfs(file: &str) -> bool {
    [".safetensors", ".parquet", ".zip", ".bin"]
        .iter()
        .any(|suffix| file.ends_with(suffix))
}

/// Returns the checksum that the hub announces for a file.
pub fn checksum(file: &str, bytes: &[u8]) -> Checksum {
    let mut hasher: Hasher = match is_lfs(file) {
        true => Checksum::sha256_hasher(),
        false => Checksum::GitBlob([0; 20]).hasher(bytes.len() as u64),
    };
    hasher.update(bytes);
    hasher.finish()
}

/// Describes a repository: commit and files.
fn describe(path: &str, state: &State) -> Response {
    let (key, revision) = path.split_once("/revision/").unwrap_or_default();
    let Some(repo) = state.repositories.get(key) else {
        return error(404, "RepoNotFound");
    };
    if let Some((status, code)) = repo.refusal {
        return error(status, code);
    }
    if revision != "main" && revision != repo.commit {
        return error(404, "RevisionNotFound");
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
                _ if repo.names_only => json!({"rfilename": name}),
                true => json!({"rfilename": name, "size": size, "blobId": "0".repeat(40),
                               "lfs": {"sha256": sum, "size": size, "pointerSize": 134}}),
                false => json!({"rfilename": name, "size": size, "blobId": sum}),
            }
        })
        .collect();
    Response {
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

/// Serves the content of a file, or the requested range of it.
fn content(
    request: &Request,
    (bytes, path): (&[u8], Option<&Path>),
    etag: Checksum,
    mut headers: Vec<(&'static str, String)>,
    fault: &Option<Fault>,
) -> Response {
    headers.push(("ETag", format!("\"{etag}\"")));
    headers.push(("Accept-Ranges", "bytes".to_owned()));
    let whole = |headers| Response {
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
        return Response {
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
    Response {
        status: 206,
        headers,
        body,
    }
}
