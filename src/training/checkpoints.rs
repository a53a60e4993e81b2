//! Checkpoints: written atomically; `--resume` uses the latest one that is intact.
//!
//! `models/NAME-medical-lora.training/step-N/` holds `state.safetensors` (the adapter's values, AdamW's moments and the
//! best values so far, each as one flat tensor in order of the module names), `progress.json` and a manifest with the
//! sha256 of both. There is no RNG state: shuffling and dropout are functions of seed and step.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{parameters::State, progress::Progress};
use crate::checkpoint::{TensorFile, TensorPlan};
use crate::console::{Level, Notify};
use crate::error::TrainingError;
use crate::fs::{CONFIG_BYTES, Manifest, Origin, RunLock, Staged, Staging, open_regular, read_bounded};
use crate::{Error, Result};

const STATE: &str = "state.safetensors";
const PROGRESS: &str = "progress.json";
const PREFIX: &str = "step-";
/// Chunk size of writes, bytes.
const PIECE: usize = 16 << 20;

/// What must match on `--resume`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResumeFingerprint {
    /// Hyperparameters, by name.
    pub settings: Value,
    /// sha256 of the training samples.
    pub training_data: String,
    /// sha256 of the validation samples; empty without validation.
    pub validation_data: String,
    /// Name of the base's folder.
    pub base: String,
    /// sha256 of the base.
    pub base_revision: String,
    /// Number of processes.
    pub processes: usize,
    /// Number of trained parameters.
    pub parameters: u64,
}

/// A checkpoint, as it is read.
pub struct Restored {
    /// Position, counts, history.
    pub progress: Progress,
    /// State of adapter and optimizer.
    pub state: State,
    /// The best adapter's values, if there was a validation.
    pub best: Option<Tensor>,
}

/// `progress.json`.
#[derive(Serialize, Deserialize)]
struct Stored {
    identity: ResumeFingerprint,
    progress: Progress,
}

/// The folder of a run's checkpoints, locked by one run at a time.
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    fingerprint: ResumeFingerprint,
    _lock: Option<RunLock>,
}

impl Checkpoints {
    /// Creates `folder` if necessary, and locks it if this process `writes`, as only the main process does.
    pub fn open(folder: &Path, keep: usize, fingerprint: ResumeFingerprint, writes: bool) -> Result<Self> {
        let lock = match writes {
            true => Some(lock(folder)?),
            false => None,
        };
        Ok(Self {
            folder: folder.to_owned(),
            keep,
            fingerprint,
            _lock: lock,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps of all checkpoints, the latest first.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let entries = fs::read_dir(&self.folder).map_err(|error| Error::io(&self.folder, error))?;
        let mut steps: Vec<u64> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok())
            .collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Reads the latest intact checkpoint; a broken one is reported to `notify` and skipped.
    pub fn latest(&self, notify: Notify<'_>) -> Result<Restored> {
        let nothing = |reason: &str| TrainingError::NothingToResume {
            folder: self.folder.clone(),
            reason: reason.to_owned(),
        };
        let steps = self.steps()?;
        if steps.is_empty() {
            return Err(nothing("has no checkpoint").into());
        }
        for step in steps {
            let dir = self.dir(step);
            match read(&dir) {
                Ok((stored, state, best)) => {
                    self.check(&dir, &stored.identity)?;
                    return Ok(Restored {
                        progress: stored.progress,
                        state,
                        best,
                    });
                }
                Err(error) => notify(
                    Level::WARN,
                    &format!("{error}: this checkpoint is broken; trying the previous one"),
                ),
            }
        }
        Err(nothing("all checkpoints are broken").into())
    }

    /// Checks that a checkpoint has this run's fingerprint; the error names the first difference.
    fn check(&self, dir: &Path, theirs: &ResumeFingerprint) -> Result<()> {
        let (Ok(Value::Object(theirs)), Ok(Value::Object(ours))) = (
            serde_json::to_value(theirs),
            serde_json::to_value(&self.fingerprint),
        ) else {
            return Ok(());
        };
        let flat = |map: serde_json::Map<String, Value>| {
            let mut all = Vec::new();
            for (key, value) in map {
                match value {
                    Value::Object(inner) => all.extend(inner),
                    value => all.push((key, value)),
                }
            }
            all
        };
        let (theirs, ours) = (flat(theirs), flat(ours));
        let value = |all: &[(String, Value)], key: &str| {
            all.iter()
                .find(|(name, _)| name == key)
                .map_or(Value::Null, |(_, value)| value.clone())
        };
        for (key, _) in theirs.iter().chain(&ours) {
            let (theirs, ours) = (value(&theirs, key), value(&ours, key));
            if theirs != ours {
                return Err(TrainingError::OtherTraining {
                    folder: dir.to_owned(),
                    field: key.replace('_', " "),
                    theirs: theirs.to_string(),
                    ours: ours.to_string(),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Writes a checkpoint, then removes the oldest ones. A failure leaves the existing ones.
    pub fn write(&self, progress: &Progress, state: &State, best: Option<&Tensor>) -> Result<()> {
        let dir = self.dir(progress.step);
        let written = self.write_to(&dir, progress, state, best);
        if written.is_err() {
            // The disk may be full.
            let _ = fs::remove_dir_all(Staging::folder_of(&dir));
        }
        written?;
        for step in self.steps()?.into_iter().skip(self.keep) {
            let dir = self.dir(step);
            fs::remove_dir_all(&dir).map_err(|error| Error::io(&dir, error))?;
        }
        Ok(())
    }

    fn write_to(&self, dir: &Path, progress: &Progress, state: &State, best: Option<&Tensor>) -> Result<()> {
        let origin = Origin {
            method: "finetune_lora".to_owned(),
            options: serde_json::json!({"step": progress.step, "seconds": progress.seconds}),
            source: self.fingerprint.base.clone(),
            source_revision: self.fingerprint.base_revision.clone(),
            tool: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let Staged::Work(mut staging) = Staging::open(dir, origin)? else {
            return Ok(());
        };
        let mut tensors = vec![
            ("values", &state.values),
            ("first", &state.first),
            ("second", &state.second),
        ];
        tensors.extend(best.map(|best| ("best", best)));
        let plans = tensors.iter().map(|(name, tensor)| TensorPlan {
            name: (*name).to_owned(),
            dtype: Dtype::F32,
            shape: vec![tensor.numel()],
        });
        let file = TensorFile::create(&staging.dir().join(STATE), plans.collect(), Vec::new())?;
        for (name, tensor) in tensors {
            for (i, piece) in bytes(tensor).chunks(PIECE).enumerate() {
                file.write(name, (i * PIECE) as u64, piece)?;
            }
        }
        let digest = file.finish(&[])?;
        staging.add(STATE, digest)?;
        let stored = Stored {
            identity: self.fingerprint.clone(),
            progress: progress.clone(),
        };
        let text = serde_json::to_vec_pretty(&stored).map_err(std::io::Error::from);
        staging.write(PROGRESS, &text.map_err(|error| Error::io(dir, error))?)?;
        staging.finish()?;
        Ok(())
    }

    /// Removes all checkpoints.
    pub fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder)
            .map_err(|error| Error::io(&self.folder, error))?
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_dir_all(entry.path()).map_err(|error| Error::io(entry.path(), error))?;
            }
        }
        Ok(())
    }

    /// Removes the checkpoints and the folder.
    pub fn remove(self) -> Result<()> {
        self.clear()?;
        // Fails if there are other files in it.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    fn dir(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:06}"))
    }
}

fn lock(folder: &Path) -> Result<RunLock> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    RunLock::on_folder(folder, "training")
}

fn read(dir: &Path) -> Result<(Stored, State, Option<Tensor>)> {
    let manifest = Manifest::read(dir)
        .filter(|manifest| manifest.complete)
        .ok_or_else(|| Error::invalid_file(dir, "has no complete manifest.json"))?;
    let intact = manifest.intact(dir);
    for name in [STATE, PROGRESS] {
        if !intact.iter().any(|file| file == name) {
            return Err(Error::invalid_file(dir.join(name), "is missing or damaged"));
        }
    }
    let path = dir.join(PROGRESS);
    let text = read_bounded(&path, CONFIG_BYTES).map_err(|error| Error::io(&path, error))?;
    let stored: Stored =
        serde_json::from_slice(&text).map_err(|error| Error::invalid_file(&path, error.to_string()))?;
    let path = dir.join(STATE);
    let file = open_regular(&path).map_err(|error| Error::io(&path, error))?;
    // SAFETY: only this program writes here, under a lock, and it does not modify finished checkpoints.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| Error::io(&path, error))?;
    let tensors =
        SafeTensors::deserialize(&map).map_err(|error| Error::invalid_file(&path, error.to_string()))?;
    let tensor = |name: &str| -> Result<Tensor> {
        let view = tensors
            .tensor(name)
            .ok()
            .filter(|view| {
                view.dtype() == Dtype::F32 && view.shape() == [stored.identity.parameters as usize]
            })
            .ok_or_else(|| Error::tensor(&path, name, "is missing or has the wrong dtype or shape"))?;
        Ok(Tensor::f_from_data_size(
            view.data(),
            &[view.shape()[0] as i64],
            Kind::Float,
        )?)
    };
    let state = State {
        values: tensor("values")?,
        first: tensor("first")?,
        second: tensor("second")?,
    };
    let best = match stored.progress.best {
        Some(_) => Some(tensor("best")?),
        None => None,
    };
    Ok((stored, state, best))
}

/// The bytes of an f32 tensor on the CPU.
fn bytes(tensor: &Tensor) -> &[u8] {
    assert!(tensor.kind() == Kind::Float && tensor.device() == tch::Device::Cpu && tensor.is_contiguous());
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: contiguous f32 values on the CPU, which live as long as the tensor. All machines that libtorch runs on are
    // little-endian, like safetensors.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel() * 4) }
}
