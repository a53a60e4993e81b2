//! The training itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{
    batches::{Batching, ByPage, StepPlan, Steps},
    checkpoints::{Checkpoints, Identity},
    feed::{Batches, Feed},
    log::{Log, Progress, StepReport, Validation},
    options::TrainingOptions,
    parameters::Parameters,
    schedule::Schedule,
    setup::{Base, Data, adapter_folder, checkpoint_folder, decisive, memory_plan, new_adapter},
    summary::{Outcome, metrics},
    validation::{Batch, Tally, better, measure},
};
use crate::console::{self, Level};
use crate::device::{Precision, keep_freed_memory};
use crate::distributed::Group;
use crate::engine::{LoadOptions, Reader};
use crate::error::TrainingError;
use crate::project::Project;
use crate::records::{self, TrainingMetrics};
use crate::torch::{autograd, reset_allocator_peak};
use crate::{Error, Result};

/// Steps in a row whose gradients may be no numbers.
const MOST_SKIPPED_IN_A_ROW: u64 = 3;
/// Part of all steps that may be skipped.
const MOST_SKIPPED_PART: f64 = 0.01;
/// Validations in a run where nobody says how often.
const VALIDATIONS: u64 = 10;

/// A run of `finetune_lora`.
pub struct TrainingRun<'a> {
    /// Where splits, models and records lie.
    pub project: &'a Project,
    /// The model to adapt, or its base in four bits.
    pub model: &'a Path,
    /// Every setting.
    pub options: &'a TrainingOptions,
    /// Where to compute.
    pub device: Device,
    /// Number format of the computation.
    pub precision: Precision,
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Set to stop after the step in work, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// The processes that train together; `None` for one alone.
    pub group: Option<&'a Group>,
    /// Told of every step, and of how many there will be.
    pub on_step: &'a dyn Fn(&StepReport, u64),
}

impl TrainingRun<'_> {
    /// This process's number.
    fn rank(&self) -> usize {
        self.group.map_or(0, |group| group.place().rank)
    }

    /// Processes.
    fn processes(&self) -> usize {
        self.group.map_or(1, |group| group.place().size)
    }

    /// Whether this process writes files and speaks.
    fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Sums over all processes, in f64.
    fn sum<const N: usize>(&self, figures: [f64; N]) -> Result<[f64; N]> {
        let Some(group) = self.group else {
            return Ok(figures);
        };
        let mut tensor = Tensor::f_from_slice(&figures)?;
        group.sum(&mut tensor)?;
        let mut sums = [0.0; N];
        tensor.f_copy_data(&mut sums, N)?;
        Ok(sums)
    }
}

/// Trains an adapter, writes it and the record, which it returns.
///
/// Whatever ends it before, the newest good checkpoint stays and no record is written.
pub fn train(run: &TrainingRun<'_>) -> Result<TrainingMetrics> {
    keep_freed_memory();
    let base = Base::find(run.project, run.model, run.options)?;
    let data = Data::read(run.project, &base, run.options)?;
    let parameters = Parameters::new(new_adapter(run.project, &base, run.options)?, run.device)?;
    let target = adapter_folder(run.project, run.model);
    let identity = Identity {
        settings: decisive(run.options),
        training_data: data.train.sha256.clone(),
        validation_data: data
            .validation
            .as_ref()
            .map_or(String::new(), |samples| samples.sha256.clone()),
        base: base.name(),
        base_revision: base.revision()?,
        processes: run.processes(),
        parameters: parameters.count(),
    };
    let keep = run.options.keep_checkpoints as usize;
    let checkpoints = Checkpoints::open(&checkpoint_folder(&target), keep, identity, run.leads())?;
    let load = LoadOptions {
        device: run.device,
        precision: run.precision,
        max_pixels: Some(data.max_pixels),
        ..LoadOptions::default()
    };
    let reader = Reader::load_with(&base.dir, &load, &parameters.adapter)?;
    if run.leads() {
        let warnings = reader.warnings().iter();
        warnings.for_each(|warning| console::say(Level::WARN, warning));
    }
    if run.device != Device::Cpu {
        // Teams of threads for what little is left to the CPU wait busily, on the cores that start the GPU's kernels.
        tch::set_num_threads(1);
    }
    let samples = data.train.by_page();
    let mut trainer = Trainer {
        run,
        plan: Plan::new(run.options, samples.samples(), run.processes()),
        samples,
        data: &data,
        parameters,
        reader,
        checkpoints,
        progress: Progress::default(),
        best: None,
        stopping: false,
        step_seconds: Vec::new(),
    };
    trainer.begin(&base)?;
    reset_allocator_peak(run.device);
    let mut log = match run.leads() {
        true => Some(Log::open(run.project, trainer.progress.step)?),
        false => None,
    };
    trainer.work(log.as_mut())?;
    if let Some(log) = &log {
        log.draw(&trainer.progress)?;
    }
    trainer.finish(&base, &target)
}

/// What a training will do, by its settings and the number of samples.
struct Plan {
    batching: Batching,
    schedule: Schedule,
    steps_per_epoch: u64,
    steps: u64,
    eval_steps: u64,
    checkpoint_steps: u64,
}

impl Plan {
    fn new(options: &TrainingOptions, samples: usize, processes: usize) -> Self {
        let batching = Batching {
            step_samples: options.step_samples() as usize * processes,
            batch_size: options.batch_size as usize,
            batch_tokens: usize::MAX,
            seed: options.seed,
        };
        let steps_per_epoch = batching.steps_per_epoch(samples);
        let all = options.epochs * steps_per_epoch;
        let steps = options.max_steps.map_or(all, |most| most.min(all));
        let eval_steps = options.eval_steps.unwrap_or(steps.div_ceil(VALIDATIONS)).max(1);
        Self {
            batching,
            schedule: Schedule::new(options, steps),
            steps_per_epoch,
            steps,
            eval_steps,
            checkpoint_steps: options.checkpoint_steps.unwrap_or(eval_steps).max(1),
        }
    }
}

struct Trainer<'a> {
    run: &'a TrainingRun<'a>,
    plan: Plan,
    samples: ByPage,
    data: &'a Data,
    parameters: Parameters,
    reader: Reader,
    checkpoints: Checkpoints,
    progress: Progress,
    /// The best adapter's values, on the CPU.
    best: Option<Tensor>,
    /// Some process was asked to stop.
    stopping: bool,
    /// Seconds of each step of this run.
    step_seconds: Vec<f64>,
}

impl Trainer<'_> {
    /// Takes up the newest checkpoint where that is asked for, else begins anew; the first process decides for all.
    fn begin(&mut self, base: &Base) -> Result<()> {
        if self.run.leads() {
            if self.run.resume {
                self.take_up()?;
            } else {
                self.begin_anew(base)?;
            }
        }
        if let Some(group) = self.run.group {
            self.share(group)?;
        }
        self.plan.batching.batch_tokens = self.progress.batch_tokens as usize;
        Ok(())
    }

    fn take_up(&mut self) -> Result<()> {
        let restored = self.checkpoints.newest()?;
        self.parameters.set_state(&restored.state)?;
        self.progress = restored.progress;
        self.best = restored.best;
        let (step, steps) = (self.progress.step, self.plan.steps);
        console::say(Level::INFO, &format!("going on after step {step} of {steps}"));
        Ok(())
    }

    fn begin_anew(&mut self, base: &Base) -> Result<()> {
        if let Some(step) = self.checkpoints.steps()?.first() {
            console::say(
                Level::WARN,
                &format!(
                    "an unfinished training had come to step {step}; it is replaced (--resume would have gone on with it)"
                ),
            );
            self.checkpoints.clear()?;
        }
        let longest = self.samples.longest();
        (self.progress.batch_tokens, self.progress.recompute) =
            memory_plan(base, self.run.options, self.run.device, longest);
        Ok(())
    }

    /// Gives all processes what the first one has.
    fn share(&mut self, group: &Group) -> Result<()> {
        let text = serde_json::to_vec(&self.progress).unwrap_or_default();
        let mut length = Tensor::f_from_slice(&[text.len() as i64])?;
        group.broadcast(&mut length)?;
        let mut bytes = Tensor::f_zeros([length.f_int64_value(&[0])?], (Kind::Uint8, Device::Cpu))?;
        if self.run.leads() {
            bytes = Tensor::f_from_slice(&text)?;
        }
        group.broadcast(&mut bytes)?;
        let mut text = vec![0u8; bytes.numel()];
        bytes.f_copy_data_u8(&mut text, bytes.numel())?;
        self.progress = serde_json::from_slice(&text).map_err(|error| {
            Error::Distributed(format!("the first process's state cannot be read: {error}"))
        })?;
        let mut state = self.parameters.state()?;
        for tensor in [&mut state.values, &mut state.first, &mut state.second] {
            group.broadcast(tensor)?;
        }
        self.parameters.set_state(&state)?;
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

    /// All steps that are left.
    fn work(&mut self, mut log: Option<&mut Log>) -> Result<()> {
        let mut steps = Steps::new(self.plan.batching, self.samples.clone());
        let mut ahead = steps.clone();
        let (from, to) = (self.progress.step, self.plan.steps);
        let (rank, processes) = (self.run.rank(), self.run.processes());
        let own = (from..to).flat_map(move |step| {
            let batches = ahead.plan(step).batches;
            batches.into_iter().skip(rank).step_by(processes)
        });
        let feed = Feed::new(self.reader.images().clone(), self.run.device)?;
        feed.serve(&self.data.train, own, |batches| {
            while self.progress.step < to && !self.out_of_patience() {
                let plan = steps.plan(self.progress.step);
                self.step(&plan, batches, log.as_deref_mut())?;
                if self.stopping {
                    self.checkpoint()?;
                    return Err(Error::Interrupted);
                }
            }
            Ok(())
        })
    }

    fn out_of_patience(&self) -> bool {
        let patience = self.run.options.patience;
        patience > 0 && self.progress.without_gain >= patience
    }

    /// One optimizer step, and what falls due after it.
    fn step(&mut self, plan: &StepPlan, batches: &mut Batches<'_>, mut log: Option<&mut Log>) -> Result<()> {
        let start = Instant::now();
        let done = self.progress.step;
        let samples = &self.data.train.samples;
        let labels: usize = plan.samples().map(|sample| samples[sample].labels()).sum();
        let tokens = self.samples.tokens(plan.batches.iter().flatten());
        self.parameters.clear_gradients()?;
        let mut loss = 0.0;
        for index in (self.run.rank()..plan.batches.len()).step_by(self.run.processes()) {
            loss += self.backward(batches, (done, index), 1.0 / labels as f64)?;
        }
        if let Some(group) = self.run.group {
            group.sum(self.parameters.gradients())?;
        }
        let stop = f64::from(u8::from(self.run.stop.load(Ordering::Relaxed)));
        let [loss, stop] = self.run.sum([loss, stop])?;
        self.stopping = stop > 0.0;
        let norm = self.parameters.gradient_norm()?;
        let rate = self.plan.schedule.rate(self.progress.updates);
        let skipped = !(norm.is_finite() && loss.is_finite());
        if !skipped {
            self.parameters
                .step(self.progress.updates + 1, rate, norm, self.run.options)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        self.step_seconds.push(seconds);
        let progress = &mut self.progress;
        progress.count(loss, skipped);
        progress.samples += plan.samples().count() as u64;
        progress.tokens += tokens as u64;
        progress.label_tokens += labels as u64;
        progress.seconds += seconds;
        let report = StepReport {
            step: progress.step,
            epoch: progress.step as f64 / self.plan.steps_per_epoch as f64,
            loss,
            learning_rate: rate,
            gradient_norm: norm,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            data_wait_seconds: batches.waited().as_secs_f64(),
            skipped,
        };
        if let Some(log) = &mut log {
            log.step(&report)?;
        }
        (self.run.on_step)(&report, self.plan.steps);
        if skipped {
            self.check_divergence()?;
        }
        self.after_step(log)
    }

    /// Adds the gradients of one batch; its part of the mean loss of a token.
    fn backward(
        &mut self,
        batches: &mut Batches<'_>,
        (step, index): (u64, usize),
        scale: f64,
    ) -> Result<f64> {
        let model = self.reader.model();
        let batch = Batch::next(&self.reader, &self.data.train, batches)?;
        model.set_dropout_seed(dropout_seed(self.run.options.seed, step, index));
        let recompute = self.progress.recompute;
        let hidden = model.packed_hidden(&batch.packed, Some(&batch.pixels), &batch.rows, recompute)?;
        let loss = model.packed_loss(&hidden, &batch.labels, scale)?;
        autograd::backward(&loss, &loss.f_ones_like()?)?;
        Ok(loss.f_double_value(&[])?)
    }

    /// Validation, checkpoint and picture where it is their time.
    fn after_step(&mut self, mut log: Option<&mut Log>) -> Result<()> {
        let step = self.progress.step;
        let last = step == self.plan.steps;
        if step.is_multiple_of(self.plan.eval_steps) || last {
            let validation = self.validate()?;
            if let Some(log) = &mut log {
                if let Some(validation) = &validation {
                    log.validation(validation)?;
                }
                log.draw(&self.progress)?;
            }
        }
        if step.is_multiple_of(self.plan.checkpoint_steps) && !last {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Every process validates its part; all know the figures.
    fn validate(&mut self) -> Result<Option<Validation>> {
        let Some(samples) = &self.data.validation else {
            return Ok(None);
        };
        let documents = self.run.options.eval_documents as usize;
        let share = (self.run.rank(), self.run.processes());
        let tally = measure(&mut self.reader, samples, &self.plan.batching, documents, share)?;
        let validation = Tally::from(self.run.sum(tally.into())?).figures(self.progress.step)?;
        if better(&validation, self.progress.best.as_ref()) {
            self.progress.best = Some(validation.clone());
            self.progress.without_gain = 0;
            self.best = Some(self.parameters.values()?);
        } else {
            self.progress.without_gain += 1;
        }
        self.progress.validations.push(validation.clone());
        Ok(Some(validation))
    }

    fn checkpoint(&self) -> Result<()> {
        if !self.run.leads() {
            return Ok(());
        }
        self.checkpoints
            .write(&self.progress, &self.parameters.state()?, self.best.as_ref())
    }

    fn check_divergence(&self) -> Result<()> {
        let (skipped, steps) = (self.progress.skipped, self.progress.step);
        let in_a_row = self.progress.skipped_in_a_row;
        // One bad step at the beginning is no hundredth of anything yet.
        let tolerated = (self.plan.steps as f64 * MOST_SKIPPED_PART).max(1.0);
        if in_a_row >= MOST_SKIPPED_IN_A_ROW || skipped as f64 > tolerated {
            return Err(TrainingError::Diverged {
                skipped,
                steps,
                in_a_row,
                folder: self.checkpoints.folder().to_owned(),
            }
            .into());
        }
        Ok(())
    }

    /// Writes the best adapter and the record; the checkpoints have served.
    fn finish(mut self, base: &Base, target: &PathBuf) -> Result<TrainingMetrics> {
        if let Some(best) = &self.best {
            self.parameters.set_values(best)?;
        }
        self.parameters.check_finite()?;
        let record = metrics(&mut Outcome {
            options: self.run.options,
            progress: &self.progress,
            train: &self.data.train,
            validation: self.data.validation.as_ref(),
            max_tokens: self.data.max_tokens,
            max_pixels: self.data.max_pixels,
            steps_per_epoch: self.plan.steps_per_epoch,
            trained: self.parameters.count(),
            base_parameters: base.parameters()?,
            base: &base.dir,
            adapter: target,
            model: self.reader.info(),
            processes: self.run.processes(),
            device: self.run.device,
            step_seconds: &mut self.step_seconds,
        });
        if !self.run.leads() {
            return Ok(record);
        }
        if let Some(previous) = self.parameters.adapter.write(target)? {
            let kept = format!(
                "the adapter that was there before is kept: {}",
                previous.display()
            );
            console::say(Level::INFO, &kept);
        }
        records::write(&self.run.project.file(records::paths::TRAINING_METRICS), &record)?;
        self.checkpoints.remove()?;
        Ok(record)
    }
}

/// The seed of a batch's dropout; never 0.
fn dropout_seed(seed: u64, step: u64, batch: usize) -> u64 {
    let position = (step << 20) | (batch as u64 + 1);
    seed.wrapping_mul(0xD134_2543_DE82_EF95)
        .wrapping_add(position)
        .max(1)
}
