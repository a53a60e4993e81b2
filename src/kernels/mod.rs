//! What makes the model fast where libtorch's own operations do not: each kernel has a plain reference in its tests.
//!
//! - [`cpu`]: matrix-vector products over weights as stored, decoding attention and fused element-wise passes, on the
//!   threads that libtorch uses, with AVX-512, AVX2, SSE4.1 or portable instructions chosen at run time.
//! - [`cuda`]: weights in four bits on NVIDIA GPUs, compiled at run time.

pub mod cpu;
pub mod cuda;
