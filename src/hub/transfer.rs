//! Transfer of one file: resumed by range, hashed, and renamed to its final path only if its checksum is the hub's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE,
};
use reqwest::{Method, StatusCode};
use tokio::task::block_in_place;

use super::{
    Checksum, Hub, ManifestFile, RemoteFile, Snapshot,
    backoff::Backoff,
    client::HubResponse,
    failure::{Failure, body_error},
    headers::{content_range, header_text},
    manifest::Digests,
    names::PARTS,
    repository::Subject,
};
use crate::error::HubError;
use crate::fs::{parent_folder, remove_if_present, rename, sync_parent};
use crate::{Error, Result};

/// Attempts from the first byte before a file counts as corrupt on the hub.
const MAX_CORRUPT: u32 = 3;
/// Progress that resets the retry count; with less, a transfer might never end.
const PROGRESS_BYTES: u64 = 256 << 10;
/// Minimum progress within four times the stall timeout.
const MIN_PROGRESS_BYTES: u64 = 64 << 10;

/// A partial file, named after its checksum, so that a file that changes on the hub is restarted.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    etag: PathBuf,
}

impl Part {
    fn new(folder: &Path, file: &RemoteFile) -> Self {
        let name = match file.checksum {
            Checksum::Sha256(_) => file.checksum.to_string(),
            Checksum::GitBlob(_) => format!("{}-{}", file.checksum, file.size),
        };
        let parts = folder.join(PARTS);
        Self {
            path: parts.join(&name),
            etag: parts.join(format!("{name}.etag")),
        }
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    /// The `ETag` that the bytes so far were served with.
    fn stored_etag(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(fs::read_to_string(&self.etag).ok()?.trim()).ok()
    }

    fn store_etag(&self, etag: Option<&str>) -> io::Result<()> {
        match etag {
            Some(etag) => fs::write(&self.etag, etag),
            None => remove_if_present(&self.etag),
        }
    }

    fn discard(&self) -> Result<()> {
        remove_if_present(&self.path)
            .and_then(|()| remove_if_present(&self.etag))
            .map_err(|error| Error::io(&self.path, error))
    }
}

/// Returns how many bytes of `file` an earlier run left in `folder`.
pub(super) fn fetched_before(folder: &Path, file: &RemoteFile) -> u64 {
    Part::new(folder, file).length().min(file.size)
}

/// Downloads `file` of `snapshot` to its path in `folder`, with retries.
pub(super) async fn fetch(
    hub: &Hub,
    snapshot: &Snapshot,
    file: &RemoteFile,
    folder: &Path,
    bar: &ProgressBar,
) -> Result<ManifestFile> {
    let subject = Subject {
        repository: &snapshot.repository,
        file: Some(&file.path),
    };
    let part = Part::new(folder, file);
    let mut backoff = Backoff::new(hub);
    let mut corrupt = 0;
    loop {
        let before = part.length();
        let transfer = Transfer {
            hub,
            subject,
            file,
            part: &part,
            bar,
        };
        let failure = match transfer.attempt().await {
            Ok(sha256) => {
                block_in_place(|| move_into_place(&part, folder, &file.path))?;
                return Ok(ManifestFile {
                    path: file.path.clone(),
                    size: file.size,
                    sha256,
                });
            }
            Err(failure) => failure,
        };
        if let Failure::Corrupt(reason) = &failure {
            part.discard()?;
            corrupt += 1;
            if corrupt == MAX_CORRUPT {
                return Err(HubError::Corrupt {
                    file: subject.name(),
                    reason: reason.clone(),
                    attempts: corrupt,
                }
                .into());
            }
        } else if part.length() >= before + PROGRESS_BYTES {
            backoff.reset();
        }
        backoff.wait(subject, failure).await?;
    }
}

/// Renames a verified part to its final path.
fn move_into_place(part: &Part, folder: &Path, path: &str) -> Result<()> {
    let target = folder.join(path);
    let attempt = || {
        fs::create_dir_all(parent_folder(&target))?;
        rename(&part.path, &target)?;
        sync_parent(&target)?;
        remove_if_present(&part.etag)
    };
    attempt().map_err(|error| Error::io(&target, error))
}

/// One attempt at one file.
struct Transfer<'a> {
    hub: &'a Hub,
    subject: Subject<'a>,
    file: &'a RemoteFile,
    part: &'a Part,
    bar: &'a ProgressBar,
}

/// Detects a connection that trickles: bytes arrive before the read timeout, but too few.
struct ProgressWatch {
    span: Duration,
    since: Instant,
    length: u64,
}

impl ProgressWatch {
    fn new(stall: Duration, length: u64) -> Self {
        Self {
            span: stall * 4,
            since: Instant::now(),
            length,
        }
    }

    fn check(&mut self, length: u64) -> Result<(), Failure> {
        if self.since.elapsed() < self.span {
            return Ok(());
        }
        let received = length - self.length;
        if received < MIN_PROGRESS_BYTES {
            let seconds = self.span.as_secs_f64();
            return Err(Failure::transient(format!(
                "only {received} bytes received in {seconds} s"
            )));
        }
        (self.since, self.length) = (Instant::now(), length);
        Ok(())
    }
}

/// A part open for appending.
struct OpenPart {
    file: File,
    digests: Digests,
    length: u64,
}

impl Transfer<'_> {
    /// Completes the part and verifies it. Returns its SHA-256.
    async fn attempt(&self) -> Result<String, Failure> {
        let mut open = block_in_place(|| self.open_part())?;
        if open.length < self.file.size {
            self.append(&mut open).await?;
        }
        open.file
            .sync_all()
            .map_err(|error| Error::io(&self.part.path, error))?;
        open.digests.finish(Some(&self.file.checksum)).map_err(|found| {
            Failure::Corrupt(format!(
                "its checksum is {found} instead of {} as announced by the hub",
                self.file.checksum
            ))
        })
    }

    /// Opens the part and hashes its content.
    fn open_part(&self) -> Result<OpenPart, Failure> {
        if self.part.length() > self.file.size {
            self.part.discard()?;
        }
        let attempt = || {
            if let Some(parent) = self.part.path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&self.part.path)?;
            self.bar.set_position(0);
            let mut digests = Digests::new(Some(&self.file.checksum), self.file.size);
            let length = digests.update_from(&mut file, self.bar)?;
            Ok(OpenPart {
                file,
                digests,
                length,
            })
        };
        attempt().map_err(|error| Error::io(&self.part.path, error).into())
    }

    /// Requests the missing bytes and appends them.
    async fn append(&self, open: &mut OpenPart) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        if open.length > 0 {
            let range = format!("bytes={}-", open.length);
            headers.insert(
                RANGE,
                range.parse().map_err(|_| Failure::transient("invalid range"))?,
            );
            if let Some(etag) = self.part.stored_etag() {
                headers.insert(IF_RANGE, etag);
            }
        }
        let url = self.hub.file_url(self.subject.repository, &self.file.path)?;
        let mut response = self.hub.request(Method::GET, url, headers, self.subject).await?;
        self.accept(&response, open)?;
        let mut progress = ProgressWatch::new(self.hub.settings.stall, open.length);
        while let Some(chunk) = response.response.chunk().await.map_err(body_error)? {
            if open.length + chunk.len() as u64 > self.file.size {
                return Err(Failure::Corrupt(format!(
                    "more than the {} bytes that the hub announced were received",
                    self.file.size
                )));
            }
            open.file
                .write_all(&chunk)
                .map_err(|error| Error::io(&self.part.path, error))?;
            open.digests.update(&chunk);
            open.length += chunk.len() as u64;
            self.bar.inc(chunk.len() as u64);
            progress.check(open.length)?;
        }
        if open.length < self.file.size {
            return Err(Failure::transient(format!(
                "the connection closed after {} of {} bytes",
                open.length, self.file.size
            )));
        }
        Ok(())
    }

    /// Checks the response's headers against the announced file; restarts a part that does not match.
    fn accept(&self, response: &HubResponse, open: &mut OpenPart) -> Result<(), Failure> {
        let headers = response.response.headers();
        if response
            .commit
            .as_ref()
            .is_some_and(|commit| *commit != self.subject.repository.revision)
        {
            return Err(Failure::Corrupt(
                "the hub serves it from another commit".to_owned(),
            ));
        }
        let announced: Option<Checksum> = response.checksum.as_ref().and_then(|text| text.parse().ok());
        let kinds_agree =
            |found: &Checksum| std::mem::discriminant(found) == std::mem::discriminant(&self.file.checksum);
        if announced.is_some_and(|found| kinds_agree(&found) && found != self.file.checksum) {
            return Err(Failure::Corrupt(
                "the hub now announces another checksum for it".to_owned(),
            ));
        }
        if header_text(headers, &CONTENT_ENCODING)
            .is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(Failure::Corrupt(
                "the response is compressed, although this was not requested".to_owned(),
            ));
        }
        let etag = header_text(headers, &ETAG).filter(|etag| etag.starts_with('"'));
        match response.response.status() {
            StatusCode::PARTIAL_CONTENT => self.accept_range(headers, etag.as_deref(), open)?,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.part.discard()?;
                return Err(Failure::transient(
                    "the hub cannot serve the requested range; restarting the file",
                ));
            }
            _ if open.length > 0 => self.restart(open)?,
            _ => {}
        }
        let remaining = self.file.size - open.length;
        let length = header_text(headers, &CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length != remaining) {
            return Err(Failure::Corrupt(format!(
                "the response has {length} bytes, but the hub announces {remaining}"
            )));
        }
        self.part
            .store_etag(etag.as_deref())
            .map_err(|error| Error::io(&self.part.path, error).into())
    }

    fn accept_range(&self, headers: &HeaderMap, etag: Option<&str>, open: &OpenPart) -> Result<(), Failure> {
        let range = header_text(headers, &CONTENT_RANGE).unwrap_or_default();
        let fits = content_range(&range).is_some_and(|(start, total)| {
            start == open.length && total.is_none_or(|size| size == self.file.size)
        });
        let changed = match (self.part.stored_etag(), etag) {
            (Some(before), Some(now)) => before.as_bytes() != now.as_bytes(),
            _ => false,
        };
        if fits && !changed {
            return Ok(());
        }
        self.part.discard()?;
        Err(Failure::transient(if changed {
            "the file changed on the hub during the download; restarting it"
        } else {
            "the hub answered with another range than the requested one; restarting the file"
        }))
    }

    /// Starts from the first byte: the response has the whole file, although a range was requested.
    fn restart(&self, open: &mut OpenPart) -> Result<(), Failure> {
        open.file
            .set_len(0)
            .map_err(|error| Error::io(&self.part.path, error))?;
        open.digests = Digests::new(Some(&self.file.checksum), self.file.size);
        open.length = 0;
        self.bar.set_position(0);
        Ok(())
    }
}
