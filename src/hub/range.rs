//! Pieces of a file on the hub, for archives of which little is wanted.

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

use super::client::{broken_off, text_of};
use super::patience::{Failure, Patience};
use super::repository::Subject;
use super::transfer::content_range;
use super::{Hub, RemoteFile, Repository, Snapshot};
use crate::{Error, Result};

/// What is asked for at a place that has nothing to do with the last one.
const FIRST_RUN: u64 = 1 << 20;
/// What is asked for at most where one piece after the other is read.
const MAX_RUN: u64 = 8 << 20;
/// So much is read over on the way to the next piece; beyond it, another run begins.
const MAX_GAP: u64 = 2 << 20;
/// Runs that are kept.
const RUNS: usize = 3;

/// Held by who started readers; they end when it is dropped.
#[derive(Debug)]
pub(crate) struct Leash(watch::Sender<()>);

impl Leash {
    /// For readers of one repository.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(()))
    }
}

/// A file on the hub that is read where it is wanted. Its bytes cannot be checked against the hub's checksum, which is of
/// the whole: whoever reads an archive checks its entries' own.
///
/// It blocks: not for a thread that drives the runtime. An error of the hub's is inside the error that it gives; see
/// [`hub_error`].
pub(crate) struct RemoteReader {
    hub: Arc<Hub>,
    snapshot: Arc<Snapshot>,
    file: RemoteFile,
    runtime: Handle,
    leash: watch::Receiver<()>,
    /// The storage host's address of the file, until it runs out.
    signed: Option<Url>,
    position: u64,
    /// The latest first.
    runs: VecDeque<(u64, Vec<u8>)>,
}

impl RemoteReader {
    /// `file` of `snapshot`, from its beginning.
    pub(crate) fn new(
        hub: &Arc<Hub>,
        snapshot: &Arc<Snapshot>,
        file: &RemoteFile,
        (runtime, leash): (Handle, &Leash),
    ) -> Self {
        Self {
            hub: Arc::clone(hub),
            snapshot: Arc::clone(snapshot),
            file: file.clone(),
            runtime,
            leash: leash.0.subscribe(),
            signed: None,
            position: 0,
            runs: VecDeque::new(),
        }
    }

    /// The run that holds the position, where that is in the file.
    fn run(&mut self) -> io::Result<&(u64, Vec<u8>)> {
        let position = self.position;
        let holds =
            |(start, bytes): &(u64, Vec<u8>)| (*start..*start + bytes.len() as u64).contains(&position);
        if let Some(at) = self.runs.iter().position(holds) {
            return self
                .runs
                .get(at)
                .ok_or_else(|| io::ErrorKind::NotConnected.into());
        }
        let wanted = self.next_run();
        let bytes = self.fetch(wanted.clone())?;
        self.runs.truncate(RUNS - 1);
        self.runs.push_front((wanted.start, bytes));
        self.runs
            .front()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What to ask for at the position: the more, the longer one piece after the other is read.
    fn next_run(&self) -> Range<u64> {
        let length = match self.runs.front() {
            Some((start, bytes)) => {
                let end = start + bytes.len() as u64;
                match (end..=end + MAX_GAP).contains(&self.position) {
                    true => (2 * bytes.len() as u64).clamp(FIRST_RUN, MAX_RUN),
                    false => FIRST_RUN,
                }
            }
            None => FIRST_RUN,
        };
        // An archive's directory is at its end, and is looked for backwards.
        let start = self.position.min(self.file.size.saturating_sub(FIRST_RUN));
        start..(start + length).min(self.file.size)
    }

    fn fetch(&mut self, wanted: Range<u64>) -> io::Result<Vec<u8>> {
        let (hub, leash, signed) = (Arc::clone(&self.hub), &mut self.leash, &mut self.signed);
        let (repository, file) = (&self.snapshot.repository, &self.file);
        let fetched = self.runtime.block_on(async {
            let fetched = pin!(hub.fetch_range(repository, file, wanted, signed));
            match select(fetched, pin!(leash.changed())).await {
                Either::Left((fetched, _)) => fetched,
                Either::Right(_) => Err(Error::Interrupted),
            }
        });
        // Told apart by its kind from damage of the archive.
        fetched.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))
    }
}

/// The hub's error inside one of a [`RemoteReader`]; any other is one about `path`.
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
        let (start, bytes) = self.run()?;
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
    /// The bytes `wanted` of `file`, as often as it takes.
    ///
    /// `signed` keeps the storage host's address from one piece to the next: the hub counts how often it is asked for one.
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
        let mut patience = Patience::new(self);
        loop {
            let known = signed.take();
            let was_known = known.is_some();
            match self.range(subject, file, &wanted, known).await {
                Ok((bytes, url)) => {
                    *signed = (!self.is_own(&url)).then_some(url);
                    return Ok(bytes);
                }
                // It may have run out: the hub gives another one.
                Err(Failure::Transient { .. } | Failure::Corrupt(_)) if was_known => {}
                Err(failure) => patience.pause(subject, failure).await?,
            }
        }
    }

    /// One attempt: the bytes, and who gave them.
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
        let range = range.parse().map_err(|_| Failure::transient("no range"))?;
        let headers = HeaderMap::from_iter([(RANGE, range)]);
        let mut answer = self.request(Method::GET, url, headers, subject).await?;
        let given = text_of(answer.response.headers(), &CONTENT_RANGE).unwrap_or_default();
        let fits = content_range(&given)
            .is_some_and(|(first, total)| first == wanted.start && total == Some(file.size));
        // A file that is wanted whole may come as such.
        let whole = answer.response.status() == StatusCode::OK && length == file.size;
        if !whole && (answer.response.status() != StatusCode::PARTIAL_CONTENT || !fits) {
            return Err(Failure::Corrupt(
                "the hub answered with another range than it was asked for".to_owned(),
            ));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.response.chunk().await.map_err(broken_off)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > length {
                return Err(Failure::Corrupt(
                    "the hub answered with more than it was asked for".to_owned(),
                ));
            }
        }
        if (bytes.len() as u64) < length {
            return Err(Failure::transient("the connection closed too early"));
        }
        Ok((bytes, answer.response.url().clone()))
    }
}
