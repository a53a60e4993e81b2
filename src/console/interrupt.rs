//! Ctrl-C and SIGTERM, which Slurm, Kubernetes and systemd send before they kill a process: the same handling for both.
//!
//! A program either finishes a step first ([`Interrupt`]) or exits at once ([`exit_on_signal`]). Its exit code is
//! [`EXIT_INTERRUPTED`] either way.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::console::{self, EXIT_INTERRUPTED, Level, StopSignals};
use crate::{Error, Result};

/// Tells whether the program was asked to stop. The second signal ends the process at once.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
    /// The first signal ends the process, too.
    immediate: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the signal handler. The first signal prints `notice`, which says what is finished before the program stops.
    ///
    /// # Errors
    /// [`Error::System`], if the handler cannot be installed.
    pub fn install(notice: &'static str) -> Result<Self> {
        let interrupt = Self::default();
        let this = interrupt.clone();
        handle_signals(move |next| {
            next();
            this.requested.store(true, Ordering::SeqCst);
            if !this.immediate.load(Ordering::SeqCst) {
                console::say(
                    Level::WARN,
                    &format!("{notice}; press Ctrl-C again to stop immediately"),
                );
                next();
            }
        })?;
        Ok(interrupt)
    }

    /// Runs `work`, which may block forever and loses nothing when it is aborted, such as reading from a pipe: a signal
    /// ends the process at once.
    pub fn exiting_immediately<T>(&self, work: impl FnOnce() -> T) -> T {
        self.immediate.store(true, Ordering::SeqCst);
        if self.stop_requested() {
            process::exit(i32::from(EXIT_INTERRUPTED));
        }
        let result = work();
        self.immediate.store(false, Ordering::SeqCst);
        result
    }

    /// Whether a signal has arrived.
    pub fn stop_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// The flag behind [`Self::stop_requested`], for library functions that poll it.
    pub fn flag(&self) -> &AtomicBool {
        &self.requested
    }
}

/// Ends the process at the first signal, after printing `notice`: for programs whose files are valid at any time.
///
/// # Errors
/// [`Error::System`], if the handler cannot be installed.
pub fn exit_on_signal(notice: &'static str) -> Result<()> {
    handle_signals(move |next| {
        next();
        console::say(Level::WARN, notice);
    })
}

/// Runs `handle` on a thread of its own; its argument waits for the next signal. The process ends when it returns.
fn handle_signals(handle: impl FnOnce(&mut dyn FnMut()) + Send + 'static) -> Result<()> {
    let failed = |source| Error::System {
        what: "the signal handler",
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    // Installed on the caller's thread: a signal between this call and the start of the thread is not lost.
    let guard = runtime.enter();
    let mut signals = StopSignals::listen().map_err(failed)?;
    drop(guard);
    let started = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        handle(&mut || {
            runtime.block_on(signals.next());
        });
        process::exit(i32::from(EXIT_INTERRUPTED));
    });
    started.map_err(failed)?;
    Ok(())
}
