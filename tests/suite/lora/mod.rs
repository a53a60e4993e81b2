//! LoRA adapters in PEFT's format, and models that carry one.

mod choice;
mod folders;
mod loose;
pub mod peft;
