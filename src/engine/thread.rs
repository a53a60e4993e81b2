//! The thread that owns the model: bounded queue, deadlines, cancellation, shutdown.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::engine_metrics::{EngineMetrics, Watch, log_figures};
use super::queue::{Client, Queue, Refusal, Waiting};
use super::{ModelInfo, OnStep, ReadRequest, Reader, Reading, Step, Variant};
use crate::Result;
use crate::device::return_freed_memory;
use crate::generation::FinishReason;

/// A loaded model, driven by the engine thread. [`Reader`] in production; tests use stubs.
pub trait Backend {
    /// What a request can choose between with [`ReadRequest::variant`]: at least one, the default first.
    fn variants(&self) -> &[Variant];

    /// Answers one request; `on_step` is called for every token, and without text between the layers of the prefill; it
    /// cancels with `Break`.
    ///
    /// A panic is caught and fails this request only, so the next call must not depend on state that this one leaves.
    fn read(&mut self, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading>;
}

impl Backend for Reader {
    fn variants(&self) -> &[Variant] {
        Reader::variants(self)
    }

    fn read(&mut self, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading> {
        Reader::read(self, request, on_step)
    }
}

/// Receives the progress of a request on the engine's thread, which it must not block; cancels with `Break`.
pub type StepHandler = Box<dyn FnMut(Step<'_>) -> ControlFlow<()> + Send>;

/// Queue capacity and deadlines.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Queue capacity, excluding the running request.
    pub queue: usize,
    /// Maximum slots of one client, queued and running.
    pub slots_per_client: usize,
    /// Maximum time in the queue.
    pub queue_deadline: Duration,
    /// Maximum time of one generation.
    pub generation_deadline: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            queue: 8,
            slots_per_client: usize::MAX,
            queue_deadline: Duration::from_secs(30),
            generation_deadline: Duration::from_secs(300),
        }
    }
}

/// State of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// The model is being loaded.
    Loading,
    /// The model is loaded; the default variant's metadata.
    Ready(ModelInfo),
    /// Loading failed, with the reason.
    Failed(String),
}

/// Requests in an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Whether one runs.
    pub running: bool,
    /// Those that have a slot and not yet their turn; their pages may still be decoded.
    pub waiting: usize,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model is not loaded, or not yet.
    #[error("the model is not loaded")]
    NotReady,
    /// The queue is full.
    #[error("the queue is full; try again in {retry_after_seconds} s")]
    Full {
        /// Estimated time until a slot is free, seconds.
        retry_after_seconds: u64,
    },
    /// The client has [`EngineOptions::slots_per_client`] requests in the queue.
    #[error("this key has {limit} requests in the queue, its limit; try again in {retry_after_seconds} s")]
    ClientLimit {
        /// The limit.
        limit: usize,
        /// Estimated time until one of them is answered, seconds.
        retry_after_seconds: u64,
    },
    /// The request waited longer than [`EngineOptions::queue_deadline`].
    #[error("the request waited too long for its turn; try again in {retry_after_seconds} s")]
    QueueDeadline {
        /// Estimated time until a slot is free, seconds.
        retry_after_seconds: u64,
    },
    /// The engine is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// The reading panicked; the engine keeps running.
    #[error("the reading failed unexpectedly")]
    Panicked,
    /// The reading failed.
    #[error(transparent)]
    Read(#[from] crate::Error),
}

/// A reading, its time in the queue, and the model that made it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The reading.
    pub reading: Reading,
    /// The model.
    pub model_info: ModelInfo,
    /// Time from submission to the start of the reading, seconds.
    pub queue_seconds: f64,
}

/// The thread that owns the model, and its queue.
///
/// Dropping the engine rejects what waits and detaches the thread, which ends after the running request.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    options: EngineOptions,
    queue: Mutex<EngineQueue>,
    wake: Condvar,
    state: watch::Sender<EngineState>,
    /// Signalled when a request begins, ends or is withdrawn.
    turns: watch::Sender<()>,
    /// Set once the model is loaded.
    variants: OnceLock<Vec<Variant>>,
    metrics: OnceLock<Arc<dyn EngineMetrics>>,
}

struct EngineQueue {
    jobs: Queue<Job>,
    running: bool,
    /// Whether requests that wait are rejected.
    rejecting: bool,
    /// Moving average of the seconds per reading; `None` before the first.
    service_seconds: Option<f64>,
}

struct Job {
    id: u64,
    request: ReadRequest,
    on_step: Option<StepHandler>,
    submitted: Instant,
    cancelled: Arc<AtomicBool>,
    answer: oneshot::Sender<Outcome>,
    /// The caller's span, so that logs of the engine thread carry the request id.
    span: tracing::Span,
    slot: QueueSlot,
}

/// An answer, and the slot where the caller keeps it.
type Outcome = (Result<Answer, EngineError>, Option<QueueSlot>);

impl Waiting for Job {
    fn client(&self) -> &Client {
        &self.slot.client
    }

    fn id(&self) -> u64 {
        self.id
    }
}

/// A slot in the queue, held from before the image is decoded until the answer is sent; released when dropped.
pub struct QueueSlot {
    shared: Arc<Shared>,
    client: Client,
    is_held: bool,
    /// Whether it is handed back with the answer.
    is_kept: bool,
    began: Instant,
    expires: Instant,
}

/// Minimum time in the queue of a request whose upload used up its deadline: the queue may not have caused the delay.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// A submitted request. Dropping it cancels: a queued request never runs, a running one stops after its current token.
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
    expires: Instant,
    cancelled: Arc<AtomicBool>,
    answer: oneshot::Receiver<Outcome>,
    /// Handed back with the answer.
    slot: Option<QueueSlot>,
}

impl Engine {
    /// Starts the thread, which first runs `load` (state [`EngineState::Loading`]).
    ///
    /// # Errors
    /// If the operating system cannot create a thread.
    pub fn start<B: Backend>(
        load: impl FnOnce() -> Result<B> + Send + 'static,
        options: EngineOptions,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            options,
            queue: Mutex::new(EngineQueue {
                jobs: Queue::new(options.queue.saturating_add(1), options.slots_per_client),
                running: false,
                rejecting: false,
                service_seconds: None,
            }),
            wake: Condvar::new(),
            state: watch::Sender::new(EngineState::Loading),
            turns: watch::Sender::new(()),
            variants: OnceLock::new(),
            metrics: OnceLock::new(),
        });
        let thread = std::thread::Builder::new().name("engine".into()).spawn({
            let shared = shared.clone();
            move || shared.run(load)
        })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Tells `metrics` of all readings from now on. There is one: a later call has no effect.
    pub fn report_to(&self, metrics: Arc<dyn EngineMetrics>) {
        let _ = self.shared.metrics.set(metrics);
    }

    /// The current state; never blocks.
    pub fn state(&self) -> EngineState {
        self.shared.state.borrow().clone()
    }

    /// What a request can choose between, the default first; empty until the model is loaded.
    pub fn variants(&self) -> &[Variant] {
        self.shared.variants.get().map_or(&[], Vec::as_slice)
    }

    /// Waits until the model is loaded or has failed to load.
    pub async fn loaded(&self) -> EngineState {
        let mut state = self.shared.state.subscribe();
        match state.wait_for(|state| *state != EngineState::Loading).await {
            Ok(state) => state.clone(),
            Err(_) => EngineState::Failed("the engine is gone".into()),
        }
    }

    /// Reserves a slot in the queue; the request follows with [`QueueSlot::submit`].
    ///
    /// # Errors
    /// [`EngineError::NotReady`], [`EngineError::Full`] or [`EngineError::Stopping`].
    pub fn reserve(&self) -> Result<QueueSlot, EngineError> {
        self.reserve_for(None, Instant::now())
    }

    /// As [`Engine::reserve`], for a request of `client` that arrived at `began`: its queue deadline counts from then.
    ///
    /// # Errors
    /// As [`Engine::reserve`], or [`EngineError::ClientLimit`].
    pub fn reserve_for(&self, client: Client, began: Instant) -> Result<QueueSlot, EngineError> {
        if !matches!(*self.shared.state.borrow(), EngineState::Ready(_)) {
            return Err(EngineError::NotReady);
        }
        let admitted = self.shared.lock().jobs.admit(&client, began);
        admitted.map_err(|refusal| match refusal {
            Refusal::Closed => EngineError::Stopping,
            Refusal::Full => EngineError::Full {
                retry_after_seconds: self.shared.retry_after_seconds(),
            },
            Refusal::ClientLimit => EngineError::ClientLimit {
                limit: self.shared.options.slots_per_client,
                retry_after_seconds: self.shared.retry_after_seconds(),
            },
        })?;
        let deadline = self.shared.options.queue_deadline;
        let now = Instant::now();
        Ok(QueueSlot {
            shared: self.shared.clone(),
            client,
            is_held: true,
            is_kept: false,
            began,
            expires: (began + deadline).max(now + deadline.min(LAST_CHANCE)),
        })
    }

    /// Slots in use, queued and running.
    pub fn admitted(&self) -> usize {
        self.shared.lock().jobs.admitted()
    }

    /// Requests that run and that wait, at one moment.
    pub fn load(&self) -> Load {
        let queue = self.shared.lock();
        let waiting = queue.jobs.admitted().saturating_sub(usize::from(queue.running));
        Load {
            running: queue.running,
            waiting,
        }
    }

    /// Whether all slots are in use.
    pub fn is_full(&self) -> bool {
        self.shared.lock().jobs.is_full()
    }

    /// Rejects requests that begin to arrive from now on. All others are still answered.
    pub fn close(&self) {
        self.shared.lock().jobs.close();
    }

    /// Whether new requests are rejected.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().jobs.is_closed()
    }

    /// Rejects new and queued requests; the running one continues.
    pub fn reject_queued(&self) {
        let waiting = {
            let mut queue = self.shared.lock();
            queue.jobs.close();
            queue.rejecting = true;
            queue.jobs.drain()
        };
        self.shared.wake.notify_all();
        for job in waiting {
            job.reject(EngineError::Stopping);
        }
    }

    /// Rejects new and queued requests and waits for the thread: for the running request, or for the model to load.
    pub fn join(&self) {
        self.reject_queued();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.reject_queued();
    }
}

impl QueueSlot {
    /// Latest start of the request.
    pub fn expires(&self) -> Instant {
        self.expires
    }

    /// The error of a request that did not start in time.
    pub fn expired(&self) -> EngineError {
        EngineError::QueueDeadline {
            retry_after_seconds: self.shared.retry_after_seconds(),
        }
    }

    /// Keeps the slot for another request: [`Ticket::take_slot`] has it after the answer.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Puts `request` into the queue.
    ///
    /// # Errors
    /// [`EngineError::Stopping`].
    pub fn submit(self, request: ReadRequest) -> Result<Ticket, EngineError> {
        self.enqueue(request, None)
    }

    /// As [`QueueSlot::submit`]; `on_step` receives the progress.
    ///
    /// # Errors
    /// [`EngineError::Stopping`].
    pub fn submit_with(self, request: ReadRequest, on_step: StepHandler) -> Result<Ticket, EngineError> {
        self.enqueue(request, Some(on_step))
    }

    fn enqueue(self, request: ReadRequest, on_step: Option<StepHandler>) -> Result<Ticket, EngineError> {
        let shared = self.shared.clone();
        let (sender, receiver) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let submitted = Instant::now();
        let expires = self.expires;
        let mut queue = shared.lock();
        if queue.rejecting {
            return Err(EngineError::Stopping);
        }
        let id = queue.jobs.fresh_id();
        queue.jobs.push(Job {
            id,
            request,
            on_step,
            submitted,
            cancelled: cancelled.clone(),
            answer: sender,
            span: tracing::Span::current(),
            slot: self,
        });
        drop(queue);
        shared.wake.notify_one();
        Ok(Ticket {
            id,
            expires,
            cancelled,
            answer: receiver,
            slot: None,
            shared,
        })
    }
}

impl QueueSlot {
    /// Releases the slot in `queue`, which is this slot's.
    fn release(&mut self, queue: &mut EngineQueue) {
        if std::mem::replace(&mut self.is_held, false) {
            queue.jobs.release(&self.client);
        }
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        if self.is_held {
            let shared = Arc::clone(&self.shared);
            self.release(&mut shared.lock());
        }
    }
}

impl Ticket {
    /// Number of requests that run or wait before this one; `None` once it is running.
    pub fn before(&self) -> Option<usize> {
        let queue = self.shared.lock();
        let before = queue.jobs.before(self.id)?;
        Some(before + usize::from(queue.running))
    }

    /// Changes when [`Self::before`] may have changed.
    pub fn turns(&self) -> watch::Receiver<()> {
        self.shared.turns.subscribe()
    }

    /// Waits for the answer, at most for both deadlines. A reading that met the generation deadline has
    /// [`FinishReason::Deadline`] and the text until then.
    ///
    /// # Errors
    /// Every kind but [`EngineError::NotReady`] and [`EngineError::Full`].
    pub async fn answer(&mut self) -> Result<Answer, EngineError> {
        let received = match tokio::time::timeout_at(self.expires.into(), &mut self.answer).await {
            Ok(received) => received,
            Err(_) if self.shared.withdraw(self.id) => {
                return Err(EngineError::QueueDeadline {
                    retry_after_seconds: self.shared.retry_after_seconds(),
                });
            }
            // It is running: only the generation deadline applies now.
            Err(_) => (&mut self.answer).await,
        };
        let (answer, slot) = received.unwrap_or((Err(EngineError::Panicked), None));
        self.slot = slot;
        answer
    }

    /// The slot of an answered request, if it was to be [kept](QueueSlot::keep): for the next request, whose queue deadline counts
    /// from now.
    pub fn take_slot(&mut self) -> Option<QueueSlot> {
        let mut slot = self.slot.take()?;
        slot.began = Instant::now();
        slot.expires = slot.began + self.shared.options.queue_deadline;
        Some(slot)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
        self.shared.withdraw(self.id);
    }
}

impl Job {
    /// Releases the slot, then tells that there will be no answer, so that the slot is free once the client knows.
    fn reject(self, error: EngineError) {
        let Self {
            request,
            on_step,
            answer: sender,
            slot,
            ..
        } = self;
        drop((request, on_step));
        drop(slot);
        // The receiver is gone when the client is.
        let _ = sender.send((Err(error), None));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, EngineQueue> {
        // Every critical section leaves the queue whole, so a panic elsewhere cannot have broken it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a queued job; false if it is running or has ended.
    fn withdraw(&self, id: u64) -> bool {
        let job = self.lock().jobs.remove(id);
        if job.is_some() {
            self.turns.send_replace(());
        }
        job.is_some()
    }

    fn retry_after_seconds(&self) -> u64 {
        let seconds = self.lock().service_seconds.unwrap_or(1.0) * self.options.queue.max(1) as f64;
        // Capped at a day.
        (seconds.ceil() as u64).clamp(1, 86_400)
    }

    /// The thread's main function: loads the model, then runs jobs until the engine is closed.
    fn run<B: Backend>(&self, load: impl FnOnce() -> Result<B>) {
        let state = match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(mut backend)) => {
                let variants = self.variants.get_or_init(|| backend.variants().to_vec());
                let state = match variants.first() {
                    Some(default) => EngineState::Ready(default.info.clone()),
                    None => EngineState::Failed("the model has no variants".into()),
                };
                self.state.send_replace(state);
                while let Some(job) = self.next() {
                    self.read(&mut backend, job);
                }
                return;
            }
            Ok(Err(error)) => EngineState::Failed(error.to_string()),
            Err(_) => EngineState::Failed("loading the model panicked; the log names the place".into()),
        };
        self.state.send_replace(state);
    }

    /// Waits for the next job; `None` when the engine is closed.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.rejecting {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.running = true;
                self.turns.send_replace(());
                return Some(job);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read<B: Backend>(&self, backend: &mut B, mut job: Job) {
        let span = job.span.clone();
        let _entered = span.enter();
        let started = Instant::now();
        tracing::debug!("reading begins");
        let queue_seconds = started.duration_since(job.submitted).as_secs_f64();
        let deadline = started + self.options.generation_deadline;
        let mut watch = Watch::begin(self.metrics.get().cloned(), job.slot.began, started);
        let mut late = false;
        let mut wasted_tokens = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            backend.read(&job.request, &mut |step| {
                let now = Instant::now();
                late = now >= deadline;
                if let Some(cache) = step.generated {
                    watch.token(now, cache);
                    wasted_tokens += usize::from(job.cancelled.load(Ordering::Acquire));
                }
                let wish = match &mut job.on_step {
                    Some(on_step) => on_step(step),
                    None => ControlFlow::Continue(()),
                };
                if late || job.cancelled.load(Ordering::Acquire) {
                    return ControlFlow::Break(());
                }
                wish
            })
        }));
        watch.end(outcome.as_ref().ok().and_then(|reading| reading.as_ref().ok()));
        let answer = match outcome {
            Err(_) => Err(EngineError::Panicked),
            Ok(Err(error)) => Err(EngineError::Read(error)),
            Ok(Ok(mut reading)) => {
                if late && reading.finish_reason == FinishReason::Cancelled {
                    reading.finish_reason = FinishReason::Deadline;
                }
                log_figures(&reading, queue_seconds, wasted_tokens);
                let variant = self.variants.get().and_then(|all| all.get(job.request.variant));
                match variant {
                    Some(variant) => Ok(Answer {
                        reading,
                        model_info: variant.info.clone(),
                        queue_seconds,
                    }),
                    None => Err(EngineError::NotReady),
                }
            }
        };
        let Job {
            request,
            on_step,
            cancelled,
            answer: sender,
            mut slot,
            ..
        } = job;
        drop((request, on_step));
        {
            let mut queue = self.lock();
            // At once, so that nobody sees a slot in use and no request that runs or waits.
            queue.running = false;
            if !slot.is_kept {
                slot.release(&mut queue);
            }
            if answer.is_ok() && !late && !cancelled.load(Ordering::Acquire) {
                let seconds = started.elapsed().as_secs_f64();
                let average = queue.service_seconds.unwrap_or(seconds);
                queue.service_seconds = Some(0.7 * average + 0.3 * seconds);
            }
        }
        self.turns.send_replace(());
        // The receiver is gone when the client is.
        let _ = sender.send((answer, slot.is_kept.then_some(slot)));
        return_freed_memory();
    }
}
