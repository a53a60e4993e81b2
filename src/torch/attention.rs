//! Attention kernels of libtorch that tch does not bind: `cu_seqlens` flash attention, and cuDNN's switched off.

use std::ffi::{c_char, c_int, c_void};

use tch::Tensor;

use crate::torch;

unsafe extern "C" {
    /// In `attention.cpp`, as below.
    fn medvision_without_cudnn_attention();
    fn medvision_flash_attention(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        cu_seqlens_q: *const c_void,
        cu_seqlens_kv: *const c_void,
        max_seqlen_q: i64,
        max_seqlen_kv: i64,
        causal: c_int,
        out: *mut *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Excludes cuDNN's attention from libtorch's choice of kernels: it builds a plan per number of keys, some 40 ms each.
pub(crate) fn disable_cudnn_attention() {
    // SAFETY: sets a flag of libtorch's and throws nothing.
    unsafe { medvision_without_cudnn_attention() };
}

/// Segments of packed rows as flash attention's variable-length interface takes them.
pub(crate) struct CuSeqlens {
    /// Cumulative query lengths, i32 `[segments + 1]` from 0.
    pub(crate) q: Tensor,
    /// Cumulative key lengths, i32 `[segments + 1]` from 0.
    pub(crate) kv: Tensor,
    /// Longest query length.
    pub(crate) max_q: i64,
    /// Longest key length.
    pub(crate) max_kv: i64,
}

/// Flash attention within segments, on a GPU in 16 bits; tracked by autograd.
///
/// q: `[rows, heads, dim]`; k, v: `[kv_rows, heads or a divisor, dim]` → `[rows, heads, dim]`. `causal`: the last query of a
/// segment attends to all of its keys, the one before it to one key less.
///
/// # Errors
/// libtorch's text, if this GPU or head size has no such kernel.
pub(crate) fn flash_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens: &CuSeqlens,
    causal: bool,
) -> Result<Tensor, String> {
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors; `out` and the message buffer are valid for the call, which throws nothing.
    torch::call(|message, capacity| unsafe {
        medvision_flash_attention(
            q.as_ptr().cast(),
            k.as_ptr().cast(),
            v.as_ptr().cast(),
            seqlens.q.as_ptr().cast(),
            seqlens.kv.as_ptr().cast(),
            seqlens.max_q,
            seqlens.max_kv,
            c_int::from(causal),
            &mut out,
            message,
            capacity,
        )
    })?;
    // SAFETY: a new tensor; this becomes its owner.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}
