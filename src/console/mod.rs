//! What a program says on standard error: messages to the person who ran it, logs, progress bars, panics.
//!
//! Messages ([`say`]) may name the user's files; logs ([`tracing`]) never hold file names, prompts or document text.

mod countdown;
mod interrupt;
pub(crate) mod panics;
mod progress;
mod signals;

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use chrono::{SecondsFormat, Utc};
use clap::ValueEnum;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub use tracing::Level;

pub use self::countdown::{Countdown, countdown};
pub use self::interrupt::{Interrupt, exit_on_signal};
pub use self::progress::{Bars, Progress, Unit, progress, progress_of, spinner, transfer_bars};
pub use self::signals::StopSignals;

/// Exit code after Ctrl-C or SIGTERM.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Receives the messages of a library function while it runs, with their levels; [`say`] prints them.
///
/// Messages may name the user's files. Libraries take this as an argument and print nothing themselves.
pub type Notify<'a> = &'a (dyn Fn(Level, &str) + Sync);

/// Form of the lines on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable text
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Clone, Copy)]
struct Voice {
    format: LogFormat,
    quiet: bool,
}

static VOICE: OnceLock<Voice> = OnceLock::new();

fn voice() -> Voice {
    *VOICE.get_or_init(|| Voice {
        format: LogFormat::Text,
        quiet: false,
    })
}

/// Starts logging to standard error and sets the panic message.
///
/// `MVP_LOG` overrides `level` in tracing's filter language, for example `debug`; libraries never say more than `info`.
/// `quiet` silences every message of [`say`] but errors. A second call changes nothing.
pub fn init(format: LogFormat, level: Level, quiet: bool) {
    if VOICE.set(Voice { format, quiet }).is_err() {
        return;
    }
    let filter = EnvFilter::try_from_env("MVP_LOG").unwrap_or_else(|_| EnvFilter::new(filter_for(level)));
    let filter = filter.and(filter_fn(|event| may_be_told(event.target(), *event.level())));
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // An error here means that a program which embeds the library has its own subscriber: leave it in place.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    panics::report();
}

/// The level for everything but the HTTP server's housekeeping, which is of no interest.
fn filter_for(level: Level) -> String {
    let housekeeping = level.min(Level::WARN);
    format!("{level},actix_server={housekeeping}")
}

/// Whatever the filter says: libraries that speak HTTP quote header lines where they may say more than `info`; the HTTP parser
/// and the form's reader report clients' faults as errors and warnings of the server, without end. The server has its own
/// line for each.
fn may_be_told(target: &str, level: Level) -> bool {
    match target.split("::").next().unwrap_or_default() {
        "medical_vision" => true,
        "actix_http" | "actix_multipart" => false,
        _ => level <= Level::INFO,
    }
}

/// Says something to the person who ran the program: one line of plain text, or of JSON with `--log-format json`.
///
/// A line end in `message` can only come from a file's name and the like: it is shown as `\n`.
pub fn say(level: Level, message: &str) {
    say_as(level, message, &message.replace('\n', "\\n"));
}

/// As [`say`], for a message of several lines.
pub fn say_lines(level: Level, message: &str) {
    say_as(level, message, message);
}

fn say_as(level: Level, message: &str, shown: &str) {
    let voice = voice();
    if voice.quiet && level > Level::ERROR {
        return;
    }
    let line = match voice.format {
        LogFormat::Text => {
            let prefix = match level {
                Level::ERROR => "error: ",
                Level::WARN => "warning: ",
                _ => "",
            };
            format!("{prefix}{}\n", without_control_characters(shown))
        }
        LogFormat::Json => {
            let line = serde_json::json!({
                "timestamp": timestamp(), "level": level.as_str(), "message": message,
            });
            format!("{line}\n")
        }
    };
    // Nobody is left to tell when standard error is gone.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Now, as the timestamp of a log line: RFC 3339 UTC.
fn timestamp() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// `text` for a terminal, which would obey the control characters in a page's text or a file's name; line ends and tabs stay.
pub fn without_control_characters(text: &str) -> String {
    let harmless = |character: char| !character.is_control() || matches!(character, '\n' | '\t');
    text.chars()
        .map(|character| {
            if harmless(character) {
                character
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_say_no_header_lines_whatever_the_filter() {
        assert!(may_be_told("medical_vision::server::logging", Level::TRACE));
        assert!(may_be_told("actix_server::builder", Level::INFO));
        for (target, level) in [
            ("actix_http::h1::dispatcher", Level::ERROR),
            ("actix_http::h1::decoder", Level::DEBUG),
            ("hyper_util::client::legacy::pool", Level::TRACE),
            ("reqwest::connect", Level::DEBUG),
            ("actix_multipart::field", Level::WARN),
        ] {
            assert!(!may_be_told(target, level), "{target}");
        }
    }
}
