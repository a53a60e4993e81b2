//! The thread that owns the model: bounded queue, deadlines, cancellation, shutdown. What it does there is in `batch.rs`.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::batch::Batch;
use super::engine_metrics::EngineMetrics;
use super::queue::{Client, Queue, Refusal, Waiting};
use super::{Backend, ModelInfo, ReadRequest, Reading, Step, Variant};
use crate::Result;

/// Receives the progress of a request on the engine's thread, which it must not block; cancels with `Break`.
pub type StepHandler = Box<dyn FnMut(Step<'_>) -> ControlFlow<()> + Send>;

/// Queue capacity and deadlines.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Queue capacity, excluding the running requests.
    pub queue: usize,
    /// Most requests that are answered together; `None`: as [`Backend::max_batch`] says.
    pub max_batch: Option<usize>,
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
            max_batch: None,
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
    /// Those whose turn it is.
    pub running: usize,
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

pub(super) struct Shared {
    pub(super) options: EngineOptions,
    queue: Mutex<EngineQueue>,
    wake: Condvar,
    state: watch::Sender<EngineState>,
    /// Signalled when a request begins, ends or is withdrawn.
    pub(super) turns: watch::Sender<()>,
    /// Set once the model is loaded.
    pub(super) variants: OnceLock<Vec<Variant>>,
    pub(super) metrics: OnceLock<Arc<dyn EngineMetrics>>,
}

pub(super) struct EngineQueue {
    jobs: Queue<Job>,
    pub(super) running: usize,
    /// Whether requests that wait are rejected.
    rejecting: bool,
    /// Moving average of the seconds per reading, shared by those that ran together; `None` before the first.
    pub(super) service_seconds: Option<f64>,
}

pub(super) struct Job {
    id: u64,
    pub(super) request: ReadRequest,
    pub(super) on_step: Option<StepHandler>,
    pub(super) submitted: Instant,
    pub(super) cancelled: Arc<AtomicBool>,
    answer: oneshot::Sender<Outcome>,
    /// The caller's span, so that logs of the engine thread carry the request id.
    pub(super) span: tracing::Span,
    pub(super) slot: QueueSlot,
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
    pub(super) began: Instant,
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
                jobs: Queue::new(0, options.slots_per_client),
                running: 0,
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
        let waiting = queue.jobs.admitted().saturating_sub(queue.running);
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
            job.finish(Err(EngineError::Stopping), |_| ());
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
        Some(before + queue.running)
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
    /// Releases the slot, with `change` in one critical section, then sends the answer: the slot is free once the answer arrives.
    pub(super) fn finish(self, answer: Result<Answer, EngineError>, change: impl FnOnce(&mut EngineQueue)) {
        let Self {
            request,
            on_step,
            answer: sender,
            mut slot,
            ..
        } = self;
        drop((request, on_step));
        let shared = Arc::clone(&slot.shared);
        {
            let mut queue = shared.lock();
            change(&mut queue);
            if !slot.is_kept {
                slot.release(&mut queue);
            }
        }
        // The receiver is gone when the client is.
        let _ = sender.send((answer, slot.is_kept.then_some(slot)));
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
            Ok(Ok(backend)) => {
                let limit = self
                    .options
                    .max_batch
                    .unwrap_or_else(|| backend.max_batch())
                    .max(1);
                self.lock()
                    .jobs
                    .set_slots(self.options.queue.saturating_add(limit));
                let variants = self.variants.get_or_init(|| backend.variants().to_vec());
                let state = match variants.first() {
                    Some(default) => EngineState::Ready(default.info.clone()),
                    None => EngineState::Failed("the model has no variants".into()),
                };
                self.state.send_replace(state);
                Batch::new(self, &backend, limit).run();
                return;
            }
            Ok(Err(error)) => EngineState::Failed(error.to_string()),
            Err(_) => EngineState::Failed("loading the model panicked; the log names the place".into()),
        };
        self.state.send_replace(state);
    }

    /// The next job; if there is none, waits for it, or is `None`. `Break` when the engine is closed.
    pub(super) fn next(&self, waits: bool) -> ControlFlow<(), Option<Job>> {
        let mut queue = self.lock();
        loop {
            if queue.rejecting {
                return ControlFlow::Break(());
            }
            if let Some(job) = queue.jobs.pop() {
                queue.running += 1;
                self.turns.send_replace(());
                return ControlFlow::Continue(Some(job));
            }
            if !waits {
                return ControlFlow::Continue(None);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
