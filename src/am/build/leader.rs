//! The leader of a build: starts workers, and takes the rows they send while it scans its own share.

use super::batch;
use super::shared::{self, Build};
use crate::page::{heap, Tid};
use pgrx::{pg_sys, PgSqlErrorCode};
use std::ffi::{c_char, CStr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Messages taken from a worker before the next one has its turn.
const MOST_MESSAGES: usize = 16;

/// A scan of a table that workers take part in.
///
/// After an error PostgreSQL clears it away itself, with the transaction.
pub struct ParallelScan {
    context: *mut pg_sys::ParallelContext,
    snapshot: pg_sys::Snapshot,
    build: *const Build,
    scan: pg_sys::ParallelTableScanDesc,
    buffers: *mut pg_sys::BufferUsage,
    wal: *mut pg_sys::WalUsage,
    /// Of workers that may still send.
    queues: Vec<*mut pg_sys::shm_mq_handle>,
    dims: usize,
}

impl ParallelScan {
    /// Starts as many workers as PostgreSQL plans for a build of this index. `None` if there are none.
    ///
    /// # Safety
    /// The relations are open, locked as for a build, and `info` is of this build.
    pub unsafe fn start(
        heap: pg_sys::Relation,
        index: pg_sys::Relation,
        info: *const pg_sys::IndexInfo,
        dims: usize,
    ) -> Option<ParallelScan> {
        // SAFETY: the caller's promise.
        let (planned, concurrent) = unsafe { (plan(heap, index), (*info).ii_Concurrent) };
        if planned == 0 {
            return None;
        }
        // SAFETY: on the backend's own thread, in a transaction, which is in parallel mode until
        // `end`. What is estimated is what is allocated; what is allocated is aligned for all of it.
        unsafe {
            pg_sys::EnterParallelMode();
            let (library, entry) = (shared::LIBRARY.as_ptr(), shared::ENTRY.as_ptr());
            let context = pg_sys::CreateParallelContext(library, entry, planned as i32);
            let snapshot = if concurrent {
                pg_sys::RegisterSnapshot(pg_sys::GetTransactionSnapshot())
            } else {
                &raw mut pg_sys::SnapshotAnyData
            };
            let statement = statement();
            let sizes = [
                (shared::BUILD, size_of::<Build>()),
                (shared::SCAN, pg_sys::table_parallelscan_estimate(heap, snapshot)),
                (shared::QUEUES, planned * shared::QUEUE_BYTES),
                (shared::STATEMENT, statement.to_bytes_with_nul().len()),
                (shared::BUFFERS, planned * size_of::<pg_sys::BufferUsage>()),
                (shared::WAL, planned * size_of::<pg_sys::WalUsage>()),
            ];
            for (_, bytes) in sizes {
                estimate(&mut (*context).estimator, bytes);
            }
            pg_sys::InitializeParallelDSM(context);
            if (*context).seg.is_null() {
                end(context, snapshot);
                return None;
            }
            let [build, scan, queues, told, buffers, wal] = sizes.map(|(key, bytes)| {
                let chunk = pg_sys::shm_toc_allocate((*context).toc, bytes);
                if key != shared::QUEUES {
                    chunk.cast::<u8>().write_bytes(0, bytes);
                }
                pg_sys::shm_toc_insert((*context).toc, key, chunk);
                chunk
            });
            let build = build.cast::<Build>();
            build.write(Build {
                layout: shared::LAYOUT,
                heap: (*heap).rd_id,
                index: (*index).rd_id,
                concurrent,
                broken_hot_chain: AtomicBool::new(false),
                heap_tuples: AtomicU64::new(0),
            });
            let scan = scan.cast();
            pg_sys::table_parallelscan_initialize(heap, scan, snapshot);
            let text = statement.to_bytes_with_nul();
            told.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
            let made: Vec<_> = (0..planned)
                .map(|worker| {
                    let at = shared::queue(queues, worker);
                    let queue = pg_sys::shm_mq_create(at, shared::QUEUE_BYTES);
                    pg_sys::shm_mq_set_receiver(queue, pg_sys::MyProc);
                    queue
                })
                .collect();

            pg_sys::LaunchParallelWorkers(context);
            let started = (*context).nworkers_launched as usize;
            if started == 0 {
                end(context, snapshot);
                return None;
            }
            let workers = std::slice::from_raw_parts((*context).worker, started);
            let attach = |(queue, worker): (_, &pg_sys::ParallelWorkerInfo)| {
                pg_sys::shm_mq_attach(queue, (*context).seg, worker.bgwhandle)
            };
            let queues = made.into_iter().zip(workers).map(attach).collect();
            let (buffers, wal) = (buffers.cast(), wal.cast());
            Some(ParallelScan { context, snapshot, build, scan, buffers, wal, queues, dims })
        }
    }

    /// The leader's own share of the scan.
    ///
    /// # Safety
    /// `heap` is the table this was started for.
    pub unsafe fn share(&self, heap: pg_sys::Relation) -> pg_sys::TableScanDesc {
        // SAFETY: the caller's promise; the segment is mapped until `finish`.
        unsafe { pg_sys::table_beginscan_parallel(heap, self.scan) }
    }

    /// Takes some of what workers have sent, if anything, and says whether there was something.
    pub fn receive(&mut self, take: &mut dyn FnMut(Tid, &[f32])) -> bool {
        let (mut any, dims) = (false, self.dims);
        let mut take_message = |queue: &*mut pg_sys::shm_mq_handle| {
            let (mut length, mut message) = (0, std::ptr::null_mut());
            // SAFETY: attached as its receiver.
            let result = unsafe { pg_sys::shm_mq_receive(*queue, &mut length, &mut message, true) };
            if result == pg_sys::shm_mq_result::SHM_MQ_SUCCESS {
                // SAFETY: a message of that length lies there until the next is asked for.
                let message = unsafe { std::slice::from_raw_parts(message.cast(), length) };
                let Some((tids, vectors)) = batch::read(dims, message) else { unreadable() };
                tids.iter().zip(vectors.chunks_exact(dims)).for_each(|(tid, v)| take(*tid, v));
                any = true;
                pgrx::check_for_interrupts!();
            }
            result
        };
        self.queues.retain(|queue| {
            let mut results = (0..MOST_MESSAGES).map(|_| take_message(queue));
            let ended = results.find(|result| *result != pg_sys::shm_mq_result::SHM_MQ_SUCCESS);
            ended != Some(pg_sys::shm_mq_result::SHM_MQ_DETACHED)
        });
        any
    }

    /// Takes the rest of what workers send, waits for their end, and returns how many rows they have
    /// found in the table. Their errors become the leader's.
    ///
    /// # Safety
    /// `info` is of this build.
    pub unsafe fn finish(
        mut self,
        info: *mut pg_sys::IndexInfo,
        take: &mut dyn FnMut(Tid, &[f32]),
    ) -> f64 {
        while !self.queues.is_empty() {
            if !self.receive(take) && !self.queues.is_empty() {
                wait();
            }
            pgrx::check_for_interrupts!();
        }
        // SAFETY: on the backend's own thread. Workers are gone when what they counted is read, and
        // the segment is unmapped after it.
        unsafe {
            let started = (*self.context).nworkers_launched as usize;
            pg_sys::WaitForParallelWorkersToFinish(self.context);
            for worker in 0..started {
                pg_sys::InstrAccumParallelQuery(self.buffers.add(worker), self.wal.add(worker));
            }
            let build = &*self.build;
            (*info).ii_BrokenHotChain |= build.broken_hot_chain.load(Ordering::Relaxed);
            let tuples = build.heap_tuples.load(Ordering::Relaxed);
            end(self.context, self.snapshot);
            tuples as f64
        }
    }
}

/// The workers PostgreSQL plans for a build of this index, as far as there could be so many at all.
///
/// # Safety
/// The relations are open, and locked as for a build.
unsafe fn plan(table: pg_sys::Relation, index: pg_sys::Relation) -> usize {
    // SAFETY: the caller's promise; settings are read on the backend's own thread.
    unsafe {
        // A table without pages may be one that is truncated, when no expression is to be run.
        if heap::pages(table) == 0 {
            return 0;
        }
        let planned = pg_sys::plan_create_index_workers((*table).rd_id, (*index).rd_id);
        let most = pg_sys::max_parallel_workers.min(pg_sys::max_worker_processes);
        usize::try_from(planned.min(most)).unwrap_or(0)
    }
}

/// Reserves a chunk of so many bytes, with its key.
fn estimate(estimator: &mut pg_sys::shm_toc_estimator, bytes: usize) {
    estimator.space_for_chunks += bytes.next_multiple_of(pg_sys::ALIGNOF_BUFFER as usize);
    estimator.number_of_keys += 1;
}

/// Leaves parallel mode.
///
/// # Safety
/// The context and the snapshot are those of [`ParallelScan::start`], and not ended before.
unsafe fn end(context: *mut pg_sys::ParallelContext, snapshot: pg_sys::Snapshot) {
    // SAFETY: the caller's promise. Only a snapshot of rows at one time was registered.
    unsafe {
        pg_sys::DestroyParallelContext(context);
        if (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_MVCC {
            pg_sys::UnregisterSnapshot(snapshot);
        }
        pg_sys::ExitParallelMode();
    }
}

/// Sleeps until a worker has sent something, or is gone, or there is a signal.
fn wait() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    let what = pg_sys::WaitEventIPC::WAIT_EVENT_PARALLEL_CREATE_INDEX_SCAN;
    // SAFETY: the backend's own latch, on its own thread.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, 0, what);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// The statement that is executed, for those who watch.
fn statement() -> &'static CStr {
    // SAFETY: null or a string that lives as long as the statement.
    unsafe {
        let text: *const c_char = pg_sys::debug_query_string;
        if text.is_null() {
            c""
        } else {
            CStr::from_ptr(text)
        }
    }
}

fn unreadable() -> ! {
    pgrx::ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        "a worker of the index build sent what is no row"
    );
}
