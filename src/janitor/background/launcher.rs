//! The process that starts workers where there is work, and links the rows of memtables, for which
//! no database is needed.
//!
//! It is connected to no database, so it is in nobody's way, but visible in pg_stat_activity and
//! within reach of pg_terminate_backend.

use super::board::{Ticket, FLUSH};
use super::{handlers, kinds, now, pace, reload_settings, set_name, settings, shared, LIBRARY};
use crate::memtable;
use pgrx::{pg_guard, pg_sys, PgSqlErrorCode};
use std::ffi::c_int;
use std::time::{Duration, Instant};

/// How often it looks whether a checkpoint has begun.
const INTERVAL: i64 = 1_000_000;
/// For how long rows are linked between two looks at the board.
const LINKING: Duration = Duration::from_millis(10);
/// How long inserts and VACUUM are left to themselves when the server had no room for a worker.
const SHORTAGE: Duration = Duration::from_secs(60);
/// Seconds after which the server starts it again if it has ended.
const RESTART: c_int = 1;

/// Has the server start the launcher when it is up, or, on a hot standby, consistent.
pub fn register() {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: FLAGS,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: RESTART,
        ..Default::default()
    };
    set_name(&mut worker.bgw_name, "drift janitor launcher");
    set_name(&mut worker.bgw_type, "drift janitor launcher");
    set_name(&mut worker.bgw_library_name, LIBRARY);
    set_name(&mut worker.bgw_function_name, "drift_janitor_launcher");
    // SAFETY: called while the server preloads the library; the registration is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

const FLAGS: c_int =
    (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int;

/// The launcher's main function.
#[no_mangle]
#[pg_guard]
pub extern "C-unwind" fn drift_janitor_launcher(_argument: pg_sys::Datum) {
    // SAFETY: the first acts of a background worker, on its only thread, before any other thread
    // could be.
    unsafe {
        pg_sys::pqsignal(libc::SIGHUP, Some(handlers::SignalHandlerForConfigReload));
        pg_sys::pqsignal(libc::SIGTERM, Some(handlers::SignalHandlerForShutdownRequest));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        pg_sys::on_shmem_exit(Some(resign), pg_sys::Datum::from(0usize));
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    shared::become_launcher();
    pace::step_back();
    // What was announced to the one before may have been lost with it.
    shared::advance_epoch();
    let mut launcher = Launcher { was_on: true, short_since: None, links: false };
    loop {
        let due = launcher.step();
        let until = launcher.link().map_or(due, |pause| pause.min(due));
        // SAFETY: the process's own latch, on its own thread.
        unsafe {
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as c_int,
                (until / 1000).max(1),
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        pgrx::check_for_interrupts!();
        reload_settings();
        // SAFETY: a flag that the signal handler sets; proc_exit does not return. Ended with 0 the
        // launcher would not be started again.
        unsafe {
            if std::ptr::read_volatile(&raw const pg_sys::ShutdownRequestPending) != 0 {
                pg_sys::proc_exit(1);
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn resign(_code: c_int, _argument: pg_sys::Datum) {
    shared::resign_launcher();
}

/// What the launcher remembers between two looks at the board.
struct Launcher {
    was_on: bool,
    /// Since when the server has had no room for a worker.
    short_since: Option<Instant>,
    /// The last look at the memtables found rows to link.
    links: bool,
}

impl Launcher {
    /// Starts what workers are needed. Microseconds until there may be more to do.
    fn step(&mut self) -> i64 {
        let now = now();
        let kinds = kinds();
        shared::with_board(|board| board.reap(now, is_running));
        let was_on = std::mem::replace(&mut self.was_on, settings::is_on());
        if !self.was_on {
            shared::with_board(|board| board.dismiss());
            return INTERVAL;
        }
        if !was_on {
            // Nothing was announced meanwhile.
            shared::advance_epoch();
        }
        if self.short_since.is_some_and(|since| since.elapsed() > SHORTAGE) {
            self.short_since = None;
            shared::set_short(false);
        }
        if kinds & FLUSH != 0 {
            // SAFETY: a plain call on a server that is not in recovery.
            let redo = unsafe { pg_sys::GetRedoRecPtr() };
            shared::with_board(|board| board.seal(redo));
        }
        while let Some((ticket, _)) = shared::with_board(|board| board.seat(kinds, now)).flatten() {
            if !start(ticket) {
                shared::with_board(|board| board.cancel(ticket));
                shared::set_short(true);
                if self.short_since.replace(Instant::now()).is_none() {
                    pg_sys::panic::ErrorReport::new(
                        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                        "no background worker is free for the drift janitor",
                        pgrx::function_name!(),
                    )
                    .set_detail("Inserts and VACUUM flush the logs of drift indexes meanwhile.")
                    .set_hint("Consider increasing max_worker_processes.")
                    .report(pgrx::PgLogLevel::LOG);
                }
                break;
            }
            self.short_since = None;
            shared::set_short(false);
        }
        let due = shared::with_board(|board| board.next_due(kinds, now)).flatten();
        due.map_or(INTERVAL, |due| (due - now).clamp(0, INTERVAL))
    }

    /// Links rows that searches would look at one by one, for some milliseconds. Microseconds
    /// until there is more to be done, if there is.
    fn link(&mut self) -> Option<i64> {
        let begun = Instant::now();
        let mut rows = 0;
        if self.was_on {
            while begun.elapsed() < LINKING {
                match memtable::link_for_searches() {
                    0 => break,
                    linked => rows += linked,
                }
            }
        }
        if std::mem::replace(&mut self.links, rows > 0) != self.links {
            show(self.links);
        }
        if !self.links {
            return None;
        }
        let workers = shared::with_board(|board| board.busy()).unwrap_or(0) + 1;
        let share = settings::share() / workers as f64;
        let pause = begun.elapsed().mul_f64((1.0 / share - 1.0).max(0.0));
        Some(pause.as_micros().min(INTERVAL as u128) as i64)
    }
}

/// Tells pg_stat_activity.
fn show(links: bool) {
    // SAFETY: the text is copied.
    unsafe {
        match links {
            true => pg_sys::pgstat_report_activity(
                pg_sys::BackendState::STATE_RUNNING,
                c"drift: linking rows of memtables".as_ptr(),
            ),
            false => {
                pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null())
            }
        }
    }
}

/// Registers a worker. False if the server has no room for another one.
fn start(ticket: Ticket) -> bool {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: FLAGS,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
        bgw_main_arg: super::worker::argument(ticket),
        // SAFETY: a variable of the process, read on its own thread.
        bgw_notify_pid: unsafe { pg_sys::MyProcPid },
        ..Default::default()
    };
    set_name(&mut worker.bgw_name, "drift janitor");
    set_name(&mut worker.bgw_type, "drift janitor");
    set_name(&mut worker.bgw_library_name, LIBRARY);
    set_name(&mut worker.bgw_function_name, "drift_janitor_worker");
    // SAFETY: called in a background worker; the registration is copied, and no handle asked for.
    unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, std::ptr::null_mut()) }
}

fn is_running(pid: i32) -> bool {
    // SAFETY: signal 0 only asks whether the process is there.
    unsafe { libc::kill(pid, 0) == 0 }
}
