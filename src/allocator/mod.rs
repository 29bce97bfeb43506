//! Memory for Rust values: large blocks come in huge pages.
//!
//! Jobs and builds fill large vectors once and drop them. The system clears such memory a page at
//! a time as it is touched first, which for pages of 4 kB takes longer than much of what is then
//! done with it. In huge pages it takes a tenth of that; still, a process that does one job after
//! the other [keeps](keep) them, as a virtual machine may have to get each from its host.

#[cfg(target_os = "linux")]
mod kept;
#[cfg(target_os = "linux")]
mod mapped;

use std::alloc::{GlobalAlloc, Layout, System};

/// The page that large blocks are made of.
const HUGE_PAGE: usize = 2 << 20;

/// Blocks from this size on are large. The system's allocator keeps smaller ones for the next
/// that asks.
const LARGE: usize = 8 << 20;

/// PostgreSQL's own memory is not its concern.
pub struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Whether a block is mapped on its own.
fn is_mapped(size: usize, align: usize) -> bool {
    cfg!(target_os = "linux") && size >= LARGE && align <= HUGE_PAGE
}

// SAFETY: each block comes from one of two sources, which its layout alone decides on, and goes
// back to it; both give blocks of that layout that are nobody else's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout.size(), layout.align()) {
            return mapped::take(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout.size(), layout.align()) {
            return mapped::take_zeroed(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block was taken with this layout.
        unsafe {
            if is_mapped(layout.size(), layout.align()) {
                mapped::give_back(block, layout.size());
            } else {
                System.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (was, is) = (is_mapped(layout.size(), layout.align()), is_mapped(size, layout.align()));
        // SAFETY: the block was taken with this layout, of which the new one differs in its size;
        // what is copied is within both blocks.
        unsafe {
            if !was && !is {
                return System.realloc(block, layout, size);
            }
            if was && is {
                return mapped::resize(block, layout.size(), size);
            }
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

/// From now on large blocks that are given back stay with the process, for the next that asks: what
/// is used and what is kept is never more than was used at a time, by this job or the one before.
pub fn keep() {
    mapped::keep();
}

/// Tells that a job has ended, so that what only earlier ones needed goes to the system.
pub fn end_job() {
    mapped::end_job();
}

#[cfg(not(target_os = "linux"))]
mod mapped {
    //! Elsewhere no block is mapped on its own.

    pub fn keep() {}

    pub fn end_job() {}

    pub fn take_zeroed(size: usize) -> *mut u8 {
        take(size)
    }

    pub fn take(_: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub unsafe fn give_back(_: *mut u8, _: usize) {}

    pub unsafe fn resize(_: *mut u8, _: usize, _: usize) -> *mut u8 {
        std::ptr::null_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grows and shrinks a block, and fails where it loses bytes.
    fn change_sizes() {
        let mut block = vec![0u8; LARGE + 5];
        assert!(block.iter().all(|byte| *byte == 0));
        if cfg!(target_os = "linux") {
            assert_eq!(block.as_ptr().align_offset(HUGE_PAGE), 0);
        }
        let byte = |at: usize| (at % 251) as u8;
        block.iter_mut().enumerate().for_each(|(at, place)| *place = byte(at));
        let sizes = [LARGE + HUGE_PAGE, 5 * LARGE, 64 * LARGE, LARGE + 1, LARGE - 1, 100];
        for size in sizes.into_iter().chain([LARGE, 3 * LARGE]) {
            let known = block.len().min(size);
            block.truncate(size);
            if block.len() < size {
                block.reserve_exact(size - block.len());
                block.resize(size, 7);
            } else {
                block.shrink_to_fit();
            }
            assert_eq!(block.len(), size);
            assert!((0..known).all(|at| block[at] == byte(at)), "{size}");
            assert!(block[known..].iter().all(|place| *place == 7), "{size}");
            block.iter_mut().enumerate().for_each(|(at, place)| *place = byte(at));
        }
    }

    #[test]
    fn large_blocks_are_aligned_and_zero_and_keep_their_bytes_as_they_grow_and_shrink() {
        change_sizes();
        // The same where blocks were others' before.
        keep();
        for _ in 0..3 {
            change_sizes();
            end_job();
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let mut block = Vec::<u8>::new();
        assert!(block.try_reserve_exact(isize::MAX as usize).is_err());
        block.resize(LARGE, 1);
        assert!(block.try_reserve_exact(isize::MAX as usize - LARGE).is_err());
        assert!(block.iter().all(|byte| *byte == 1));
    }
}
