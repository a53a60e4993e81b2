//! Qwen2.5-VL: vision tower, language model, rotary positions, KV cache; nothing of files, HTTP or text.
//!
//! Reference: `transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py` of transformers 5.17.

mod attention;
mod check;
mod config;
mod decoder;
mod extents;
mod front;
mod language;
mod layers;
mod linear;
mod model;
mod modules;
mod packed;
mod positions;
mod recorded;
mod rope;
mod tying;
mod vision;
mod wanted;

pub use self::check::{Misfit, TensorCheck, check_tensors};
pub use self::config::{Activation, Config, TextConfig, VisionConfig};
pub use self::extents::{Extent, Extents};
pub use self::front::Front;
pub use self::language::{KvCache, Wanted};
pub use self::linear::InputSamples;
pub use self::model::{GoOn, Model, Prefill};
pub use self::packed::{Packed, Sequence};
pub use self::positions::{Positions, WindowPlan, rope_positions};
pub use self::rope::{Rope, Yarn};
pub(crate) use self::tying::Tying;
pub use self::wanted::WantedTensor;
