//! The janitor as background workers.
//!
//! Whoever leaves work behind announces it on the [`board`], a table in [`shared`] memory, and
//! wakes the [`launcher`]. That starts short-lived [`worker`]s, one database each, which do the
//! work at their [`pace`] and leave when there is no more, or when a statement of
//! [`exclusion`] wants the database for itself. All of this needs the library to be preloaded;
//! where it is not, or where `drift.janitor` is off, inserts and VACUUM do the work themselves.

mod board;
mod exclusion;
mod launcher;
pub mod pace;
mod pressure;
mod settings;
mod shared;
mod worker;

pub use pressure::{is_behind, is_far_behind, Pressure};
pub use settings::log_limit_pages;

use crate::page::Index;
use board::{Board, Heard, Key};
use pgrx::pg_sys;

/// Makes the settings known, and, while the server preloads the library, asks for shared memory
/// and registers the launcher.
pub fn initialize() {
    settings::define();
    if is_preloading() {
        shared::install();
        exclusion::install();
        launcher::register();
    }
}

fn is_preloading() -> bool {
    // SAFETY: a variable of the process, read on its own thread.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the server has preloaded the library.
pub fn is_preloaded() -> bool {
    shared::epoch().is_some()
}

/// Whether this index's work is done in the background.
pub fn is_on(index: Index) -> bool {
    settings::is_on() && shared::has_launcher() && persistence(index) != pg_sys::RELPERSISTENCE_TEMP
}

fn persistence(index: Index) -> u8 {
    // SAFETY: the relation is open, so its pg_class row is there.
    unsafe { (*(*index.relation()).rd_rel).relpersistence as u8 }
}

fn key(index: Index) -> Key {
    // SAFETY: the relation is open.
    let relation = unsafe { (*index.relation()).rd_id };
    Key { database: index.file_key().0, relation: relation.to_u32() }
}

/// A row has been appended to the log. `seen` is what this returned the last time, or 0.
///
/// The first one of each backend since the last flush of any index is announced, so that the next
/// checkpoint can tell which logs have rows older than itself.
pub fn row_logged(index: Index, seen: u64) -> u64 {
    let epoch = shared::epoch().unwrap_or(0);
    if epoch != seen && settings::is_on() && persistence(index) == pg_sys::RELPERSISTENCE_PERMANENT
    {
        // SAFETY: a variable of the process: where the WAL record of the row begins.
        let position = unsafe { pg_sys::ProcLastRecPtr };
        shared::with_board(|board| board.announce(key(index), 0, position));
    }
    epoch
}

/// A session that has not seen this manifest before looks at the index. After a crash nobody else
/// may know that there are rows in its log; they are taken for as new as the end of WAL. The
/// launcher need not be there yet.
pub fn log_seen(index: Index) {
    // SAFETY: plain calls on the process's own thread; the position is asked for outside of
    // recovery only.
    unsafe {
        if settings::is_on()
            && persistence(index) == pg_sys::RELPERSISTENCE_PERMANENT
            && !pg_sys::RecoveryInProgress()
        {
            let position = pg_sys::GetXLogInsertRecPtr();
            shared::with_board(|board| board.announce(key(index), 0, position));
        }
    }
}

/// Asks the janitor to flush a log that has grown to so many pages, more than its limit. False if
/// it does not, so that somebody else has to.
pub fn announce_flush(index: Index, pages: u32, limit: u32) -> bool {
    // There will be room, or there is none and the log goes on to grow: its writers see to it.
    announce(index, true, |board| board.announce_log(key(index), pages, limit))
}

/// Asks the janitor to make missing arenas. False if it does not, so that somebody else has to.
pub fn announce_arenas(index: Index) -> bool {
    announce(index, false, |board| board.announce(key(index), board::ARENAS, 0))
}

/// Tells the janitor that a memtable has rows to be linked; it looks for them now and then anyway.
pub fn announce_links() {
    shared::wake_launcher();
}

/// What an announcement comes to; `if_full` where there is no room for it.
fn announce(index: Index, if_full: bool, announce: impl FnOnce(&mut Board) -> Heard) -> bool {
    if !is_on(index) {
        return false;
    }
    match shared::with_board(announce) {
        Some(Heard::New) => {
            shared::wake_launcher();
            true
        }
        Some(Heard::Known) => true,
        Some(Heard::Full) => if_full,
        Some(Heard::Failing) | None => false,
    }
}

/// A flush is about to read the log, whoever does it.
pub fn flush_begins(index: Index) {
    if is_preloaded() {
        shared::with_board(|board| board.flush_begins(key(index)));
        // Rows that come from now on are announced again.
        shared::advance_epoch();
    }
}

/// The log had so many pages when its flush, which has just begun, took its view.
pub fn flush_has_in_hand(index: Index, pages: u32) {
    if pace::is_background() {
        shared::with_board(|board| board.has_in_hand(key(index), pages));
    }
}

/// The flush has published, and the log has so many pages left: as many as came meanwhile.
pub fn flush_is_done(index: Index, pages: u32, limit: u32) {
    flush_has_in_hand(index, 0);
    if pages > limit && pace::is_background() {
        announce_flush(index, pages, limit);
    }
}

/// The segments of an index are not as few and as well trained as they could be: once nobody has
/// written for a while, the janitor sees to it.
pub fn tidy_later(index: Index, is_short: bool) {
    if is_on(index) {
        shared::with_board(|board| board.tidy_later(key(index), now(), is_short));
        shared::wake_launcher();
    }
}

/// A session that has not seen this manifest before finds segments that are not in order. After a
/// restart, or while the janitor was off, nobody else may know.
/// The launcher need not be there yet.
pub fn untidy_seen(index: Index) {
    // SAFETY: a plain call on the process's own thread.
    let is_ours = settings::is_on()
        && persistence(index) != pg_sys::RELPERSISTENCE_TEMP
        && unsafe { !pg_sys::RecoveryInProgress() };
    if is_ours && shared::with_board(|board| board.untidy_seen(key(index), now())) == Some(true) {
        shared::wake_launcher();
    }
}

/// What work is done: no segment can be written during recovery.
fn kinds() -> u32 {
    // SAFETY: a plain call on the process's own thread.
    match unsafe { pg_sys::RecoveryInProgress() } {
        true => board::ARENAS,
        false => board::ARENAS | board::FLUSH | board::TIDY,
    }
}

/// The server's clock, in microseconds.
fn now() -> i64 {
    // SAFETY: a plain call.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Copies a name into a field of a worker's registration, cut to fit with its final zero.
fn set_name(field: &mut [std::ffi::c_char], name: &str) {
    let room = field.len().saturating_sub(1);
    for (to, from) in field[..room].iter_mut().zip(name.bytes()) {
        *to = from as std::ffi::c_char;
    }
}

/// The library's name, as `shared_preload_libraries` has it.
const LIBRARY: &str = "drift_pg";

/// PostgreSQL's signal handlers: unlike its other functions they must not be wrapped.
mod handlers {
    use std::ffi::c_int;

    extern "C-unwind" {
        /// Ends the process at the next look for interrupts.
        pub fn die(signal: c_int);
        /// Asks for `ProcessConfigFile`.
        pub fn SignalHandlerForConfigReload(signal: c_int);
        /// Asks the main loop to end.
        pub fn SignalHandlerForShutdownRequest(signal: c_int);
    }
}

/// Reads the configuration anew if the server has been told to.
fn reload_settings() {
    // SAFETY: flags and functions of the process's own thread, with no lock on any page.
    unsafe {
        if std::ptr::read_volatile(&raw const pg_sys::ConfigReloadPending) != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Advises to preload the library if it is not: called by CREATE EXTENSION.
#[no_mangle]
#[pgrx::pg_guard]
pub extern "C-unwind" fn drift_advise_preload(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if !is_preloaded() {
        pg_sys::panic::ErrorReport::new(
            pgrx::PgSqlErrorCode::ERRCODE_WARNING,
            "drift_pg is not in shared_preload_libraries",
            pgrx::function_name!(),
        )
        .set_detail("Inserts and VACUUM will flush the logs of drift indexes themselves.")
        .set_hint("Add drift_pg to shared_preload_libraries and restart the server, so that it is done in the background.")
        .report(pgrx::PgLogLevel::WARNING);
    }
    pg_sys::Datum::from(0usize)
}

/// The calling convention of [`drift_advise_preload`].
#[no_mangle]
pub extern "C" fn pg_finfo_drift_advise_preload() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}
