//! Random access to a file on the hub by range requests, for archives of which few entries are needed.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::backoff::Backoff;
use super::failure::{Failure, body_error};
use super::headers::{content_range, header_text};
use super::repository::Subject;
use super::{Hub, RemoteFile, Repository, Snapshot};
use crate::{Error, Result};

/// Length of the first request of a sequential read.
const FIRST_READ: u64 = 1 << 20;
/// Maximum length of a request; lengths double while reads are sequential.
const MAX_READ: u64 = 8 << 20;
/// Maximum gap between two reads that still count as sequential.
const MAX_GAP: u64 = 2 << 20;
/// Number of cached blocks.
const CACHED_BLOCKS: usize = 3;

/// Cancels the readers created with it when it is dropped.
#[derive(Debug)]
pub(crate) struct CancelGuard(watch::Sender<()>);

impl CancelGuard {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(()))
    }
}

/// A file on the hub with random access. Its bytes are not verified: the hub's checksum is that of the whole file.
/// Readers of an archive verify the checksums of its entries.
///
/// Reads block, so call them on a blocking thread only. [`hub_error`] extracts the hub's error from an I/O error.
pub(crate) struct RemoteReader {
    hub: Arc<Hub>,
    snapshot: Arc<Snapshot>,
    file: RemoteFile,
    runtime: Handle,
    cancelled: watch::Receiver<()>,
    /// Signed URL at the storage host, until it expires.
    signed: Option<Url>,
    position: u64,
    /// Cached blocks by offset, the latest first.
    blocks: VecDeque<(u64, Vec<u8>)>,
}

impl RemoteReader {
    /// Opens `file` of `snapshot` at offset 0.
    pub(crate) fn new(
        hub: &Arc<Hub>,
        snapshot: &Arc<Snapshot>,
        file: &RemoteFile,
        (runtime, guard): (Handle, &CancelGuard),
    ) -> Self {
        Self {
            hub: Arc::clone(hub),
            snapshot: Arc::clone(snapshot),
            file: file.clone(),
            runtime,
            cancelled: guard.0.subscribe(),
            signed: None,
            position: 0,
            blocks: VecDeque::new(),
        }
    }

    /// Returns the block with the current position, which must be inside the file.
    fn block(&mut self) -> io::Result<&(u64, Vec<u8>)> {
        let position = self.position;
        let holds =
            |(start, bytes): &(u64, Vec<u8>)| (*start..*start + bytes.len() as u64).contains(&position);
        if let Some(at) = self.blocks.iter().position(holds) {
            return self
                .blocks
                .get(at)
                .ok_or_else(|| io::ErrorKind::NotConnected.into());
        }
        let wanted = self.next_range();
        let bytes = self.fetch(wanted.clone())?;
        self.blocks.truncate(CACHED_BLOCKS - 1);
        self.blocks.push_front((wanted.start, bytes));
        self.blocks
            .front()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Returns the range to request at the position; it grows while reads are sequential.
    fn next_range(&self) -> Range<u64> {
        let length = match self.blocks.front() {
            Some((start, bytes)) => {
                let end = start + bytes.len() as u64;
                match (end..=end + MAX_GAP).contains(&self.position) {
                    true => (2 * bytes.len() as u64).clamp(FIRST_READ, MAX_READ),
                    false => FIRST_READ,
                }
            }
            None => FIRST_READ,
        };
        // A zip archive's directory is at its end and is searched for backwards.
        let start = self.position.min(self.file.size.saturating_sub(FIRST_READ));
        start..(start + length).min(self.file.size)
    }

    fn fetch(&mut self, wanted: Range<u64>) -> io::Result<Vec<u8>> {
        let (hub, cancelled, signed) = (Arc::clone(&self.hub), &mut self.cancelled, &mut self.signed);
        let (repository, file) = (&self.snapshot.repository, &self.file);
        let fetched = self.runtime.block_on(async {
            let fetched = pin!(hub.fetch_range(repository, file, wanted, signed));
            match select(fetched, pin!(cancelled.changed())).await {
                Either::Left((fetched, _)) => fetched,
                Either::Right(_) => Err(Error::Cancelled),
            }
        });
        // This kind distinguishes it from a damaged archive.
        fetched.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))
    }
}

/// Returns the hub's error inside an error of a [`RemoteReader`], else an I/O error of `path`.
pub(crate) fn hub_error(path: &Path, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io(path, error),
    }
}

impl Read for RemoteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.position;
        if position >= self.file.size || buffer.is_empty() {
            return Ok(0);
        }
        let (start, bytes) = self.block()?;
        let rest = bytes.get((position - start) as usize..).unwrap_or_default();
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        self.position += taken as u64;
        Ok(taken)
    }
}

impl Seek for RemoteReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.file.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Hub {
    /// Fetches the range `wanted` of `file`, with retries.
    ///
    /// `signed` keeps the signed URL from one range to the next, because the hub's rate limit counts requests for one.
    pub(super) async fn fetch_range(
        &self,
        repository: &Repository,
        file: &RemoteFile,
        wanted: Range<u64>,
        signed: &mut Option<Url>,
    ) -> Result<Vec<u8>> {
        let subject = Subject {
            repository,
            file: Some(&file.path),
        };
        let mut backoff = Backoff::new(self);
        loop {
            let known = signed.take();
            let was_known = known.is_some();
            match self.range(subject, file, &wanted, known).await {
                Ok((bytes, url)) => {
                    *signed = (!self.is_own(&url)).then_some(url);
                    return Ok(bytes);
                }
                // The URL may have expired: request a new one.
                Err(Failure::Transient { .. } | Failure::Corrupt(_)) if was_known => {}
                Err(failure) => backoff.wait(subject, failure).await?,
            }
        }
    }

    /// Makes one attempt. Returns the bytes and the URL that served them.
    async fn range(
        &self,
        subject: Subject<'_>,
        file: &RemoteFile,
        wanted: &Range<u64>,
        known: Option<Url>,
    ) -> Result<(Vec<u8>, Url), Failure> {
        let url = match known {
            Some(url) => url,
            None => self.file_url(subject.repository, &file.path)?,
        };
        let length = wanted.end - wanted.start;
        let range = format!("bytes={}-{}", wanted.start, wanted.end.saturating_sub(1));
        let range = range.parse().map_err(|_| Failure::transient("invalid range"))?;
        let headers = HeaderMap::from_iter([(RANGE, range)]);
        let mut response = self.request(Method::GET, url, headers, subject).await?;
        let given = header_text(response.response.headers(), &CONTENT_RANGE).unwrap_or_default();
        let fits = content_range(&given)
            .is_some_and(|(first, total)| first == wanted.start && total == Some(file.size));
        // A request for the whole file may be answered without a range.
        let whole = response.response.status() == StatusCode::OK && length == file.size;
        if !whole && (response.response.status() != StatusCode::PARTIAL_CONTENT || !fits) {
            return Err(Failure::Corrupt(
                "the hub answered with another range than the requested one".to_owned(),
            ));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.response.chunk().await.map_err(body_error)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > length {
                return Err(Failure::Corrupt(
                    "the hub sent more bytes than requested".to_owned(),
                ));
            }
        }
        if (bytes.len() as u64) < length {
            return Err(Failure::transient("the connection closed too early"));
        }
        Ok((bytes, response.response.url().clone()))
    }
}
