//! A repository at one commit: its files, their sizes and checksums, every name checked.

use std::collections::BTreeSet;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::{Checksum, Hub, Repository, client::nonsense, patience::Patience, repository::Subject};
use crate::Result;
use crate::error::HubError;

/// A repository may not have more files.
const MAX_FILES: usize = 100_000;
/// More files without checksum in the list would cost a request each.
const MAX_UNANNOUNCED: usize = 1_000;
/// Names that the downloader itself uses in the folder it fills.
pub(super) const RESERVED: [&str; 2] = [super::manifest::DOWNLOAD_MANIFEST, super::transfer::PARTS];

/// A file of a repository as the hub announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository; safe to join to a folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of the bytes.
    pub checksum: Checksum,
}

/// A repository at one commit.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// With the commit as its revision.
    pub repository: Repository,
    /// Sorted by path.
    pub files: Vec<RemoteFile>,
    unannounced: Vec<String>,
}

/// The hub's description of a repository, as far as it is needed.
#[derive(Debug, Deserialize)]
pub(super) struct RepoInfo {
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
    /// The commit.
    pub fn commit(&self) -> &str {
        &self.repository.revision
    }

    /// Checks a description; the hub is not trusted with a single name.
    pub(super) fn new(repository: &Repository, info: RepoInfo) -> Result<Self, HubError> {
        let subject = Subject {
            repository,
            file: None,
        };
        let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit(&info.sha) {
            return Err(nonsense(subject, "its description names no commit"));
        }
        if is_commit(&repository.revision) && !repository.revision.eq_ignore_ascii_case(&info.sha) {
            return Err(nonsense(
                subject,
                "the hub answered with another commit than it was asked for",
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
            unannounced: Vec::new(),
        };
        for sibling in info.siblings {
            match sibling.announced() {
                Some(file) => snapshot.files.push(file),
                None => snapshot.unannounced.push(sibling.rfilename),
            }
        }
        if snapshot.unannounced.len() > MAX_UNANNOUNCED {
            return Err(nonsense(subject, "it gives no checksums for its files"));
        }
        Ok(snapshot)
    }

    /// Files that the description gives no checksum or size for.
    pub(super) fn take_unannounced(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unannounced)
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
    /// Asks for the size and checksum of one file that the repository's description does not give.
    pub(super) async fn announced(&self, repository: &Repository, file: &str) -> Result<RemoteFile> {
        let subject = Subject {
            repository,
            file: Some(file),
        };
        let url = self.file_url(repository, file)?;
        let mut patience = Patience::new(self);
        loop {
            let request = self.request(Method::HEAD, url.clone(), HeaderMap::new(), subject);
            let answer = match request.await {
                Ok(answer) => answer,
                Err(failure) => {
                    patience.pause(subject, failure).await?;
                    continue;
                }
            };
            let checksum = answer.checksum.and_then(|text| text.parse().ok());
            let (Some(checksum), Some(size)) = (checksum, answer.size) else {
                return Err(nonsense(subject, "the hub gives no checksum or size for it").into());
            };
            return Ok(RemoteFile {
                path: file.to_owned(),
                size,
                checksum,
            });
        }
    }
}

/// Refuses names that could leave the folder, hide in a terminal, or collide.
fn check_names<'a>(repository: &Repository, names: impl Iterator<Item = &'a str>) -> Result<(), HubError> {
    let refused = |name: &str, reason| HubError::UnsafeName {
        repository: repository.id.clone(),
        name: name.to_owned(),
        reason,
    };
    let mut seen = BTreeSet::new();
    for name in names {
        if let Some(reason) = name_fault(name) {
            return Err(refused(name, reason));
        }
        if !seen.insert(name) {
            return Err(refused(name, "it is listed twice"));
        }
    }
    let is_folder = |name: &str| {
        let within = format!("{name}/");
        seen.range(within.as_str()..)
            .next()
            .is_some_and(|next| next.starts_with(&within))
    };
    match seen.iter().find(|name| is_folder(name)) {
        Some(name) => Err(refused(name, "it is a file and a folder")),
        None => Ok(()),
    }
}

pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 1024 {
        return Some("a name has 1 to 1024 bytes");
    }
    if name.contains('\\') || name.chars().any(char::is_control) {
        return Some("it holds a backslash or a control character");
    }
    if name.starts_with('/') {
        return Some("it is an absolute path");
    }
    for part in name.split('/') {
        match part {
            "" | "." | ".." => return Some("it leaves the folder or has an empty part"),
            part if part.len() > 240 => return Some("a part of it is too long"),
            _ => {}
        }
    }
    let first = name.split('/').next().unwrap_or(name);
    RESERVED
        .contains(&first)
        .then_some("the downloader uses this name itself")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hub::RepositoryKind;

    fn repository() -> Repository {
        Repository::new(RepositoryKind::Model, "owner/name", "main").unwrap()
    }

    #[test]
    fn names_that_leave_the_folder_or_collide_are_refused() {
        let refused = |names: &[&str]| check_names(&repository(), names.iter().copied()).is_err();
        for name in [
            "",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "..\\a",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "download_manifest.json",
            ".parts/a",
            &"a".repeat(1025),
            &"b".repeat(241),
        ] {
            assert!(refused(&[name]), "{name:?}");
        }
        assert!(refused(&["a", "a"]) && refused(&["a", "a-b", "a/b"]));
        let good = [
            "config.json",
            "a/b.txt",
            "a/c",
            "ab",
            "...",
            "..a",
            "ü ß",
            "model-00001-of-00005.safetensors",
        ];
        assert!(!refused(&good));
    }

    proptest! {
        #[test]
        fn a_name_that_passes_stays_in_the_folder(name in "[a./\\\\]{1,12}") {
            if name_fault(&name).is_none() {
                let folder = std::path::Path::new("/folder");
                let joined = folder.join(&name);
                let components: Vec<_> = joined.components().collect();
                prop_assert!(joined.starts_with(folder) && components.len() >= 3);
                prop_assert!(components.iter().skip(1).all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }

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
        assert_eq!(snapshot.take_unannounced(), ["odd.txt"]);
    }
}
