//! Repository ids and revisions, and the URL form of file paths.

use hf_hub::{Repo, RepoType};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::HubError;

/// Model or dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepositoryKind {
    /// Weights, configuration and tokenizer.
    Model,
    /// Rows of a data set.
    Dataset,
}

/// A repository on the hub at a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Model or dataset.
    pub kind: RepositoryKind,
    /// `OWNER/NAME`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl Repository {
    /// Validates `id` (`OWNER/NAME`) and `revision`.
    pub fn new(kind: RepositoryKind, id: &str, revision: &str) -> Result<Self, HubError> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| plain(part)) {
            return Err(HubError::RepositoryName(id.to_owned()));
        }
        let plain_revision = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty()
            || revision.len() > 200
            || revision.contains("..")
            || !revision.chars().all(plain_revision)
        {
            return Err(HubError::NoRevision {
                repository: id.to_owned(),
                revision: revision.to_owned(),
            });
        }
        Ok(Self {
            kind,
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Returns the same repository at a commit.
    pub(super) fn at(&self, commit: &str) -> Self {
        Self {
            revision: commit.to_owned(),
            ..self.clone()
        }
    }

    pub(super) fn hf(&self) -> Repo {
        let kind = match self.kind {
            RepositoryKind::Model => RepoType::Model,
            RepositoryKind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(self.id.clone(), kind, self.revision.clone())
    }
}

/// Repository or file of a request, for error messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub repository: &'a Repository,
    pub file: Option<&'a str>,
}

impl Subject<'_> {
    pub(super) fn name(&self) -> String {
        match self.file {
            Some(file) => format!("{}/{file}", self.repository.id),
            None => self.repository.id.clone(),
        }
    }
}

/// Unreserved characters of RFC 3986 and `/` stay as they are.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// Encodes a file's path for a URL; hf-hub does not.
pub(super) fn percent_encoded(path: &str) -> String {
    utf8_percent_encode(path, PATH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owner_and_name_are_accepted() {
        let new = |id, revision| Repository::new(RepositoryKind::Model, id, revision);
        for id in ["Qwen/Qwen2.5-VL-7B-Instruct", "gpt2", "a_b/c.d-e"] {
            assert!(new(id, "main").is_ok(), "{id}");
        }
        for id in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "../a",
            "a/..",
            "a/b?c",
            "a/b#c",
            "a b/c",
            "a/b%2f",
            "http://a/b",
        ] {
            assert!(
                matches!(new(id, "main"), Err(HubError::RepositoryName(_))),
                "{id}"
            );
        }
        for revision in ["", "../..", "a b", "main?x"] {
            assert!(
                matches!(new("a/b", revision), Err(HubError::NoRevision { .. })),
                "{revision}"
            );
        }
        assert!(new("a/b", "refs/pr/1").is_ok());
    }

    #[test]
    fn paths_are_percent_encoded() {
        assert_eq!(percent_encoded("a/b c#1?.txt"), "a/b%20c%231%3F.txt");
        assert_eq!(percent_encoded("ü%2F"), "%C3%BC%252F");
    }
}
