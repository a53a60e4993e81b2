//! The learning-rate schedule.

use super::options::{ScheduleKind, TrainingOptions};

/// Linear warm-up, then decay to the final learning rate, as in transformers.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    kind: ScheduleKind,
    peak: f64,
    end: f64,
    warmup: u64,
    steps: u64,
}

impl Schedule {
    /// The schedule of a run of `steps` optimizer steps.
    pub fn new(options: &TrainingOptions, steps: u64) -> Self {
        Self {
            kind: options.schedule,
            peak: options.learning_rate,
            end: options.final_learning_rate,
            // Rounded up, as in transformers.
            warmup: (options.warmup_ratio * steps as f64).ceil() as u64,
            steps,
        }
    }

    /// The learning rate after `done` updates.
    pub fn learning_rate(&self, done: u64) -> f64 {
        if done < self.warmup {
            return self.peak * done as f64 / self.warmup as f64;
        }
        let rest = (self.steps.saturating_sub(self.warmup)).max(1) as f64;
        let part = (done - self.warmup) as f64 / rest;
        let factor = match self.kind {
            ScheduleKind::Linear => 1.0 - part,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos()),
            ScheduleKind::Constant => 1.0,
        };
        self.end + (self.peak - self.end) * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup_ratio: f64, steps: u64) -> Schedule {
        let options = TrainingOptions {
            schedule: kind,
            warmup_ratio,
            learning_rate: 1.0,
            ..TrainingOptions::default()
        };
        Schedule::new(&options, steps)
    }

    #[test]
    fn it_matches_transformers() {
        // transformers' get_linear_schedule_with_warmup(optimizer, 2, 10) and the cosine one.
        let linear = schedule(ScheduleKind::Linear, 0.15, 10);
        let expected = [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
        for (done, rate) in expected.into_iter().enumerate() {
            assert!((linear.learning_rate(done as u64) - rate).abs() < 1e-12, "{done}");
        }
        let cosine = schedule(ScheduleKind::Cosine, 0.0, 4);
        for (done, rate) in [1.0, 0.853_553_390_593, 0.5, 0.146_446_609_407]
            .into_iter()
            .enumerate()
        {
            assert!((cosine.learning_rate(done as u64) - rate).abs() < 1e-9, "{done}");
        }
        assert_eq!(schedule(ScheduleKind::Constant, 0.0, 4).learning_rate(3), 1.0);
        assert_eq!(linear.learning_rate(99), 0.0);
        let options = TrainingOptions {
            warmup_ratio: 0.0,
            learning_rate: 1.0,
            final_learning_rate: 0.5,
            ..TrainingOptions::default()
        };
        let ending = Schedule::new(&options, 4);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|done| ending.learning_rate(done)),
            [1.0, 0.875, 0.75, 0.625, 0.5]
        );
    }
}
