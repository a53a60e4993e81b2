//! bitsandbytes' NF4 and FP4.

mod codebook;
mod error;
mod quantize;
mod state;
mod weight;

pub use self::codebook::{QuantType, dynamic_map};
pub use self::error::{WeightError, WeightErrors};
pub(crate) use self::error::{compare, total};
pub use self::quantize::{Blocks, NestedScales, Scratch, Values, Weights, quantize, quantize_scales};
pub use self::state::{BLOCKSIZES, QuantState};
pub use self::weight::Nf4Weight;
