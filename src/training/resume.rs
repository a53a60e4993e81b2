//! The state that a run starts from: a checkpoint's or a fresh one, the same in all processes.

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{
    base::Base,
    checkpoints::{Checkpoints, ResumeFingerprint},
    data::Data,
    options::TrainingOptions,
    parameters::Parameters,
    plan::MemoryPlan,
    progress::Progress,
    run::TrainingRun,
};
use crate::console::Level;
use crate::distributed::ProcessGroup;
use crate::{Error, Result};

/// Settings that may differ on `--resume`: they do not change what is learned.
const MAY_DIFFER: [&str; 4] = [
    "checkpoint_steps",
    "keep_checkpoints",
    "gradient_checkpointing",
    "eval_documents",
];

/// What must match on `--resume`.
pub(super) fn resume_fingerprint(
    run: &TrainingRun<'_>,
    base: &Base,
    data: &Data,
    parameters: &Parameters,
) -> Result<ResumeFingerprint> {
    let validation_data = data.validation.as_ref().map(|samples| samples.sha256.clone());
    Ok(ResumeFingerprint {
        settings: fixed_settings(run.options),
        training_data: data.train.sha256.clone(),
        validation_data: validation_data.unwrap_or_default(),
        base: base.name(),
        base_revision: base.revision()?,
        processes: run.processes(),
        parameters: parameters.count(),
    })
}

/// The hyperparameters that must match on `--resume`.
fn fixed_settings(options: &TrainingOptions) -> Value {
    let mut settings = serde_json::to_value(options).unwrap_or_default();
    if let Value::Object(map) = &mut settings {
        for name in MAY_DIFFER {
            map.remove(name);
        }
    }
    settings
}

/// The state that a run starts from, besides that of the parameters.
#[derive(Default)]
pub(super) struct Start {
    pub(super) progress: Progress,
    /// The best adapter's values, on the CPU.
    pub(super) best: Option<Tensor>,
}

impl Start {
    /// Resumes from the latest checkpoint if requested, otherwise starts fresh; sets the state of `parameters`.
    ///
    /// The main process decides and broadcasts the state to the others.
    pub(super) fn new(
        run: &TrainingRun<'_>,
        base: &Base,
        longest: usize,
        parameters: &mut Parameters,
        checkpoints: &Checkpoints,
    ) -> Result<Self> {
        let mut start = match (run.is_main_process(), run.resume) {
            (false, _) => Self::default(),
            (true, true) => Self::resume(run, parameters, checkpoints)?,
            (true, false) => Self::fresh(run, base, longest, checkpoints)?,
        };
        if let Some(group) = run.group {
            start.broadcast(group, parameters)?;
        }
        Ok(start)
    }

    fn resume(run: &TrainingRun<'_>, parameters: &mut Parameters, checkpoints: &Checkpoints) -> Result<Self> {
        let restored = checkpoints.latest(run.notify)?;
        parameters.set_state(&restored.state)?;
        Ok(Self {
            progress: restored.progress,
            best: restored.best,
        })
    }

    fn fresh(run: &TrainingRun<'_>, base: &Base, longest: usize, checkpoints: &Checkpoints) -> Result<Self> {
        if let Some(step) = checkpoints.steps()?.first() {
            (run.notify)(
                Level::WARN,
                &format!(
                    "replacing an unfinished training at step {step} (--resume would have continued it)"
                ),
            );
            checkpoints.clear()?;
        }
        let memory = MemoryPlan::new(base, run.options, run.device, longest, run.notify);
        Ok(Self {
            progress: Progress::new(memory),
            best: None,
        })
    }

    /// Copies the main process's state to the other processes.
    fn broadcast(&mut self, group: &ProcessGroup, parameters: &mut Parameters) -> Result<()> {
        let text = serde_json::to_vec(&self.progress).unwrap_or_default();
        let mut length = Tensor::f_from_slice(&[text.len() as i64])?;
        group.broadcast(&mut length)?;
        let mut bytes = Tensor::f_zeros([length.f_int64_value(&[0])?], (Kind::Uint8, Device::Cpu))?;
        if group.info().is_main_process() {
            bytes = Tensor::f_from_slice(&text)?;
        }
        group.broadcast(&mut bytes)?;
        let mut text = vec![0u8; bytes.numel()];
        bytes.f_copy_data_u8(&mut text, bytes.numel())?;
        self.progress = serde_json::from_slice(&text)
            .map_err(|error| Error::Distributed(format!("cannot parse the main process's state: {error}")))?;
        let mut state = parameters.state()?;
        for tensor in [&mut state.values, &mut state.first, &mut state.second] {
            group.broadcast(tensor)?;
        }
        parameters.set_state(&state)?;
        if self.progress.best.is_some() {
            let mut best = match self.best.take() {
                Some(best) => best,
                None => state.values.f_zeros_like()?,
            };
            group.broadcast(&mut best)?;
            self.best = Some(best);
        }
        Ok(())
    }
}
