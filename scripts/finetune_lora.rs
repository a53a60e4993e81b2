//! Fine-tunes the model with LoRA on the prepared pages.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("finetune_lora")
}
