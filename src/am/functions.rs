//! What SQL can ask of an index.

use super::scan::on_newest;
use super::snapshot::Snapshot;
use crate::janitor::{self, JobLock};
use crate::memtable;
use crate::page::{read_log, Index, OrRaise, View};
use pgrx::prelude::*;
use pgrx::{pg_sys, PgLogLevel, PgRelation, PgSqlErrorCode};

/// The distance of `vector_l2_ops`.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn drift_l2_metric() -> i32 {
    crate::metric::Metric::L2 as i32
}

/// The distance of `vector_ip_ops`.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn drift_ip_metric() -> i32 {
    crate::metric::Metric::InnerProduct as i32
}

/// The distance of `vector_cosine_ops`.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn drift_cosine_metric() -> i32 {
    crate::metric::Metric::Cosine as i32
}

/// The distance of `vector_l1_ops`.
#[pg_extern(immutable, strict, parallel_safe)]
pub fn drift_l1_metric() -> i32 {
    crate::metric::Metric::L1 as i32
}

/// The relation as a drift index; an error if it is anything else.
fn drift_index(relation: &PgRelation) -> Index {
    // SAFETY: the relation is open as long as `relation`, which outlives the calling function's
    // use of the index.
    let (index, own, method) = unsafe {
        let method = (*relation.rd_rel).relam;
        let own = pg_sys::get_index_am_oid(c"drift".as_ptr(), true);
        (Index::new(relation.as_ptr()), own, method)
    };
    if !relation.is_index() || method != own {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("\"{}\" is not a drift index", index.name())
        );
    }
    index
}

/// Moves the rows of an index's log into a segment; returns how many they were.
#[pg_extern(volatile, strict, parallel_unsafe)]
fn drift_flush(index: PgRelation) -> i64 {
    let oid = index.oid();
    let index = drift_index(&index);
    // SAFETY: plain calls on the backend's own thread.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            pg_sys::panic::ErrorReport::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "recovery is in progress",
                pgrx::function_name!(),
            )
            .set_hint("drift_flush() cannot be executed during recovery.")
            .report(PgLogLevel::ERROR);
        }
        if !pg_sys::pg_class_ownercheck(oid, pg_sys::GetUserId()) {
            let name = std::ffi::CString::new(index.name()).unwrap_or_default();
            pg_sys::aclcheck_error(
                pg_sys::AclResult::ACLCHECK_NOT_OWNER,
                pg_sys::ObjectType::OBJECT_INDEX,
                name.as_ptr(),
            );
        }
    }
    let job = JobLock::wait(index);
    janitor::flush_log(index, &job).or_raise(index).rows as i64
}

/// Links rows of the memtable into its graphs, of all indexes, until no index has many that are
/// not linked; returns how many they were. Background workers do the same as rows come.
#[pg_extern(volatile, strict, parallel_unsafe)]
fn drift_link() -> i64 {
    let mut total = 0;
    loop {
        pgrx::check_for_interrupts!();
        match memtable::link_some() {
            0 => return total,
            rows => total += i64::from(rows),
        }
    }
}

/// What an index is made of at this moment. `arenas` counts the segments that have one in this
/// session; `log_rows` and `rows` count entries whose row vacuum has not removed; `memtable_rows`
/// and `memtable_linked` those that are in shared memory, and linked there.
#[pg_extern(volatile, strict, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn drift_index_info(
    index: PgRelation,
) -> TableIterator<
    'static,
    (
        name!(segments, i32),
        name!(arenas, i32),
        name!(buckets, i32),
        name!(rows, i64),
        name!(log_rows, i64),
        name!(log_pages, i32),
        name!(memtable_rows, i64),
        name!(memtable_linked, i64),
    ),
> {
    let index = drift_index(&index);
    let info = on_newest(index, || {
        let view = View::take(index)?;
        let snapshot = Snapshot::of(index, &view)?;
        let mut log_rows = 0;
        read_log(index, &view, |_, tid, _| log_rows += i64::from(tid.is_valid()))?;
        let (segments, arenas) = snapshot.arenas();
        let buckets = snapshot.routing().map_or(0, |routing| routing.len());
        let (held, linked) = memtable::held_rows(index).unwrap_or_default();
        Ok((
            segments as i32,
            arenas as i32,
            buckets as i32,
            snapshot.live_rows() as i64,
            log_rows,
            view.log_pages() as i32,
            held as i64,
            linked as i64,
        ))
    });
    TableIterator::once(info.or_raise(index))
}
