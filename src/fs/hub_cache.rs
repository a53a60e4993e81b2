//! The cache of the hub's tools: `models--OWNER--NAME` with `refs/BRANCH`, `snapshots/COMMIT` and `blobs` inside.
//!
//! A model is in one of the snapshots. A path to the cache folder stands for that snapshot.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fs::read_text;
use crate::{Error, Result};

const SNAPSHOTS: &str = "snapshots";
/// Maximum size of a ref, which holds 40 digits.
const MAX_REF_BYTES: u64 = 256;
/// Prefixes of the cache's folder names.
const KINDS: [&str; 2] = ["models--", "datasets--"];

/// Returns `folder`, or its snapshot if it is a folder of the cache: that of `revision` (a branch, tag or commit), or the only
/// one.
pub(crate) fn resolved(folder: &Path, revision: &str) -> Result<PathBuf> {
    let root = match folder.file_name() {
        Some(name) if name == SNAPSHOTS && folder.with_file_name("refs").is_dir() => {
            folder.parent().unwrap_or(folder)
        }
        _ => folder,
    };
    let snapshots = root.join(SNAPSHOTS);
    if !snapshots.is_dir() || root.join("config.json").exists() {
        return Ok(folder.to_owned());
    }
    if let Some(commit) = named(root, revision)? {
        let snapshot = snapshots.join(&commit);
        if snapshot.is_dir() {
            return Ok(snapshot);
        }
        return Err(Error::not_found(
            root,
            format!("refs/{revision} names the snapshot {commit}, which is missing: download it again"),
        ));
    }
    let entries = fs::read_dir(&snapshots).map_err(|error| Error::io(&snapshots, error))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::not_found(
            root,
            "a folder of the hub's cache without a snapshot: is the download complete?",
        )),
        many => {
            let names: Vec<String> = many
                .iter()
                .take(8)
                .map(|path| path.display().to_string())
                .collect();
            Err(Error::unsuitable(
                root,
                format!(
                    "a folder of the hub's cache with {} snapshots and no refs/{revision}; name one of {}",
                    many.len(),
                    names.join(", ")
                ),
            ))
        }
    }
}

/// The commit of `revision` in the cache folder `root`.
fn named(root: &Path, revision: &str) -> Result<Option<String>> {
    let inside = |text: &str| {
        let part = |part: &str| !part.is_empty() && part != "." && part != "..";
        text.split('/').all(part) && !text.contains('\0')
    };
    if !inside(revision) {
        return Ok(None);
    }
    if is_commit(revision) && root.join(SNAPSHOTS).join(revision).is_dir() {
        return Ok(Some(revision.to_owned()));
    }
    let path = root.join("refs").join(revision);
    match read_text(&path, MAX_REF_BYTES) {
        Ok(text) if is_commit(text.trim()) => Ok(Some(text.trim().to_owned())),
        Ok(_) => Err(Error::invalid_file(
            &path,
            "names no commit: download the model again",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(&path, error)),
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The commit of a snapshot in the hub's cache.
pub(crate) fn commit(folder: &Path) -> Option<String> {
    repository(folder)?;
    let name = folder.file_name()?.to_str()?;
    is_commit(name).then(|| name.to_owned())
}

/// `OWNER/NAME` of a snapshot in the hub's cache.
pub(crate) fn repository(folder: &Path) -> Option<String> {
    let snapshots = folder.parent()?;
    if snapshots.file_name()? != SNAPSHOTS {
        return None;
    }
    let name = snapshots.parent()?.file_name()?.to_str()?;
    let name = KINDS.iter().find_map(|kind| name.strip_prefix(kind))?;
    (!name.is_empty()).then(|| name.replace("--", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(commits: &[char], main: Option<char>) -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("models--Owner--My-Model");
        fs::create_dir_all(root.join("refs/pr")).unwrap();
        for commit in commits {
            fs::create_dir_all(root.join(SNAPSHOTS).join(commit.to_string().repeat(40))).unwrap();
        }
        if let Some(main) = main {
            fs::write(root.join("refs/main"), main.to_string().repeat(40) + "\n").unwrap();
        }
        (home, root)
    }

    #[test]
    fn a_cache_folder_is_its_snapshot() {
        let (_home, root) = cache(&['a', 'b'], Some('b'));
        let snapshot = |commit: char| root.join(SNAPSHOTS).join(commit.to_string().repeat(40));
        assert_eq!(resolved(&root, "main").unwrap(), snapshot('b'));
        assert_eq!(resolved(&root, &"a".repeat(40)).unwrap(), snapshot('a'));
        assert_eq!(resolved(&root.join(SNAPSHOTS), "main").unwrap(), snapshot('b'));
        assert_eq!(resolved(&snapshot('a'), "main").unwrap(), snapshot('a'));
        fs::write(root.join("refs/pr/1"), "a".repeat(40)).unwrap();
        assert_eq!(resolved(&root, "pr/1").unwrap(), snapshot('a'));
        assert_eq!(repository(&snapshot('a')).unwrap(), "Owner/My-Model");
        assert_eq!(commit(&snapshot('a')).unwrap(), "a".repeat(40));
        assert_eq!(repository(&root), None);
        let (_home, root) = cache(&['c'], None);
        assert!(resolved(&root, "main").unwrap().ends_with("c".repeat(40)));
    }

    #[test]
    fn an_ambiguous_or_broken_cache_is_an_error() {
        let reason = |root: &Path, revision: &str| resolved(root, revision).unwrap_err().to_string();
        let (_home, root) = cache(&['a', 'b'], None);
        assert!(reason(&root, "main").contains("2 snapshots") && reason(&root, "main").contains("bbbb"));
        assert!(reason(&root, "../main").contains("2 snapshots"));
        let (_home, root) = cache(&['a'], Some('b'));
        assert!(reason(&root, "main").contains("names the snapshot bbbb"));
        fs::write(root.join("refs/main"), "../../etc").unwrap();
        assert!(reason(&root, "main").contains("names no commit"));
        let (_home, root) = cache(&[], None);
        fs::create_dir_all(root.join(SNAPSHOTS)).unwrap();
        assert!(reason(&root, "main").contains("without a snapshot"));
    }

    #[test]
    fn any_other_folder_is_itself() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(resolved(home.path(), "main").unwrap(), home.path());
        fs::create_dir(home.path().join(SNAPSHOTS)).unwrap();
        fs::write(home.path().join("config.json"), "{}").unwrap();
        assert_eq!(resolved(home.path(), "main").unwrap(), home.path());
        assert_eq!(
            resolved(Path::new("/nowhere"), "main").unwrap(),
            Path::new("/nowhere")
        );
    }
}
