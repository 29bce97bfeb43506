//! CREATE INDEX and REINDEX.

use super::key;
use crate::janitor::{self, job_memory, Phase, Progress, RowStore};
use crate::metric::Metric;
use crate::page::{self, Index, OrRaise, Tid};
use crate::vector::{Detoasted, VectorError};
use pgrx::{pg_guard, pg_sys};

/// What the heap scan's callback fills.
struct Collector {
    metric: Metric,
    dims: usize,
    store: RowStore,
    progress: u64,
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
    let mut collector =
        Collector { metric, dims, store: RowStore::new(dims, job_memory()), progress: 0 };
    // SAFETY: the arguments are those PostgreSQL passed; the collector outlives the scan.
    let heap_tuples = unsafe {
        pg_sys::table_index_build_scan(
            heap,
            index_relation,
            info,
            true,
            true,
            Some(collect),
            (&raw mut collector).cast(),
            std::ptr::null_mut(),
        )
    };
    let index_tuples = collector.store.len() as f64;
    janitor::remove_arenas_at_abort(index);
    janitor::build(index, collector.store).or_raise(index);

    // SAFETY: palloc'd by PostgreSQL's allocator, as the caller expects.
    let mut result = unsafe { pgrx::PgBox::<pg_sys::IndexBuildResult>::alloc0() };
    result.heap_tuples = heap_tuples;
    result.index_tuples = index_tuples;
    result.into_pg()
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
    // SAFETY: `state` is ambuild's collector; the arrays have one entry; a value that is not null
    // is a vector and lives for the call.
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
            collector.store.push(heap_tid(*tid), &vector);
        }
        collector.progress += 1;
        if collector.progress.is_multiple_of(1024) {
            Progress::Build.done(collector.progress);
            pgrx::check_for_interrupts!();
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
