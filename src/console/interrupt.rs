//! Ctrl-C and SIGTERM, which Slurm, Kubernetes and systemd send before they kill a process: the same handling for both.
//!
//! A program exits at once ([`exit_on_signal`]) or finishes a step first ([`Interrupt`]). Its exit code is
//! [`EXIT_INTERRUPTED`] either way. Signals are sent to the process, so the handler is one for all of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::console::{self, EXIT_INTERRUPTED, Level, StopSignals};
use crate::{Error, Result};

/// A signal has arrived.
static REQUESTED: AtomicBool = AtomicBool::new(false);
/// The first signal ends the process.
static IMMEDIATE: AtomicBool = AtomicBool::new(true);
static NOTICES: Mutex<Notices> = Mutex::new(Notices {
    exit: "interrupted",
    step: "",
});

/// What is printed at the first signal.
struct Notices {
    exit: &'static str,
    step: &'static str,
}

fn notices(use_them: impl FnOnce(&mut Notices)) {
    use_them(&mut NOTICES.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Tells whether the program was asked to stop. The second signal ends the process at once.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt(());

impl Interrupt {
    /// From now on the first signal prints `notice`, which says what is finished before the program stops.
    ///
    /// # Errors
    /// [`Error::System`], if the handler cannot be installed.
    pub fn install(notice: &'static str) -> Result<Self> {
        notices(|notices| notices.step = notice);
        IMMEDIATE.store(false, Ordering::SeqCst);
        install_handler()?;
        Ok(Self(()))
    }

    /// Whether the first signal ends the process at once: while nothing is lost by it, as before the first step.
    pub fn set_immediate(self, immediate: bool) {
        IMMEDIATE.store(immediate, Ordering::SeqCst);
        if immediate && self.stop_requested() {
            exit();
        }
    }

    /// Runs `work`, which may block forever and loses nothing when it is aborted, such as reading from a pipe: a signal
    /// ends the process at once.
    pub fn exiting_immediately<T>(self, work: impl FnOnce() -> T) -> T {
        self.set_immediate(true);
        let result = work();
        self.set_immediate(false);
        result
    }

    /// Whether a signal has arrived.
    pub fn stop_requested(self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }

    /// The flag behind [`Self::stop_requested`], for library functions that poll it.
    pub fn flag(self) -> &'static AtomicBool {
        &REQUESTED
    }
}

/// Ends the process at the first signal, after printing `notice`: for programs whose files are valid at any time.
///
/// # Errors
/// [`Error::System`], if the handler cannot be installed.
pub fn exit_on_signal(notice: &'static str) -> Result<()> {
    notices(|notices| notices.exit = notice);
    IMMEDIATE.store(true, Ordering::SeqCst);
    install_handler()
}

/// Starts the thread that handles the signals, once.
fn install_handler() -> Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
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
        runtime.block_on(signals.next());
        REQUESTED.store(true, Ordering::SeqCst);
        let (mut exit_notice, mut step_notice) = ("", "");
        notices(|notices| (exit_notice, step_notice) = (notices.exit, notices.step));
        if IMMEDIATE.load(Ordering::SeqCst) {
            console::say(Level::WARN, exit_notice);
        } else {
            console::say(
                Level::WARN,
                &format!("{step_notice}; press Ctrl-C again to stop immediately"),
            );
            runtime.block_on(signals.next());
        }
        exit();
    });
    started.map_err(failed)?;
    *installed = true;
    Ok(())
}

/// Ends the process without destructors: another thread may be inside libtorch, whose destructors would crash it.
fn exit() -> ! {
    // SAFETY: ends the process; no code runs afterwards.
    unsafe { libc::_exit(i32::from(EXIT_INTERRUPTED)) }
}
