//! A buffer of which each thread of a team writes its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice lent to several threads at once.
pub struct Shared<'a, T> {
    data: *mut T,
    length: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through unsafe methods whose callers ensure that threads use disjoint parts.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as a `&mut [T]`.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `data`.
    pub fn new(data: &'a mut [T]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            length: data.len(),
            _borrow: PhantomData,
        }
    }

    /// Length of the buffer.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the buffer is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A part for reading.
    ///
    /// # Safety
    /// No thread may write to `range` while the slice lives.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        self.check(&range);
        // SAFETY: in bounds; the caller ensures the rest.
        unsafe { std::slice::from_raw_parts(self.data.add(range.start), range.len()) }
    }

    /// A part for writing.
    ///
    /// # Safety
    /// No other thread may read or write `range` while the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "threads share it; the caller keeps their parts apart"
    )]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        self.check(&range);
        // SAFETY: in bounds; the caller ensures the rest.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "{range:?} of {} values",
            self.length
        );
    }
}
