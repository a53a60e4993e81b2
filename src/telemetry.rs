//! What a program says on standard error: messages to the person who ran it, logs, progress bars, panics.
//!
//! Messages ([`say`]) may name the user's files; logs ([`tracing`]) never hold file names, prompts or document text.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;

pub use tracing::Level;

/// Form of the lines on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
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
/// `MVP_LOG` overrides `level` in tracing's filter language, for example `medical_vision=debug,actix_web=info`.
/// `quiet` silences every message of [`say`] but errors. A second call changes nothing.
pub fn init(format: LogFormat, level: Level, quiet: bool) {
    if VOICE.set(Voice { format, quiet }).is_err() {
        return;
    }
    let filter = EnvFilter::try_from_env("MVP_LOG").unwrap_or_else(|_| EnvFilter::new(filter_for(level)));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // An error here means that a program which embeds the library has its own subscriber: leave it in place.
    let _ = match format {
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    set_panic_message();
}

/// The level for everything but the HTTP parser, which quotes malformed header lines when it may say more, and the
/// HTTP server's housekeeping, which is of no interest.
fn filter_for(level: Level) -> String {
    let (parser, housekeeping) = (level.min(Level::INFO), level.min(Level::WARN));
    format!("{level},actix_http={parser},actix_server={housekeeping}")
}

/// Says something to the person who ran the program: plain text, or a JSON line with `--log-format json`.
pub fn say(level: Level, message: &str) {
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
            format!("{prefix}{}\n", without_control_characters(message))
        }
        LogFormat::Json => {
            let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
            let line = serde_json::json!({
                "timestamp": timestamp, "level": level.as_str(), "message": message,
            });
            format!("{line}\n")
        }
    };
    // Nobody is left to tell when standard error is gone.
    let _ = io::stderr().write_all(line.as_bytes());
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

/// A panic is a bug: says where it happened, and not its payload, which may hold a page's text.
fn set_panic_message() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        say(
            Level::ERROR,
            &format!(
                "internal error at {place} (thread {name}): this is a bug in medvision {}; please report it with this line",
                crate::cli::version()
            ),
        );
    }));
}

/// A progress bar of `length` steps on standard error; hidden when that is no terminal, or is quiet, or speaks JSON.
pub fn progress_bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), draw_target());
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed_precise} < {eta_precise}]")
    {
        bar.set_style(style);
    }
    bar
}

/// A spinner for work of unknown length; hidden as [`progress_bar`] is.
pub fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, draw_target());
    bar.set_message(message);
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}

/// A block of progress bars on standard error, one a file; hidden as [`progress_bar`] is.
#[derive(Debug, Clone)]
pub struct Bars(MultiProgress);

/// The program's block of progress bars: there is one, since two would draw over each other.
pub fn transfer_bars() -> Bars {
    static BARS: OnceLock<Bars> = OnceLock::new();
    BARS.get_or_init(|| Bars(MultiProgress::with_draw_target(draw_target())))
        .clone()
}

/// A wait that is shown as it passes; see [`countdown`].
#[derive(Debug)]
pub struct Countdown {
    message: String,
    bar: ProgressBar,
}

/// Says why the program waits, and for how long: a line that counts down on a terminal, a warning elsewhere.
pub fn countdown(message: &str, wait: Duration) -> Countdown {
    let bar = transfer_bars().0.add(ProgressBar::new_spinner());
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
    /// So much of it is left.
    pub fn show(&self, left: Duration) {
        // The time first: a narrow terminal cuts the end.
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

impl Bars {
    /// A bar for `bytes` bytes of the file `name`.
    pub fn add(&self, name: &str, bytes: u64) -> ProgressBar {
        let bar = self.0.add(ProgressBar::new(bytes));
        let template = "{bar:24} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(without_control_characters(name));
        bar
    }
}

fn draw_target() -> ProgressDrawTarget {
    let voice = voice();
    if voice.quiet || voice.format == LogFormat::Json {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    }
}
