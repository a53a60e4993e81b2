//! Benchmarks a quantized model on the test documents and compares it with the base model.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("benchmark_quantized")
}
