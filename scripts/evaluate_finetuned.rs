//! Measures what fine-tuning made of a model: evaluation cases, held-out pages, test documents.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("evaluate_finetuned")
}
