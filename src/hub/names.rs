//! File names of repositories: the hub is not trusted with them.

use std::collections::BTreeSet;

use super::Repository;
use super::manifest::DOWNLOAD_MANIFEST;
use crate::error::HubError;

/// Folder for partial files, inside the folder that is filled.
pub(super) const PARTS: &str = ".parts";
/// Names that the downloader itself uses in the folder that it fills.
const RESERVED: [&str; 2] = [DOWNLOAD_MANIFEST, PARTS];

/// Rejects names that could leave the folder, spoof a terminal, or collide.
pub(super) fn check_names<'a>(
    repository: &Repository,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), HubError> {
    let rejected = |name: &str, reason| HubError::UnsafeName {
        repository: repository.id.clone(),
        name: name.to_owned(),
        reason,
    };
    let mut seen = BTreeSet::new();
    for name in names {
        if let Some(reason) = name_fault(name) {
            return Err(rejected(name, reason));
        }
        if !seen.insert(name) {
            return Err(rejected(name, "it is listed twice"));
        }
    }
    let is_folder = |name: &str| {
        let within = format!("{name}/");
        seen.range(within.as_str()..)
            .next()
            .is_some_and(|next| next.starts_with(&within))
    };
    match seen.iter().find(|name| is_folder(name)) {
        Some(name) => Err(rejected(name, "it is a file and a folder")),
        None => Ok(()),
    }
}

/// Returns why `name` cannot be a file in a download folder; `None` for a safe relative path.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 1024 {
        return Some("a name must have 1 to 1024 bytes");
    }
    if name.contains('\\') || name.chars().any(char::is_control) {
        return Some("it contains a backslash or a control character");
    }
    if name.starts_with('/') {
        return Some("it is an absolute path");
    }
    for part in name.split('/') {
        match part {
            "" | "." | ".." => return Some("it leaves the folder or has an empty component"),
            part if part.len() > 240 => return Some("a component of it is too long"),
            _ => {}
        }
    }
    let first = name.split('/').next().unwrap_or(name);
    RESERVED
        .contains(&first)
        .then_some("the downloader itself uses this name")
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
    fn names_that_leave_the_folder_or_collide_are_rejected() {
        let rejected = |names: &[&str]| check_names(&repository(), names.iter().copied()).is_err();
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
            assert!(rejected(&[name]), "{name:?}");
        }
        assert!(rejected(&["a", "a"]) && rejected(&["a", "a-b", "a/b"]));
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
        assert!(!rejected(&good));
    }

    proptest! {
        #[test]
        fn an_accepted_name_stays_in_the_folder(name in "[a./\\\\]{1,12}") {
            if name_fault(&name).is_none() {
                let folder = std::path::Path::new("/folder");
                let joined = folder.join(&name);
                let components: Vec<_> = joined.components().collect();
                prop_assert!(joined.starts_with(folder) && components.len() >= 3);
                prop_assert!(components.iter().skip(1).all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}
