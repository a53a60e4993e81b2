//! LoRA adapters: PEFT's folders, and models that carry one.

mod folders;
mod peft;
