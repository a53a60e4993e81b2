//! Kernels that replace libtorch's operations where those are slow; each has a plain reference in its tests.
//!
//! - [`cpu`]: matrix-vector products over weights as stored, decoding attention and fused element-wise passes, on the
//!   threads that libtorch uses, with AVX-512, AVX2, SSE4.1 or portable instructions chosen at run time.
//! - [`cuda`]: 4-bit weights and fused element-wise passes on NVIDIA GPUs, compiled at run time.

pub mod cpu;
pub mod cuda;
