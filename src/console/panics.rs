//! The process's panic hook, installed here and nowhere else.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Level, say};

/// Whether panics are reported by [`describe`], else by the hook that was there before.
static REPORT: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is inside [`catch_silently`].
    static SILENT: Cell<bool> = const { Cell::new(false) };
    /// Where this thread panicked inside it.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// From now on reports panics on standard error as internal errors.
pub(super) fn report() {
    REPORT.store(true, Ordering::Relaxed);
    install();
}

/// Runs `work` and catches its panic without printing it. The error is the source location; the payload, which could echo the
/// input, is dropped.
///
/// Unwind safety is up to the caller: after a panic it must not use what `work` was changing.
pub(crate) fn catch_silently<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    install();
    // Calls may be nested.
    let before = SILENT.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    SILENT.set(before);
    result.map_err(|_| PLACE.take().unwrap_or_default())
}

fn install() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if SILENT.try_with(Cell::get).unwrap_or(false) {
                PLACE.set(Some(place(panic)));
                return;
            }
            match REPORT.load(Ordering::Relaxed) {
                true => describe(panic),
                false => previous(panic),
            }
        }));
    });
}

/// A panic is a bug: names its place, but not its payload, which may hold a page's text.
fn describe(panic: &PanicHookInfo<'_>) {
    let place = place(panic);
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    say(
        Level::ERROR,
        &format!(
            "internal error at {place} (thread {name}): this is a bug in medvision {}; please report it with this line",
            crate::version::version()
        ),
    );
}

/// Source file and line of a panic.
fn place(panic: &PanicHookInfo<'_>) -> String {
    panic.location().map_or_else(
        || "unknown place".to_owned(),
        |place| format!("{}:{}", source_name(place.file()), place.line()),
    )
}

/// A source file's name without the folders of the machine that compiled it: `crate-1.2.3/src/lib.rs`, `src/main.rs`.
fn source_name(file: &str) -> String {
    let parts: Vec<&str> = file.split(['/', '\\']).collect();
    let after = |name: &str, more: usize| {
        let at = parts.iter().rposition(|part| *part == name)?;
        parts.get(at + more..).filter(|rest| !rest.is_empty())
    };
    // registry/src/INDEX/CRATE/…, rustc/HASH/library/…, git/checkouts/NAME/COMMIT/…
    let known = parts
        .iter()
        .position(|part| *part == "registry")
        .and_then(|at| parts.get(at + 3..));
    let known = known
        .or_else(|| after("rustc", 2))
        .or_else(|| after("checkouts", 3));
    let own = || match file.starts_with('/') || file.contains(":\\") {
        true => after("src", 0).unwrap_or(&parts[parts.len().saturating_sub(2)..]),
        false => &parts[..],
    };
    known
        .filter(|rest| !rest.is_empty())
        .unwrap_or_else(own)
        .join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panics_place_names_no_folder_of_the_build() {
        for (file, shown) in [
            (
                "/home/me/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/actix-http-3.20.0/src/h1/decoder.rs",
                "actix-http-3.20.0/src/h1/decoder.rs",
            ),
            (
                "/rustc/0123abcd/library/core/src/option.rs",
                "library/core/src/option.rs",
            ),
            (
                "/home/me/.cargo/git/checkouts/tch-rs-1/0123abc/src/lib.rs",
                "src/lib.rs",
            ),
            ("/home/me/project/src/engine/thread.rs", "src/engine/thread.rs"),
            ("/builds/x.rs", "builds/x.rs"),
            ("src/engine/thread.rs", "src/engine/thread.rs"),
        ] {
            assert_eq!(source_name(file), shown, "{file}");
        }
    }

    #[test]
    fn a_silent_panic_is_caught_with_its_place() {
        let place = catch_silently(|| panic!("a canary"))
            .map(|(): ()| ())
            .unwrap_err();
        assert!(place.starts_with("src/console/panics.rs:"), "{place}");
        assert_eq!(catch_silently(|| 3), Ok(3));
        let nested = catch_silently(|| {
            let _ = catch_silently(|| panic!("a canary"));
            SILENT.get()
        });
        assert_eq!((nested, SILENT.get()), (Ok(true), false));
    }
}
