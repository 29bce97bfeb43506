//! Rows that a statement has inserted and that are not in the log yet.
//!
//! A record for each row costs more than the row: its own WAL record, its own locks. COPY and
//! statements that insert many rows ([`statement`] knows which) gather them here, and append them
//! a few pages at a time.
//!
//! Nobody can tell. A row is visible to others once its transaction has committed, and by then it
//! has been appended: at the end of its statement, which is also before a later one of the same
//! transaction looks. Within the statement, whatever may search the index (in a trigger, or a
//! function) has the rows appended first: a scan, and a statement that parallel workers help with.
//! A subtransaction's rows are appended before it commits and forgotten when it aborts, and those
//! of the outer one when it begins: what is gathered always belongs to the current one. That
//! matters, for the heap may give a row's TID to another once the (sub)transaction that inserted
//! it has aborted, and from then on no record may come that has it. Before that it may not, but
//! for speculative insertions, of INSERT ... ON CONFLICT, which are appended at once.

mod statement;

pub use statement::watch_statements;

use super::insert::{append_rows, Haste};
use crate::page::{Index, NewRows, Tid};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::mem::size_of;

/// Bytes of an index's vectors that are gathered: a few pages.
const BATCH_BYTES: usize = 32 << 10;
/// Longer vectors have a page or more for themselves.
const LONGEST: usize = 4 << 10;
/// Indexes that rows are gathered for: those of some partitions.
const MOST_INDEXES: usize = 16;

/// The rows gathered for an index.
struct Batch {
    index: pg_sys::Oid,
    tids: Vec<Tid>,
    /// Row-major.
    vectors: Vec<f32>,
}

thread_local! {
    static GATHERED: RefCell<Vec<Batch>> = const { RefCell::new(Vec::new()) };
}

/// Gathers a row, if its statement is one that inserts many, and appends those of its index if they
/// are enough. False if the caller has to append it.
pub fn keep(index: Index, tid: Tid, vector: &[f32]) -> bool {
    if size_of_val(vector) > LONGEST || !statement::gathers() {
        return false;
    }
    let oid = index.oid();
    let full = GATHERED.with_borrow_mut(|gathered| {
        let place = gathered.iter().position(|batch| batch.index == oid);
        let place = place.unwrap_or_else(|| {
            gathered.push(Batch { index: oid, tids: Vec::new(), vectors: Vec::new() });
            gathered.len() - 1
        });
        let batch = &mut gathered[place];
        batch.tids.push(tid);
        batch.vectors.extend_from_slice(vector);
        let is_full = batch.vectors.len() * size_of::<f32>() >= BATCH_BYTES;
        is_full.then(|| gathered.swap_remove(place))
    });
    if let Some(mut batch) = full {
        batch.append(index, Haste::No);
        GATHERED.with_borrow_mut(|gathered| gathered.push(batch));
    } else if GATHERED.with_borrow(Vec::len) > MOST_INDEXES {
        append_all(Haste::No);
    }
    true
}

/// Appends all rows that have been gathered.
pub fn append_all(haste: Haste) {
    let gathered = GATHERED.take();
    for mut batch in gathered.into_iter().filter(|batch| !batch.tids.is_empty()) {
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        // SAFETY: the index is there, for its table is locked until the transaction ends. After an
        // error PostgreSQL closes it.
        unsafe {
            let relation = pg_sys::index_open(batch.index, lock);
            batch.append(Index::new(relation), haste);
            pg_sys::index_close(relation, lock);
        }
    }
}

/// Forgets all rows that have been gathered: they have been rolled back.
fn forget_all() {
    GATHERED.with_borrow_mut(Vec::clear);
}

impl Batch {
    /// Appends the rows, and keeps the room they took.
    fn append(&mut self, index: Index, haste: Haste) {
        if let Some(rows) = NewRows::several(&self.tids, &self.vectors) {
            append_rows(index, rows, haste);
        }
        self.tids.clear();
        self.vectors.clear();
    }
}
