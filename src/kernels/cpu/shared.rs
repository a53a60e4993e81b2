//! A buffer that the members of a team write to, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice lent to several threads at once.
pub struct Shared<'a, T> {
    data: *mut T,
    length: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through unsafe methods whose callers promise that threads do not meet.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as a `&mut [T]`.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Lends `data` out.
    pub fn new(data: &'a mut [T]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            length: data.len(),
            _borrow: PhantomData,
        }
    }

    /// Values in the whole buffer.
    pub fn len(&self) -> usize {
        self.length
    }

    /// No values at all.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A part to read.
    ///
    /// # Safety
    /// Nobody writes to `range` while the slice lives.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        self.check(&range);
        // SAFETY: in bounds; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.data.add(range.start), range.len()) }
    }

    /// A part to write.
    ///
    /// # Safety
    /// Nobody else reads or writes `range` while the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "threads share it; the caller keeps their parts apart"
    )]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        self.check(&range);
        // SAFETY: in bounds; the rest is the caller's promise.
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
