//! Where a build is, for pg_stat_progress_create_index.

use pgrx::pg_sys;
use std::ffi::CStr;

/// A part of a build. The numbers are those PostgreSQL passes to `ambuildphasename`, which takes
/// the first for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Phase {
    /// Reading the table.
    Scan = 2,
    /// Finding the buckets' centroids.
    Train = 3,
    /// Finding each row's bucket.
    Assign = 4,
    /// Sorting rows by bucket and writing pages and arena.
    Write = 5,
}

/// The name of a phase.
pub fn phase_name(number: i64) -> Option<&'static CStr> {
    Some(match number {
        1 => c"initializing",
        n if n == Phase::Scan as i64 => c"scanning table",
        n if n == Phase::Train as i64 => c"training centroids",
        n if n == Phase::Assign as i64 => c"assigning rows",
        n if n == Phase::Write as i64 => c"writing segment",
        _ => return None,
    })
}

/// Reports to pg_stat_progress_create_index, or, in a job that is no build, to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A CREATE INDEX or REINDEX runs.
    Build,
    /// Another command's progress is in those columns.
    Silent,
}

impl Progress {
    /// A phase begins that will handle `rows` rows.
    pub fn begin(self, phase: Phase, rows: u64) {
        self.set(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, phase as i64);
        self.set(pg_sys::PROGRESS_CREATEIDX_TUPLES_TOTAL, rows as i64);
        self.done(0);
    }

    /// So many rows of the phase are handled.
    pub fn done(self, rows: u64) {
        self.set(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE, rows as i64);
    }

    fn set(self, column: u32, value: i64) {
        if self == Progress::Build {
            // SAFETY: the column is one of the command's, called on the backend's own thread.
            unsafe { pg_sys::pgstat_progress_update_param(column as i32, value) }
        }
    }
}
