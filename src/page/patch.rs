//! Known changes of a few pages, logged without comparing images.
//!
//! [`super::wal::Change`] copies a page and compares all of it to find what has changed, which is
//! most of what an append costs. Here the changes are known, so that the same record, a generic
//! one of PostgreSQL's, is put together from them.
//!
//! ```text
//! a generic record's data for a page: | offset u16 | length u16 | bytes | offset ...
//! ```

use super::buffer::Locked;
use super::layout::{Tail, HEAD, PAGE, PAYLOAD};
use super::wal::{PageImage, PageMut};
use super::Index;
use pgrx::pg_sys;
use std::mem::{offset_of, size_of};

/// Where a page header says how much of the page is in use.
const LOWER: usize = offset_of!(pg_sys::PageHeaderData, pd_lower);

/// PostgreSQL's InvalidSubTransactionId.
const NO_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// New bytes for places in one page.
pub struct Patch {
    /// The record's data.
    fragments: Vec<u8>,
}

impl Patch {
    /// A patch after which `used` bytes of the payload are in use. `room` is a guess at the bytes
    /// to come.
    pub fn new(used: usize, room: usize) -> Patch {
        assert!(used <= PAYLOAD);
        let mut patch = Patch { fragments: Vec::with_capacity(room) };
        patch.at(LOWER, &[&((HEAD + used) as u16).to_le_bytes()]);
        patch
    }

    /// A patch of the special area.
    pub fn of_tail(tail: Tail) -> Patch {
        let mut patch = Patch { fragments: Vec::with_capacity(2 * size_of::<Tail>()) };
        patch.at(PAGE - size_of::<Tail>(), &[bytemuck::bytes_of(&tail)]);
        patch
    }

    /// Puts `parts`, one after the other, into the payload from `offset` on.
    pub fn put(&mut self, offset: usize, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(offset <= PAYLOAD && len <= PAYLOAD - offset);
        self.at(HEAD + offset, parts);
    }

    fn at(&mut self, offset: usize, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.fragments.extend_from_slice(&(offset as u16).to_le_bytes());
        self.fragments.extend_from_slice(&(len as u16).to_le_bytes());
        for part in parts {
            self.fragments.extend_from_slice(part);
        }
    }

    /// Applies the patch to the page and writes its WAL record.
    pub fn commit(self, index: Index, page: &Locked) {
        let mut record = Record::new();
        record.patch(page, self);
        record.commit(index);
    }
}

/// Pages that a record takes without asking for more room.
const MOST_PAGES: usize = 4;

/// What becomes of a page.
enum Part {
    Patched(Patch),
    /// All of it is written anew.
    Filled(Box<PageImage>),
}

/// One WAL record in the making: a few pages that change together.
///
/// The buffers stay locked by their [`Locked`] guards until the record is committed; a dropped one
/// leaves the pages as they were.
pub struct Record<'p> {
    parts: Vec<(&'p Locked, Part)>,
}

impl<'p> Record<'p> {
    /// A record of nothing.
    pub fn new() -> Record<'p> {
        Record { parts: Vec::with_capacity(MOST_PAGES) }
    }

    /// Adds the patch of a page that is locked for writing.
    pub fn patch(&mut self, page: &'p Locked, patch: Patch) {
        assert!(self.parts.len() < MOST_PAGES);
        self.parts.push((page, Part::Patched(patch)));
    }

    /// Adds a page that is locked for writing and written from scratch by `write`.
    pub fn fill(&mut self, page: &'p Locked, tail: Tail, write: impl FnOnce(&mut PageMut<'_>)) {
        assert!(self.parts.len() < MOST_PAGES);
        let mut image = Box::new(PageImage([0; PAGE]));
        let mut page_image = PageMut::of(&mut image);
        page_image.initialise(tail);
        write(&mut page_image);
        self.parts.push((page, Part::Filled(image)));
    }

    /// Applies the changes to the buffers and writes the WAL record.
    pub fn commit(mut self, index: Index) {
        let is_logged = needs_wal(index);
        // SAFETY: the guards have the pages pinned and locked for writing, parts keep within them,
        // and their data lives until the record is inserted. Only the WAL functions can fail in the
        // critical section, which stops the server as it must.
        unsafe {
            pg_sys::CritSectionCount += 1;
            if is_logged {
                unguarded::XLogBeginInsert();
            }
            for (nth, (page, part)) in self.parts.iter_mut().enumerate() {
                let bytes = &mut *pg_sys::BufferGetBlock(page.buffer()).cast::<[u8; PAGE]>();
                match part {
                    Part::Patched(patch) => apply(&patch.fragments, bytes),
                    Part::Filled(image) => bytes.copy_from_slice(&image.0),
                }
                unguarded::MarkBufferDirty(page.buffer());
                if is_logged {
                    register(nth as u8, page, part);
                }
            }
            if is_logged {
                let lsn = unguarded::XLogInsert(pg_sys::RmgrIds::RM_GENERIC_ID as u8, 0);
                let lsn =
                    pg_sys::PageXLogRecPtr { xlogid: (lsn >> 32) as u32, xrecoff: lsn as u32 };
                for (page, _) in &self.parts {
                    let bytes = pg_sys::BufferGetBlock(page.buffer());
                    (*bytes.cast::<pg_sys::PageHeaderData>()).pd_lsn = lsn;
                }
            }
            pg_sys::CritSectionCount -= 1;
        }
    }
}

/// PostgreSQL's functions for a critical section, without what catches their errors: in there an
/// error stops the server and does not come back.
mod unguarded {
    use pgrx::pg_sys::{Buffer, RmgrId, XLogRecPtr};
    use std::ffi::{c_char, c_int};

    unsafe extern "C-unwind" {
        pub fn MarkBufferDirty(buffer: Buffer);
        pub fn XLogBeginInsert();
        pub fn XLogRegisterBuffer(block_id: u8, buffer: Buffer, flags: u8);
        pub fn XLogRegisterBufData(block_id: u8, data: *mut c_char, len: c_int);
        pub fn XLogInsert(rmid: RmgrId, info: u8) -> XLogRecPtr;
    }
}

/// Makes a page the `nth` of the WAL record that has been begun.
///
/// # Safety
/// In a critical section. The page is locked for writing and has been changed, and the part lives
/// until the record is inserted.
unsafe fn register(nth: u8, page: &Locked, part: &mut Part) {
    // SAFETY: the caller's promise.
    unsafe {
        match part {
            Part::Patched(patch) => {
                unguarded::XLogRegisterBuffer(nth, page.buffer(), pg_sys::REGBUF_STANDARD as u8);
                let (data, len) = (patch.fragments.as_mut_ptr(), patch.fragments.len());
                unguarded::XLogRegisterBufData(nth, data.cast(), len as i32);
            }
            Part::Filled(_) => {
                let flags = pg_sys::REGBUF_FORCE_IMAGE | pg_sys::REGBUF_STANDARD;
                unguarded::XLogRegisterBuffer(nth, page.buffer(), flags as u8);
            }
        }
    }
}

/// Does what replay of the record will do.
fn apply(mut fragments: &[u8], page: &mut [u8; PAGE]) {
    while let Some((&[a, b, c, d], rest)) = fragments.split_first_chunk() {
        let offset = usize::from(u16::from_le_bytes([a, b]));
        let len = usize::from(u16::from_le_bytes([c, d]));
        let Some((bytes, rest)) = rest.split_at_checked(len) else { return };
        if let Some(place) = page.get_mut(offset..offset + len) {
            place.copy_from_slice(bytes);
        }
        fragments = rest;
    }
}

/// PostgreSQL's macro RelationNeedsWAL.
fn needs_wal(index: Index) -> bool {
    // SAFETY: the relation is open, and the setting is read on the backend's own thread.
    unsafe {
        let relation = &*index.relation();
        let is_permanent = (*relation.rd_rel).relpersistence
            == pg_sys::RELPERSISTENCE_PERMANENT as std::ffi::c_char;
        let is_old = relation.rd_createSubid == NO_SUBTRANSACTION
            && relation.rd_firstRelfilenodeSubid == NO_SUBTRANSACTION;
        is_permanent && (is_old || pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_its_places_and_nothing_else() {
        let mut patch = Patch::new(100, 64);
        patch.put(8, &[&[1, 2], &[3]]);
        patch.put(PAYLOAD - 1, &[&[9]]);
        let mut page = [7u8; PAGE];
        apply(&patch.fragments, &mut page);
        let mut expected = [7u8; PAGE];
        expected[LOWER..LOWER + 2].copy_from_slice(&((HEAD + 100) as u16).to_le_bytes());
        expected[HEAD + 8..HEAD + 11].copy_from_slice(&[1, 2, 3]);
        expected[HEAD + PAYLOAD - 1] = 9;
        assert_eq!(page, expected);
    }

    #[test]
    fn a_tail_s_patch_leaves_the_rest_as_it_is() {
        let tail = Tail { next: 7, ..bytemuck::pod_read_unaligned(&[3; size_of::<Tail>()]) };
        let mut page = [9u8; PAGE];
        apply(&Patch::of_tail(tail).fragments, &mut page);
        let (rest, special) = page.split_at(PAGE - size_of::<Tail>());
        assert!(rest.iter().all(|byte| *byte == 9));
        assert_eq!(bytemuck::pod_read_unaligned::<Tail>(special), tail);
    }

    #[test]
    #[should_panic(expected = "offset <= PAYLOAD")]
    fn a_patch_does_not_reach_the_special_area() {
        Patch::new(0, 0).put(PAYLOAD - 1, &[&[1, 2]]);
    }
}
