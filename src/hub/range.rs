//! Pieces of a file on the hub, for archives of which little is wanted.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Method, StatusCode};
use tokio::runtime::Handle;

use super::client::{broken_off, text_of};
use super::patience::{Failure, Patience};
use super::repository::Subject;
use super::transfer::content_range;
use super::{Hub, RemoteFile, Snapshot};
use crate::Result;

/// What is requested at once.
const BLOCK_BYTES: u64 = 256 << 10;
/// Blocks that are kept.
const BLOCKS: usize = 8;

/// A file on the hub that is read where it is wanted. Its bytes cannot be checked against the hub's checksum, which is of
/// the whole: whoever reads an archive checks its entries' own.
///
/// It blocks: not for a thread that drives the runtime.
pub(crate) struct RemoteReader {
    hub: Arc<Hub>,
    snapshot: Arc<Snapshot>,
    file: RemoteFile,
    runtime: Handle,
    position: u64,
    blocks: VecDeque<(u64, Vec<u8>)>,
}

impl RemoteReader {
    /// `file` of `snapshot`, from its beginning.
    pub(crate) fn new(hub: &Arc<Hub>, snapshot: &Arc<Snapshot>, file: &RemoteFile, runtime: Handle) -> Self {
        Self {
            hub: Arc::clone(hub),
            snapshot: Arc::clone(snapshot),
            file: file.clone(),
            runtime,
            position: 0,
            blocks: VecDeque::new(),
        }
    }

    /// The block that holds the position, where that is in the file.
    fn block(&mut self) -> io::Result<&(u64, Vec<u8>)> {
        let start = self.position / BLOCK_BYTES * BLOCK_BYTES;
        if let Some(at) = self.blocks.iter().position(|(first, _)| *first == start) {
            return self
                .blocks
                .get(at)
                .ok_or_else(|| io::ErrorKind::NotConnected.into());
        }
        let end = (start + BLOCK_BYTES).min(self.file.size);
        let fetched = self.hub.fetch_range(&self.snapshot, &self.file, start, end);
        let bytes = self.runtime.block_on(fetched);
        // Told apart by its kind from damage of the archive.
        let bytes = bytes.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error.to_string()))?;
        if self.blocks.len() == BLOCKS {
            self.blocks.pop_back();
        }
        self.blocks.push_front((start, bytes));
        self.blocks
            .front()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
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
    /// Bytes `start..end` of `file`, as often as it takes.
    async fn fetch_range(
        &self,
        snapshot: &Snapshot,
        file: &RemoteFile,
        start: u64,
        end: u64,
    ) -> Result<Vec<u8>> {
        let subject = Subject {
            repository: &snapshot.repository,
            file: Some(&file.path),
        };
        let mut patience = Patience::new(&self.settings);
        loop {
            match self.range(subject, file, start, end).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => patience.pause(subject, failure).await?,
            }
        }
    }

    async fn range(
        &self,
        subject: Subject<'_>,
        file: &RemoteFile,
        start: u64,
        end: u64,
    ) -> Result<Vec<u8>, Failure> {
        let url = self.file_url(subject.repository, &file.path)?;
        let range = format!("bytes={start}-{}", end.saturating_sub(1));
        let range = range.parse().map_err(|_| Failure::transient("no range"))?;
        let headers = HeaderMap::from_iter([(RANGE, range)]);
        let mut answer = self.request(Method::GET, url, headers, subject).await?;
        let given = text_of(answer.response.headers(), &CONTENT_RANGE).unwrap_or_default();
        let fits =
            content_range(&given).is_some_and(|(first, total)| first == start && total == Some(file.size));
        if answer.response.status() != StatusCode::PARTIAL_CONTENT || !fits {
            return Err(Failure::Corrupt(
                "the hub answered with another range than it was asked for".to_owned(),
            ));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.response.chunk().await.map_err(broken_off)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > end - start {
                return Err(Failure::Corrupt(
                    "the hub answered with more than it was asked for".to_owned(),
                ));
            }
        }
        if (bytes.len() as u64) < end - start {
            return Err(Failure::transient("the connection closed too early"));
        }
        Ok(bytes)
    }
}
