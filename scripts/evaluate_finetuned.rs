//! Evaluates the fine-tuned model against its base.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("evaluate_finetuned")
}
