//! Hints to the processor which bytes will be wanted.

/// Bytes that are brought near at a time.
const CACHE_LINE: usize = 64;

/// Asks the processor to bring bytes near. A hint: nothing depends on it.
///
/// They are brought into the second level of its caches: it waits for many more lines at once than
/// for the first level, and what is wanted is more than that one should hold.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(CACHE_LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults, and every x86-64 processor has the instruction.
        unsafe {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// Bytes that the processor is asked for in the course of other work, a part at each step: asked
/// for all at once they would be waited for, as it takes so many requests and no more.
pub(super) struct Ahead<'a> {
    parts: std::slice::Chunks<'a, u8>,
}

impl<'a> Ahead<'a> {
    /// All of `bytes` in so many steps.
    #[inline(always)]
    pub(super) fn new(bytes: &'a [u8], steps: usize) -> Ahead<'a> {
        let part = bytes.len().div_ceil(steps.max(1)).next_multiple_of(CACHE_LINE);
        Ahead { parts: bytes.chunks(part.max(CACHE_LINE)) }
    }

    /// Asks for the next part.
    #[inline(always)]
    pub(super) fn step(&mut self) {
        if let Some(part) = self.parts.next() {
            prefetch(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_asked_for_in_the_steps_there_are() {
        for (length, steps) in [(0, 0), (0, 3), (1, 1), (64, 7), (1000, 3), (9000, 8), (9000, 0)] {
            let bytes = vec![0; length];
            let ahead = Ahead::new(&bytes, steps);
            assert!(ahead.parts.len() <= steps.max(1), "{length} in {steps}");
            assert_eq!(ahead.parts.map(<[u8]>::len).sum::<usize>(), length);
        }
    }
}
