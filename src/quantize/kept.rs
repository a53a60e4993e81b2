//! Measurements of a run that goes on: each is kept when it is finished, so that a run that was killed does not repeat it.
//!
//! They lie beside the records, under names that no record has, until the record that holds them is written.

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

/// Finished measurements.
pub(super) struct Kept {
    figures: PathBuf,
    states: PathBuf,
    content: Content,
}

#[derive(Serialize, Deserialize)]
struct Content {
    /// What was measured, on what, and how: figures of anything else are none.
    of: String,
    figures: BTreeMap<String, Value>,
    /// Of the hidden states' file.
    states: Option<(u64, String)>,
}

impl Kept {
    /// What an earlier run kept that measured the same: `of` is all that the figures depend on.
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

    /// The figures `name`, kept or else measured, and then kept.
    pub(super) fn or_measure<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        measure: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(kept) = self.get(name) {
            return Ok(kept);
        }
        let measured = measure()?;
        self.put(name, &measured)?;
        Ok(measured)
    }

    /// The figures `name`, where they are kept.
    pub(super) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.content.figures.get(name)?).ok()
    }

    /// Keeps the figures `name`.
    pub(super) fn put(&mut self, name: &str, figures: &impl Serialize) -> Result<()> {
        self.content.figures.insert(name.to_owned(), json!(figures));
        self.write()
    }

    /// Hidden states, a page each, kept with [`Self::keep_states`].
    pub(super) fn states(&self) -> Option<Vec<Tensor>> {
        let (bytes, sha256) = self.content.states.clone()?;
        if digest_of(&self.states).ok()? != (FileDigest { bytes, sha256 }) {
            return None;
        }
        let mut tensors = Tensor::read_safetensors(&self.states).ok()?;
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Some(tensors.into_iter().map(|(_, tensor)| tensor).collect())
    }

    /// Keeps hidden states, a page each, on the CPU.
    pub(super) fn keep_states(&mut self, states: &[Tensor]) -> Result<()> {
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

    /// The record holds everything: nothing is kept any more.
    pub(super) fn forget(project: &Project) {
        for file in [FIGURES, STATES] {
            // What stays is of no use, and does no harm.
            let _ = fs::remove_file(project.file(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn what_is_measured_is_kept_until_something_else_is_measured() {
        let root = tempfile::tempdir().unwrap();
        let project = Project::open(Some(root.path())).unwrap();
        let of = json!({"pages": "a"});
        let mut kept = Kept::open(&project, &of);
        assert_eq!(kept.or_measure("base", || Ok(0.1 + 0.2)).unwrap(), 0.1 + 0.2);
        assert!(kept.states().is_none());
        let states = [
            Tensor::from_slice(&[1f32, 2.0]).view([1, 2]),
            Tensor::from_slice(&[3f32]).view([1, 1]).to_kind(Kind::BFloat16),
        ];
        kept.keep_states(&states).unwrap();

        let mut again = Kept::open(&project, &of);
        let unmeasured = || -> Result<f64> { panic!("it is kept") };
        assert_eq!(again.or_measure("base", unmeasured).unwrap(), 0.1 + 0.2);
        let found = again.states().unwrap();
        assert_eq!(
            (found.len(), &found[0], found[1].kind()),
            (2, &states[0], Kind::BFloat16)
        );

        // Damaged states, and figures of other pages, are none.
        fs::write(project.file(STATES), b"torn").unwrap();
        assert!(Kept::open(&project, &of).states().is_none());
        let mut other = Kept::open(&project, &json!({"pages": "b"}));
        assert_eq!(other.or_measure("base", || Ok(5.0)).unwrap(), 5.0);
        Kept::forget(&project);
        assert_eq!(fs::read_dir(project.benchmarks()).unwrap().count(), 0);
    }
}
