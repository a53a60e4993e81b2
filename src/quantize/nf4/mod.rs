//! NF4 and FP4, as bitsandbytes makes, stores and reads them.
//!
//! A weight is flattened and cut into blocks of 64; each block keeps its largest magnitude as scale and sixteen-valued
//! codes for what is left, two a byte. With double quantization the scales are quantized again, in runs of 256.

mod folder;
mod outputs;

pub use self::folder::{Nf4Options, REPORT, quantize_folder};
pub use self::outputs::{LayerOutputError, LayerOutputErrors, output_errors};
