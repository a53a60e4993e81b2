//! A repository at one commit: its files with their sizes and checksums; every name is checked.

use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::{
    Checksum, Hub, Repository,
    backoff::Backoff,
    failure::{Failure, body_error, invalid_response},
    names::check_names,
    repository::Subject,
};
use crate::Result;
use crate::error::HubError;

/// Maximum number of files of a repository.
const MAX_FILES: usize = 100_000;
/// Maximum number of files listed without a checksum; each takes one request.
const MAX_WITHOUT_CHECKSUM: usize = 1_000;
/// Maximum size of a repository's description.
const MAX_INFO_BYTES: usize = 64 << 20;

/// A file of a repository as the hub announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository; safe to join to a folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Checksum of the content.
    pub checksum: Checksum,
}

/// A repository at one commit.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Repository with the commit as its revision.
    pub repository: Repository,
    /// Sorted by path.
    pub files: Vec<RemoteFile>,
    without_checksum: Vec<String>,
}

/// The hub's description of a repository; only the fields that are used.
#[derive(Debug, Deserialize)]
struct RepoInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Snapshot {
    /// The commit's hash.
    pub fn commit(&self) -> &str {
        &self.repository.revision
    }

    /// Validates a description.
    fn new(repository: &Repository, info: RepoInfo) -> Result<Self, HubError> {
        let subject = Subject {
            repository,
            file: None,
        };
        let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit(&info.sha) {
            return Err(invalid_response(subject, "its description contains no commit"));
        }
        if is_commit(&repository.revision) && !repository.revision.eq_ignore_ascii_case(&info.sha) {
            return Err(invalid_response(
                subject,
                "the hub answered with another commit than the requested one",
            ));
        }
        if info.siblings.len() > MAX_FILES {
            return Err(HubError::Unsuitable {
                repository: repository.id.clone(),
                reason: format!("lists {} files; the limit is {MAX_FILES}", info.siblings.len()),
            });
        }
        check_names(
            repository,
            info.siblings.iter().map(|file| file.rfilename.as_str()),
        )?;
        let mut snapshot = Self {
            repository: repository.at(&info.sha.to_ascii_lowercase()),
            files: Vec::new(),
            without_checksum: Vec::new(),
        };
        for sibling in info.siblings {
            match sibling.announced() {
                Some(file) => snapshot.files.push(file),
                None => snapshot.without_checksum.push(sibling.rfilename),
            }
        }
        if snapshot.without_checksum.len() > MAX_WITHOUT_CHECKSUM {
            return Err(invalid_response(
                subject,
                "the hub lists no checksums for its files",
            ));
        }
        Ok(snapshot)
    }

    /// Takes the files that the description lists without checksum or size.
    fn take_without_checksum(&mut self) -> Vec<String> {
        std::mem::take(&mut self.without_checksum)
    }
}

impl Sibling {
    fn announced(&self) -> Option<RemoteFile> {
        let (checksum, size) = match &self.lfs {
            Some(lfs) => (lfs.sha256.as_ref()?, lfs.size.or(self.size)?),
            None => (self.blob_id.as_ref()?, self.size?),
        };
        Some(RemoteFile {
            path: self.rfilename.clone(),
            size,
            checksum: checksum.parse().ok()?,
        })
    }
}

impl Hub {
    /// Lists the repository's files at its revision, pinned to the current commit.
    pub async fn snapshot(&self, repository: &Repository) -> Result<Snapshot> {
        let subject = Subject {
            repository,
            file: None,
        };
        let request = self.api.repo(repository.hf()).info_request();
        let url = request
            .query(&[("blobs", "true")])
            .build()
            .map_err(|error| invalid_response(subject, &format!("no URL can be built from it ({error})")))?
            .url()
            .clone();
        let mut backoff = Backoff::new(self);
        let info: RepoInfo = loop {
            match self.info(&url, subject).await {
                Ok(info) => break info,
                Err(failure) => backoff.wait(subject, failure).await?,
            }
        };
        let mut snapshot = Snapshot::new(repository, info)?;
        for file in snapshot.take_without_checksum() {
            let file = self.remote_file(&snapshot.repository, &file).await?;
            snapshot.files.push(file);
        }
        snapshot.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(snapshot)
    }

    async fn info(&self, url: &Url, subject: Subject<'_>) -> Result<RepoInfo, Failure> {
        let mut response = self
            .request(Method::GET, url.clone(), HeaderMap::new(), subject)
            .await?;
        let mut body = Vec::new();
        while let Some(chunk) = response.response.chunk().await.map_err(body_error)? {
            if body.len() + chunk.len() > MAX_INFO_BYTES {
                return Err(invalid_response(subject, "its description is too large").into());
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| {
            invalid_response(subject, &format!("its description is not valid ({error})")).into()
        })
    }

    /// Requests size and checksum of a file that the repository's description lists without them.
    async fn remote_file(&self, repository: &Repository, file: &str) -> Result<RemoteFile> {
        let subject = Subject {
            repository,
            file: Some(file),
        };
        let url = self.file_url(repository, file)?;
        let mut backoff = Backoff::new(self);
        loop {
            let request = self.request(Method::HEAD, url.clone(), HeaderMap::new(), subject);
            let response = match request.await {
                Ok(response) => response,
                Err(failure) => {
                    backoff.wait(subject, failure).await?;
                    continue;
                }
            };
            let checksum = response.checksum.and_then(|text| text.parse().ok());
            let (Some(checksum), Some(size)) = (checksum, response.size) else {
                return Err(invalid_response(subject, "the hub gives no checksum or size for it").into());
            };
            return Ok(RemoteFile {
                path: file.to_owned(),
                size,
                checksum,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hub::RepositoryKind;

    fn repository() -> Repository {
        Repository::new(RepositoryKind::Model, "owner/name", "main").unwrap()
    }

    proptest! {
        #[test]
        fn a_description_of_any_bytes_never_panics(text in any::<Vec<u8>>()) {
            if let Ok(info) = serde_json::from_slice::<RepoInfo>(&text) {
                let _ = Snapshot::new(&repository(), info);
            }
        }
    }

    #[test]
    fn a_description_gives_sizes_and_checksums() {
        let info = serde_json::json!({
            "sha": "A".repeat(40),
            "siblings": [
                {"rfilename": "w.safetensors", "size": 9, "blobId": "1".repeat(40),
                 "lfs": {"sha256": "2".repeat(64), "size": 9, "pointerSize": 134}},
                {"rfilename": "config.json", "size": 3, "blobId": "3".repeat(40)},
                {"rfilename": "odd.txt"},
            ],
        });
        let mut snapshot = Snapshot::new(&repository(), serde_json::from_value(info).unwrap()).unwrap();
        assert_eq!(snapshot.commit(), "a".repeat(40));
        let mut sums: Vec<String> = snapshot
            .files
            .iter()
            .map(|file| file.checksum.to_string())
            .collect();
        sums.sort();
        assert_eq!(sums, ["2".repeat(64), "3".repeat(40)]);
        assert_eq!(snapshot.take_without_checksum(), ["odd.txt"]);
    }
}
