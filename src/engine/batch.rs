//! Continuous batching: requests join and leave the running batch between two tokens.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine_metrics::{Watch, log_figures};
use super::thread::{Answer, EngineError, Job, Shared};
use super::{Backend, CacheUse, Reading, Step};
use crate::Result;
use crate::device::return_freed_memory;
use crate::generation::FinishReason;

/// Time without a token for the running answers after which the prefill of another request is interrupted, between two layers.
pub const PREFILL_SLICE: Duration = Duration::from_millis(12);

/// The answers that are generated together.
pub(super) struct Batch<'m, B: Backend> {
    shared: &'m Shared,
    backend: &'m B,
    limit: usize,
    running: Vec<Running<'m, B>>,
    /// Preprocessed, and without room for its keys and values as yet.
    held: Option<(Turn, B::Prompt)>,
    last_step: Instant,
    /// Of all that runs.
    cache: Rc<Cell<CacheUse>>,
}

struct Running<'m, B: Backend + 'm> {
    turn: Turn,
    sequence: B::Sequence<'m>,
}

/// A request whose turn it is.
struct Turn {
    job: Job,
    watch: Watch,
    started: Instant,
    deadline: Instant,
    queue_seconds: f64,
    late: bool,
    wasted_tokens: usize,
    /// Of this request, and of all that run.
    cache: CacheUse,
    all_caches: Rc<Cell<CacheUse>>,
}

const NO_CACHE: CacheUse = CacheUse {
    tokens: 0,
    capacity: 0,
};

impl<'m, B: Backend> Batch<'m, B> {
    /// An empty batch of at most `limit` sequences.
    pub(super) fn new(shared: &'m Shared, backend: &'m B, limit: usize) -> Self {
        Self {
            shared,
            backend,
            limit,
            running: Vec::new(),
            held: None,
            last_step: Instant::now(),
            cache: Rc::new(Cell::new(NO_CACHE)),
        }
    }

    /// Answers requests until the engine is closed and what runs has ended.
    pub(super) fn run(&mut self) {
        loop {
            if let Some((turn, prompt)) = self.held.take() {
                if turn.is_wanted() && !self.running.is_empty() && !self.backend.has_room(&prompt) {
                    self.held = Some((turn, prompt));
                } else {
                    self.begin(turn, prompt);
                }
            } else if self.running.len() < self.limit {
                match self.shared.next(self.running.is_empty()) {
                    ControlFlow::Continue(Some(job)) => {
                        self.prepare(job);
                        continue;
                    }
                    ControlFlow::Break(()) if self.running.is_empty() => return,
                    _ => {}
                }
            }
            self.step();
        }
    }

    fn prepare(&mut self, job: Job) {
        let mut turn = Turn::begin(job, self.shared, Rc::clone(&self.cache));
        let span = turn.job.span.clone();
        let _entered = span.enter();
        tracing::debug!("reading begins");
        let backend = self.backend;
        match guarded(|| backend.prepare(&turn.job.request)) {
            Ok(prompt) => {
                // Its pages are in the prompt now.
                turn.job.request.images = Vec::new();
                self.held = Some((turn, prompt));
            }
            Err(error) => self.end(turn, Err(error)),
        }
    }

    fn begin(&mut self, mut turn: Turn, prompt: B::Prompt) {
        let span = turn.job.span.clone();
        let _entered = span.enter();
        let backend = self.backend;
        let outcome = guarded(|| {
            backend.begin(prompt, &mut |step| {
                if step.generated.is_none() {
                    self.step_others();
                }
                turn.on_step(step)
            })
        });
        match outcome {
            Ok(ControlFlow::Continue(sequence)) => self.running.push(Running { turn, sequence }),
            Ok(ControlFlow::Break(reading)) => self.end(turn, Ok(reading)),
            Err(error) => self.end(turn, Err(error)),
        }
    }

    /// A step of what runs, within the prefill of another request.
    fn step_others(&mut self) {
        if !self.running.is_empty() {
            self.backend.wait();
            if self.last_step.elapsed() >= PREFILL_SLICE {
                self.step();
            }
        }
    }

    /// One token for every running sequence.
    fn step(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let backend = self.backend;
        let mut sequences: Vec<_> = self.running.iter_mut().map(|one| &mut one.sequence).collect();
        let outcome = catch_unwind(AssertUnwindSafe(|| backend.step(&mut sequences)));
        let mut results = outcome.ok().map(Vec::into_iter);
        for mut one in std::mem::take(&mut self.running) {
            let result = match &mut results {
                Some(results) => results.next().unwrap_or(Ok(())).map_err(EngineError::Read),
                None => Err(EngineError::Panicked),
            };
            let answer = result.and_then(|()| one.push(backend));
            match answer.transpose() {
                None => self.running.push(one),
                Some(answer) => self.end(one.turn, answer),
            }
        }
        self.last_step = Instant::now();
    }

    fn end(&self, turn: Turn, outcome: Result<Reading, EngineError>) {
        turn.end(outcome, self.shared);
        return_freed_memory();
    }
}

impl<B: Backend> Running<'_, B> {
    fn push(&mut self, backend: &B) -> Result<Option<Reading>, EngineError> {
        let Self { turn, sequence } = self;
        let span = turn.job.span.clone();
        let _entered = span.enter();
        guarded(|| backend.push(sequence, &mut |step| turn.on_step(step)))
    }
}

/// Runs the backend's `work` for one request; its panic is that request's error.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(EngineError::Panicked),
    }
}

impl Turn {
    fn begin(job: Job, shared: &Shared, all_caches: Rc<Cell<CacheUse>>) -> Self {
        let started = Instant::now();
        Self {
            watch: Watch::begin(shared.metrics.get().cloned(), job.slot.began, started),
            started,
            deadline: started + shared.options.generation_deadline,
            queue_seconds: started.duration_since(job.submitted).as_secs_f64(),
            late: false,
            wasted_tokens: 0,
            cache: NO_CACHE,
            all_caches,
            job,
        }
    }

    fn is_cancelled(&self) -> bool {
        self.job.cancelled.load(Ordering::Acquire)
    }

    fn is_wanted(&self) -> bool {
        !self.is_cancelled() && Instant::now() < self.deadline
    }

    fn on_step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let now = Instant::now();
        self.late = now >= self.deadline;
        if let Some(cache) = step.generated {
            self.use_cache(cache);
            self.watch.token(now, self.all_caches.get());
            self.wasted_tokens += usize::from(self.is_cancelled());
        }
        let wish = match &mut self.job.on_step {
            Some(on_step) => on_step(step),
            None => ControlFlow::Continue(()),
        };
        if self.late || self.is_cancelled() {
            return ControlFlow::Break(());
        }
        wish
    }

    fn use_cache(&mut self, cache: CacheUse) {
        let all = self.all_caches.get();
        self.all_caches.set(CacheUse {
            tokens: all.tokens - self.cache.tokens + cache.tokens,
            capacity: all.capacity - self.cache.capacity + cache.capacity,
        });
        self.cache = cache;
    }

    /// Sends the answer.
    fn end(mut self, outcome: Result<Reading, EngineError>, shared: &Shared) {
        let span = self.job.span.clone();
        let _entered = span.enter();
        self.use_cache(NO_CACHE);
        self.watch.end(outcome.as_ref().ok(), self.all_caches.get());
        let answer = outcome.and_then(|mut reading| {
            if self.late && reading.finish_reason == FinishReason::Cancelled {
                reading.finish_reason = FinishReason::Deadline;
            }
            log_figures(&reading, self.queue_seconds, self.wasted_tokens);
            let variant = shared
                .variants
                .get()
                .and_then(|all| all.get(self.job.request.variant));
            let model_info = variant.ok_or(EngineError::NotReady)?.info.clone();
            Ok(Answer {
                reading,
                model_info,
                queue_seconds: self.queue_seconds,
            })
        });
        let counts = answer.is_ok() && !self.late && !self.job.cancelled.load(Ordering::Acquire);
        let seconds = self.started.elapsed().as_secs_f64();
        self.job.finish(answer, |queue| {
            // With the slot, so that nobody sees one in use and no request that runs or waits.
            let together = queue.running.max(1);
            queue.running = together - 1;
            if counts {
                let seconds = seconds / together as f64;
                let average = queue.service_seconds.unwrap_or(seconds);
                queue.service_seconds = Some(0.7 * average + 0.3 * seconds);
            }
            shared.turns.send_replace(());
        });
    }
}
