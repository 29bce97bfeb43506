//! Pinned and locked buffers.

use super::fault::{Fault, Read};
use super::layout::{Kind, Tail, HEAD, PAGE, PAYLOAD, TAIL_MAGIC};
use super::{Identity, Index};
use crate::simd;
use bytemuck::AnyBitPattern;
use pgrx::pg_sys;
use std::cell::Cell;
use std::mem::{align_of, size_of};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// A buffer with its content lock held.
///
/// While an error unwinds, PostgreSQL has already reset its hold-off counters and releases locks
/// and pins at abort, so dropping does nothing then.
pub struct Locked {
    buffer: pg_sys::Buffer,
    block: u32,
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: constructors pin and lock the buffer, nothing else gives either up.
            unsafe { pg_sys::UnlockReleaseBuffer(self.buffer) }
        }
    }
}

impl Locked {
    /// Reads `block` and locks it for reading.
    pub fn share(index: Index, block: u32) -> Locked {
        Locked::existing(index, block, pg_sys::BUFFER_LOCK_SHARE)
    }

    /// As [`Locked::share`], for a page that was found in a buffer before: `recent` names it, from
    /// 1 on, and is brought up to date. Where the page still is there, no hash table is searched.
    pub fn share_recent(index: Index, block: u32, recent: &Cell<u32>) -> Locked {
        Locked::recent(index, block, pg_sys::BUFFER_LOCK_SHARE, recent)
    }

    /// Reads `block` and locks it for writing.
    pub fn exclusive(index: Index, block: u32) -> Locked {
        Locked::existing(index, block, pg_sys::BUFFER_LOCK_EXCLUSIVE)
    }

    /// As [`Locked::exclusive`], for a page as [`Locked::share_recent`] has it.
    pub fn exclusive_recent(index: Index, block: u32, recent: &Cell<u32>) -> Locked {
        Locked::recent(index, block, pg_sys::BUFFER_LOCK_EXCLUSIVE, recent)
    }

    fn recent(index: Index, block: u32, mode: u32, recent: &Cell<u32>) -> Locked {
        // SAFETY: the relation is open, and `recent` was the number of a buffer. It is locked once it
        // is pinned.
        unsafe {
            if let Some(buffer) = pin_recent(index.relation(), block, recent.get()) {
                pg_sys::LockBuffer(buffer, mode as i32);
                return Locked { buffer, block };
            }
        }
        let page = Locked::existing(index, block, mode);
        recent.set(page.number());
        page
    }

    fn existing(index: Index, block: u32, mode: u32) -> Locked {
        // SAFETY: the relation is open; a block past its end raises an error by itself.
        unsafe {
            let buffer = pg_sys::ReadBuffer(index.relation(), block);
            pg_sys::LockBuffer(buffer, mode as i32);
            Locked { buffer, block }
        }
    }

    /// Locks a free page for writing, without reading what it held.
    pub fn overwrite(index: Index, block: u32) -> Locked {
        // SAFETY: the relation is open and the block exists.
        let buffer = unsafe {
            pg_sys::ReadBufferExtended(
                index.relation(),
                pg_sys::ForkNumber::MAIN_FORKNUM,
                block,
                pg_sys::ReadBufferMode::RBM_ZERO_AND_LOCK,
                std::ptr::null_mut(),
            )
        };
        Locked { buffer, block }
    }

    /// Adds a page to the relation's `fork` and locks it for writing.
    pub fn extend(index: Index, fork: pg_sys::ForkNumber::Type) -> Locked {
        // SAFETY: the relation is open; the extension lock is what P_NEW asks for.
        unsafe {
            let lock = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
            pg_sys::LockRelationForExtension(index.relation(), lock);
            let buffer = pg_sys::ReadBufferExtended(
                index.relation(),
                fork,
                pg_sys::InvalidBlockNumber,
                pg_sys::ReadBufferMode::RBM_ZERO_AND_LOCK,
                std::ptr::null_mut(),
            );
            pg_sys::UnlockRelationForExtension(index.relation(), lock);
            Locked { buffer, block: pg_sys::BufferGetBlockNumber(buffer) }
        }
    }

    /// The buffer, for PostgreSQL's functions.
    pub fn buffer(&self) -> pg_sys::Buffer {
        self.buffer
    }

    /// The buffer's number, to find the page by later; 0 where there is none, as local buffers, of
    /// temporary relations, have numbers below zero.
    pub fn number(&self) -> u32 {
        u32::try_from(self.buffer).unwrap_or(0)
    }

    /// The page's block number.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8; PAGE] {
        // SAFETY: a pinned buffer's block is PAGE bytes; the content lock keeps writers out.
        unsafe { &*pg_sys::BufferGetBlock(self.buffer).cast::<[u8; PAGE]>() }
    }

    /// What stands between the page header and the tail.
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[HEAD..HEAD + PAYLOAD]
    }

    /// The special area, whatever it holds.
    pub fn tail(&self) -> Tail {
        read_tail(self.bytes())
    }

    /// The tail, if this page is of `kind` and belongs to `owner`.
    pub fn owned_tail(&self, kind: Kind, owner: Identity) -> Read<Tail> {
        owned(self.tail(), kind, owner, self.block)
    }

    /// As [`Locked::owned_tail`], for the page at place `ordinal` of its column or blob.
    pub fn check(&self, kind: Kind, owner: Identity, ordinal: u32) -> Read<Tail> {
        let tail = self.owned_tail(kind, owner)?;
        if tail.ordinal != ordinal {
            return Err(Fault::damaged(self.block, "place in its owner"));
        }
        Ok(tail)
    }
}

/// Of so many pages that may be where they were, one is looked for all the same. Only then does the
/// server take note that the page is in use, and keeps it when room is needed.
const LOOKED_FOR: u32 = 32;

/// Whether to look for a page. Searches are alike: at a fixed distance it might always be the same
/// one's turn.
fn is_looked_for() -> bool {
    static STATE: AtomicU32 = AtomicU32::new(1);
    // A linear congruential generator (Numerical Recipes, section 7.1), whose upper bits are good.
    let next = STATE.load(Ordering::Relaxed).wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    STATE.store(next, Ordering::Relaxed);
    next < u32::MAX / LOOKED_FOR
}

/// Pins `block` of a relation's main fork if it still is in buffer `recent`, and counts it as
/// ReadBuffer does; now and then none, for the page to be looked for.
///
/// # Safety
/// The relation is open, and `recent` zero or the number of what once was a shared buffer.
pub unsafe fn pin_recent(
    relation: pg_sys::Relation,
    block: u32,
    recent: u32,
) -> Option<pg_sys::Buffer> {
    let buffer = recent as pg_sys::Buffer;
    if buffer == 0 || is_looked_for() {
        return None;
    }
    // SAFETY: the caller's promise. A buffer's number remains in range, and ReadRecentBuffer pins
    // the buffer only if it holds the page that is asked for.
    unsafe {
        let (node, main) = ((*relation).rd_node, pg_sys::ForkNumber::MAIN_FORKNUM);
        if !pg_sys::ReadRecentBuffer(node, main, block, buffer) {
            return None;
        }
        if (*relation).pgstat_info.is_null() && (*relation).pgstat_enabled {
            pg_sys::pgstat_assoc_relation(relation);
        }
        if let Some(table) = (*relation).pgstat_info.as_mut() {
            table.t_counts.t_blocks_fetched += 1;
            table.t_counts.t_blocks_hit += 1;
        }
    }
    Some(buffer)
}

/// Asks the processor for what is needed to pin a page that was in buffer `recent`. A hint: the page
/// may be gone.
pub fn prefetch_pin(recent: u32) {
    let Some(number) = recent.checked_sub(1).map(|number| number as usize) else { return };
    // SAFETY: `recent` was the number of a shared buffer, and there remain as many. Nothing is
    // read here.
    unsafe {
        let descriptor = pg_sys::BufferDescriptors.wrapping_add(number).cast::<u8>();
        simd::prefetch(std::slice::from_raw_parts(descriptor, 1));
    }
}

/// Asks the processor for a span of a page that was in buffer `recent`. A hint: the page may be gone.
pub fn prefetch(recent: u32, span: Range<usize>) {
    let Some(number) = recent.checked_sub(1).map(|number| number as usize) else { return };
    let (start, end) = (span.start.min(PAGE), span.end.min(PAGE));
    // SAFETY: as in `prefetch_pin`, and the span is within the page.
    unsafe {
        let page = pg_sys::BufferBlocks.cast::<u8>().wrapping_add(number * PAGE);
        let bytes = page.wrapping_add(start);
        simd::prefetch(std::slice::from_raw_parts(bytes, end.saturating_sub(start)));
    }
}

/// What stands at this place of a page that was in buffer `recent`: nobody is kept from changing
/// it meanwhile, and the page may be another one by now. For hints alone.
pub fn peek<T: AnyBitPattern>(recent: u32, at: usize) -> Option<T> {
    let number = recent.checked_sub(1)? as usize;
    if at.checked_add(size_of::<T>())? > PAGE || !at.is_multiple_of(align_of::<T>()) {
        return None;
    }
    // SAFETY: `recent` was the number of a shared buffer, and there remain as many; the bytes are
    // within its page, and aligned as pages are by more than T. Any bytes are a value of T.
    unsafe {
        let page = pg_sys::BufferBlocks.cast::<u8>().wrapping_add(number * PAGE);
        Some(std::ptr::read_volatile(page.wrapping_add(at).cast::<T>()))
    }
}

fn read_tail(page: &[u8; PAGE]) -> Tail {
    bytemuck::pod_read_unaligned(&page[PAGE - size_of::<Tail>()..])
}

/// The tail of page `block`, if the page is of `kind` and belongs to `owner`.
fn owned(tail: Tail, kind: Kind, owner: Identity, block: u32) -> Read<Tail> {
    if tail.owner == owner && tail.kind == kind as u16 && tail.magic == TAIL_MAGIC {
        return Ok(tail);
    }
    // A zeroed page is one that a crash or another writer's extension left empty. A copy of a
    // log page has the log's name too, and is on one that was free.
    let zeroed = bytemuck::bytes_of(&tail).iter().all(|byte| *byte == 0);
    let is_other = tail.owner != owner || tail.kind == Kind::LogCopy as u16;
    if zeroed || (tail.magic == TAIL_MAGIC && is_other) {
        Err(Fault::Recycled(block))
    } else {
        Err(Fault::damaged(block, "owner"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::wal::tail;
    use super::*;
    use bytemuck::Zeroable;

    #[test]
    fn a_page_that_was_free_is_recycled_whoever_has_it_now() {
        let [log, other]: [Identity; 2] = bytemuck::cast([1u64, 2, 3, 4]);
        let of = |tail: Tail| owned(tail, Kind::Log, log, 7).map(|_| ());
        assert_eq!(of(tail(Kind::Log, log, 0)), Ok(()));
        // Of a log, only its copies are on pages that others may have had before.
        for recycled in [tail(Kind::Log, other, 0), tail(Kind::LogCopy, log, 0), Tail::zeroed()] {
            assert_eq!(of(recycled), Err(Fault::Recycled(7)));
        }
        let unmarked = Tail { magic: 0, ..tail(Kind::LogCopy, log, 0) };
        for damaged in [tail(Kind::Meta, log, 0), unmarked] {
            assert_eq!(of(damaged), Err(Fault::damaged(7, "owner")));
        }
    }
}
