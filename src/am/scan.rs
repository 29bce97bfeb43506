//! Ordered scans.
//!
//! A scan takes the metapage's view, looks at the segments' codes and then at the log's rows, and
//! delivers rows as [`crate::search`] finds them. If a page it needs has been given to something
//! else, its view is outdated: it starts over on the newest one and skips what it has delivered.

use super::log_rows::LogRows;
use super::snapshot::{Snapshot, SnapshotRows, FEWEST_WANTED};
use super::{options, pending};
use crate::page::{read_log, Fault, Identity, Index, OrRaise, Read, Tid, View};
use crate::search::{Effort, Order, Params, Search, Source};
use crate::vector::{Detoasted, VectorError};
use pgrx::{pg_guard, pg_sys, PgMemoryContexts, PgSqlErrorCode};
use std::collections::HashSet;

/// A scan's state, behind `opaque`.
struct Scan {
    index: Index,
    delivery: Delivery,
}

enum Delivery {
    /// `amrescan` has set no query yet, or the scan has ended.
    Idle,
    /// A query was set.
    Query(Vec<f32>),
    /// A NULL query: all rows, in no order.
    All(std::vec::IntoIter<Tid>),
    /// Rows by distance.
    Ordered(Box<Ordered>),
}

/// An ordered scan under way.
struct Ordered {
    query: Vec<f32>,
    search: Search,
    rows: SnapshotRows,
    log: LogRows,
    delivered: HashSet<Tid>,
}

/// Starts over when a page was recycled, as long as there is a newer view to start over on.
struct Retry {
    index: Index,
    seen: Option<(Identity, u64)>,
    in_vain: u32,
}

/// How often the same view may disappoint: it may have been outdated within the attempt.
const MOST_IN_VAIN: u32 = 3;

impl Retry {
    fn new(index: Index) -> Retry {
        Retry { index, seen: None, in_vain: 0 }
    }

    /// Whether to try again after `fault`; if the view has not changed it was damage.
    fn after(&mut self, fault: Fault) -> Read<()> {
        let Fault::Recycled(_) = fault else { return Err(fault) };
        pgrx::check_for_interrupts!();
        let view = View::take(self.index)?;
        let now = Some((view.manifest().id, view.log_head_seq()));
        self.in_vain = if self.seen == now { self.in_vain + 1 } else { 0 };
        self.seen = now;
        if self.in_vain < MOST_IN_VAIN {
            Ok(())
        } else {
            Err(fault.under_lock())
        }
    }
}

/// Starts a scan.
#[pg_guard]
pub unsafe extern "C-unwind" fn ambeginscan(
    relation: pg_sys::Relation,
    keys: std::ffi::c_int,
    orderbys: std::ffi::c_int,
) -> pg_sys::IndexScanDesc {
    // SAFETY: PostgreSQL holds the relation open as long as the scan. The state is dropped with
    // the memory context the scan lives in, whether it ends or fails.
    unsafe {
        let scan = pg_sys::RelationGetIndexScan(relation, keys, orderbys);
        let state = Scan { index: Index::new(relation), delivery: Delivery::Idle };
        (*scan).opaque =
            PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(state).cast();
        scan
    }
}

/// Sets the query, of a new scan or of the next round of a nested loop.
#[pg_guard]
pub unsafe extern "C-unwind" fn amrescan(
    scan: pg_sys::IndexScanDesc,
    _keys: pg_sys::ScanKey,
    _nkeys: std::ffi::c_int,
    orderbys: pg_sys::ScanKey,
    norderbys: std::ffi::c_int,
) {
    pending::append_all();
    // SAFETY: `opaque` is ambeginscan's state. PostgreSQL passes as many order-by keys as it
    // announced and made room for; the argument of one is a vector, or null.
    unsafe {
        let state = &mut *(*scan).opaque.cast::<Scan>();
        if !orderbys.is_null() && (*scan).numberOfOrderBys > 0 {
            std::ptr::copy(orderbys, (*scan).orderByData, norderbys as usize);
        }
        let key = match (*scan).numberOfOrderBys {
            0 => None,
            _ => (*scan).orderByData.as_ref(),
        };
        let key = key.filter(|key| key.sk_flags & pg_sys::SK_ISNULL as i32 == 0);
        state.delivery = match key {
            Some(key) => Delivery::Query(Detoasted::from_datum(key.sk_argument).to_vec()),
            None => Delivery::All(all_tids(state.index).or_raise(state.index).into_iter()),
        };
    }
}

/// Delivers the next row.
#[pg_guard]
pub unsafe extern "C-unwind" fn amgettuple(
    scan: pg_sys::IndexScanDesc,
    _direction: pg_sys::ScanDirection::Type,
) -> bool {
    // SAFETY: `opaque` is ambeginscan's state, and no other reference to it or to the descriptor
    // is alive during the call.
    let (scan, state) = unsafe { (&mut *scan, &mut *(*scan).opaque.cast::<Scan>()) };
    require_mvcc(scan);
    if let Delivery::Query(query) = &mut state.delivery {
        let query = std::mem::take(query);
        let ordered = Ordered::start(state.index, query, HashSet::new()).or_raise(state.index);
        state.delivery = Delivery::Ordered(Box::new(ordered));
    }
    let tid = match &mut state.delivery {
        Delivery::Ordered(ordered) => ordered.next(state.index).or_raise(state.index),
        Delivery::All(tids) => tids.next(),
        Delivery::Idle | Delivery::Query(_) => None,
    };
    let Some(tid) = tid else { return false };
    if let Delivery::Ordered(ordered) = &state.delivery {
        ordered.rows.snapshot().heap().hand_over(scan, tid);
    }
    scan.xs_heaptid = pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData {
            bi_hi: (tid.block() >> 16) as u16,
            bi_lo: tid.block() as u16,
        },
        ip_posid: tid.offset(),
    };
    scan.xs_recheck = false;
    scan.xs_recheckorderby = false;
    true
}

/// Ends a scan.
#[pg_guard]
pub unsafe extern "C-unwind" fn amendscan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: `opaque` is ambeginscan's state; it is dropped later, with its memory context.
    unsafe { (*(*scan).opaque.cast::<Scan>()).delivery = Delivery::Idle };
}

/// A TID is delivered without a pin on its page, so it may have been given to another row; only
/// under an MVCC snapshot is that row sure to be invisible.
fn require_mvcc(scan: &pg_sys::IndexScanDescData) {
    // SAFETY: the executor sets a snapshot before it asks for rows.
    let kind = unsafe { scan.xs_snapshot.as_ref() }.map(|snapshot| snapshot.snapshot_type);
    let mvcc = [pg_sys::SnapshotType::SNAPSHOT_MVCC, pg_sys::SnapshotType::SNAPSHOT_HISTORIC_MVCC];
    if !kind.is_some_and(|kind| mvcc.contains(&kind)) {
        pgrx::ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "non-MVCC snapshots are not supported with drift"
        );
    }
}

/// Reads until no page has been recycled under it.
pub fn on_newest<T>(index: Index, mut attempt: impl FnMut() -> Read<T>) -> Read<T> {
    let mut retry = Retry::new(index);
    loop {
        match attempt() {
            Err(fault) => retry.after(fault)?,
            done => return done,
        }
    }
}

/// Every row of the index.
fn all_tids(index: Index) -> Read<Vec<Tid>> {
    on_newest(index, || {
        let view = View::take(index)?;
        let mut tids = Snapshot::of(index, &view)?.tids(index)?;
        read_log(index, &view, |_, tid, _| {
            if tid.is_valid() {
                tids.push(tid);
            }
        })?;
        Ok(tids)
    })
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.rows.snapshot().has_delivered(self.delivered.len());
    }
}

impl Ordered {
    /// Takes a view, looks at the codes of what is in segments, and ranks the log's rows.
    fn start(index: Index, query: Vec<f32>, delivered: HashSet<Tid>) -> Read<Ordered> {
        let (search, rows, log) = on_newest(index, || {
            let recall = options::target_recall(options::index_recall(index));
            let (view, mut log) = LogRows::take(index, recall)?;
            if view.dims() != query.len() {
                VectorError::DifferentDimensions(view.dims(), query.len()).report();
            }
            let snapshot = if recall >= 1.0 {
                Snapshot::of_sound(index, &view)?
            } else {
                Snapshot::of(index, &view)?
            };
            let buckets = snapshot.routing().map_or(0, |routing| routing.len());
            let (order, max_rows) = (options::order(), options::max_scan_tuples());
            // Where a scan that is told to stop does so is not for the scans before it to say.
            let is_bounded = order == Order::Off || max_rows < u64::MAX;
            let params = Params {
                effort: Effort::new(recall, buckets, snapshot.calibration()),
                order,
                max_rows,
                expected: snapshot.expected(),
                first: if is_bounded { FEWEST_WANTED } else { snapshot.wanted() },
            };
            let mut search = Search::new(view.metric, &query, snapshot.routing(), params);
            let rows = SnapshotRows::new(index, snapshot.clone());
            let cutoff = search.foresee(snapshot.routing(), &rows);
            log.give(index, &query, snapshot.expected(), cutoff, &mut search)?;
            Ok((search, rows, log))
        })?;
        Ok(Ordered { query, search, rows, log, delivered })
    }

    /// The next row that has not been delivered.
    fn next(&mut self, index: Index) -> Read<Option<Tid>> {
        let mut retry = Retry::new(index);
        loop {
            match self.try_next(index) {
                Err(fault) => retry.after(fault)?,
                done => return done,
            }
            let query = self.query.clone();
            let delivered = std::mem::take(&mut self.delivered);
            let mut newer = Ordered::start(index, query, delivered)?;
            newer.search.resume(&self.search);
            *self = newer;
        }
    }

    fn try_next(&mut self, index: Index) -> Read<Option<Tid>> {
        loop {
            let snapshot = self.rows.snapshot().clone();
            let hit = self.search.next(snapshot.routing(), &mut self.rows)?;
            if self.log.may_have_nearer(hit.as_ref()) {
                if let Some(hit) = hit {
                    self.search.put_back(hit);
                }
                self.log.give_more(index, &self.query, &mut self.search)?;
                continue;
            }
            let Some(hit) = hit else { return Ok(None) };
            let tid = match hit.source {
                Source::Memory(place) => self.log.tid(place),
                Source::Segment { segment, row } => self.rows.tid(segment, row)?,
            };
            if tid.is_valid() && self.delivered.insert(tid) {
                return Ok(Some(tid));
            }
            pgrx::check_for_interrupts!();
        }
    }
}
