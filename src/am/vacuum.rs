//! VACUUM.

use crate::janitor::{self, JobLock};
use crate::page::{Index, Manifest, OrRaise, View};
use pgrx::{pg_guard, pg_sys};

/// Removes the entries whose rows are dead.
#[pg_guard]
pub unsafe extern "C-unwind" fn ambulkdelete(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
    callback: pg_sys::IndexBulkDeleteCallback,
    state: *mut std::ffi::c_void,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: PostgreSQL holds the relation open during the call.
    let index = unsafe { Index::new((*info).index) };
    let deleted = janitor::bulk_delete(index, |tid| {
        let block = tid.block();
        let mut pointer = pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: block as u16 },
            ip_posid: tid.offset(),
        };
        // SAFETY: the callback gets what it was passed with; an error it raises becomes a panic
        // before it passes Rust's frames.
        callback.is_some_and(|callback| unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| callback(&mut pointer, state))
        })
    })
    .or_raise(index);
    let stats = ensure(stats);
    // SAFETY: `ensure` returned a result that is ours to fill.
    unsafe {
        (*stats).num_index_tuples = deleted.live as f64;
        (*stats).tuples_removed += deleted.removed as f64;
    }
    stats
}

/// Moves the log's rows into a segment, merges what is due, and counts.
#[pg_guard]
pub unsafe extern "C-unwind" fn amvacuumcleanup(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: PostgreSQL passes a valid info.
    let info = unsafe { &*info };
    if info.analyze_only {
        return stats;
    }
    // SAFETY: PostgreSQL holds the relation open during the call.
    let index = unsafe { Index::new(info.index) };
    let job = JobLock::wait(index);
    janitor::flush(index, &job).or_raise(index);
    let view = View::take(index).or_raise(index);
    let (manifest, _) = Manifest::read(index, view.manifest()).or_raise(index);
    janitor::sweep(index, &manifest);
    janitor::sweep_database();
    drop(job);

    let stats = ensure(stats);
    // SAFETY: `ensure` returned a result that is ours to fill.
    unsafe {
        (*stats).num_pages = index.blocks();
        (*stats).num_index_tuples = manifest.live_rows() as f64;
    }
    stats
}

/// The result so far, or a new one.
fn ensure(stats: *mut pg_sys::IndexBulkDeleteResult) -> *mut pg_sys::IndexBulkDeleteResult {
    if !stats.is_null() {
        return stats;
    }
    // SAFETY: palloc'd by PostgreSQL's allocator, as the caller expects.
    unsafe { pgrx::PgBox::<pg_sys::IndexBulkDeleteResult>::alloc0() }.into_pg()
}
