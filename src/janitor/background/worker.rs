//! A process that does the work of one database and leaves.

use super::board::{Next, Ticket, ARENAS, FLUSH, TIDY};
use super::{handlers, kinds, now, pace, reload_settings, settings, shared};
use crate::allocator;
use crate::janitor::{
    flush, keep_sorters, rebuild_missing, sweep_database, sweep_if_idle, tidy, Flushed, JobLock,
};
use crate::page::{Fault, Index, OrRaise, Read};
use pgrx::{pg_guard, pg_sys, PgLogLevel, PgSqlErrorCode, PgTryBuilder};
use std::ffi::{c_int, CStr, CString};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

/// Microseconds after which a job is tried again that was in another's way or had another in its.
const RETRY: i64 = 1_000_000;

/// A ticket, as the argument of a worker's main function.
pub fn argument(ticket: Ticket) -> pg_sys::Datum {
    pg_sys::Datum::from(u64::from(ticket.generation) << 8 | ticket.seat as u64)
}

fn ticket(argument: pg_sys::Datum) -> Ticket {
    let value = argument.value() as u64;
    Ticket { seat: (value & 0xFF) as usize, generation: (value >> 8) as u32 }
}

/// A worker's main function.
#[no_mangle]
#[pg_guard]
pub extern "C-unwind" fn drift_janitor_worker(argument: pg_sys::Datum) {
    let ticket = ticket(argument);
    // SAFETY: the first acts of a background worker, on its only thread. The exit callback is
    // registered before the connection is made, so it runs once the process has left the list of
    // those connected to the database.
    let database = unsafe {
        pg_sys::pqsignal(libc::SIGHUP, Some(handlers::SignalHandlerForConfigReload));
        pg_sys::pqsignal(libc::SIGTERM, Some(handlers::die));
        pg_sys::on_shmem_exit(Some(leave), argument);
        let entered = shared::with_board(|board| board.enter(ticket, pg_sys::MyProcPid));
        entered.flatten()
    };
    let Some(database) = database else { return };
    keep_memory();
    let visit = || {
        connect(database);
        work(ticket);
        // To give back a job's memory takes milliseconds, and nobody waits for that.
        pace::step_back();
    };
    PgTryBuilder::new(AssertUnwindSafe(visit))
        .catch_when(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, |error| {
            // Nothing is lost: a job ends in one flip, and this one has not.
            let leave = shared::with_board(|board| board.is_to_leave(ticket)).unwrap_or(true);
            let pause = if leave { 0 } else { RETRY };
            if !leave && !pace::has_yielded() {
                error.rethrow();
            }
            shared::with_board(|board| board.postpone(ticket, now(), pause));
            pgrx::ereport!(
                PgLogLevel::DEBUG1,
                PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
                "drift janitor gives way to another session"
            );
        })
        .execute();
}

/// Has the allocator keep what one job has freed for the next one: a flush takes memory by the ten
/// megabytes, and to have the system clear it anew each time takes longer than to sort its rows. What
/// neither of two jobs needed goes between them, and all when the worker leaves.
fn keep_memory() {
    allocator::keep();
    keep_sorters();
    // SAFETY: plain calls on the process's only thread; a refused one changes nothing.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        // The most that may be asked for.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

fn connect(database: u32) {
    // SAFETY: called once, in a background worker that has asked for a connection.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::Oid::from(database),
            pg_sys::InvalidOid,
            pg_sys::BGWORKER_BYPASS_ALLOWCONN,
        );
        // What is set for the database's sessions is not meant for jobs.
        for name in [c"lock_timeout", c"statement_timeout"] {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                c"0".as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: c_int, argument: pg_sys::Datum) {
    shared::with_board(|board| board.vacate(ticket(argument), now()));
    shared::wake_launcher();
}

/// Does jobs until there are none.
fn work(ticket: Ticket) {
    let next = || shared::with_board(|board| board.next(ticket, kinds(), now()));
    while let Some(Next::Job { relation, work }) = next() {
        match run(relation, work) {
            Outcome::Done => shared::with_board(|board| board.done(ticket)),
            Outcome::Later => shared::with_board(|board| board.postpone(ticket, now(), RETRY)),
            // The job is left unfinished, which counts as a failure.
            Outcome::Failed => return,
        };
        allocator::end_job();
        pgrx::check_for_interrupts!();
        reload_settings();
    }
}

/// What came of a job.
enum Outcome {
    Done,
    /// Somebody else is at the index.
    Later,
    /// It has been reported.
    Failed,
}

/// One job, in a transaction of its own.
fn run(relation: u32, work: u32) -> Outcome {
    // SAFETY: on the process's own thread, outside of a transaction; one that an error leaves open
    // is ended with the process.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let outcome = run_in_transaction(pg_sys::Oid::from(relation), work);
        pg_sys::CommitTransactionCommand();
        pg_sys::pgstat_report_stat(false);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
        outcome
    }
}

fn run_in_transaction(oid: pg_sys::Oid, work: u32) -> Outcome {
    // The weakest lock whose waiters the server tells us of; during recovery there is none.
    let mode = match kinds() & FLUSH {
        0 => pg_sys::AccessShareLock,
        _ => pg_sys::ShareUpdateExclusiveLock,
    } as pg_sys::LOCKMODE;
    // SAFETY: in a transaction, on the process's own thread. The relation is locked before it is
    // opened, kept open for the job, and closed after it; its lock goes with the transaction.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(oid, mode) {
            return Outcome::Later;
        }
        let relation = pg_sys::try_relation_open(oid, pg_sys::NoLock as pg_sys::LOCKMODE);
        if relation.is_null() {
            return Outcome::Done;
        }
        let outcome = if is_ours(relation) {
            let _paced = pace::start(relation, mode);
            perform(Index::new(relation), work)
        } else {
            Outcome::Done
        };
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        outcome
    }
}

/// Whether this is a drift index that is in use, and not another session's temporary one.
///
/// # Safety
/// The relation is open.
unsafe fn is_ours(relation: pg_sys::Relation) -> bool {
    // SAFETY: the relation is open, so its catalog rows are there; only an index has rd_index.
    unsafe {
        let class = &*(*relation).rd_rel;
        class.relkind as u8 == pg_sys::RELKIND_INDEX
            && class.relam == pg_sys::get_index_am_oid(c"drift".as_ptr(), true)
            && class.relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
            && (*relation).rd_index.as_ref().is_some_and(|index| index.indisready)
    }
}

fn perform(index: Index, work: u32) -> Outcome {
    let name = full_name(index);
    if work & FLUSH == 0 || work & TIDY != 0 {
        // A flush finds out for itself how it is to be done.
        pace::weigh();
    }
    if work & FLUSH != 0 {
        let Some(job) = JobLock::try_acquire(index) else { return Outcome::Later };
        let (what, perform): (_, fn(Index, &JobLock) -> Read<Flushed>) = match work & TIDY {
            0 => ("flush", flush),
            _ => ("merge", tidy),
        };
        show(&format!("drift: {what} of index {name}"));
        let begun = Instant::now();
        pace::set_job(Some(&job));
        if work & TIDY != 0 {
            pace::give_way_to_flush(index);
        }
        let flushed = perform(index, &job).or_raise(index);
        pace::set_job(None);
        drop(job);
        let took = begun.elapsed();
        if flushed.rows > 0 || flushed.merged > 0 {
            log(took, || {
                format!("automatic {what} of index \"{name}\": {flushed}, elapsed: {took:.2?}")
            });
        }
    }
    if work & ARENAS != 0 {
        show(&format!("drift: rebuild of arenas of index {name}"));
        let begun = Instant::now();
        // Where one is missing, those of earlier segments may be left over: on a standby no flush
        // removes them.
        let rebuilt = rebuild_missing(index).and_then(|rebuilt| {
            sweep_if_idle(index)?;
            Ok(rebuilt)
        });
        let rebuilt = match rebuilt {
            Ok(Some(rebuilt)) => rebuilt,
            // Somebody else is at it, or the index has changed meanwhile.
            Ok(None) | Err(Fault::Recycled(_)) => return Outcome::Later,
            Err(fault) => fault.raise(&index.name()),
        };
        if rebuilt.unwritten > 0 {
            return Outcome::Failed;
        }
        // Or the index has moved here from another tablespace and left its own behind.
        sweep_database();
        let took = begun.elapsed();
        log(took, || {
            format!(
                "automatic rebuild of arenas of index \"{name}\": arenas: {}, rows: {}, elapsed: {took:.2?}",
                rebuilt.arenas, rebuilt.rows
            )
        });
    }
    Outcome::Done
}

/// Database, schema and name.
fn full_name(index: Index) -> String {
    // SAFETY: in a transaction; both return a palloc'd name, or null if it is gone.
    unsafe {
        let text = |name: *mut std::ffi::c_char| match name.is_null() {
            true => String::from("?"),
            false => CStr::from_ptr(name).to_string_lossy().into_owned(),
        };
        let database = text(pg_sys::get_database_name(pg_sys::MyDatabaseId));
        let schema = (*(*index.relation()).rd_rel).relnamespace;
        let schema = text(pg_sys::get_namespace_name(schema));
        format!("{database}.{schema}.{}", index.name())
    }
}

/// Tells pg_stat_activity.
fn show(activity: &str) {
    let Ok(activity) = CString::new(activity) else { return };
    // SAFETY: the text is copied.
    unsafe {
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
    }
}

fn log(took: std::time::Duration, message: impl Fn() -> String) {
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    if settings::is_logged(took) {
        pgrx::ereport!(PgLogLevel::LOG, code, message());
    } else {
        pgrx::ereport!(PgLogLevel::DEBUG1, code, message());
    }
}
