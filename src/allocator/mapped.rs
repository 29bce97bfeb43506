//! Blocks that are mapped on their own, in huge pages.

use super::kept::{Block, Kept};
use super::HUGE_PAGE;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All that no block uses. Nothing is allocated while it is locked.
static KEPT: Mutex<Kept> = Mutex::new(Kept::new());

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`super::keep`].
pub fn keep() {
    kept().turn_on();
}

/// See [`super::end_job`].
pub fn end_job() {
    let mut kept = kept();
    kept.end_period();
    give_up_excess(&mut kept, 0);
}

/// A block at a multiple of the page's size; null if there is no memory.
pub fn take(size: usize) -> *mut u8 {
    take_either(size, false)
}

/// The same, of zeroes.
pub fn take_zeroed(size: usize) -> *mut u8 {
    take_either(size, true)
}

fn take_either(size: usize, zeroed: bool) -> *mut u8 {
    let Some(len) = rounded(size) else { return null_mut() };
    if let Some(block) = take_kept(len) {
        if zeroed {
            // SAFETY: the block has as many bytes, and is the caller's from now on.
            unsafe { block.write_bytes(0, size) };
        }
        return block;
    }
    from_system(len, || {
        // It is zero.
        let block = map(len, libc::PROT_READ | libc::PROT_WRITE);
        if !block.is_null() {
            // SAFETY: advice on a new mapping.
            unsafe { libc::madvise(block.cast(), len, libc::MADV_HUGEPAGE) };
        }
        block
    })
}

/// A kept block, which may have been anybody's.
fn take_kept(len: usize) -> Option<*mut u8> {
    let mut kept = kept();
    let (block, rest) = kept.take(len)?;
    if rest.len > 0 && !kept.keep(rest) {
        // SAFETY: it is the part of a kept block that is not handed out.
        unsafe { give_up(rest) };
    }
    Some(block.start as *mut u8)
}

/// What `ask` gets from the system, `len` bytes more than there were, or null. What is kept and then
/// too much goes there first, and all of it if there is not enough otherwise.
fn from_system(len: usize, ask: impl Fn() -> *mut u8) -> *mut u8 {
    give_up_excess(&mut kept(), len);
    let mut block = ask();
    if block.is_null() {
        let mut kept = kept();
        while let Some(block) = kept.oldest() {
            // SAFETY: it was kept.
            unsafe { give_up(block) };
        }
        drop(kept);
        block = ask();
    }
    if !block.is_null() {
        kept().count_in(len);
    }
    block
}

/// Gives to the system what would be too much with so many bytes more in use.
fn give_up_excess(kept: &mut Kept, more: usize) {
    while let Some(block) = kept.excess(more) {
        // SAFETY: it was kept.
        unsafe { give_up(block) };
    }
}

/// Gives a block to the system.
///
/// # Safety
/// Nobody uses it.
unsafe fn give_up(block: Block) {
    // SAFETY: the caller's promise.
    unsafe { unmap(block.start as *mut u8, block.len) };
}

/// # Safety
/// The block was taken, or resized, with this size, and nobody uses it.
pub unsafe fn give_back(block: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { give(block, rounded(size).unwrap_or(size)) }
}

/// Makes a block larger or smaller. Where there is no room behind it, it is copied into one that was
/// kept, or its pages move as they are. Null, and the block as it was, if there is no memory.
///
/// # Safety
/// The block was taken, or resized, with the size `from`, and is not used if another comes
/// back.
pub unsafe fn resize(block: *mut u8, from: usize, to: usize) -> *mut u8 {
    let (Some(from), Some(to)) = (rounded(from), rounded(to)) else { return null_mut() };
    if to <= from {
        // SAFETY: nobody uses what is behind the new end.
        unsafe { give(block.wrapping_add(to), from - to) };
        return block;
    }
    if let Some(new) = take_kept(to) {
        // SAFETY: both have as many bytes; the old one is not used any more.
        unsafe {
            new.copy_from_nonoverlapping(block, from);
            give(block, from);
        }
        return new;
    }
    // SAFETY: the mapping is the caller's. Where it cannot stay, it moves to a place that was
    // mapped for it alone.
    from_system(to - from, || unsafe {
        if libc::mremap(block.cast(), from, to, 0) != libc::MAP_FAILED {
            return block;
        }
        let place = map(to, libc::PROT_NONE);
        if place.is_null() {
            return place;
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let moved = libc::mremap(block.cast(), from, to, flags, place.cast::<c_void>());
        // Where it fails, `place` may be somebody else's already: it is given up before it is
        // known whether there is memory. What is left of it is room without memory.
        if moved == libc::MAP_FAILED {
            return null_mut();
        }
        moved.cast()
    })
}

/// Keeps a part of a mapping, or gives it to the system.
///
/// # Safety
/// It was in use, and nobody uses it.
unsafe fn give(start: *mut u8, len: usize) {
    if len == 0 {
        return;
    }
    let block = Block { start: start as usize, len };
    let keeps = {
        let mut kept = kept();
        kept.count_out(len);
        kept.keep(block)
    };
    if !keeps {
        // SAFETY: the caller's promise.
        unsafe { give_up(block) };
    }
}

/// Maps `len` bytes at a multiple of the page's size; null if there is no memory.
fn map(len: usize, access: libc::c_int) -> *mut u8 {
    let Some(with_slack) = len.checked_add(HUGE_PAGE) else { return null_mut() };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, of which the parts before and behind the block are given back at
    // once.
    unsafe {
        let start = libc::mmap(null_mut(), with_slack, access, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return null_mut();
        }
        let start = start.cast::<u8>();
        let before = start.align_offset(HUGE_PAGE);
        let block = start.wrapping_add(before);
        unmap(start, before);
        unmap(block.wrapping_add(len), HUGE_PAGE - before);
        block
    }
}

/// # Safety
/// It is a part of a mapping that nobody uses.
unsafe fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.cast::<c_void>(), len) };
    }
}

fn rounded(size: usize) -> Option<usize> {
    size.checked_next_multiple_of(HUGE_PAGE)
}
