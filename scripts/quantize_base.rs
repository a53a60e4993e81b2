//! Quantizes the base model to four bits.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("quantize_base")
}
