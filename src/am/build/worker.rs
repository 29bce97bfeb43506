//! A worker of a build: scans its share of the table and sends the rows to the leader.

use super::batch::Batch;
use super::shared::{self, Build};
use super::Collector;
use crate::am::key;
use crate::page::{Index, Tid};
use pgrx::{pg_guard, pg_sys, PgSqlErrorCode};
use std::sync::atomic::Ordering;

/// The way to the leader.
struct Sender {
    queue: *mut pg_sys::shm_mq_handle,
    batch: Batch,
}

impl Sender {
    /// Keeps a row until there are enough to send.
    fn push(&mut self, tid: Tid, vector: &[f32]) {
        if self.batch.push(tid, vector) {
            self.send(false);
        }
    }

    /// Sends what was kept; `last` is not to wait for more.
    fn send(&mut self, last: bool) {
        let mut parts = self
            .batch
            .parts()
            .map(|part| pg_sys::shm_mq_iovec { data: part.as_ptr().cast(), len: part.len() });
        // SAFETY: attached as its sender; the parts live for the call, which only reads them.
        let sent = unsafe {
            let (first, count) = (parts.as_mut_ptr(), parts.len() as i32);
            pg_sys::shm_mq_sendv(self.queue, first, count, false, last)
        };
        if sent != pg_sys::shm_mq_result::SHM_MQ_SUCCESS {
            pgrx::ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "could not send rows to the leader of the index build"
            );
        }
        self.batch.clear();
    }
}

/// What PostgreSQL runs in a worker of a build.
///
/// # Safety
/// Called by PostgreSQL, in a parallel worker, with the segment that the leader has laid out.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn drift_build_worker(
    segment: *mut pg_sys::dsm_segment,
    contents: *mut pg_sys::shm_toc,
) {
    // SAFETY: the leader has put all of this there before it started workers, and stays until they
    // are gone. Locks are those the leader holds, which its workers share.
    unsafe {
        let look_up = |key| pg_sys::shm_toc_lookup(contents, key, false);
        let build = look_up(shared::BUILD).cast::<Build>();
        if (&raw const (*build).layout).read() != shared::LAYOUT {
            other_version();
        }
        let build = &*build;
        pg_sys::debug_query_string = look_up(shared::STATEMENT).cast();
        let running = pg_sys::BackendState::STATE_RUNNING;
        pg_sys::pgstat_report_activity(running, pg_sys::debug_query_string);

        let (heap_lock, index_lock) = if build.concurrent {
            (pg_sys::ShareUpdateExclusiveLock, pg_sys::RowExclusiveLock)
        } else {
            (pg_sys::ShareLock, pg_sys::AccessExclusiveLock)
        };
        let heap = pg_sys::table_open(build.heap, heap_lock as i32);
        let relation = pg_sys::index_open(build.index, index_lock as i32);
        let index = Index::new(relation);
        let dims = key::dimensions(index);

        let number = pg_sys::ParallelWorkerNumber as usize;
        let queue = shared::queue(look_up(shared::QUEUES), number).cast::<pg_sys::shm_mq>();
        pg_sys::shm_mq_set_sender(queue, pg_sys::MyProc);
        let queue = pg_sys::shm_mq_attach(queue, segment, std::ptr::null_mut());

        pg_sys::InstrStartParallelQuery();
        let mut sender = Sender { queue, batch: Batch::new(dims) };
        let mut take = |tid, vector: &[f32]| sender.push(tid, vector);
        let mut collector = Collector { metric: key::metric(index), dims, take: &mut take };
        let info = pg_sys::BuildIndexInfo(relation);
        (*info).ii_Concurrent = build.concurrent;
        let scan = pg_sys::table_beginscan_parallel(heap, look_up(shared::SCAN).cast());
        let tuples = collector.scan(heap, relation, info, scan);
        if !sender.batch.is_empty() {
            sender.send(true);
        }
        build.heap_tuples.fetch_add(tuples as u64, Ordering::Relaxed);
        build.broken_hot_chain.fetch_or((*info).ii_BrokenHotChain, Ordering::Relaxed);
        let buffers = look_up(shared::BUFFERS).cast::<pg_sys::BufferUsage>();
        let wal = look_up(shared::WAL).cast::<pg_sys::WalUsage>();
        pg_sys::InstrEndParallelQuery(buffers.add(number), wal.add(number));
        pg_sys::shm_mq_detach(queue);

        pg_sys::index_close(relation, index_lock as i32);
        pg_sys::table_close(heap, heap_lock as i32);
    }
}

fn other_version() -> ! {
    pg_sys::panic::ErrorReport::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "the library drift_pg is of another version than the one this session has loaded",
        pgrx::function_name!(),
    )
    .set_hint("Reconnect, after a restart of the server if it preloads the library.")
    .report(pgrx::PgLogLevel::ERROR);
    unreachable!("an error report does not return")
}
