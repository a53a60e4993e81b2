//! Qwen2.5-VL: vision tower, language model, M-RoPE, KV cache, LoRA, training forward. It knows no files: its weights come from
//! a [`Checkpoint`](crate::checkpoint::Checkpoint), all else as arguments.
//!
//! | file | transformers' `modeling_qwen2_5_vl.py` and PEFT |
//! | --- | --- |
//! | `model.rs`, `inputs.rs` | `Qwen2_5_VLForConditionalGeneration`, `Qwen2_5_VLModel.forward` |
//! | `vision.rs`, `windows.rs` | `Qwen2_5_VisionTransformerPretrainedModel`, `get_vision_window_index` |
//! | `language.rs` | `Qwen2_5_VLTextModel`: prefill, and decode where `decode_cpu.rs` does not apply |
//! | `decode_cpu.rs` | one decode step on a CPU in f32 |
//! | `train.rs`, `autograd_ops.rs` | the training forward over packed sequences; its autograd nodes |
//! | `mrope.rs`, `rope.rs` | `get_rope_index`, `Qwen2_5_VLRotaryEmbedding` |
//! | `layers.rs` | `Qwen2_5_VLRMSNorm`, `Qwen2MLP`, `apply_rotary_pos_emb` |
//! | `kv_cache.rs` | `DynamicCache` |
//! | `varlen_attention.rs` | `flash_attn_varlen_func`: `cu_seqlens` attention |
//! | `linear.rs`, `lora.rs` | `nn.Linear`, PEFT's `lora.Linear` |
//!
//! Links to transformers name the tag of the release that the goldens in `tests/fixtures` come from.
//!
//! Which decoder-layer forward runs when, and why there are four, is in
//! `docs/ARCHITECTURE.md`, "Which decoder-layer forward runs when".

mod autograd_ops;
mod config;
mod decode_cpu;
mod decode_cuda;
mod expected_tensors;
mod input_samples;
mod inputs;
mod kv_cache;
mod language;
mod layers;
mod linear;
mod linear_modules;
mod lora;
mod model;
mod mrope;
mod rope;
mod tensor_check;
mod token_grid;
mod train;
mod varlen_attention;
mod vision;
mod weight_bytes;
mod weight_tying;
mod weights;
mod windows;

pub use self::config::{Activation, Config, TextConfig, VisionConfig};
pub use self::expected_tensors::ExpectedTensor;
pub use self::input_samples::InputSamples;
pub use self::inputs::InputEmbedder;
pub use self::kv_cache::{KvCache, KvPrefix};
pub use self::language::LogitsToKeep;
pub use self::lora::{AdapterIndex, FIRST_ADAPTER};
pub use self::model::{CancelCheck, Model, ModelOptions, Prefill};
pub use self::mrope::{Positions, rope_positions};
pub use self::rope::{Rope, Yarn};
pub use self::tensor_check::{Misfit, TensorCheck, check_tensors};
pub use self::token_grid::{TokenGrid, TokenGrids};
pub use self::train::{Packed, Sequence};
pub use self::weight_bytes::WeightBytes;
pub(crate) use self::weight_tying::Tying;
pub use self::windows::WindowPlan;
