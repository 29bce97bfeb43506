//! Pages of tables, as far as hints go: rows themselves are the heap's to fetch.
//!
//! ```text
//! 0           20              24       28              line pointer: offset 15 bits, flags 2,
//! +-----------+---------------+--------+--------+---                 length 15
//! | header    | pd_prune_xid  | line pointers   ...      rows, from the end of the page on
//! +-----------+---------------+--------+--------+---
//! ```

use super::buffer;
use super::layout::HEAD;
use pgrx::pg_sys;

const POINTER: usize = 4;

/// What is looked at of a row: its header, and the columns behind it.
const ROW: usize = 64;

/// Pins a page of a table, which may still be in buffer `recent`.
///
/// # Safety
/// The table is open, and `recent` zero or the number of what once was a shared buffer.
pub unsafe fn pin(table: pg_sys::Relation, block: u32, recent: u32) -> pg_sys::Buffer {
    // SAFETY: the caller's promise; a block past the table's end raises an error by itself.
    unsafe {
        buffer::pin_recent(table, block, recent).unwrap_or_else(|| pg_sys::ReadBuffer(table, block))
    }
}

/// Pages of a table.
///
/// # Safety
/// The table is open.
pub unsafe fn pages(table: pg_sys::Relation) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(table, pg_sys::ForkNumber::MAIN_FORKNUM) }
}

/// Asks the processor for what leads to the row of this offset, from 1 on, of a heap page that was
/// in buffer `recent`. A hint: the page may be gone.
pub fn prefetch_line_pointer(recent: u32, offset: u16) {
    let at = line_pointer(offset);
    buffer::prefetch_pin(recent);
    buffer::prefetch(recent, 0..HEAD);
    buffer::prefetch(recent, at..at + POINTER);
}

/// Asks the processor for the row itself, once its line pointer has come.
pub fn prefetch_row(recent: u32, offset: u16) {
    if let Some(pointer) = buffer::peek::<u32>(recent, line_pointer(offset)) {
        let at = row_offset(pointer);
        buffer::prefetch(recent, at..at + ROW);
    }
}

fn line_pointer(offset: u16) -> usize {
    HEAD + usize::from(offset).saturating_sub(1) * POINTER
}

/// Where on its page a line pointer points to.
fn row_offset(pointer: u32) -> usize {
    (pointer & 0x7fff) as usize
}

#[cfg(feature = "pg_test")]
#[pgrx::pg_schema]
mod tests {
    use super::*;
    use pgrx::prelude::*;

    #[pg_test]
    fn line_pointers_are_where_the_server_has_them() {
        let mut pointer = pg_sys::ItemIdData::default();
        pointer.set_lp_off(0x5a5a);
        pointer.set_lp_flags(3);
        pointer.set_lp_len(0x7fff);
        // SAFETY: both are four bytes of which all values are valid.
        let bits: u32 = unsafe { std::mem::transmute(pointer) };
        assert_eq!(row_offset(bits), 0x5a5a);
        assert_eq!(line_pointer(1), std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp));
        assert_eq!(size_of::<pg_sys::ItemIdData>(), POINTER);
    }
}
