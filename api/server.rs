//! The REST server.

#[path = "../scripts/launch.rs"]
mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("server")
}
