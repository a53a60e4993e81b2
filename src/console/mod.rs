//! Output on standard error: messages to the user, logs, progress bars and panics. Signal handling.
//!
//! Messages ([`say`]) may name the user's files; logs ([`tracing`]) never hold file names, prompts or document text.

mod countdown;
mod interrupt;
pub(crate) mod panics;
mod progress;
mod rate_limit;
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
pub(crate) use self::rate_limit::RateLimit;
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
struct OutputSettings {
    format: LogFormat,
    quiet: bool,
}

static SETTINGS: OnceLock<OutputSettings> = OnceLock::new();

fn settings() -> OutputSettings {
    *SETTINGS.get_or_init(|| OutputSettings {
        format: LogFormat::Text,
        quiet: false,
    })
}

/// Starts logging to standard error and installs the panic hook.
///
/// `MVP_LOG` overrides `level` in tracing's filter language, for example `debug`; dependencies never log above `info`.
/// `quiet` silences every message of [`say`] but errors. A second call changes nothing.
pub fn init(format: LogFormat, level: Level, quiet: bool) {
    if SETTINGS.set(OutputSettings { format, quiet }).is_err() {
        return;
    }
    let filter = EnvFilter::try_from_env("MVP_LOG").unwrap_or_else(|_| EnvFilter::new(filter_for(level)));
    let filter = filter.and(filter_fn(|event| is_allowed(event.target(), *event.level())));
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // Fails if a program that embeds the library has installed a subscriber, which stays.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    panics::report();
}

/// Returns the default filter: `level`, but no `info` lines of the HTTP server's workers.
fn filter_for(level: Level) -> String {
    let workers = level.min(Level::WARN);
    format!("{level},actix_server={workers}")
}

/// Whether an event may be logged, whatever the filter is. HTTP libraries log header lines below `info`. The HTTP and multipart
/// parsers log each invalid request as an error or warning; the server has its own log line for those.
fn is_allowed(target: &str, level: Level) -> bool {
    match target.split("::").next().unwrap_or_default() {
        "medical_vision" => true,
        "actix_http" | "actix_multipart" => false,
        _ => level <= Level::INFO,
    }
}

/// Prints a message to the user: one line of text, or of JSON with `--log-format json`.
///
/// A line break in `message`, for example from a file name, is shown as `\n`.
pub fn say(level: Level, message: &str) {
    say_as(level, message, &message.replace('\n', "\\n"));
}

/// As [`say`], for a message of several lines.
pub fn say_lines(level: Level, message: &str) {
    say_as(level, message, message);
}

fn say_as(level: Level, message: &str, shown: &str) {
    let settings = settings();
    if settings.quiet && level > Level::ERROR {
        return;
    }
    let line = match settings.format {
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
    // A closed standard error cannot be reported.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Now, as the timestamp of a log line: RFC 3339 UTC.
fn timestamp() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Replaces control characters, which a terminal would interpret; line breaks and tabs stay.
pub fn without_control_characters(text: &str) -> String {
    let is_harmless = |character: char| !character.is_control() || matches!(character, '\n' | '\t');
    text.chars()
        .map(|character| {
            if is_harmless(character) {
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
    fn dependencies_never_log_header_lines() {
        assert!(is_allowed("medical_vision::server::logging", Level::TRACE));
        assert!(is_allowed("actix_server::builder", Level::INFO));
        for (target, level) in [
            ("actix_http::h1::dispatcher", Level::ERROR),
            ("actix_http::h1::decoder", Level::DEBUG),
            ("hyper_util::client::legacy::pool", Level::TRACE),
            ("reqwest::connect", Level::DEBUG),
            ("actix_multipart::field", Level::WARN),
        ] {
            assert!(!is_allowed(target, level), "{target}");
        }
    }
}
