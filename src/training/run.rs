//! A run of `finetune_lora`: from the settings to the adapter and the record.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tch::{Device, Tensor};

use super::{
    base::Base,
    checkpoints::Checkpoints,
    data::Data,
    init::initial_adapter,
    log::Log,
    options::TrainingOptions,
    parameters::Parameters,
    plan::Plan,
    progress::StepReport,
    resume::{Start, resume_fingerprint},
    trainer::Trainer,
};
use crate::Result;
use crate::console::{Level, Notify};
use crate::device::{Precision, keep_freed_memory};
use crate::distributed::ProcessGroup;
use crate::engine::{LoadOptions, Reader};
use crate::project::{LORA_SUFFIX, Project};
use crate::records::TrainingMetrics;
use crate::torch::reset_allocator_peak;

/// Inputs of [`train`].
pub struct TrainingRun<'a> {
    /// The project with splits, models and records.
    pub project: &'a Project,
    /// The model to adapt, quantized or not.
    pub model: &'a Path,
    /// All settings.
    pub options: &'a TrainingOptions,
    /// Device to train on.
    pub device: Device,
    /// Dtype of activations.
    pub precision: Precision,
    /// Resume from the latest checkpoint.
    pub resume: bool,
    /// Set to stop after the current step, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// The process group of data-parallel training; `None` for a single process.
    pub group: Option<&'a ProcessGroup>,
    /// Called after every step, with the number of steps of the run.
    pub on_step: &'a dyn Fn(&StepReport, u64),
    /// Receives messages.
    pub notify: Notify<'a>,
}

impl TrainingRun<'_> {
    /// Rank of this process.
    pub(super) fn rank(&self) -> usize {
        self.group.map_or(0, |group| group.info().rank)
    }

    /// Number of processes.
    pub(super) fn processes(&self) -> usize {
        self.group.map_or(1, |group| group.info().world_size)
    }

    /// Whether this process writes files and messages (rank 0).
    pub(super) fn is_main_process(&self) -> bool {
        self.rank() == 0
    }

    /// Sums over all processes, in f64.
    pub(super) fn all_reduce<const N: usize>(&self, values: [f64; N]) -> Result<[f64; N]> {
        let Some(group) = self.group else {
            return Ok(values);
        };
        let mut tensor = Tensor::f_from_slice(&values)?;
        group.all_reduce(&mut tensor)?;
        let mut sums = [0.0; N];
        tensor.f_copy_data(&mut sums, N)?;
        Ok(sums)
    }
}

/// Trains an adapter and writes it and its record, which it returns.
///
/// After an error or an interruption the latest checkpoint stays, and no record is written.
pub fn train(run: &TrainingRun<'_>) -> Result<TrainingMetrics> {
    keep_freed_memory();
    let base = Base::find(run.project, run.model, run.options)?;
    let images = base.image_processor(run.options)?;
    let data = Data::read(run.project, &base, run.options, images.clone(), run.notify)?;
    let adapter = initial_adapter(run.project, &base, run.options, &images)?;
    let mut parameters = Parameters::new(adapter, run.device)?;
    let target = run.project.derived_model(run.model, LORA_SUFFIX);
    let checkpoints = Checkpoints::open(
        &checkpoint_folder(&target),
        run.options.keep_checkpoints as usize,
        resume_fingerprint(run, &base, &data, &parameters)?,
        run.is_main_process(),
    )?;
    let load = LoadOptions {
        device: run.device,
        precision: run.precision,
        max_pixels: Some(data.max_pixels),
        ..LoadOptions::default()
    };
    let reader = Reader::load_with(&base.dir, &load, &parameters.adapter)?;
    if run.is_main_process() {
        let warnings = reader.warnings().iter();
        warnings.for_each(|warning| (run.notify)(Level::WARN, warning));
    }
    if run.device != Device::Cpu {
        // libtorch's CPU threads spin while they wait, on the cores that launch the GPU's kernels.
        tch::set_num_threads(1);
    }
    let samples = data.train.page_groups();
    let start = Start::new(run, &base, samples.longest(), &mut parameters, &checkpoints)?;
    let plan = Plan::new(
        run.options,
        samples.sample_count(),
        run.processes(),
        start.progress.batch_tokens as usize,
    );
    if run.is_main_process() && run.resume {
        let (step, steps) = (start.progress.step, plan.steps);
        (run.notify)(Level::INFO, &format!("resuming after step {step} of {steps}"));
    }
    let mut trainer = Trainer {
        run,
        plan,
        samples,
        data: &data,
        parameters,
        reader,
        checkpoints,
        progress: start.progress,
        best: start.best,
        step_seconds: Vec::new(),
        stopping: false,
    };
    reset_allocator_peak(run.device);
    let mut log = match run.is_main_process() {
        true => Some(Log::open(run.project, trainer.progress.step)?),
        false => None,
    };
    trainer.train(log.as_mut())?;
    if let Some(log) = &log {
        log.plot(&trainer.progress)?;
    }
    trainer.finish(&base, &target)
}

/// Folder of the checkpoints of a run that writes the adapter to `target`.
fn checkpoint_folder(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{name}.training"))
}
