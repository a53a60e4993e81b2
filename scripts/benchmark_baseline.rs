//! Benchmarks the base model on the test documents.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("benchmark_baseline")
}
