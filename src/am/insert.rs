//! INSERT, UPDATE and COPY: appends to the log.

use super::backpressure::relieve;
use super::build::heap_tid;
use super::{key, pending};
use crate::janitor::background;
use crate::memtable;
use crate::page::{append, Hint, Index, NewRows, OrRaise, View};
use crate::vector::{Detoasted, VectorError};
use pgrx::{pg_guard, pg_sys};

/// What a backend remembers of an index between inserts, in `rd_amcache`.
#[derive(Clone, Copy)]
struct Memory {
    dims: usize,
    metric: crate::metric::Metric,
    hint: Option<Hint>,
    /// What [`background::row_logged`] returned last.
    announced: u64,
}

/// Appends a row to the log, at once or together with others of its statement.
#[pg_guard]
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's signature")]
pub unsafe extern "C-unwind" fn aminsert(
    index: pg_sys::Relation,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    tid: pg_sys::ItemPointer,
    _heap: pg_sys::Relation,
    _unique: pg_sys::IndexUniqueCheck::Type,
    _unchanged: bool,
    _info: *mut pg_sys::IndexInfo,
) -> bool {
    // SAFETY: PostgreSQL holds the relation open, and passes arrays of one entry whose value, if
    // it is not null, is a vector that lives for the call.
    let (index, vector, tid) = unsafe {
        if *isnull {
            return false;
        }
        (Index::new(index), Detoasted::from_datum(*values), heap_tid(*tid))
    };
    let memory = recall(index);
    if vector.len() != memory.dims {
        VectorError::UnexpectedDimensions { expected: memory.dims, found: vector.len() }.report();
    }
    if !key::is_indexed(memory.metric, &vector) {
        return false;
    }
    if !pending::keep(index, tid, &vector) {
        append_rows(index, NewRows::one(&tid, &vector), |_| ());
    }
    false
}

/// Appends rows to the log, and sees to it that a log which that filled is flushed. `appended` is
/// called with the number of those that have just been appended: what fails after that is no reason
/// to append them again.
pub fn append_rows(index: Index, rows: NewRows<'_>, mut appended: impl FnMut(usize)) {
    let mut left = Some(rows);
    while let Some(rows) = left {
        let memory = recall(index);
        let done = append(index, memory.hint, rows).or_raise(index);
        appended(done.rows);
        let (rows, others) = rows.split(done.rows);
        let announced = background::row_logged(index, memory.announced);
        remember(index, Memory { hint: Some(done.hint), announced, ..memory });
        if memtable::publish(index, &done, rows) {
            background::announce_links();
        }
        if let Some((before, after)) = done.grown {
            relieve(index, before, after);
        }
        left = others;
    }
}

/// What is remembered of the index, or read from its metapage.
fn recall(index: Index) -> Memory {
    // SAFETY: rd_amcache of a drift index is null or what `remember` put there.
    let memory = unsafe { (*index.relation()).rd_amcache.cast::<Memory>().as_ref().copied() };
    memory.unwrap_or_else(|| {
        let view = View::take(index).or_raise(index);
        Memory { dims: view.dims(), metric: view.metric, hint: None, announced: 0 }
    })
}

/// Keeps `memory` until PostgreSQL forgets the relation.
fn remember(index: Index, memory: Memory) {
    // SAFETY: the relation is open; what is allocated in its index context is freed with it, and
    // rd_amcache is reset whenever the relation is invalidated.
    unsafe {
        let relation = index.relation();
        if (*relation).rd_amcache.is_null() {
            (*relation).rd_amcache =
                pg_sys::MemoryContextAlloc((*relation).rd_indexcxt, std::mem::size_of::<Memory>());
        }
        (*relation).rd_amcache.cast::<Memory>().write(memory);
    }
}
