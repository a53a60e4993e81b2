//! The training loop.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tch::Tensor;

use super::{
    base::Base,
    batches::{PageGroups, StepPlan, StepPlanner},
    checkpoints::Checkpoints,
    collate::Batch,
    data::Data,
    loader::{Batches, PageLoader},
    log::Log,
    parameters::Parameters,
    plan::Plan,
    progress::{Progress, StepReport, Validation},
    run::TrainingRun,
    summary::{FinishedRun, metrics},
    validation::{Sums, validate},
};
use crate::console::Level;
use crate::engine::Reader;
use crate::error::TrainingError;
use crate::records::{self, TrainingMetrics};
use crate::torch::autograd;
use crate::{Error, Result};

/// Consecutive steps with non-finite gradients that end the run.
const MAX_CONSECUTIVE_SKIPS: u64 = 3;
/// Maximum fraction of all steps that may be skipped.
const MAX_SKIPPED_FRACTION: f64 = 0.01;

/// A run in one process: model, data, parameters and progress.
pub(super) struct Trainer<'a> {
    pub(super) run: &'a TrainingRun<'a>,
    pub(super) plan: Plan,
    /// The training samples, by page.
    pub(super) samples: PageGroups,
    pub(super) data: &'a Data,
    pub(super) parameters: Parameters,
    pub(super) reader: Reader,
    pub(super) checkpoints: Checkpoints,
    pub(super) progress: Progress,
    /// The best adapter's values, on the CPU.
    pub(super) best: Option<Tensor>,
    /// Duration of each step since the start or resume.
    pub(super) step_seconds: Vec<f64>,
    /// Some process was asked to stop.
    pub(super) stopping: bool,
}

impl Trainer<'_> {
    /// Runs all remaining steps.
    pub(super) fn train(&mut self, mut log: Option<&mut Log>) -> Result<()> {
        let mut planner = StepPlanner::new(self.plan.batching, self.samples.clone());
        let mut ahead = planner.clone();
        let (from, to) = (self.progress.step, self.plan.steps);
        let (rank, processes) = (self.run.rank(), self.run.processes());
        let own = (from..to).flat_map(move |step| {
            let batches = ahead.plan(step).batches;
            batches.into_iter().skip(rank).step_by(processes)
        });
        let data = self.data;
        let loader = PageLoader::new(&data.images, self.run.device)?;
        loader.prefetch(&data.train, own, |batches| {
            while self.progress.step < to && !self.stops_early() {
                let plan = planner.plan(self.progress.step);
                self.step(&plan, batches, log.as_deref_mut())?;
                if self.stopping {
                    self.checkpoint()?;
                    return Err(Error::Interrupted);
                }
            }
            Ok(())
        })
    }

    /// Early stopping.
    fn stops_early(&self) -> bool {
        let patience = self.run.options.patience;
        patience > 0 && self.progress.without_gain >= patience
    }

    /// One optimizer step, with the validation and the checkpoint that are due after it.
    fn step(&mut self, plan: &StepPlan, batches: &mut Batches<'_>, mut log: Option<&mut Log>) -> Result<()> {
        let start = Instant::now();
        let done = self.progress.step;
        let samples = &self.data.train.samples;
        let labels: usize = plan.samples().map(|sample| samples[sample].labels()).sum();
        let tokens = self.samples.tokens(plan.batches.iter().flatten());
        self.parameters.zero_gradients()?;
        let mut loss = 0.0;
        for index in (self.run.rank()..plan.batches.len()).step_by(self.run.processes()) {
            loss += self.backward(batches, (done, index), 1.0 / labels as f64)?;
        }
        if let Some(group) = self.run.group {
            group.all_reduce(self.parameters.gradients())?;
        }
        let stop = f64::from(u8::from(self.run.stop.load(Ordering::Relaxed)));
        let [loss, stop] = self.run.all_reduce([loss, stop])?;
        self.stopping = stop > 0.0;
        let norm = self.parameters.gradient_norm()?;
        let rate = self.plan.schedule.learning_rate(self.progress.updates);
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
            data_wait_seconds: batches.take_waited().as_secs_f64(),
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

    /// Adds the gradients of one batch; its share of the step's mean loss per token.
    fn backward(
        &mut self,
        batches: &mut Batches<'_>,
        (step, index): (u64, usize),
        scale: f64,
    ) -> Result<f64> {
        let model = self.reader.model();
        let (numbers, pixels) = batches.next()?;
        let batch = Batch::collate(model.config(), &self.data.train, &numbers, pixels)?;
        model.set_dropout_seed(dropout_seed(self.run.options.seed, step, index));
        let recompute = self.progress.recompute;
        let hidden = model.packed_hidden(&batch.packed, Some(&batch.pixels), &batch.rows, recompute)?;
        let loss = model.packed_loss(&hidden, &batch.labels, scale)?;
        autograd::backward(&loss, &loss.f_ones_like()?)?;
        Ok(loss.f_double_value(&[])?)
    }

    /// Validates, plots and writes a checkpoint if they are due.
    fn after_step(&mut self, mut log: Option<&mut Log>) -> Result<()> {
        let step = self.progress.step;
        let last = step == self.plan.steps;
        if step.is_multiple_of(self.plan.eval_steps) || last {
            let validation = self.validate()?;
            if let Some(log) = &mut log {
                if let Some(validation) = &validation {
                    log.validation(validation)?;
                }
                log.plot(&self.progress)?;
            }
        }
        if step.is_multiple_of(self.plan.checkpoint_steps) && !last {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Each process validates its share; the metrics are the same in all processes.
    fn validate(&mut self) -> Result<Option<Validation>> {
        let data = self.data;
        let Some(samples) = &data.validation else {
            return Ok(None);
        };
        let documents = self.run.options.eval_documents as usize;
        let share = (self.run.rank(), self.run.processes());
        let batching = &self.plan.batching;
        let sums = validate(&self.reader, &data.images, samples, batching, documents, share)?;
        let validation = Sums::from(self.run.all_reduce(sums.into())?).metrics(self.progress.step)?;
        if self.progress.add_validation(validation.clone()) {
            self.best = Some(self.parameters.values()?);
        }
        Ok(Some(validation))
    }

    fn checkpoint(&self) -> Result<()> {
        if !self.run.is_main_process() {
            return Ok(());
        }
        self.checkpoints
            .write(&self.progress, &self.parameters.state()?, self.best.as_ref())
    }

    fn check_divergence(&self) -> Result<()> {
        let (skipped, steps) = (self.progress.skipped, self.progress.step);
        let in_a_row = self.progress.skipped_in_a_row;
        // A short run may skip one step, too.
        let tolerated = (self.plan.steps as f64 * MAX_SKIPPED_FRACTION).max(1.0);
        if in_a_row >= MAX_CONSECUTIVE_SKIPS || skipped as f64 > tolerated {
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

    /// Writes the best adapter to `target` and the record, and removes the checkpoints.
    pub(super) fn finish(mut self, base: &Base, target: &Path) -> Result<TrainingMetrics> {
        if let Some(best) = &self.best {
            self.parameters.set_values(best)?;
        }
        self.parameters.check_finite()?;
        let record = metrics(&mut FinishedRun {
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
        if !self.run.is_main_process() {
            return Ok(record);
        }
        if let Some(previous) = self.parameters.adapter.write(target)? {
            (self.run.notify)(
                Level::INFO,
                &format!("kept the previous adapter: {}", previous.display()),
            );
        }
        records::write(&self.run.project.file(records::paths::TRAINING_METRICS), &record)?;
        self.checkpoints.remove()?;
        Ok(record)
    }
}

/// Seed of a batch's dropout masks; never 0, which disables dropout.
fn dropout_seed(seed: u64, step: u64, batch: usize) -> u64 {
    let position = (step << 20) | (batch as u64 + 1);
    seed.wrapping_mul(0xD134_2543_DE82_EF95)
        .wrapping_add(position)
        .max(1)
}
