//! One job at a time on an index.

use crate::page::Index;
use pgrx::pg_sys;

/// The page whose heavyweight lock stands for the right to rewrite segments.
const JOB: u32 = 0;
/// The one that stands for the right to rebuild arenas, which a standby may do too.
const ARENAS: u32 = 1;

/// A heavyweight page lock; released at abort if an error passes by.
pub struct JobLock {
    index: Index,
    page: u32,
}

impl JobLock {
    /// Waits for the right to rewrite segments.
    pub fn wait(index: Index) -> JobLock {
        // SAFETY: the relation is open.
        unsafe { pg_sys::LockPage(index.relation(), JOB, MODE) };
        JobLock { index, page: JOB }
    }

    /// The right to rewrite segments, unless another job has it.
    pub fn try_acquire(index: Index) -> Option<JobLock> {
        JobLock::conditional(index, JOB)
    }

    /// The right to rebuild arenas, unless another backend is at it.
    pub fn try_arenas(index: Index) -> Option<JobLock> {
        JobLock::conditional(index, ARENAS)
    }

    /// The lock, as PostgreSQL's lock manager names it.
    pub fn tag(&self) -> pg_sys::LOCKTAG {
        // SAFETY: the relation is open.
        let relation = unsafe { (*self.index.relation()).rd_lockInfo.lockRelId };
        pg_sys::LOCKTAG {
            locktag_field1: relation.dbId.to_u32(),
            locktag_field2: relation.relId.to_u32(),
            locktag_field3: self.page,
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_PAGE as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        }
    }

    fn conditional(index: Index, page: u32) -> Option<JobLock> {
        // SAFETY: the relation is open.
        unsafe { pg_sys::ConditionalLockPage(index.relation(), page, MODE) }
            .then(|| JobLock { index, page })
    }
}

/// The mode of all of these locks.
pub const MODE: pg_sys::LOCKMODE = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;

impl Drop for JobLock {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the lock was taken by the constructor and the relation is still open.
            unsafe { pg_sys::UnlockPage(self.index.relation(), self.page, MODE) }
        }
    }
}
