//! Changing folders that others read: a new folder takes the place of an old one in one step, or the files of a folder change
//! while its marker is absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::{remove_if_present, rename, sync_parent};
use crate::{Error, Result};

/// What becomes of a folder that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldFolder {
    /// It is removed.
    Remove,
    /// It stays beside the new one as `NAME.previous`, in place of an earlier one of that name.
    Keep,
}

/// Puts the folder `new` in the place of `target`; where the old one is kept, its new path.
///
/// The two are swapped in one step, so that readers see either of them. Where the file system cannot swap there is a moment
/// without `target`; a process that is killed in it leaves the old folder as `NAME.previous` or `NAME.replaced`.
pub(crate) fn replace_folder(new: &Path, target: &Path, old: OldFolder) -> io::Result<Option<PathBuf>> {
    fs::File::open(new)?.sync_all()?;
    if !target.exists() {
        rename(new, target)?;
        sync_parent(target)?;
        return Ok(None);
    }
    let aside = match old {
        OldFolder::Remove => replaced(target),
        OldFolder::Keep => beside(target, "previous"),
    };
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    match old {
        OldFolder::Remove => {
            if exchange(new, target).is_err() {
                set_aside(target, &aside, old)?;
                rename(new, target)?;
            }
            sync_parent(target)?;
            // Where this fails, the next run of the same work removes it.
            let _ = fs::remove_dir_all(new);
            let _ = fs::remove_dir_all(&aside);
            Ok(None)
        }
        OldFolder::Keep => {
            // The new folder goes to the old one's later place first, so that one step puts both where they belong.
            rename(new, &aside)?;
            if exchange(&aside, target).is_err() {
                rename(&aside, new)?;
                set_aside(target, &aside, old)?;
                rename(new, target)?;
            }
            sync_parent(target)?;
            Ok(Some(aside))
        }
    }
}

/// Moves `target` to `aside`, on a file system that cannot swap two folders.
fn set_aside(target: &Path, aside: &Path, old: OldFolder) -> io::Result<()> {
    match rename(target, aside) {
        // Container file systems do not move the folders of their image.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            if old == OldFolder::Keep {
                copy_folder(target, aside)?;
            }
            fs::remove_dir_all(target)
        }
        moved => moved,
    }
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &copy)?,
            false => {
                fs::copy(entry.path(), copy)?;
            }
        }
    }
    Ok(())
}

/// Ends what a process left that was killed while it replaced `target` on a file system that cannot swap two folders: the old
/// folder goes back, or is removed where the new one is there.
pub(crate) fn settle_replaced(target: &Path) {
    let old = replaced(target);
    let _ = match target.exists() {
        true => fs::remove_dir_all(old),
        false => fs::rename(old, target),
    };
}

fn replaced(target: &Path) -> PathBuf {
    beside(target, "replaced")
}

/// `NAME.SUFFIX` beside `NAME`.
pub(crate) fn beside(target: &Path, suffix: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{name}.{suffix}"))
}

/// Changes a folder that counts as complete only where it has `marker`, one of its files: removes the marker, makes the
/// changes and writes the marker again. A process that is killed leaves the folder without it.
pub(crate) fn update_folder(
    marker: &Path,
    change: impl FnOnce() -> Result<()>,
    write_marker: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    remove_if_present(marker)
        .and_then(|()| sync_parent(marker))
        .map_err(|error| Error::io(marker, error))?;
    change()?;
    write_marker(marker)
}

/// Swaps two folders in one step.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    #[cfg(test)]
    super::failpoint::pass();
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(path: PathBuf, text: &str) -> PathBuf {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), text).unwrap();
        path
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_replaces_another_which_is_removed_or_kept() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("target");
        let new = |text: &str| folder(home.path().join("new"), text);
        let read = |path: &Path| fs::read_to_string(path.join("file")).unwrap();
        assert_eq!(replace_folder(&new("1"), &target, OldFolder::Keep).unwrap(), None);
        assert_eq!(
            replace_folder(&new("2"), &target, OldFolder::Remove).unwrap(),
            None
        );
        assert_eq!(
            (read(&target).as_str(), names(home.path())),
            ("2", vec!["target".to_owned()])
        );
        for (text, before) in [("3", "2"), ("4", "3")] {
            let previous = replace_folder(&new(text), &target, OldFolder::Keep)
                .unwrap()
                .unwrap();
            assert_eq!((read(&target).as_str(), read(&previous).as_str()), (text, before));
        }
        assert_eq!(names(home.path()), ["target", "target.previous"]);
    }

    #[test]
    fn a_folder_is_set_aside_where_two_cannot_be_swapped() {
        let home = tempfile::tempdir().unwrap();
        let target = folder(home.path().join("target"), "old");
        let aside = home.path().join("target.previous");
        set_aside(&target, &aside, OldFolder::Keep).unwrap();
        assert_eq!(names(home.path()), ["target.previous"]);
        fs::create_dir(aside.join("inner")).unwrap();
        copy_folder(&aside, &target).unwrap();
        assert_eq!(names(&target), ["file", "inner"]);
    }

    #[test]
    fn a_folder_has_no_marker_while_it_changes() {
        let home = tempfile::tempdir().unwrap();
        let marker = home.path().join("marker");
        let write = |path: &Path| fs::write(path, "new").map_err(|error| Error::io(path, error));
        fs::write(&marker, "old").unwrap();
        let failed = update_folder(&marker, || Err(Error::Interrupted), write);
        assert!(failed.is_err() && !marker.exists());
        let work = || {
            assert!(!marker.exists());
            Ok(())
        };
        update_folder(&marker, work, write).unwrap();
        assert_eq!(fs::read_to_string(&marker).unwrap(), "new");
    }
}
