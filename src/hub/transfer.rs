//! One file, from its first byte or from where an earlier attempt ended, to a name that only verified bytes get.

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
    client::{Answer, broken_off, text_of},
    manifest::Digests,
    patience::{Failure, Patience},
    repository::Subject,
};
use crate::error::HubError;
use crate::{Error, Result};

/// Folder, in the one that is filled, of files that are not complete.
pub(super) const PARTS: &str = ".parts";
/// Downloads of a file from its first byte before its corruption is believed.
const MAX_CORRUPT: u32 = 3;
/// So much is progress, after which failures are counted anew; less might go on for ever.
const PROGRESS_BYTES: u64 = 256 << 10;

/// Less than this in four times the longest silence is no transfer.
const TRICKLE_BYTES: u64 = 64 << 10;

/// The incomplete copy of a file. Its name is the checksum, so a file that changes on the hub starts anew.
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

    /// The `ETag` under which the bytes so far were served.
    fn served_as(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(fs::read_to_string(&self.etag).ok()?.trim()).ok()
    }

    fn remember(&self, etag: Option<&str>) -> io::Result<()> {
        match etag {
            Some(etag) => fs::write(&self.etag, etag),
            None => remove(&self.etag),
        }
    }

    fn discard(&self) -> Result<()> {
        remove(&self.path)
            .and_then(|()| remove(&self.etag))
            .map_err(|error| Error::io(&self.path, error))
    }
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes of `file` that an earlier run left in `folder`.
pub(super) fn fetched_before(folder: &Path, file: &RemoteFile) -> u64 {
    Part::new(folder, file).length().min(file.size)
}

/// Fetches `file` of `snapshot` to its path in `folder`, as often as it takes.
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
    let mut patience = Patience::new(hub);
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
                block_in_place(|| settle(&part, folder, &file.path))?;
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
            patience.renew();
        }
        patience.pause(subject, failure).await?;
    }
}

/// Gives a verified part its name.
fn settle(part: &Part, folder: &Path, path: &str) -> Result<()> {
    let target = folder.join(path);
    let parent = target.parent().unwrap_or(folder);
    let attempt = || {
        fs::create_dir_all(parent)?;
        fs::rename(&part.path, &target)?;
        File::open(parent)?.sync_all()?;
        remove(&part.etag)
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

/// Tells a connection that lives from one that trickles: each byte in time, and no file before next year.
struct Watch {
    span: Duration,
    since: Instant,
    length: u64,
}

impl Watch {
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
        let come = length - self.length;
        if come < TRICKLE_BYTES {
            let seconds = self.span.as_secs_f64();
            return Err(Failure::transient(format!(
                "only {come} bytes came in {seconds} s"
            )));
        }
        (self.since, self.length) = (Instant::now(), length);
        Ok(())
    }
}

/// A part that bytes are added to.
struct Growing {
    file: File,
    digests: Digests,
    length: u64,
}

impl Transfer<'_> {
    /// Completes the part and checks it; its SHA-256.
    async fn attempt(&self) -> Result<String, Failure> {
        let mut growing = block_in_place(|| self.open())?;
        if growing.length < self.file.size {
            self.append(&mut growing).await?;
        }
        growing
            .file
            .sync_all()
            .map_err(|error| Error::io(&self.part.path, error))?;
        growing
            .digests
            .finish(Some(&self.file.checksum))
            .map_err(|found| {
                Failure::Corrupt(format!(
                    "its checksum is {found} and not {}, which the hub announces",
                    self.file.checksum
                ))
            })
    }

    /// Opens the part and hashes what it holds.
    fn open(&self) -> Result<Growing, Failure> {
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
            Ok(Growing {
                file,
                digests,
                length,
            })
        };
        attempt().map_err(|error| Error::io(&self.part.path, error).into())
    }

    /// Requests what is missing and adds it.
    async fn append(&self, growing: &mut Growing) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        if growing.length > 0 {
            let range = format!("bytes={}-", growing.length);
            headers.insert(RANGE, range.parse().map_err(|_| Failure::transient("no range"))?);
            if let Some(etag) = self.part.served_as() {
                headers.insert(IF_RANGE, etag);
            }
        }
        let url = self.hub.file_url(self.subject.repository, &self.file.path)?;
        let mut answer = self.hub.request(Method::GET, url, headers, self.subject).await?;
        self.accept(&answer, growing)?;
        let mut watch = Watch::new(self.hub.settings.stall, growing.length);
        while let Some(chunk) = answer.response.chunk().await.map_err(broken_off)? {
            if growing.length + chunk.len() as u64 > self.file.size {
                return Err(Failure::Corrupt(format!(
                    "more than the {} bytes come that the hub announces",
                    self.file.size
                )));
            }
            growing
                .file
                .write_all(&chunk)
                .map_err(|error| Error::io(&self.part.path, error))?;
            growing.digests.update(&chunk);
            growing.length += chunk.len() as u64;
            self.bar.inc(chunk.len() as u64);
            watch.check(growing.length)?;
        }
        if growing.length < self.file.size {
            return Err(Failure::transient(format!(
                "the connection closed after {} of {} bytes",
                growing.length, self.file.size
            )));
        }
        Ok(())
    }

    /// Checks an answer's header against what is announced; a part that does not fit it starts anew.
    fn accept(&self, answer: &Answer, growing: &mut Growing) -> Result<(), Failure> {
        let headers = answer.response.headers();
        if answer
            .commit
            .as_ref()
            .is_some_and(|commit| *commit != self.subject.repository.revision)
        {
            return Err(Failure::Corrupt(
                "the hub serves it from another commit".to_owned(),
            ));
        }
        let announced: Option<Checksum> = answer.checksum.as_ref().and_then(|text| text.parse().ok());
        let kinds_agree =
            |found: &Checksum| std::mem::discriminant(found) == std::mem::discriminant(&self.file.checksum);
        if announced.is_some_and(|found| kinds_agree(&found) && found != self.file.checksum) {
            return Err(Failure::Corrupt(
                "the hub now announces another checksum for it".to_owned(),
            ));
        }
        if text_of(headers, &CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(Failure::Corrupt(
                "it comes compressed, though this was not asked for".to_owned(),
            ));
        }
        let etag = text_of(headers, &ETAG).filter(|etag| etag.starts_with('"'));
        match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => self.accept_range(headers, etag.as_deref(), growing)?,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.part.discard()?;
                return Err(Failure::transient(
                    "the hub has no such range of it; it starts anew",
                ));
            }
            _ if growing.length > 0 => self.start_anew(growing)?,
            _ => {}
        }
        let remaining = self.file.size - growing.length;
        let length = text_of(headers, &CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length != remaining) {
            return Err(Failure::Corrupt(format!(
                "{length} bytes are to come where the hub announces {remaining}"
            )));
        }
        self.part
            .remember(etag.as_deref())
            .map_err(|error| Error::io(&self.part.path, error).into())
    }

    fn accept_range(
        &self,
        headers: &HeaderMap,
        etag: Option<&str>,
        growing: &Growing,
    ) -> Result<(), Failure> {
        let range = text_of(headers, &CONTENT_RANGE).unwrap_or_default();
        let fits = content_range(&range).is_some_and(|(start, total)| {
            start == growing.length && total.is_none_or(|size| size == self.file.size)
        });
        let changed = match (self.part.served_as(), etag) {
            (Some(before), Some(now)) => before.as_bytes() != now.as_bytes(),
            _ => false,
        };
        if fits && !changed {
            return Ok(());
        }
        self.part.discard()?;
        Err(Failure::transient(if changed {
            "the file changed on the hub while it was fetched; it starts anew"
        } else {
            "the hub answered with another range than it was asked for; the file starts anew"
        }))
    }

    /// The whole file comes, whether or not a part of it was asked for.
    fn start_anew(&self, growing: &mut Growing) -> Result<(), Failure> {
        growing
            .file
            .set_len(0)
            .map_err(|error| Error::io(&self.part.path, error))?;
        growing.digests = Digests::new(Some(&self.file.checksum), self.file.size);
        growing.length = 0;
        self.bar.set_position(0);
        Ok(())
    }
}

/// First byte and total size of `bytes START-END/TOTAL`; the total is none for `*`.
pub(super) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((start, None)),
        total => Some((start, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges_are_understood_or_refused() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes -9/10",
            "bytes x-9/10",
            "bytes 5-9/x",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
