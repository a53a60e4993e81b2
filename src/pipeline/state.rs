//! Hashes of the inputs and outputs of finished phases.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::console::{Level, Notify};
use crate::fs::RunLock;
use crate::hub::{Checksum, Hasher};
use crate::project::Project;
use crate::{Error, Result, records};

const STATE: &str = "benchmarks/.pipeline_state.json";
const LOCK: &str = "benchmarks/.pipeline_lock";

/// State of a project's pipeline, locked by this process.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    file: StateFile,
    _lock: RunLock,
}

/// Contents of the state file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct StateFile {
    phases: BTreeMap<String, FinishedPhase>,
    /// Hashes of files, valid while size and modification time are unchanged.
    files: BTreeMap<PathBuf, HashedFile>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FinishedPhase {
    /// Hash of flags and inputs.
    inputs: String,
    /// Hash of the outputs.
    outputs: String,
    seconds: f64,
    finished_at: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct HashedFile {
    bytes: u64,
    modified: i64,
    modified_nanoseconds: i64,
    sha256: String,
}

impl State {
    /// Locks and reads the state. An unreadable state is reported and treated as empty: every phase is run again.
    ///
    /// # Errors
    /// An error if another pipeline runs in the project folder.
    pub(super) fn open(project: &Project, notify: Notify<'_>) -> Result<Self> {
        let folder = project.benchmarks();
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let lock = RunLock::on_file(&project.file(LOCK), project.root(), "pipeline")?;
        let path = project.file(STATE);
        let file = records::read_if_present(&path).unwrap_or_else(|error| {
            notify(Level::WARN, &format!("{error}; every phase is run again"));
            None
        });
        Ok(Self {
            path,
            file: file.unwrap_or_default(),
            _lock: lock,
        })
    }

    /// Whether `phase` was run with these `inputs` and its outputs are unchanged.
    pub(super) fn is_up_to_date(&mut self, phase: &str, inputs: &str, outputs: &[PathBuf]) -> Result<bool> {
        let Some(finished) = self.file.phases.get(phase) else {
            return Ok(false);
        };
        let (same_inputs, recorded) = (finished.inputs == inputs, finished.outputs.clone());
        Ok(same_inputs && recorded == self.digest(outputs)?)
    }

    /// Records that `phase` is finished.
    pub(super) fn finish(
        &mut self,
        phase: &str,
        inputs: String,
        outputs: &[PathBuf],
        seconds: f64,
    ) -> Result<()> {
        let outputs = self.digest(outputs)?;
        let finished = FinishedPhase {
            inputs,
            outputs,
            seconds: records::seconds(seconds),
            finished_at: records::timestamp(),
        };
        self.file.phases.insert(phase.to_owned(), finished);
        self.file.files.retain(|path, _| path.exists());
        records::write(&self.path, &self.file)
    }

    /// Removes the record of `phase`, whose outputs are about to change.
    pub(super) fn forget(&mut self, phase: &str) -> Result<()> {
        match self.file.phases.remove(phase) {
            Some(_) => records::write(&self.path, &self.file),
            None => Ok(()),
        }
    }

    /// Returns a hash of the contents of files and folders; missing ones contribute nothing.
    pub(super) fn digest(&mut self, paths: &[PathBuf]) -> Result<String> {
        let mut hasher = Sha256::new();
        for (number, path) in paths.iter().enumerate() {
            // By index, not by name: a project folder may be moved.
            hasher.update(format!("{number}\n"));
            let mut files = Vec::new();
            collect(path, &mut files)?;
            files.sort();
            for file in files {
                let name = file.strip_prefix(path).unwrap_or(&file);
                hasher.update(format!("{}\0{}\n", name.display(), self.sha256(&file)?));
            }
        }
        Ok(Hasher::Sha256(hasher).finish().to_string())
    }

    fn sha256(&mut self, path: &Path) -> Result<String> {
        let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let (bytes, modified, modified_nanoseconds) =
            (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        if let Some(known) = self.file.files.get(path)
            && (known.bytes, known.modified, known.modified_nanoseconds)
                == (bytes, modified, modified_nanoseconds)
        {
            return Ok(known.sha256.clone());
        }
        let sha256 = Hasher::hash_file(path, Checksum::sha256_hasher())?.to_string();
        let hashed = HashedFile {
            bytes,
            modified,
            modified_nanoseconds,
            sha256: sha256.clone(),
        };
        self.file.files.insert(path.to_owned(), hashed);
        Ok(sha256)
    }
}

/// Lists the files at or below `path`, except hidden ones, which are partial.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(path, error)),
    };
    if !metadata.is_dir() {
        if metadata.is_file() {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| Error::io(path, error))? {
        let entry = entry.map_err(|error| Error::io(path, error))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        (folder, project)
    }

    #[test]
    fn a_phase_is_up_to_date_until_something_changes() {
        let (folder, project) = project();
        let output = folder.path().join("made");
        fs::create_dir(&output).unwrap();
        fs::write(output.join("a.json"), "1").unwrap();
        let outputs = [output.clone()];
        let mut state = State::open(&project, &|_, _| {}).unwrap();
        assert!(!state.is_up_to_date("phase", "in", &outputs).unwrap());
        state.finish("phase", "in".to_owned(), &outputs, 1.0).unwrap();
        drop(state);

        let mut state = State::open(&project, &|_, _| {}).unwrap();
        assert!(state.is_up_to_date("phase", "in", &outputs).unwrap());
        assert!(!state.is_up_to_date("phase", "other", &outputs).unwrap());
        assert!(!state.is_up_to_date("another", "in", &outputs).unwrap());
        fs::write(output.join("b.json"), "").unwrap();
        assert!(!state.is_up_to_date("phase", "in", &outputs).unwrap());
        fs::remove_file(output.join("b.json")).unwrap();
        assert!(state.is_up_to_date("phase", "in", &outputs).unwrap());
        fs::write(output.join("a.json"), "22").unwrap();
        assert!(!state.is_up_to_date("phase", "in", &outputs).unwrap());
        fs::remove_dir_all(&output).unwrap();
        assert!(!state.is_up_to_date("phase", "in", &outputs).unwrap());
        state.forget("phase").unwrap();
        assert!(state.file.phases.is_empty());
    }

    #[test]
    fn one_pipeline_at_a_time() {
        let (_folder, project) = project();
        let state = State::open(&project, &|_, _| {}).unwrap();
        let message = State::open(&project, &|_, _| {}).unwrap_err().to_string();
        assert!(message.contains("another pipeline"), "{message}");
        drop(state);
        State::open(&project, &|_, _| {}).unwrap();
    }

    #[test]
    fn an_unreadable_state_counts_as_empty() {
        let (_folder, project) = project();
        drop(State::open(&project, &|_, _| {}).unwrap());
        for broken in ["", "{\"phases\": 3}", "{\"record_version\": 99}"] {
            fs::write(project.file(STATE), broken).unwrap();
            assert!(
                State::open(&project, &|_, _| {}).unwrap().file.phases.is_empty(),
                "{broken}"
            );
        }
    }
}
