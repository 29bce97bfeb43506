//! The heap pages of a scan's rows, brought near before the executor asks for them.
//!
//! Each row that a scan delivers is on a heap page of its own. To find its buffer is a search of a
//! hash table, and the page is far from the processor too: half a dozen waits for memory, one after
//! the other, for each row. A backend remembers which buffers it met heap pages in, as
//! [`ColumnMap`](crate::page) does for the index's own. The processor is asked for a page while
//! ranks are still computed, and a row is delivered with its page in the place where the heap's
//! access method looks first: in its own hands, pinned.

use crate::page::{heap, Tid};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};

/// Where a backend met the pages of one table.
#[derive(Debug, Default)]
pub struct HeapPages {
    /// For each page the number of its buffer, from 1 on, or 0. Zeroed memory is not there until it
    /// is written to, so that a page never read costs nothing.
    recent: RefCell<Box<[Cell<u32>]>>,
    /// The row whose page was asked for last.
    asked: Cell<Option<Tid>>,
}

/// Pages from this one on, at 128 GB, are not remembered.
const MOST_PAGES: usize = 1 << 24;

impl HeapPages {
    fn recent(&self, block: u32) -> u32 {
        self.recent.borrow().get(block as usize).map_or(0, Cell::get)
    }

    /// Remembers the buffer of a page of a table that has so many.
    fn remember(&self, block: u32, buffer: pg_sys::Buffer, pages: impl FnOnce() -> u32) {
        let at = block as usize;
        // Local buffers, of temporary relations, have numbers below zero.
        let Ok(number) = u32::try_from(buffer) else { return };
        let mut recent = self.recent.borrow_mut();
        if at >= recent.len() && at < MOST_PAGES {
            // What is copied is there from then on, so that it is not to happen often.
            let pages = (pages() as usize).max(at + 1);
            let length = (pages + pages / 4).min(MOST_PAGES);
            let mut more = bytemuck::zeroed_slice_box::<Cell<u32>>(length);
            more[..recent.len()].clone_from_slice(&recent);
            *recent = more;
        }
        if let Some(of) = recent.get(at) {
            of.set(number);
        }
    }

    /// Asks the processor for the page of a row that will be delivered, and for the row asked for
    /// before, whose page has come meanwhile. A hint: neither need be there.
    pub fn prefetch(&self, tid: Tid) {
        heap::prefetch_line_pointer(self.recent(tid.block()), tid.offset());
        if let Some(before) = self.asked.replace(Some(tid)) {
            heap::prefetch_row(self.recent(before.block()), before.offset());
        }
    }

    /// Gives the page of a row that is being delivered to the heap's access method, which would
    /// look for it otherwise.
    pub fn hand_over(&self, scan: &mut pg_sys::IndexScanDescData, tid: Tid) {
        let table = scan.heapRelation;
        // SAFETY: the scan holds the heap open. What fetches its rows is what its access method
        // made, and the heap's makes an IndexFetchHeapData. It keeps the buffer it has pinned there
        // and gives it up itself, so that a pin is passed on and taken over here.
        unsafe {
            if table.is_null()
                || scan.xs_heapfetch.is_null()
                || (*table).rd_tableam != pg_sys::GetHeapamTableAmRoutine()
            {
                return;
            }
            let fetch = &mut *scan.xs_heapfetch.cast::<pg_sys::IndexFetchHeapData>();
            let (block, held) = (tid.block(), fetch.xs_cbuf);
            let has_page = held != pg_sys::InvalidBuffer as pg_sys::Buffer;
            if has_page && pg_sys::BufferGetBlockNumber(held) == block {
                return;
            }
            let recent = self.recent(block);
            fetch.xs_cbuf = heap::pin(table, block, recent);
            if has_page {
                pg_sys::ReleaseBuffer(held);
            }
            if u32::try_from(fetch.xs_cbuf) != Ok(recent) {
                self.remember(block, fetch.xs_cbuf, || heap::pages(table));
            }
            // As the heap does with a page it comes to.
            pg_sys::heap_page_prune_opt(table, fetch.xs_cbuf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_lasts_while_the_table_grows() {
        let pages = HeapPages::default();
        let length = || pages.recent.borrow().len();
        assert_eq!(pages.recent(7), 0);
        pages.remember(7, 3, || 1000);
        // Room for all pages there are, and some more, so that it is not copied for each.
        assert_eq!(length(), 1250);
        pages.remember(1100, 4, || unreachable!());
        pages.remember(1250, 5, || 1400);
        assert_eq!(length(), 1750);
        // A table whose length was told before the page was added.
        pages.remember(2000, 6, || 1400);
        assert_eq!(length(), 2001 + 500);
        assert_eq!([7, 1100, 1250, 2000, 8].map(|page| pages.recent(page)), [3, 4, 5, 6, 0]);
        // Of local buffers and of pages very far out nothing is remembered.
        pages.remember(9, -1, || 1400);
        pages.remember(u32::MAX, 8, || unreachable!());
        assert_eq!((pages.recent(9), pages.recent(u32::MAX), length()), (0, 0, 2501));
        pages.remember(3000, 9, || u32::MAX);
        assert_eq!(length(), MOST_PAGES);
    }
}
