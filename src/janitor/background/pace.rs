//! The share of a core a background job keeps to, and what it gives way to.
//!
//! A job calls [`breathe`] between pieces of work, with no page locked. In a foreground job that is
//! no more than a look for a cancel.

use super::board::Key;
use super::{settings, shared};
use crate::courtesy;
use crate::janitor::lock::{JobLock, MODE};
use crate::memtable;
use crate::page::Index;
use pgrx::{pg_sys, PgSqlErrorCode};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Pauses shorter than this are put off until they have added up.
const SHORT: Duration = Duration::from_millis(2);
/// How often a job looks whether it is in somebody's way.
const WATCH: Duration = Duration::from_millis(50);
/// The longest pause at a time.
const LONGEST: Duration = Duration::from_secs(10);

/// How much less than sessions the janitor's processes weigh with the scheduler, as long as nobody
/// waits for them.
const NICENESS: libc::c_int = 10;
/// The same where searches wait for a flush. It gets a fourth of a core that sessions keep busy:
/// with more, these searches take longer than without the flush; with less, it does not keep up.
const SEARCHED_NICENESS: libc::c_int = 5;

/// How a thread of the janitor shares the processor with sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As any session: somebody waits for the job.
    Foreground,
    /// As any session, but for short turns: soon writers will wait for the job.
    Brisk,
    /// In short turns, and fewer: searches are the slower the longer the job takes, and while it
    /// goes on.
    Moderate,
    /// It takes what they leave.
    Patient,
}

impl Manner {
    /// Begins to share the processor so, as a thread that has just been started.
    pub fn take_on(self) {
        if self.niceness() > 0 {
            lower_priority(self.niceness());
        }
        if self != Manner::Foreground {
            courtesy::begin();
        }
    }

    fn niceness(self) -> libc::c_int {
        match self {
            Manner::Foreground | Manner::Brisk => 0,
            Manner::Moderate => SEARCHED_NICENESS,
            Manner::Patient => NICENESS,
        }
    }
}

/// Begins to share the processor patiently, for good.
pub fn step_back() {
    Manner::Patient.take_on();
    weigh_less_by(NICENESS);
}

/// The calling thread weighs less with the scheduler, if threads have priorities of their own.
/// Without privileges there is no way back.
fn lower_priority(niceness: libc::c_int) {
    // SAFETY: a plain call; 0 means the calling thread to Linux. If the priority cannot be lowered,
    // nothing is lost but politeness.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, niceness);
    }
}

/// Where Linux shares the processor out to sessions (`CONFIG_SCHED_AUTOGROUP`), the niceness of a
/// thread counts among those of its session only. Each process of the server is a session of its
/// own, whose niceness is set through a file.
fn weigh_less_by(niceness: libc::c_int) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: plain calls.
        let leads_session = unsafe { libc::getsid(0) == libc::getpid() };
        if leads_session && WEIGHS_LESS_BY.get() != niceness {
            // Without such groups there is no file; and where others have just set theirs it has to
            // wait for the next time.
            let written = std::fs::write("/proc/self/autogroup", niceness.to_string());
            if written.is_ok() {
                WEIGHS_LESS_BY.set(niceness);
            }
        }
    }
}

/// A background job under way.
#[derive(Clone, Copy)]
struct Pace {
    /// The relation whose lock may be in somebody's way, with its mode.
    lock: Option<(pg_sys::Relation, pg_sys::LOCKMODE)>,
    /// The job lock, while it is held.
    job: Option<pg_sys::LOCKTAG>,
    /// Somebody waits for it.
    hurries: bool,
    /// It takes so long that writers may have to wait for what comes after it.
    is_long: bool,
    /// Soon writers will wait for it.
    is_urgent: bool,
    /// Searches are the slower for what it has not done yet.
    is_searched: bool,
    /// The index whose log it flushes.
    flushed: Option<Index>,
    /// The job is not worth keeping others from flushing this index.
    gives_way: Option<Key>,
    /// End of the last pause.
    worked_since: Instant,
    watched: Instant,
    yields: bool,
}

thread_local! {
    static PACE: Cell<Option<Pace>> = const { Cell::new(None) };
    /// The niceness of this process's session.
    static WEIGHS_LESS_BY: Cell<libc::c_int> = const { Cell::new(0) };
}

/// This process works in the background until the value returned is dropped, on a relation that it
/// has open and locked in that mode.
///
/// # Safety
/// They stay so.
pub unsafe fn start(relation: pg_sys::Relation, mode: pg_sys::LOCKMODE) -> Paced {
    let now = Instant::now();
    // The server does not tell who waits for a weaker lock: it may not be in the shared table.
    let is_shared = mode >= pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
    let lock = is_shared.then_some((relation, mode));
    PACE.set(Some(Pace {
        lock,
        job: None,
        hurries: false,
        is_long: false,
        is_urgent: false,
        is_searched: false,
        flushed: None,
        gives_way: None,
        worked_since: now,
        watched: now,
        yields: false,
    }));
    courtesy::begin();
    Paced(())
}

/// As long as it lives, a background job is under way.
pub struct Paced(());

impl Drop for Paced {
    fn drop(&mut self) {
        // What the job gave way to is still asked for after it has unwound.
        if !std::thread::panicking() {
            PACE.set(None);
        }
    }
}

/// From now on the background job holds this lock, or none. While somebody waits for it, the job
/// does not pause: neither VACUUM nor drift_flush() is to last for as long as a small share of a
/// core takes.
pub fn set_job(job: Option<&JobLock>) {
    if let Some(pace) = PACE.get() {
        let job = job.map(JobLock::tag);
        let (hurries, is_long, is_urgent, is_searched) = (false, false, false, false);
        let none = Pace { hurries, is_long, is_urgent, is_searched, flushed: None, ..pace };
        PACE.set(Some(Pace { job, ..none }));
    }
}

/// The background job ends as soon as somebody waits for a flush of this index.
pub fn give_way_to_flush(index: Index) {
    if let Some(pace) = PACE.get() {
        PACE.set(Some(Pace { gives_way: Some(super::key(index)), ..pace }));
    }
}

/// Whether this is a background job.
pub fn is_background() -> bool {
    PACE.get().is_some()
}

/// The background job flushes this index: briskly where that `is_urgent`, moderately where searches
/// are the slower for the log's rows, as they are taken to be where the memtable knows nothing of
/// the index.
pub fn set_flush(index: Index, is_urgent: bool) {
    if let Some(pace) = PACE.get() {
        let is_searched = memtable::is_searched(index);
        PACE.set(Some(Pace { flushed: Some(index), is_urgent, is_searched, ..pace }));
        weigh();
    }
}

/// How threads are to share the processor that work for this process.
pub fn manner() -> Manner {
    match PACE.get() {
        None => Manner::Foreground,
        Some(pace) if pace.is_urgent || pace.hurries => Manner::Brisk,
        Some(pace) if pace.is_searched => Manner::Moderate,
        Some(_) => Manner::Patient,
    }
}

/// This process's session weighs with the scheduler what its job asks for.
pub fn weigh() {
    weigh_less_by(manner().niceness());
}

/// From now on the background job keeps the log from being flushed for long: it may take what cores
/// there are, unless the janitor's share is less than one.
pub fn set_long() {
    if let Some(pace) = PACE.get() {
        PACE.set(Some(Pace { is_long: settings::share() >= 1.0, ..pace }));
    }
}

/// Whether this is a background job that has time.
pub fn keeps_to_one_core() -> bool {
    PACE.get().is_some_and(|pace| !pace.hurries && !pace.is_long)
}

/// Whether the job that ended with an error has given way to somebody.
pub fn has_yielded() -> bool {
    PACE.get().is_some_and(|pace| pace.yields)
}

/// Whether somebody waits for a lock that the background job's is in the way of.
pub fn must_yield() -> bool {
    let Some(mut pace) = PACE.get() else { return false };
    if !pace.yields && pace.watched.elapsed() >= WATCH {
        pace.watched = Instant::now();
        pace.is_searched |= pace.flushed.is_some_and(memtable::is_searched);
        if let Some((relation, mode)) = pace.lock {
            // SAFETY: the relation is open and locked in this mode as long as the job runs, and the
            // lock is in the shared table; called on the process's own thread. What the last look
            // at the catalog has left does not hold back vacuum while the job goes on.
            unsafe {
                pace.yields = pg_sys::LockHasWaitersRelation(relation, mode);
                pace.hurries =
                    pace.job.is_some_and(|tag| pg_sys::LockHasWaiters(&tag, MODE, false));
                pg_sys::InvalidateCatalogSnapshotConditionally();
            }
            if let Some(key) = pace.gives_way {
                // Who waits for the lock waits for a flush as well.
                pace.yields |= pace.hurries
                    || shared::with_board(|board| board.is_flush_wanted(key)).unwrap_or(false);
            }
        }
        PACE.set(Some(pace));
        weigh();
    }
    pace.yields
}

/// Ends a job that is in somebody's way or has been cancelled, and pauses as long as the janitor's
/// share of a core asks for.
pub fn breathe() {
    pgrx::check_for_interrupts!();
    let Some(pace) = PACE.get() else { return };
    courtesy::give_way();
    yield_if_asked();
    let worked = pace.worked_since.elapsed();
    if worked < SHORT {
        return;
    }
    let workers = shared::with_board(|board| board.busy()).unwrap_or(1).max(1);
    let share = settings::share() / workers as f64;
    let pause = worked.mul_f64((1.0 / share - 1.0).max(0.0)).min(LONGEST);
    if pause < SHORT {
        return;
    }
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || PACE.get().is_some_and(|pace| pace.hurries) {
            break;
        }
        sleep(left.min(WATCH));
        yield_if_asked();
        // A changed share counts from the next pause on.
        super::reload_settings();
    }
    if let Some(pace) = PACE.get() {
        PACE.set(Some(Pace { worked_since: Instant::now(), ..pace }));
    }
}

fn yield_if_asked() {
    if must_yield() {
        pgrx::ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            "canceling a drift janitor's job that is in another's way"
        );
    }
}

/// Sleeps; a cancel or a shutdown ends it, and the statement.
pub fn sleep(duration: Duration) {
    // SAFETY: the process's own latch, on its own thread, with no page locked.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            duration.as_millis().max(1) as std::ffi::c_long,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
