//! NF4 and FP4 in the format of bitsandbytes.
//!
//! A weight is flattened and divided into blocks of 64; each block is stored as its absmax (the scale) and 4-bit codes, two per
//! byte. With double quantization the scales are quantized again, in blocks of 256.

mod folder;
mod outputs;

pub use self::folder::{Nf4Options, REPORT, quantize_folder};
pub use self::outputs::{LayerOutputError, LayerOutputErrors, output_errors};
