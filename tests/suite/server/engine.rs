//! The engine alone: order, bounds, cancellation, faults, the end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use medical_vision::engine::{Answer, Engine, EngineError, EngineOptions, EngineState, ReadRequest, Ticket};
use medical_vision::generation::FinishReason;
use medical_vision::processing::RgbPage;

use super::support::{Counts, PATIENCE, Stub, StubAnswerer, engine_options, eventually};

fn start(options: EngineOptions) -> (Engine, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let stub = StubAnswerer::backend(counts.clone());
    let engine = Engine::start(move || Ok(stub), options).expect("a thread");
    eventually("the stub is loaded", || {
        matches!(engine.state(), EngineState::Ready(_))
    });
    (engine, counts)
}

fn request(prompt: &str) -> ReadRequest {
    let page = RgbPage::new(1, 1, vec![0; 3]);
    ReadRequest::page(prompt, page)
}

fn submit(engine: &Engine, prompt: &str) -> Result<Ticket, EngineError> {
    engine.reserve()?.submit(request(prompt))
}

fn wait(mut ticket: Ticket) -> Result<Answer, EngineError> {
    actix_web::rt::System::new().block_on(ticket.answer())
}

fn ask(engine: &Engine, prompt: &str) -> Result<Answer, EngineError> {
    wait(submit(engine, prompt)?)
}

#[test]
fn requests_run_in_order_and_report_their_queue_time() {
    let (engine, counts) = start(engine_options());
    let first = submit(&engine, "sleep 100").expect("a slot");
    let second = submit(&engine, "second").expect("a slot");
    let second = wait(second).expect("an answer");
    assert!(second.reading.text.starts_with("second|1x1|"));
    assert!(second.queue_seconds >= 0.05, "{}", second.queue_seconds);
    // The first was done before the second began.
    assert_eq!(counts.finished.load(Ordering::SeqCst), 2);
    let first = wait(first).expect("an answer");
    assert!(first.reading.text.starts_with("sleep 100|"));
    assert_eq!(engine.admitted(), 0);
}

#[test]
fn admission_is_one_running_request_plus_the_queue() {
    let options = EngineOptions {
        queue: 2,
        ..engine_options()
    };
    let (engine, counts) = start(options);
    // The moving average knows 400 ms a reading after this.
    ask(&engine, "sleep 400").expect("an answer");
    let tickets: Vec<_> = (0..3)
        .map(|_| submit(&engine, "sleep 60000").expect("a slot"))
        .collect();
    match submit(&engine, "one too many") {
        Err(EngineError::Full { retry_after_seconds }) => {
            assert!((1..=10).contains(&retry_after_seconds), "{retry_after_seconds}");
        }
        other => panic!("admitted one too many: {:?}", other.err()),
    }
    eventually("one runs", || counts.started.load(Ordering::SeqCst) == 2);
    drop(tickets);
    ask(&engine, "places are free again").expect("an answer");
    assert_eq!(counts.cancelled.load(Ordering::SeqCst), 1, "only one had begun");
    assert_eq!(counts.started.load(Ordering::SeqCst), 3);
}

#[test]
fn an_unused_queue_slot_is_released() {
    let options = EngineOptions {
        queue: 0,
        ..engine_options()
    };
    let (engine, _) = start(options);
    let slot = engine.reserve().expect("a slot");
    assert!(matches!(engine.reserve(), Err(EngineError::Full { .. })));
    drop(slot);
    ask(&engine, "hello").expect("an answer");
}

#[test]
fn a_dropped_ticket_cancels_queued_and_running_requests() {
    let (engine, counts) = start(engine_options());
    let running = submit(&engine, "sleep 60000").expect("a slot");
    eventually("it runs", || counts.started.load(Ordering::SeqCst) == 1);
    let waiting = submit(&engine, "waiting").expect("a slot");
    assert_eq!(engine.admitted(), 2);
    drop(waiting);
    assert_eq!(engine.admitted(), 1, "a waiting request leaves at once");
    drop(running);
    let steps = counts.steps.load(Ordering::SeqCst);
    eventually("it is cancelled", || counts.cancelled.load(Ordering::SeqCst) == 1);
    eventually("its slot is free", || engine.admitted() == 0);
    let more = counts.steps.load(Ordering::SeqCst) - steps;
    assert!(more <= 2, "{more} more decode steps");
    ask(&engine, "next").expect("an answer");
    assert_eq!(
        counts.started.load(Ordering::SeqCst),
        2,
        "the waiting one never ran"
    );
}

#[test]
fn requests_beyond_the_queue_deadline_are_rejected() {
    let options = EngineOptions {
        queue_deadline: Duration::from_millis(100),
        ..engine_options()
    };
    let (engine, counts) = start(options);
    let running = submit(&engine, "sleep 60000").expect("a slot");
    eventually("it runs", || counts.started.load(Ordering::SeqCst) == 1);
    let begin = Instant::now();
    let refused = ask(&engine, "waiting");
    assert!(
        matches!(refused, Err(EngineError::QueueDeadline { .. })),
        "{refused:?}"
    );
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert_eq!(engine.admitted(), 1);
    drop(running);
}

#[test]
fn the_queue_deadline_starts_with_the_request() {
    let options = EngineOptions {
        queue_deadline: Duration::from_secs(3600),
        ..engine_options()
    };
    let (engine, counts) = start(options);
    let Some(began) = Instant::now().checked_sub(Duration::from_secs(3600)) else {
        return; // a machine that has just been started
    };
    // Alone it runs at once, however long it took to arrive.
    let slot = engine.reserve_for(None, began).expect("a slot");
    let alone = wait(slot.submit(request("alone")).expect("a slot"));
    assert!(alone.is_ok(), "{alone:?}");
    let running = submit(&engine, "sleep 600000").expect("a slot");
    eventually("it runs", || counts.started.load(Ordering::SeqCst) == 2);
    let slot = engine.reserve_for(None, began).expect("a slot");
    let refused = wait(slot.submit(request("waiting")).expect("a slot"));
    assert!(
        matches!(refused, Err(EngineError::QueueDeadline { .. })),
        "{refused:?}"
    );
    drop(running);
}

/// The model itself: the deadline is seen while it reads the prompt.
#[test]
fn the_generation_deadline_ends_prefill() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let options = EngineOptions {
        generation_deadline: Duration::ZERO,
        ..engine_options()
    };
    let load = move || medical_vision::engine::Reader::load(&folder, &Default::default());
    let engine = Engine::start(load, options).expect("a thread");
    actix_web::rt::System::new().block_on(engine.loaded());
    let page = RgbPage::new(56, 56, vec![255; 3 * 56 * 56]);
    let slot = engine.reserve().expect("a slot");
    let answer = wait(slot.submit(ReadRequest::page("Read.", page)).expect("a slot"));
    let reading = answer.expect("an answer").reading;
    assert_eq!(
        (reading.finish_reason, reading.text.as_str()),
        (FinishReason::Deadline, "")
    );
}

#[test]
fn a_running_request_outlives_the_queue_deadline() {
    let options = EngineOptions {
        queue_deadline: Duration::from_millis(50),
        ..engine_options()
    };
    let (engine, _) = start(options);
    let answer = ask(&engine, "sleep 300").expect("an answer");
    assert_eq!(answer.reading.finish_reason, FinishReason::Stop);
}

#[test]
fn the_generation_deadline_ends_generation() {
    let options = EngineOptions {
        generation_deadline: Duration::from_millis(100),
        ..engine_options()
    };
    let (engine, counts) = start(options);
    let stopped = ask(&engine, "sleep 60000").expect("an answer");
    assert_eq!(stopped.reading.finish_reason, FinishReason::Deadline);
    assert_eq!(counts.cancelled.load(Ordering::SeqCst), 1);
    ask(&engine, "next").expect("an answer");
}

#[test]
fn panics_and_errors_affect_only_their_request() {
    let (engine, _) = start(engine_options());
    for _ in 0..3 {
        assert!(matches!(ask(&engine, "panic"), Err(EngineError::Panicked)));
        assert!(matches!(ask(&engine, "error"), Err(EngineError::Read(_))));
        ask(&engine, "fine").expect("an answer");
    }
    assert_eq!(engine.admitted(), 0);
}

#[test]
fn closing_answers_what_was_admitted() {
    let (engine, counts) = start(engine_options());
    let running = submit(&engine, "sleep 300").expect("a slot");
    let waiting = submit(&engine, "waiting").expect("a slot");
    let slot = engine.reserve().expect("a slot");
    engine.close();
    assert!(matches!(engine.reserve(), Err(EngineError::Stopping)));
    for admitted in [running, waiting, slot.submit(request("late")).expect("a ticket")] {
        wait(admitted).expect("an answer");
    }
    engine.join();
    assert_eq!(counts.finished.load(Ordering::SeqCst), 3);
}

#[test]
fn queued_requests_are_rejected_and_the_running_one_ends() {
    let (engine, counts) = start(engine_options());
    let running = submit(&engine, "sleep 300").expect("a slot");
    eventually("it runs", || counts.started.load(Ordering::SeqCst) == 1);
    let waiting = submit(&engine, "waiting").expect("a slot");
    let slot = engine.reserve().expect("a slot");
    engine.reject_queued();
    assert!(matches!(wait(waiting), Err(EngineError::Stopping)));
    assert!(matches!(slot.submit(request("late")), Err(EngineError::Stopping)));
    assert!(matches!(engine.reserve(), Err(EngineError::Stopping)));
    engine.join();
    assert_eq!(counts.finished.load(Ordering::SeqCst), 1);
    let answer = wait(running).expect("an answer");
    assert_eq!(answer.reading.finish_reason, FinishReason::Stop);
}

#[test]
fn nothing_is_admitted_while_the_model_loads() {
    let (go, gate) = mpsc::channel::<()>();
    let load = move || {
        gate.recv_timeout(PATIENCE).expect("a word");
        Ok(StubAnswerer::backend(Arc::default()))
    };
    let engine = Engine::start(load, engine_options()).expect("a thread");
    assert_eq!(engine.state(), EngineState::Loading);
    assert!(matches!(engine.reserve(), Err(EngineError::NotReady)));
    go.send(()).expect("the loader waits");
    let state = actix_web::rt::System::new().block_on(engine.loaded());
    assert!(matches!(state, EngineState::Ready(info) if info.model_name == "stub"));
    ask(&engine, "hello").expect("an answer");
}

#[test]
fn a_failed_load_is_reported() {
    let fails = || Err::<Stub, _>(medical_vision::Error::NonFinite("no such model".into()));
    let engine = Engine::start(fails, engine_options()).expect("a thread");
    let state = actix_web::rt::System::new().block_on(engine.loaded());
    assert!(matches!(state, EngineState::Failed(reason) if reason.contains("no such model")));
    assert!(matches!(engine.reserve(), Err(EngineError::NotReady)));

    let panics = || -> medical_vision::Result<Stub> { panic!("while loading") };
    let engine = Engine::start(panics, engine_options()).expect("a thread");
    let state = actix_web::rt::System::new().block_on(engine.loaded());
    assert!(matches!(state, EngineState::Failed(_)));
    engine.join();
}

#[test]
fn dropping_the_engine_ends_its_thread() {
    let (engine, counts) = start(engine_options());
    assert_eq!(Arc::strong_count(&counts), 2, "the stub has the other");
    drop(engine);
    eventually("the thread has dropped the stub", || {
        Arc::strong_count(&counts) == 1
    });
}
