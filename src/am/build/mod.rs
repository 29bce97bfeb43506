//! CREATE INDEX and REINDEX.
//!
//! The table is read by the backend that builds, the leader, and by PostgreSQL's parallel workers if
//! it plans any. `leader` starts them and takes their rows, `worker` is what they run; `batch` is a
//! message of rows, `shared` the memory between them.

mod batch;
mod leader;
mod shared;
mod worker;

use super::key;
use crate::janitor::{self, job_memory, Phase, Progress, RowStore};
use crate::metric::Metric;
use crate::page::{self, Index, OrRaise, Tid};
use crate::vector::{Detoasted, VectorError};
use leader::ParallelScan;
use pgrx::{pg_guard, pg_sys};

/// What the leader takes from its own pages before it looks for rows of workers: in bytes, for a
/// queue is full after so many, and in rows, for it is not to look too often.
const BYTES_BETWEEN_LOOKS: usize = 64 << 10;
const ROWS_BETWEEN_LOOKS: usize = 64;
/// Rows between two reports of progress.
const ROWS_BETWEEN_REPORTS: usize = 1024;

/// What the heap scan's callback needs.
struct Collector<'t> {
    metric: Metric,
    dims: usize,
    /// Takes the rows that are to be in the index.
    take: &'t mut dyn FnMut(Tid, &[f32]),
}

/// Builds an index over the rows of a table.
#[pg_guard]
pub unsafe extern "C-unwind" fn ambuild(
    heap: pg_sys::Relation,
    index_relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
) -> *mut pg_sys::IndexBuildResult {
    // SAFETY: PostgreSQL holds the relation open during the call.
    let index = unsafe { Index::new(index_relation) };
    let dims = key::dimensions(index);
    let metric = key::metric(index);
    page::create(index, pg_sys::ForkNumber::MAIN_FORKNUM, dims, metric);

    Progress::Build.begin(Phase::Scan, 0);
    let mut store = RowStore::new(dims, job_memory());
    // SAFETY: the arguments are those PostgreSQL passed.
    let heap_tuples = unsafe { read_table(heap, index_relation, info, metric, &mut store) };
    let index_tuples = store.len() as f64;
    janitor::remove_arenas_at_abort(index);
    janitor::build(index, store).or_raise(index);

    // SAFETY: palloc'd by PostgreSQL's allocator, as the caller expects.
    let mut result = unsafe { pgrx::PgBox::<pg_sys::IndexBuildResult>::alloc0() };
    result.heap_tuples = heap_tuples;
    result.index_tuples = index_tuples;
    result.into_pg()
}

/// Reads the rows of a table, together with PostgreSQL's workers if it plans any, and returns how
/// many there are.
///
/// # Safety
/// The arguments are those of a build.
unsafe fn read_table(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    metric: Metric,
    store: &mut RowStore,
) -> f64 {
    let dims = store.dims();
    let mut keep = |tid, vector: &[f32]| {
        store.push(tid, vector);
        if store.len().is_multiple_of(ROWS_BETWEEN_REPORTS) {
            Progress::Build.done(store.len() as u64);
        }
    };
    // SAFETY: the caller's promise.
    unsafe {
        let Some(mut workers) = ParallelScan::start(heap, index, info, dims) else {
            let mut collector = Collector { metric, dims, take: &mut keep };
            return collector.scan(heap, index, info, std::ptr::null_mut());
        };
        let (share, mut taken) = (workers.share(heap), 0usize);
        let rows = BYTES_BETWEEN_LOOKS / (dims * std::mem::size_of::<f32>());
        let rows = rows.clamp(1, ROWS_BETWEEN_LOOKS);
        let mut take = |tid, vector: &[f32]| {
            keep(tid, vector);
            taken += 1;
            if taken.is_multiple_of(rows) {
                workers.receive(&mut keep);
            }
        };
        let own = Collector { metric, dims, take: &mut take }.scan(heap, index, info, share);
        own + workers.finish(info, &mut keep)
    }
}

impl Collector<'_> {
    /// Scans the table, or, of a parallel `scan`, as much of it as others leave, and returns how many
    /// rows it had.
    ///
    /// # Safety
    /// The relations are open and locked as for a build, `info` is of this index, and `scan` null or
    /// begun for this.
    unsafe fn scan(
        &mut self,
        heap: pg_sys::Relation,
        index: pg_sys::Relation,
        info: *mut pg_sys::IndexInfo,
        scan: pg_sys::TableScanDesc,
    ) -> f64 {
        // Workers have no progress of their own to show.
        // SAFETY: the caller's promise; the collector outlives the scan.
        unsafe {
            let shows = pg_sys::ParallelWorkerNumber < 0;
            let state = (&raw mut *self).cast();
            pg_sys::table_index_build_scan(
                heap,
                index,
                info,
                true,
                shows,
                Some(collect),
                state,
                scan,
            )
        }
    }
}

/// Takes one row of the table.
#[pg_guard]
unsafe extern "C-unwind" fn collect(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    _alive: bool,
    state: *mut std::ffi::c_void,
) {
    // SAFETY: `state` is a scan's collector; the arrays have one entry; a value that is not null is
    // a vector and lives for the call.
    unsafe {
        let collector = &mut *state.cast::<Collector>();
        if *isnull {
            return;
        }
        let vector = Detoasted::from_datum(*values);
        if vector.len() != collector.dims {
            VectorError::UnexpectedDimensions { expected: collector.dims, found: vector.len() }
                .report();
        }
        if key::is_indexed(collector.metric, &vector) {
            (collector.take)(heap_tid(*tid), &vector);
        }
    }
}

/// PostgreSQL's tuple address as ours.
pub fn heap_tid(tid: pg_sys::ItemPointerData) -> Tid {
    let block = u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo);
    Tid::new(block, tid.ip_posid)
}

/// Writes the empty index that an unlogged table's index becomes after a crash.
#[pg_guard]
pub unsafe extern "C-unwind" fn ambuildempty(index: pg_sys::Relation) {
    // SAFETY: PostgreSQL holds the relation open during the call.
    let index = unsafe { Index::new(index) };
    let (dims, metric) = (key::dimensions(index), key::metric(index));
    page::create(index, pg_sys::ForkNumber::INIT_FORKNUM, dims, metric);
}

/// Names a phase for pg_stat_progress_create_index.
#[pg_guard]
pub unsafe extern "C-unwind" fn ambuildphasename(phase: i64) -> *mut std::ffi::c_char {
    // PostgreSQL only reads the name.
    janitor::phase_name(phase).map_or(std::ptr::null_mut(), |name| name.as_ptr().cast_mut())
}
