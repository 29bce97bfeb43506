//! Changes of pages, logged as generic WAL records.

use super::buffer::Locked;
use super::layout::{Kind, Tail, HEAD, NO_BLOCK, PAGE, PAYLOAD, TAIL_MAGIC};
use super::{Identity, Index};
use pgrx::pg_sys;
use std::mem::size_of;

/// Pages one record can hold.
pub const PAGES_PER_RECORD: usize = pg_sys::MAX_GENERIC_XLOG_PAGES as usize;

/// One WAL record in the making: up to [`PAGES_PER_RECORD`] pages that change together.
///
/// The buffers stay locked by their [`Locked`] guards until the record is committed; dropping an
/// uncommitted change leaves the pages as they were.
pub struct Change {
    state: *mut pg_sys::GenericXLogState,
}

impl Change {
    /// Starts a record.
    pub fn begin(index: Index) -> Change {
        // SAFETY: the relation is open.
        Change { state: unsafe { pg_sys::GenericXLogStart(index.relation()) } }
    }

    /// An image of an existing page to be edited.
    pub fn edit<'c>(&'c self, page: &'c Locked) -> PageMut<'c> {
        self.register(page, 0)
    }

    /// An image of a page that is written from scratch.
    pub fn fill<'c>(&'c self, page: &'c Locked, tail: Tail) -> PageMut<'c> {
        let mut image = self.register(page, pg_sys::GENERIC_XLOG_FULL_IMAGE as i32);
        image.initialise(tail);
        image
    }

    fn register<'c>(&'c self, page: &'c Locked, flags: i32) -> PageMut<'c> {
        // SAFETY: the buffer is exclusively locked; the image lives until the record is finished,
        // which consumes `self`.
        unsafe {
            let image = pg_sys::GenericXLogRegisterBuffer(self.state, page.buffer(), flags);
            PageMut(&mut *image.cast::<[u8; PAGE]>())
        }
    }

    /// Writes the record and applies it to the buffers.
    pub fn commit(self) {
        // SAFETY: `self` is consumed, so no image is used afterwards.
        unsafe { pg_sys::GenericXLogFinish(self.state) };
        std::mem::forget(self);
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the record was not finished.
            unsafe { pg_sys::GenericXLogAbort(self.state) }
        }
    }
}

/// The bytes of a page, in memory as page headers are aligned.
#[repr(C, align(8))]
pub struct PageImage(pub [u8; PAGE]);

/// The bytes a page will have.
pub struct PageMut<'c>(&'c mut [u8; PAGE]);

impl<'c> PageMut<'c> {
    /// A page that is put together in memory.
    pub fn of(image: &'c mut PageImage) -> PageMut<'c> {
        PageMut(&mut image.0)
    }

    /// Makes an empty page with this tail.
    pub fn initialise(&mut self, tail: Tail) {
        // SAFETY: the image is PAGE bytes.
        unsafe {
            pg_sys::PageInit(self.0.as_mut_ptr().cast(), PAGE, size_of::<Tail>());
        }
        self.set_tail(tail);
    }

    /// What stands between the page header and the tail.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.0[HEAD..HEAD + PAYLOAD]
    }

    /// Says how much of the payload is in use; the rest reads as zeros.
    pub fn set_used(&mut self, bytes: usize) {
        debug_assert!(bytes <= PAYLOAD);
        // SAFETY: the image starts with a page header.
        unsafe {
            (*self.0.as_mut_ptr().cast::<pg_sys::PageHeaderData>()).pd_lower =
                (HEAD + bytes) as u16;
        }
    }

    /// Overwrites the special area.
    pub fn set_tail(&mut self, tail: Tail) {
        self.0[PAGE - size_of::<Tail>()..].copy_from_slice(bytemuck::bytes_of(&tail));
    }
}

/// The tail of a page that ends its chain.
pub fn tail(kind: Kind, owner: Identity, ordinal: u32) -> Tail {
    Tail { owner, ordinal, next: NO_BLOCK, kind: kind as u16, magic: TAIL_MAGIC, reserved: 0 }
}
