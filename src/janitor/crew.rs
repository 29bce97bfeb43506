//! Threads for a job's arithmetic.
//!
//! PostgreSQL's functions may be called from the backend's own thread only, so threads get plain
//! memory and return plain memory, and no signal is ever delivered to them. Meanwhile the backend
//! watches for a cancel.

use super::background::pace::{self, Manner};
use pgrx::{pg_sys, PgSqlErrorCode};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

/// A pool of threads that lives as long as its job.
pub struct Crew {
    pool: RefCell<rayon::ThreadPool>,
    manner: Cell<Manner>,
}

/// How soon a cancel is noticed.
const WATCH: Duration = Duration::from_millis(20);

impl Crew {
    /// As many threads as the machine has cores, but no more than parallel maintenance may use; one
    /// for a background job, which takes what time others leave. It gets as many as others, that
    /// weigh as much, while somebody waits for it.
    pub fn new() -> Crew {
        let manner = pace::manner();
        Crew { pool: RefCell::new(start(threads(), manner)), manner: Cell::new(manner) }
    }

    /// Takes on other threads where somebody has begun to wait for a background job, or no longer
    /// does.
    fn adapt(&self) {
        let (threads, manner) = (threads(), pace::manner());
        let known = self.pool.borrow().current_num_threads();
        if (known, self.manner.get()) != (threads, manner) {
            self.pool.replace(start(threads, manner));
            self.manner.set(manner);
        }
    }

    /// Runs `work` on the pool and returns what it returns; ends the statement if it is cancelled
    /// meanwhile, once `work` has obeyed the flag it is given.
    pub fn run<T: Send>(&self, work: impl FnOnce(&AtomicBool) -> T + Send) -> T {
        self.run_beside(work, || ())
    }

    /// The same, while the backend does something `beside` it; before it where the job is to keep
    /// to one core.
    pub fn run_beside<T: Send>(
        &self,
        work: impl FnOnce(&AtomicBool) -> T + Send,
        beside: impl FnOnce(),
    ) -> T {
        let stop = AtomicBool::new(false);
        let (done, watched) = channel();
        self.adapt();
        let beside = if pace::keeps_to_one_core() {
            beside();
            None
        } else {
            Some(beside)
        };
        let result = self.pool.borrow().in_place_scope(|scope| {
            let stop = &stop;
            scope.spawn(move |_| {
                // The backend waits for this scope, so the receiver is there.
                let _ = done.send(work(stop));
            });
            if let Some(beside) = beside {
                let _stop = StopOnError(stop);
                beside();
            }
            loop {
                match watched.recv_timeout(WATCH) {
                    Ok(result) => break Some(result),
                    Err(RecvTimeoutError::Timeout) if cancelled() || pace::must_yield() => {
                        stop.store(true, Ordering::Relaxed);
                    }
                    Err(RecvTimeoutError::Timeout) => absorb_barriers(),
                    // The thread panicked; leaving the scope passes its panic on.
                    Err(RecvTimeoutError::Disconnected) => break None,
                }
            }
        });
        pgrx::check_for_interrupts!();
        match result {
            Some(result) if !stop.load(Ordering::Relaxed) => result,
            _ => {
                pgrx::ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
                    "canceling statement due to user request"
                );
            }
        }
    }
}

/// As many threads as the machine has cores, or as parallel maintenance may use; one where others
/// are to have the rest.
fn threads() -> usize {
    if pace::keeps_to_one_core() {
        return 1;
    }
    // SAFETY: reads a setting on the backend's own thread.
    let workers = unsafe { pg_sys::max_parallel_maintenance_workers };
    let allowed = usize::try_from(workers).unwrap_or(0) + 1;
    allowed.min(std::thread::available_parallelism().map_or(1, |cores| cores.get()))
}

fn start(threads: usize, manner: Manner) -> rayon::ThreadPool {
    let _blocked = BlockedSignals::new();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(move |_| manner.take_on())
        .thread_name(|nth| format!("drift {nth}"))
        .build();
    match pool {
        Ok(pool) => pool,
        Err(error) => {
            pgrx::ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                format!("could not start threads: {error}")
            );
        }
    }
}

/// Raises the flag when an error passes by, whose way on leads out of the scope of the work.
struct StopOnError<'s>(&'s AtomicBool);

impl Drop for StopOnError<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Answers processes that wait until all others have closed their files: they do not wait for the
/// end of a long computation.
fn absorb_barriers() {
    // SAFETY: a flag that the signal handler sets, and the server's answer to it, on the backend's
    // own thread with no lock held.
    unsafe {
        if std::ptr::read_volatile(&raw const pg_sys::ProcSignalBarrierPending) != 0 {
            pg_sys::ProcessProcSignalBarrier();
        }
    }
}

/// Whether the statement has to end.
fn cancelled() -> bool {
    // SAFETY: flags that this process's signal handlers set; read on the backend's own thread.
    unsafe {
        std::ptr::read_volatile(&raw const pg_sys::QueryCancelPending) != 0
            || std::ptr::read_volatile(&raw const pg_sys::ProcDiePending) != 0
    }
}

/// Blocks every signal until dropped, for threads inherit the mask of their creator.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> BlockedSignals {
        // SAFETY: both sets are initialised by the calls that are given them.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            BlockedSignals(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}
