//! Calls into the C++ that build.rs compiles: none throws, each says in words what went wrong.

pub(crate) mod allocator;
pub mod autograd;
mod transfer;

use std::ffi::{CStr, c_char, c_int};

pub use self::allocator::{AllocatorStats, allocator_stats, reset_allocator_peak};
pub use self::transfer::{pinned, upload};

/// Room for an error's text.
const MESSAGE_BYTES: usize = 512;

/// Calls `work` with room for a text, which is the error where it returns something else than 0.
pub(crate) fn call(work: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), String> {
    let mut message = [0 as c_char; MESSAGE_BYTES];
    if work(message.as_mut_ptr(), MESSAGE_BYTES - 1) == 0 {
        return Ok(());
    }
    // SAFETY: the last byte is zero whatever was written before it.
    let text = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(text.to_string_lossy().into_owned())
}

/// What a text says before it lists where it happened.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
