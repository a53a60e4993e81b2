//! LoRA adapters: PEFT's folders, and models that carry one.

mod choice;
mod folders;
mod loose;
mod merge;
mod peft;
