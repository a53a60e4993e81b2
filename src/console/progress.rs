//! Progress of long work on standard error: a bar on a terminal, lines elsewhere.
//!
//! A line is printed when a stage starts, when it ends, and every ten seconds in between, even without progress, so that a log
//! shows that the program is running. Names of stages contain no file names.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Level, LogFormat, say, settings, without_control_characters};

/// Interval between two lines of a stage.
const EVERY: Duration = Duration::from_secs(10);

/// Unit of a stage's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown in MiB.
    Bytes,
    /// Items with this plural name.
    Of(&'static str),
    /// Steps cannot be counted.
    Nothing,
}

/// Progress of consecutive stages. Clones share the state.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    /// Lines of the current stage, if lines are printed.
    lines: Arc<Mutex<Option<Lines>>>,
}

impl Progress {
    /// Progress without a bar, for a terminal that shows other output; lines are still printed.
    pub fn without_bar() -> Self {
        Self::on(ProgressBar::hidden())
    }

    fn on(bar: ProgressBar) -> Self {
        Self {
            bar,
            lines: Arc::default(),
        }
    }

    /// Ends the current stage and starts the stage `name` with `length` steps; 0: not known yet.
    pub fn begin(&self, name: &str, unit: Unit, length: u64) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Prints the last line of the current stage before the first one of the next.
        drop(lines.take());
        self.bar.reset();
        self.bar.set_message("");
        match length {
            0 => self.bar.unset_length(),
            _ => self.bar.set_length(length),
        }
        self.bar.set_prefix(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template(unit)) {
            self.bar.set_style(style);
        }
        if unit == Unit::Nothing && !self.bar.is_hidden() {
            self.bar.enable_steady_tick(Duration::from_millis(120));
        }
        if lines_wanted() {
            *lines = Some(Lines::begin(
                name,
                unit,
                Count::One(self.bar.clone()),
                EVERY,
                emit,
            ));
        }
    }

    /// Sets the number of steps.
    pub fn set_length(&self, length: u64) {
        self.bar.set_length(length);
    }

    /// Sets the number of finished steps.
    pub fn set_position(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Adds to the number of finished steps.
    pub fn inc(&self, steps: u64) {
        self.bar.inc(steps);
    }

    /// Sets a message shown after the count, such as the loss.
    pub fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Hides the bar while `work` writes to standard error.
    pub fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    /// Ends the stage and removes the bar.
    pub fn finish_and_clear(&self) {
        // Before the bar, which jumps to its end.
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.bar.finish_and_clear();
    }
}

fn template(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "{prefix}: {bar:30} {bytes}/{total_bytes} {msg} [{elapsed_precise} < {eta_precise}]",
        Unit::Of(_) => "{prefix}: {bar:30} {pos}/{len} {msg} [{elapsed_precise} < {eta_precise}]",
        Unit::Nothing => "{prefix} {spinner} [{elapsed_precise}] {msg}",
    }
}

/// Returns a progress without a stage.
pub fn progress() -> Progress {
    Progress::on(ProgressBar::with_draw_target(None, draw_target()))
}

/// Returns a progress in the stage `name` with `length` steps.
pub fn progress_of(name: &str, unit: Unit, length: u64) -> Progress {
    let progress = progress();
    progress.begin(name, unit, length);
    progress
}

/// Returns a progress in the stage `name`, whose steps cannot be counted.
pub fn spinner(name: &str) -> Progress {
    let progress = progress();
    progress.begin(name, Unit::Nothing, 0);
    progress
}

/// The process's block of bars. There is only one: two would overwrite each other.
pub(super) fn block() -> MultiProgress {
    static BLOCK: OnceLock<MultiProgress> = OnceLock::new();
    BLOCK
        .get_or_init(|| MultiProgress::with_draw_target(draw_target()))
        .clone()
}

/// Progress of concurrent transfers: one bar per file, and lines with the total of all files.
#[derive(Debug, Clone)]
pub struct Bars {
    block: MultiProgress,
    stage: &'static str,
    files: Arc<Mutex<Vec<ProgressBar>>>,
    lines: Arc<Mutex<Option<Lines>>>,
}

/// Returns the bars of the stage `stage`, which starts with the first file and ends when the last clone is dropped.
pub fn transfer_bars(stage: &'static str) -> Bars {
    Bars {
        block: block(),
        stage,
        files: Arc::default(),
        lines: Arc::default(),
    }
}

impl Bars {
    /// Adds a bar for the file `name` of `bytes` bytes.
    pub fn add(&self, name: &str, bytes: u64) -> ProgressBar {
        let bar = self.block.add(ProgressBar::new(bytes));
        let template = "{bar:24} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(without_control_characters(&name.replace('\n', "\\n")));
        if lines_wanted() {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.push(bar.clone());
            drop(files);
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.get_or_insert_with(|| {
                let count = Count::Sum(Arc::clone(&self.files));
                Lines::begin(self.stage, Unit::Bytes, count, EVERY, emit)
            });
        }
        bar
    }
}

fn draw_target() -> ProgressDrawTarget {
    let settings = settings();
    if settings.quiet || settings.format == LogFormat::Json {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    }
}

fn lines_wanted() -> bool {
    let settings = settings();
    !settings.quiet && (settings.format == LogFormat::Json || !io::stderr().is_terminal())
}

/// Source of a stage's counts.
#[derive(Debug)]
enum Count {
    One(ProgressBar),
    Sum(Arc<Mutex<Vec<ProgressBar>>>),
}

impl Count {
    /// Finished steps, number of steps, message.
    fn now(&self) -> (u64, Option<u64>, String) {
        match self {
            Self::One(bar) => (bar.position(), bar.length(), bar.message()),
            Self::Sum(bars) => {
                let bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
                let done = bars.iter().map(ProgressBar::position).sum();
                let length = bars.iter().filter_map(ProgressBar::length).sum();
                (done, Some(length), String::new())
            }
        }
    }
}

/// State of a stage, for one line.
#[derive(Debug, Clone, PartialEq)]
struct Report {
    stage: String,
    unit: Unit,
    done: u64,
    total: Option<u64>,
    note: String,
    elapsed: Duration,
    moment: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Begin,
    Between,
    End,
}

impl Report {
    fn counted(&self) -> Option<(u64, Option<u64>, &'static str)> {
        match self.unit {
            Unit::Bytes => Some((self.done >> 20, self.total.map(|bytes| bytes >> 20), "MiB")),
            Unit::Of(name) => Some((self.done, self.total, name)),
            Unit::Nothing => None,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}: ", self.stage);
        if self.moment == Moment::Begin {
            text += "started";
            if let Some((_, Some(total), unit)) = self.counted().filter(|(_, total, _)| *total != Some(0)) {
                text += &format!(", {total} {}", plural(unit, total));
            }
            return text;
        }
        if let Some((done, total, unit)) = self.counted() {
            match total {
                Some(total) => text += &format!("{done}/{total} {}, ", plural(unit, total)),
                None => text += &format!("{done} {}, ", plural(unit, done)),
            }
        }
        if self.moment == Moment::End {
            text += "ended after ";
        }
        text += &elapsed(self.elapsed);
        if !self.note.is_empty() {
            text += &format!(", {}", self.note);
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let counted = self.counted();
        serde_json::json!({
            "timestamp": super::timestamp(),
            "level": Level::INFO.as_str(),
            "message": self.text(),
            "stage": self.stage,
            "moment": match self.moment {
                Moment::Begin => "begin",
                Moment::Between => "between",
                Moment::End => "end",
            },
            "done": counted.map(|(done, ..)| done),
            "total": counted.and_then(|(_, total, _)| total),
            "unit": counted.map(|(.., unit)| unit),
            "elapsed_seconds": self.elapsed.as_millis() as f64 / 1000.0,
        })
    }
}

/// Returns `unit`, a plural, in the form for `count`.
fn plural(unit: &'static str, count: u64) -> &'static str {
    match count {
        1 => unit.strip_suffix('s').unwrap_or(unit),
        _ => unit,
    }
}

/// "4.2 s", "48 s", "3 minutes".
fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        _ => HumanDuration(time).to_string(),
    }
}

fn emit(report: &Report) {
    match settings().format {
        LogFormat::Text => say(Level::INFO, &report.text()),
        LogFormat::Json => {
            // A closed standard error cannot be reported.
            let _ = io::stderr().write_all(format!("{}\n", report.json()).as_bytes());
        }
    }
}

/// Prints the lines of a stage: the first one on creation, the last one on drop.
#[derive(Debug)]
struct Lines {
    stage: Arc<Stage>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Stage {
    name: String,
    unit: Unit,
    count: Count,
    start: Instant,
    emit: fn(&Report),
    ended: Mutex<bool>,
    end: Condvar,
}

impl Lines {
    fn begin(name: &str, unit: Unit, count: Count, every: Duration, emit: fn(&Report)) -> Self {
        let stage = Arc::new(Stage {
            name: name.to_owned(),
            unit,
            count,
            start: Instant::now(),
            emit,
            ended: Mutex::new(false),
            end: Condvar::new(),
        });
        stage.report(Moment::Begin);
        let shared = Arc::clone(&stage);
        // If the thread cannot be started, only the lines in between are missing.
        let thread = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || shared.report_every(every))
            .ok();
        Self { stage, thread }
    }
}

impl Stage {
    fn report(&self, moment: Moment) {
        let (done, total, note) = self.count.now();
        (self.emit)(&Report {
            stage: self.name.clone(),
            unit: self.unit,
            done,
            total,
            note,
            elapsed: self.start.elapsed(),
            moment,
        });
    }

    fn report_every(&self, every: Duration) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            let waited = self.end.wait_timeout(ended, every);
            let (guard, wait) = waited.unwrap_or_else(PoisonError::into_inner);
            ended = guard;
            if wait.timed_out() && !*ended {
                self.report(Moment::Between);
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        *self.stage.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stage.end.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there costs only its lines.
            let _ = thread.join();
        }
        self.stage.report(Moment::End);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(unit: Unit, done: u64, total: Option<u64>, seconds: f64, moment: Moment) -> Report {
        Report {
            stage: "work".to_owned(),
            unit,
            done,
            total,
            note: String::new(),
            elapsed: Duration::from_secs_f64(seconds),
            moment,
        }
    }

    #[test]
    fn lines_have_stage_count_and_time() {
        use Moment::{Begin, Between, End};
        let pages = Unit::Of("pages");
        for (unit, done, total, seconds, moment, expected) in [
            (pages, 0, Some(4), 0.0, Begin, "work: started, 4 pages"),
            (pages, 0, Some(1), 0.0, Begin, "work: started, 1 page"),
            (pages, 0, None, 0.0, Begin, "work: started"),
            (pages, 3, Some(4), 10.02, Between, "work: 3/4 pages, 10 s"),
            (pages, 4, Some(4), 3.12, End, "work: 4/4 pages, ended after 3.1 s"),
            (pages, 7, None, 61.0, Between, "work: 7 pages, 61 s"),
            (
                Unit::Bytes,
                3 << 20,
                Some(25 << 20),
                1.0,
                Between,
                "work: 3/25 MiB, 1.0 s",
            ),
            (Unit::Nothing, 0, None, 200.0, Between, "work: 3 minutes"),
            (Unit::Nothing, 0, None, 0.24, End, "work: ended after 0.2 s"),
        ] {
            assert_eq!(report(unit, done, total, seconds, moment).text(), expected);
        }
        let noted = Report {
            note: "loss 1.5".to_owned(),
            ..report(pages, 1, Some(2), 20.0, Between)
        };
        assert_eq!(noted.text(), "work: 1/2 pages, 20 s, loss 1.5");
        let json = noted.json();
        assert_eq!(
            (
                &json["stage"],
                &json["done"],
                &json["total"],
                &json["unit"],
                &json["elapsed_seconds"]
            ),
            (
                &"work".into(),
                &1.into(),
                &2.into(),
                &"pages".into(),
                &20.0.into()
            )
        );
    }

    static REPORTS: Mutex<Vec<Report>> = Mutex::new(Vec::new());

    #[test]
    fn a_stage_without_progress_is_reported_until_it_ends() {
        let bar = ProgressBar::hidden();
        bar.set_length(2);
        let lines = Lines::begin(
            "still",
            Unit::Of("pages"),
            Count::One(bar.clone()),
            Duration::from_millis(1),
            |report| REPORTS.lock().unwrap().push(report.clone()),
        );
        while REPORTS.lock().unwrap().len() < 3 {
            thread::yield_now();
        }
        bar.inc(2);
        drop(lines);
        let reports = REPORTS.lock().unwrap();
        let moments: Vec<Moment> = reports.iter().map(|report| report.moment).collect();
        assert_eq!((moments[0], moments[1]), (Moment::Begin, Moment::Between));
        let last = reports.last().unwrap();
        assert_eq!((last.moment, last.done, last.total), (Moment::End, 2, Some(2)));
        assert_eq!(moments.iter().filter(|&&moment| moment == Moment::End).count(), 1);
    }
}
