//! Finished measurements, saved so that a run after a kill does not repeat them.
//!
//! They are in hidden files beside the records until the record that holds them is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::Result;
use crate::checkpoint::write_tensors;
use crate::fs::{FileDigest, digest_of, hex, json::write_pretty};
use crate::project::Project;

/// The figures.
const FIGURES: &str = "benchmarks/.quantization_measured.json";
/// The original's hidden states, which the other models' are compared with.
const STATES: &str = "benchmarks/.quantization_states.safetensors";

/// Measurements with one identity.
pub(super) struct SavedMeasurements {
    figures: PathBuf,
    states: PathBuf,
    content: Content,
}

#[derive(Serialize, Deserialize)]
struct Content {
    /// Hash of the identity: figures of another one are not used.
    of: String,
    figures: BTreeMap<String, Value>,
    /// Of the hidden states' file.
    states: Option<(u64, String)>,
}

impl SavedMeasurements {
    /// Those of an earlier run with the same identity `of`, which is everything that the figures depend on.
    pub(super) fn open(project: &Project, of: &Value) -> Self {
        let of = hex(&Sha256::digest(of.to_string()));
        let figures = project.file(FIGURES);
        let earlier = fs::read(&figures)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Content>(&bytes).ok());
        Self {
            figures,
            states: project.file(STATES),
            content: earlier.filter(|earlier| earlier.of == of).unwrap_or(Content {
                of,
                figures: BTreeMap::new(),
                states: None,
            }),
        }
    }

    /// The figures `name`; measures and saves them if they are missing.
    pub(super) fn or_measure<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        measure: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(saved) = self.get(name) {
            return Ok(saved);
        }
        let measured = measure()?;
        self.save(name, &measured)?;
        Ok(measured)
    }

    /// The figures `name`, if they are saved.
    pub(super) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.content.figures.get(name)?).ok()
    }

    /// Saves the figures `name`.
    pub(super) fn save(&mut self, name: &str, figures: &impl Serialize) -> Result<()> {
        self.content.figures.insert(name.to_owned(), json!(figures));
        self.write()
    }

    /// Hidden states per page, saved with [`Self::save_states`].
    pub(super) fn states(&self) -> Option<Vec<Tensor>> {
        let (bytes, sha256) = self.content.states.clone()?;
        if digest_of(&self.states).ok()? != (FileDigest { bytes, sha256 }) {
            return None;
        }
        let mut tensors = Tensor::read_safetensors(&self.states).ok()?;
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Some(tensors.into_iter().map(|(_, tensor)| tensor).collect())
    }

    /// Saves hidden states per page.
    pub(super) fn save_states(&mut self, states: &[Tensor]) -> Result<()> {
        let named = states.iter().enumerate();
        let named: Vec<_> = named
            .map(|(page, states)| (format!("page.{page:05}"), states.shallow_clone()))
            .collect();
        if let Some(folder) = self.states.parent() {
            fs::create_dir_all(folder).map_err(|error| crate::Error::io(folder, error))?;
        }
        let digest = write_tensors(&self.states, &named)?;
        self.content.states = Some((digest.bytes, digest.sha256));
        self.write()
    }

    fn write(&self) -> Result<()> {
        if let Some(folder) = self.figures.parent() {
            fs::create_dir_all(folder).map_err(|error| crate::Error::io(folder, error))?;
        }
        write_pretty(&self.figures, &self.content)
    }

    /// Removes everything, once the record holds it.
    pub(super) fn remove(project: &Project) {
        for file in [FIGURES, STATES] {
            // A leftover is harmless.
            let _ = fs::remove_file(project.file(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn measurements_are_saved_for_the_same_identity_only() {
        let root = tempfile::tempdir().unwrap();
        let project = Project::open(Some(root.path())).unwrap();
        let of = json!({"pages": "a"});
        let mut saved = SavedMeasurements::open(&project, &of);
        assert_eq!(saved.or_measure("base", || Ok(0.1 + 0.2)).unwrap(), 0.1 + 0.2);
        assert!(saved.states().is_none());
        let states = [
            Tensor::from_slice(&[1f32, 2.0]).view([1, 2]),
            Tensor::from_slice(&[3f32]).view([1, 1]).to_kind(Kind::BFloat16),
        ];
        saved.save_states(&states).unwrap();

        let mut again = SavedMeasurements::open(&project, &of);
        let unmeasured = || -> Result<f64> { panic!("it is saved") };
        assert_eq!(again.or_measure("base", unmeasured).unwrap(), 0.1 + 0.2);
        let found = again.states().unwrap();
        assert_eq!(
            (found.len(), &found[0], found[1].kind()),
            (2, &states[0], Kind::BFloat16)
        );

        // Damaged states, and figures of other pages, are none.
        fs::write(project.file(STATES), b"torn").unwrap();
        assert!(SavedMeasurements::open(&project, &of).states().is_none());
        let mut other = SavedMeasurements::open(&project, &json!({"pages": "b"}));
        assert_eq!(other.or_measure("base", || Ok(5.0)).unwrap(), 5.0);
        SavedMeasurements::remove(&project);
        assert_eq!(fs::read_dir(project.benchmarks()).unwrap().count(), 0);
    }
}
