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
//!
//! What a subtransaction has gathered is forgotten when it aborts. That matters, for the heap may
//! give a row's TID to another once the (sub)transaction that inserted it has aborted, and from
//! then on no record may come that has it. Before that it may not, but for speculative insertions,
//! of INSERT ... ON CONFLICT, which are appended at once. And a row leaves only once it has been
//! appended: if that fails within a subtransaction, the transaction around it may yet go on.

mod statement;

pub use statement::watch_statements;

use super::insert::append_rows;
use crate::page::{Index, NewRows, Tid};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::mem::{size_of, take};

/// Bytes of an index's vectors that are gathered: a few pages.
const BATCH_BYTES: usize = 32 << 10;
/// Longer vectors have a page or more for themselves.
const LONGEST: usize = 4 << 10;
/// Indexes that rows are gathered for: those of some partitions.
const MOST_INDEXES: usize = 16;

/// The rows gathered for an index.
struct Batch {
    index: pg_sys::Oid,
    dims: usize,
    tids: Vec<Tid>,
    /// Row-major.
    vectors: Vec<f32>,
    /// For each row how many subtransactions it is in. Never fewer than the row before: while one
    /// goes on, what is around it gathers nothing.
    depths: Vec<usize>,
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
    let (oid, depth) = (index.oid(), statement::depth());
    let full = GATHERED.with_borrow_mut(|gathered| {
        let place = gathered.iter().position(|batch| batch.index == oid);
        let place = place.unwrap_or_else(|| {
            gathered.push(Batch::new(oid, vector.len()));
            gathered.len() - 1
        });
        let batch = &mut gathered[place];
        batch.tids.push(tid);
        batch.vectors.extend_from_slice(vector);
        batch.depths.push(depth);
        let is_full = batch.vectors.len() * size_of::<f32>() >= BATCH_BYTES;
        is_full.then(|| gathered.swap_remove(place))
    });
    if let Some(batch) = full {
        Appending { batch, done: 0 }.append(index);
    } else if GATHERED.with_borrow(Vec::len) > MOST_INDEXES {
        append_all();
    }
    true
}

/// Appends all rows that have been gathered.
pub fn append_all() {
    while let Some(batch) = GATHERED.with_borrow_mut(Vec::pop) {
        if batch.tids.is_empty() {
            continue;
        }
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let appending = Appending { batch, done: 0 };
        // SAFETY: the index is there, for its table is locked until the transaction ends. After an
        // error PostgreSQL closes it.
        unsafe {
            let relation = pg_sys::index_open(appending.batch.index, lock);
            appending.append(Index::new(relation));
            pg_sys::index_close(relation, lock);
        }
    }
}

/// A transaction has ended, and with it what it had gathered.
fn forget_all() {
    GATHERED.with_borrow_mut(Vec::clear);
}

/// What more than so many subtransactions had gathered has been rolled back.
fn forget_beyond(depth: usize) {
    GATHERED.with_borrow_mut(|gathered| {
        for batch in gathered {
            let kept = batch.depths.partition_point(|row| *row <= depth);
            batch.truncate(kept);
        }
    });
}

/// What a subtransaction within so many others had gathered is theirs now.
fn hand_over(depth: usize) {
    GATHERED.with_borrow_mut(|gathered| {
        gathered
            .iter_mut()
            .flat_map(|batch| &mut batch.depths)
            .for_each(|row| *row = depth.min(*row));
    });
}

impl Batch {
    fn new(index: pg_sys::Oid, dims: usize) -> Batch {
        Batch { index, dims, tids: Vec::new(), vectors: Vec::new(), depths: Vec::new() }
    }

    fn truncate(&mut self, rows: usize) {
        self.tids.truncate(rows);
        self.vectors.truncate(rows * self.dims);
        self.depths.truncate(rows);
    }
}

/// A batch that is being appended. Dropped, by an error too, it is gathered again, without the rows
/// that have been appended; of an empty one the room it took is of use.
struct Appending {
    batch: Batch,
    done: usize,
}

impl Appending {
    fn append(mut self, index: Index) {
        let Appending { batch, done } = &mut self;
        let rows = NewRows::several(&batch.tids, &batch.vectors);
        rows.into_iter().for_each(|rows| append_rows(index, rows, |rows| *done += rows));
        // Who has looked between the server's own check, when it handed out the row, and the append
        // has not seen it.
        // SAFETY: the relation is open. An error comes back as any other.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                CheckForSerializableConflictIn(
                    index.relation(),
                    std::ptr::null_mut(),
                    pg_sys::InvalidBlockNumber,
                );
            });
        }
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        let Batch { index, dims, tids, vectors, depths } = &mut self.batch;
        let done = self.done.min(tids.len());
        tids.drain(..done);
        vectors.drain(..done * *dims);
        depths.drain(..done);
        let (tids, vectors, depths) = (take(tids), take(vectors), take(depths));
        let batch = Batch { index: *index, dims: *dims, tids, vectors, depths };
        GATHERED.with_borrow_mut(|gathered| gathered.push(batch));
    }
}

extern "C-unwind" {
    /// PostgreSQL's, of `storage/predicate.h`.
    fn CheckForSerializableConflictIn(
        relation: pg_sys::Relation,
        tid: pg_sys::ItemPointer,
        block: pg_sys::BlockNumber,
    );
}

#[cfg(feature = "pg_test")]
#[pgrx::pg_schema]
mod tests {
    use super::*;
    use pgrx::prelude::*;
    use pgrx::PgTryBuilder;

    fn gathered() -> Vec<(Vec<Tid>, Vec<f32>, Vec<usize>)> {
        GATHERED.with_borrow(|gathered| {
            let parts =
                |batch: &Batch| (batch.tids.clone(), batch.vectors.clone(), batch.depths.clone());
            gathered.iter().map(parts).collect()
        })
    }

    #[pg_test]
    fn rows_whose_append_fails_stay_and_go_with_their_subtransaction() {
        let tids: Vec<Tid> = (1..=4).map(|nth| Tid::new(7, nth)).collect();
        let vectors: Vec<f32> = (0..8u8).map(f32::from).collect();
        // No index has this number.
        let batch = Batch {
            index: pg_sys::Oid::from(1),
            dims: 2,
            tids: tids.clone(),
            vectors: vectors.clone(),
            depths: vec![0, 1, 1, 2],
        };
        GATHERED.with_borrow_mut(|gathered| gathered.push(batch));
        let fails = || {
            append_all();
            false
        };
        assert!(PgTryBuilder::new(fails).catch_others(|_| true).execute());
        assert_eq!(gathered(), [(tids.clone(), vectors.clone(), vec![0, 1, 1, 2])]);

        // The innermost subtransaction commits, and that around it aborts.
        hand_over(1);
        assert_eq!(gathered(), [(tids.clone(), vectors.clone(), vec![0, 1, 1, 1])]);
        forget_beyond(0);
        assert_eq!(gathered(), [(tids[..1].to_vec(), vectors[..2].to_vec(), vec![0])]);
        forget_all();
    }

    #[pg_test]
    fn rows_that_have_been_appended_are_gone() {
        let tids: Vec<Tid> = (1..=3).map(|nth| Tid::new(7, nth)).collect();
        let mut batch = Batch::new(pg_sys::Oid::from(1), 1);
        batch.tids = tids.clone();
        batch.vectors = vec![1.0, 2.0, 3.0];
        batch.depths = vec![0; 3];
        drop(Appending { batch, done: 2 });
        assert_eq!(gathered(), [(tids[2..].to_vec(), vec![3.0], vec![0])]);
        forget_all();
    }
}
