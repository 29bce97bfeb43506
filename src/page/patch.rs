//! Small changes of one page, logged without comparing images.
//!
//! [`super::wal::Change`] copies a page and compares all of it to find what has changed, which is
//! most of what an append costs. Here the changes are known, so that the same record, a generic
//! one of PostgreSQL's, is put together from them.
//!
//! ```text
//! a generic record's data for a page: | offset u16 | length u16 | bytes | offset ...
//! ```

use super::buffer::Locked;
use super::layout::{HEAD, PAGE, PAYLOAD};
use super::Index;
use pgrx::pg_sys;
use std::mem::offset_of;

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
    pub fn commit(mut self, index: Index, page: &Locked) {
        let is_logged = needs_wal(index);
        // SAFETY: the caller's guard has the page pinned and locked for writing, `put` keeps within
        // it, and the data lives until the record is inserted. Only the WAL functions can fail in
        // the critical section, which stops the server as it must.
        unsafe {
            let bytes = pg_sys::BufferGetBlock(page.buffer()).cast::<u8>();
            if is_logged {
                pg_sys::XLogBeginInsert();
            }
            pg_sys::CritSectionCount += 1;
            apply(&self.fragments, &mut *bytes.cast::<[u8; PAGE]>());
            pg_sys::MarkBufferDirty(page.buffer());
            if is_logged {
                pg_sys::XLogRegisterBuffer(0, page.buffer(), pg_sys::REGBUF_STANDARD as u8);
                let (data, len) = (self.fragments.as_mut_ptr(), self.fragments.len());
                pg_sys::XLogRegisterBufData(0, data.cast(), len as i32);
                let lsn = pg_sys::XLogInsert(pg_sys::RmgrIds::RM_GENERIC_ID as u8, 0);
                (*bytes.cast::<pg_sys::PageHeaderData>()).pd_lsn =
                    pg_sys::PageXLogRecPtr { xlogid: (lsn >> 32) as u32, xrecoff: lsn as u32 };
            }
            pg_sys::CritSectionCount -= 1;
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
    #[should_panic(expected = "offset <= PAYLOAD")]
    fn a_patch_does_not_reach_the_special_area() {
        Patch::new(0, 0).put(PAYLOAD - 1, &[&[1, 2]]);
    }
}
