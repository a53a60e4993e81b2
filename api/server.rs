//! The REST server: `/health`, `/extract`, `/analyze`, `/benchmark`, `/docs`.

#[path = "../scripts/launch.rs"]
mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("server")
}
