//! Ctrl-C: once to stop as soon as what is finished is kept, twice to stop at once. SIGTERM, which Slurm and Kubernetes send
//! before they end a process, does the same.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::console::{self, EXIT_INTERRUPTED, Level, StopSignals};

/// Tells whether Ctrl-C was pressed, or SIGTERM sent.
#[derive(Debug, Clone)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    /// Nothing would be lost: the first Ctrl-C ends the process.
    at_once: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on Ctrl-C and SIGTERM no longer end the process at once; the second one does.
    ///
    /// `notice` is what the first one is answered with.
    pub fn install(notice: &'static str) -> std::io::Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        let at_once = Arc::new(AtomicBool::new(false));
        let interrupt = Self { pressed, at_once };
        let this = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        // The handler is set here, on the caller's thread, so that no Ctrl-C falls between this call and the thread's start.
        let guard = runtime.enter();
        let mut signals = StopSignals::listen()?;
        drop(guard);
        thread::Builder::new().name("ctrl-c".to_owned()).spawn(move || {
            runtime.block_on(signals.next());
            this.pressed.store(true, Ordering::SeqCst);
            if !this.at_once.load(Ordering::SeqCst) {
                console::say(Level::WARN, notice);
                runtime.block_on(signals.next());
            }
            process::exit(i32::from(EXIT_INTERRUPTED));
        })?;
        Ok(interrupt)
    }

    /// Runs what may wait for ever and can be left at any time, as reading from a pipe can: Ctrl-C ends the process.
    pub fn leaving_at_once<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.at_once.store(true, Ordering::SeqCst);
        if self.pressed() {
            process::exit(i32::from(EXIT_INTERRUPTED));
        }
        let result = wait();
        self.at_once.store(false, Ordering::SeqCst);
        result
    }

    /// Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        self.pressed.load(Ordering::SeqCst)
    }

    /// Set when Ctrl-C is pressed.
    pub fn flag(&self) -> &AtomicBool {
        &self.pressed
    }
}
