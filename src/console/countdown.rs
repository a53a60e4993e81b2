//! Countdown of a wait, such as a rate limit's.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Level, progress::block, say, without_control_characters};

/// A countdown on the terminal, removed on drop; see [`countdown`].
#[derive(Debug)]
pub struct Countdown {
    message: String,
    bar: ProgressBar,
}

/// Shows why the program waits and for how long: a countdown on a terminal, a warning elsewhere.
pub fn countdown(message: &str, wait: Duration) -> Countdown {
    let bar = block().add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    if bar.is_hidden() {
        say(
            Level::WARN,
            &format!("{message}; next attempt in {} s", whole_seconds(wait)),
        );
    }
    Countdown {
        message: without_control_characters(message),
        bar,
    }
}

impl Countdown {
    /// Shows the remaining time.
    pub fn show(&self, left: Duration) {
        // The time comes first, since a narrow terminal cuts off the end.
        let text = format!("next attempt in {} s; {}", whole_seconds(left), self.message);
        self.bar.set_message(text);
        self.bar.tick();
    }
}

impl Drop for Countdown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
