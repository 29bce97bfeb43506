//! What the leader of a build and its workers share: a segment of dynamic shared memory, laid out by
//! PostgreSQL's table of contents.
//!
//! | key | what |
//! |---|---|
//! | `BUILD` | [`Build`]: what to scan, and what was found |
//! | `SCAN` | the parallel scan, which gives out blocks of the table |
//! | `QUEUES` | a queue of rows for each worker, one after the other |
//! | `STATEMENT` | the leader's statement, for `pg_stat_activity` |
//! | `BUFFERS`, `WAL` | what each worker has used, for those who ask the leader |

use pgrx::pg_sys;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64};

pub const BUILD: u64 = 0xd41f_0001;
pub const SCAN: u64 = 0xd41f_0002;
pub const QUEUES: u64 = 0xd41f_0003;
pub const STATEMENT: u64 = 0xd41f_0004;
pub const BUFFERS: u64 = 0xd41f_0005;
pub const WAL: u64 = 0xd41f_0006;

/// Bytes of a worker's queue: a worker is to find room while the leader reads some pages itself.
pub const QUEUE_BYTES: usize = 1 << 20;

/// The function of this library that workers run.
pub const ENTRY: &std::ffi::CStr = c"drift_build_worker";
/// This library, as PostgreSQL loads it.
pub const LIBRARY: &std::ffi::CStr = c"$libdir/drift_pg";

/// Changes with what the segment holds, and with messages: a worker may load a newer library than
/// that of a session which was there before an update.
pub const LAYOUT: u64 = 0xd41f_b11d_0000_0001;

/// What to scan, written by the leader before there are workers, and what was found.
#[repr(C)]
pub struct Build {
    /// [`LAYOUT`], which a worker looks at first.
    pub layout: u64,
    pub heap: pg_sys::Oid,
    pub index: pg_sys::Oid,
    /// Whether the table is written to meanwhile.
    pub concurrent: bool,
    /// Whether a worker has met a HOT chain whose rows differ in what is indexed.
    pub broken_hot_chain: AtomicBool,
    /// Rows that workers have found in the table.
    pub heap_tuples: AtomicU64,
}

/// Where the queue of a worker is.
///
/// # Safety
/// `queues` is the chunk of that key, and there are more workers than `worker`.
pub unsafe fn queue(queues: *mut c_void, worker: usize) -> *mut c_void {
    // SAFETY: the caller's promise; the chunk has so many bytes for each.
    unsafe { queues.byte_add(worker * QUEUE_BYTES) }
}
