//! LoRA adapters in PEFT's folders: reading, writing, initializing and choosing one.
//!
//! `y = W x + b + s·B(A x)`: the base's W is unchanged, quantized or dense; an [`Adapter`] holds A and B of each adapted
//! module, under the hub's names. [`Model::load`](crate::qwen2_5_vl::Model::load) attaches it.

mod adapter;
mod choice;
mod config;
mod file;
mod module;
mod recommendation;
mod targets;

pub(crate) use self::adapter::EMBEDDING_MODULE;
pub use self::adapter::{Adapter, LoraPair};
pub use self::choice::{FoundAdapter, find_adapter, own_adapter_folder, requested_adapter};
pub use self::config::LoraConfig;
pub(crate) use self::file::finite;
pub use self::file::{ADAPTER_CONFIG, ADAPTER_EVALUATION, ADAPTER_WEIGHTS};
pub use self::module::LinearModule;
pub use self::recommendation::Recommendation;
pub use self::targets::Targets;
