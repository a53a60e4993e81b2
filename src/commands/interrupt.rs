//! Ctrl-C: once to stop as soon as what is finished is kept, twice to stop at once. SIGTERM, which Slurm and Kubernetes send
//! before they end a process, does the same.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::cli::{EXIT_INTERRUPTED, StopSignals};
use crate::telemetry::{self, Level};

/// Tells whether Ctrl-C was pressed, or SIGTERM sent.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on Ctrl-C and SIGTERM no longer end the process at once; the second one does.
    ///
    /// `notice` is what the first one is answered with.
    pub fn install(notice: &'static str) -> std::io::Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&pressed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        // The handler is set here, on the caller's thread, so that no Ctrl-C falls between this call and the thread's start.
        let guard = runtime.enter();
        let mut signals = StopSignals::listen()?;
        drop(guard);
        thread::Builder::new().name("ctrl-c".to_owned()).spawn(move || {
            runtime.block_on(signals.next());
            flag.store(true, Ordering::Relaxed);
            telemetry::say(Level::WARN, notice);
            runtime.block_on(signals.next());
            process::exit(i32::from(EXIT_INTERRUPTED));
        })?;
        Ok(Self(pressed))
    }

    /// Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    /// Set when Ctrl-C is pressed.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }
}
