//! The demo page.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("demo_ui")
}
