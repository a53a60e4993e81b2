//! Fine-tuning: against PEFT, and `finetune_lora` as it is shipped.

mod binary;
mod parity;
mod processes;
mod project;
