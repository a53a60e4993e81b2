//! What the programs that run a model share: the device, signal handling and the progress bar.

use std::sync::atomic::AtomicBool;

use crate::Result;
use crate::console::{self, Interrupt, Progress, Unit};
use crate::device::Selected;
use crate::quantize::Watch;

/// Notice of the programs that read pages for a record.
pub const NO_RECORD: &str = "stopping after the next token, no record will be written";

/// Work on a device that a signal stops. Its progress bar is removed on drop, before the result or an error is printed.
pub struct Session {
    /// The device.
    pub selected: Selected,
    /// The progress bar.
    pub bar: Progress,
    interrupt: Interrupt,
}

impl Session {
    /// Starts work on `selected`. Until [`Self::finish_steps`] a signal ends the process; then the first one prints `notice`
    /// and sets [`Self::stop`].
    pub fn start(selected: Selected, notice: &'static str) -> Result<Self> {
        let interrupt = Interrupt::install(notice)?;
        interrupt.set_immediate(true);
        Ok(Self {
            selected,
            bar: console::progress(),
            interrupt,
        })
    }

    /// What is begun now is finished before a signal ends the process.
    pub fn finish_steps(&self) {
        self.interrupt.set_immediate(false);
    }

    /// Set when a signal arrives.
    pub fn stop(&self) -> &AtomicBool {
        self.interrupt.flag()
    }

    /// Starts the stage `name`, whose steps are not counted.
    pub fn begin(&self, name: &str) {
        self.bar.begin(name, Unit::Nothing, 0);
    }

    /// Moves the bar to `done` of `all` steps of the stage `name`, which starts with none done.
    pub fn count(&self, name: &str, unit: &'static str, done: usize, all: usize) {
        self.finish_steps();
        match done {
            0 => self.bar.begin(name, Unit::Of(unit), all as u64),
            _ => self.bar.set_position(done as u64),
        }
    }

    /// Runs `work` with a [`Watch`] that moves the bar.
    pub fn watched<T>(&self, work: impl FnOnce(Watch<'_>) -> T) -> T {
        self.finish_steps();
        work(Watch {
            stage: &|name, unit, count| self.bar.begin(name, unit, count),
            total: &|count| self.bar.set_length(count),
            progress: &|count| self.bar.inc(count),
            stop: self.stop(),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
