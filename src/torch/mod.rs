//! Functions of libtorch that tch does not bind: C++ that `build.rs` compiles, with its Rust side in the file of the same name.
//!
//! No C++ function throws; each returns an error message instead.

pub(crate) mod allocator;
pub(crate) mod attention;
pub mod autograd;
pub(crate) mod c10d;
mod transfer;

use std::ffi::{CStr, c_char, c_int};

pub use self::allocator::{AllocatorStats, allocator_stats, reset_allocator_peak};
pub use self::transfer::{pinned, upload};

/// Size of the error message buffer.
const MESSAGE_BYTES: usize = 512;

/// Calls `work` with a message buffer; a result other than 0 is an error with that message.
pub(crate) fn call(work: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), String> {
    let mut message = [0 as c_char; MESSAGE_BYTES];
    if work(message.as_mut_ptr(), MESSAGE_BYTES - 1) == 0 {
        return Ok(());
    }
    // SAFETY: the last byte is zero whatever was written before it.
    let text = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(text.to_string_lossy().into_owned())
}

/// The first line of an error text, without the backtrace.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
