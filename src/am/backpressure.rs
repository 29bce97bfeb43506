//! What an insert does about a log that has grown: nothing, tell the janitor, wait for it a little,
//! or flush.

use crate::janitor::background::{self, pace, Pressure};
use crate::janitor::{self, JobLock};
use crate::memtable;
use crate::page::{Index, View};
use pgrx::PgSqlErrorCode;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long an insert into a full log waits for the job that is at it, for each page it has added.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks.
const NAP: Duration = Duration::from_millis(20);
/// Times its limit that a log may have before it holds up writers of an index that nobody searches,
/// compared with one that somebody does.
const TIMES_UNSEARCHED: u32 = 8;
/// Pauses shorter than this add up first.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);

/// Called when an insert has made the log grow from `before` to `after` pages, with no page locked.
///
/// With the janitor at work, only a log that has far outgrown its limit holds its writers up: by a
/// pause that grows with the log, and, where it is full, until it is flushed. Nothing is refused.
pub fn relieve(index: Index, before: u32, after: u32) {
    let limit = background::log_limit_pages();
    let pressure = Pressure::of(after, limit);
    if pressure == Pressure::None {
        return;
    }
    if !background::announce_flush(index, after, limit) {
        if is_due(limit, before, after) {
            try_flush(index);
        }
        return;
    }
    if pressure == Pressure::Announce {
        return;
    }
    // The janitor may be at a job that takes long: nobody's search is the slower for it here.
    let limit = match memtable::is_searched(index) {
        true => limit,
        false => limit.saturating_mul(TIMES_UNSEARCHED),
    };
    match Pressure::of(after, limit) {
        Pressure::None | Pressure::Announce => {}
        Pressure::Slow(pause) => rest(pause.saturating_mul(after - before)),
        Pressure::Full => make_room(index, limit),
    }
}

/// Whether a log that has grown is to be flushed by who made it grow: when it passes the limit,
/// and, if that flush came to nothing, each quarter of the limit later.
fn is_due(limit: u32, before: u32, after: u32) -> bool {
    let step = (limit / 4).max(1);
    after > limit && (before <= limit || before / step != after / step)
}

/// Flushes, unless a job is at it, and leaves what else is due to the janitor if there is one.
/// False if a job is.
fn try_flush(index: Index) -> bool {
    let Some(job) = JobLock::try_acquire(index) else { return false };
    if let Err(fault) = janitor::flush_log(index, &job) {
        // The row is in the log; what is wrong elsewhere is for its readers to be told.
        pgrx::ereport!(
            WARNING,
            PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED,
            format!("could not flush the log of index \"{}\": {fault:?}", index.name())
        );
    }
    true
}

/// Flushes a full log, or waits for the job that is at it.
fn make_room(index: Index, limit: u32) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && is_full(index, limit) && !try_flush(index) {
        pace::sleep(NAP);
    }
}

fn is_full(index: Index, limit: u32) -> bool {
    // What cannot be read is no reason to hold up whoever has just written it.
    View::take(index).is_ok_and(|view| Pressure::of(view.log_pages(), limit) == Pressure::Full)
}

/// Pauses, at once or with the pauses to come.
fn rest(pause: Duration) {
    thread_local! {
        static OWED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }
    let owed = OWED.get() + pause;
    if owed < SHORTEST_PAUSE {
        OWED.set(owed);
    } else {
        OWED.set(Duration::ZERO);
        pace::sleep(owed);
    }
}
