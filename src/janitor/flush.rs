//! The job that turns log rows into a segment, and merges segments while it is at it.

use super::background::{self, pace, pace::breathe};
use super::crew::Crew;
use super::lock::JobLock;
use super::progress::Progress;
use super::rebuild::open_arena;
use super::rows::RowStore;
use super::segment_builder::{Assigned, OnLog, SegmentBuilder, Sorter};
use super::sweep::sweep;
use super::tiers::{due, overdue, untidy};
use crate::cluster::NO_BUCKET;
use crate::memtable;
use crate::page::{
    log_pages_aside, publish, read_log, Fault, Flip, Index, LogEnd, LogRun, Manifest, Read, RowMap,
    Segment, Space, Tid, TidReader, VectorReader, View,
};
use pgrx::pg_sys;
use std::fmt;

/// What a flush did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushed {
    /// Rows that left the log.
    pub rows: u64,
    /// Segments written anew.
    pub merged: usize,
    /// Rows they had.
    pub merged_rows: u64,
    /// Segments now.
    pub segments: usize,
    /// Buckets now.
    pub buckets: u32,
    /// The buckets have been trained anew.
    pub trained: bool,
    /// The rows that left the log stay on its pages.
    pub in_place: bool,
}

impl fmt::Display for Flushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log rows: {}{}, merged segments: {} with {} rows, segments now: {}, buckets: {}{}",
            self.rows,
            if self.in_place { " (in place)" } else { "" },
            self.merged,
            self.merged_rows,
            self.segments,
            self.buckets,
            if self.trained { " (trained anew)" } else { "" }
        )
    }
}

/// Rows grow so many times over before the router is trained anew on all of them: by a flush; by
/// one that would keep writers waiting for long, as the rows have many components; and when
/// nobody writes.
const RETRAIN_GROWTH: f64 = 4.0;
const LATE_GROWTH: f64 = 8.0;
const IDLE_GROWTH: f64 = 1.4;
/// Components of all rows together from which on to write them takes long.
const MANY_COMPONENTS: u64 = 32 << 20;
/// A row unlike those the router was trained on counts as so many fewer of these: where such rows
/// come, recall does not wait for the table to grow.
const COST_OF_STRANGER: u64 = 12;
/// Some are unlike in any table; fewer, and a smaller share of a log's rows, mean nothing.
const FEWEST_STRANGERS: u64 = 32;
const STRANGERS_IN_LOG: f64 = 0.1;
/// Of a log that is mostly dead the rows that are alive are written anew: pages would be kept for
/// few.
const FEWEST_ALIVE: f64 = 0.5;
/// Rows read between two breaths.
const BREATH_ROWS: u64 = 256;

/// Memory a job may use for rows, in bytes.
pub fn job_memory() -> usize {
    // SAFETY: reads a setting on the backend's own thread.
    let kilobytes = unsafe { pg_sys::maintenance_work_mem };
    usize::try_from(kilobytes).unwrap_or(0).saturating_mul(1024)
}

/// Writes the first segment of an index that nobody else can see yet.
pub fn build(index: Index, mut store: RowStore) -> Read<()> {
    if store.len() == 0 {
        return Ok(());
    }
    let job = JobLock::wait(index);
    let (view, blocks) = View::take_with_blocks(index)?;
    let log_blocks = [view.log_head_block()];
    let mut space = Space::new(index, &view, blocks, &Manifest::default(), &[], &log_blocks)?;
    let builder = SegmentBuilder {
        index,
        metric: view.metric,
        dims: view.dims(),
        crew: &Crew::new(),
        progress: Progress::Build,
    };
    let (router, segment) = builder.train_and_build(&mut store, &mut space)?;
    commit(index, &job, Manifest { router: Some(router), segments: vec![segment] }, None, space)
}

/// Moves the log's rows into a segment, together with the segments that are due to be merged or
/// are full of dead rows.
///
/// # Errors
/// What reading pages gave.
pub fn flush(index: Index, job: &JobLock) -> Read<Flushed> {
    try_flush(index, job, Zeal::Flush).map_err(Fault::under_lock)
}

/// Moves the log's rows into a segment, and leaves what else is due to the janitor, if it sees to
/// this index and there is not too much of it.
///
/// # Errors
/// What reading pages gave.
pub fn flush_log(index: Index, job: &JobLock) -> Read<Flushed> {
    let zeal = if background::is_on(index) { Zeal::Hurry } else { Zeal::Flush };
    try_flush(index, job, zeal).map_err(Fault::under_lock)
}

/// Merges segments, and trains the router anew, that a flush leaves as they are because there will
/// be more rows; the log's rows go along. Does nothing where there is no need.
///
/// # Errors
/// What reading pages gave.
pub fn tidy(index: Index, job: &JobLock) -> Read<Flushed> {
    try_flush(index, job, Zeal::Tidy).map_err(Fault::under_lock)
}

/// What a job is out for.
#[derive(Clone, Copy, PartialEq)]
enum Zeal {
    /// To empty the log.
    Hurry,
    /// To write few rows.
    Flush,
    /// To leave searches little to do.
    Tidy,
}

impl Zeal {
    /// The same beside a log of so many pages: the janitor hurries where rows come faster than they
    /// are flushed.
    fn beside(self, log_pages: u32, log_limit: u32) -> Zeal {
        match self {
            Zeal::Flush if pace::is_background() && background::is_behind(log_pages, log_limit) => {
                Zeal::Hurry
            }
            zeal => zeal,
        }
    }
}

/// What is to be done to the segments.
struct Due {
    retrain: bool,
    merged: Vec<bool>,
}

/// Whether a job that writes so many rows takes seconds.
fn is_long(rows: u64, dims: usize) -> bool {
    rows.saturating_mul(dims as u64) > MANY_COMPONENTS
}

/// Those segments too whose vectors are not in order yet.
fn put_in_order(manifest: &Manifest, mut merged: Vec<bool>) -> Vec<bool> {
    let segments = manifest.segments.iter().zip(&mut merged);
    segments.for_each(|(segment, merged)| *merged |= segment.logged.is_some());
    merged
}

impl Due {
    /// With so many rows from the log.
    fn of(manifest: &Manifest, dims: usize, fresh: u64, zeal: Zeal) -> Due {
        let sizes: Vec<(u64, u64)> = manifest.segments.iter().map(|s| (s.rows, s.live)).collect();
        let total = manifest.live_rows() + fresh;
        let trained_rows = manifest.router.as_ref().map_or(0, |router| router.trained_rows);
        let growth = total as f64 / trained_rows as f64;
        let retrain = match zeal {
            Zeal::Tidy => total > 0 && growth >= IDLE_GROWTH,
            _ if is_long(total, dims) => fresh > 0 && growth >= LATE_GROWTH,
            _ => fresh > 0 && growth >= RETRAIN_GROWTH,
        };
        let merged = match zeal {
            _ if retrain => vec![true; sizes.len()],
            Zeal::Hurry => overdue(&sizes),
            // Who is no worker may be all there is.
            Zeal::Flush if !pace::is_background() => put_in_order(manifest, due(&sizes, fresh)),
            Zeal::Flush => due(&sizes, fresh),
            Zeal::Tidy => put_in_order(manifest, untidy(&sizes)),
        };
        Due { retrain, merged }
    }

    fn is_none(&self) -> bool {
        !self.retrain && !self.merged.contains(&true)
    }
}

fn try_flush(index: Index, job: &JobLock, mut zeal: Zeal) -> Read<Flushed> {
    if zeal == Zeal::Tidy {
        let view = View::take(index)?;
        let (manifest, _) = Manifest::read(index, view.manifest())?;
        if Due::of(&manifest, view.dims(), 0, zeal).is_none() {
            return Ok(Flushed::default());
        }
    }
    background::flush_begins(index);
    let (view, blocks) = View::take_with_blocks(index)?;
    let (mut manifest, manifest_blocks) = Manifest::read(index, view.manifest())?;
    let (metric, dims) = (view.metric, view.dims());
    let (log_pages, log_limit) = (view.log_pages(), background::log_limit_pages());
    background::flush_has_in_hand(index, log_pages);
    if zeal != Zeal::Tidy {
        pace::set_flush(index, background::is_far_behind(log_pages, log_limit));
    }
    zeal = zeal.beside(log_pages, log_limit);

    let mut store = RowStore::new(dims, job_memory());
    // Of each row, counted from the log's head.
    let mut seqs: Vec<u32> = Vec::new();
    let end = read_log(index, &view, |seq, tid, vector| {
        if tid.is_valid() {
            store.push(tid, vector);
            seqs.push((seq - view.log_head_seq()) as u32);
        }
        if seq % BREATH_ROWS == 0 {
            breathe();
        }
    })?;
    let mut flushed = Flushed { rows: store.len() as u64, ..Flushed::default() };
    let from_log = end.seq - view.log_head_seq();

    if from_log > 0 {
        memtable::seal(index, end.start());
    } else if Due::of(&manifest, dims, 0, zeal).is_none() {
        return Ok(flushed);
    }
    let crew = Crew::new();
    let builder = SegmentBuilder { index, metric, dims, crew: &crew, progress: Progress::Silent };
    let mut assigned = Assigned::default();
    let mut sorter = None;
    // Where it is trained anew, no row keeps its bucket.
    let retrains = Due::of(&manifest, dims, flushed.rows, zeal).retrain;
    if let Some(stored) = manifest.router.as_mut().filter(|_| store.len() > 0 && !retrains) {
        let opened = builder.sorter(stored)?;
        assigned = builder.sort(&opened, &mut store);
        let strangers = assigned.strangers;
        let means_something = strangers as f64 > STRANGERS_IN_LOG * flushed.rows as f64;
        if strangers >= FEWEST_STRANGERS && means_something {
            let less = strangers.saturating_mul(COST_OF_STRANGER);
            stored.trained_rows = stored.trained_rows.saturating_sub(less).max(1);
        }
        sorter = Some(opened);
    }
    // By now it shows how fast rows come.
    zeal = zeal.beside(View::take(index)?.log_pages(), log_limit);
    let Due { retrain, merged } = Due::of(&manifest, dims, flushed.rows, zeal);

    let mut log_blocks = end.passed.clone();
    log_blocks.push(end.block);
    let mut space = Space::new(index, &view, blocks, &manifest, &manifest_blocks, &log_blocks)?;
    let Manifest { router: old_router, segments } = manifest;
    if let Some(stored) = old_router.as_ref().filter(|_| merged.contains(&true) && !retrain) {
        sorter = match sorter {
            None => Some(builder.sorter(stored)?),
            known => known,
        };
    }
    let mut kept = Vec::new();
    let router_buckets = old_router.as_ref().map_or(0, |router| router.buckets);
    for (segment, merge) in segments.into_iter().zip(merged) {
        if !merge {
            kept.push(segment);
            continue;
        }
        let sorter = sorter.as_ref().filter(|_| !retrain);
        let second = sorter.and_then(|sorter| second_buckets(&builder, sorter, &segment));
        read_rows(index, dims, &segment, router_buckets, |row, tid, vector, bucket| {
            store.push(tid, vector);
            assigned.buckets.push(bucket);
            assigned.second.push(second.as_ref().and_then(|second| second.get(row).copied()));
        })?;
        flushed.merged += 1;
        flushed.merged_rows += segment.live;
        for column in segment.columns() {
            space.release(column.extents.iter().copied());
        }
    }
    let mut on_log = None;
    let is_alive = flushed.rows > 0 && flushed.rows as f64 >= from_log as f64 * FEWEST_ALIVE;
    let is_alone = flushed.merged == 0 && !retrain && store.in_memory().is_some();
    if zeal == Zeal::Hurry && is_alive && is_alone {
        // Nothing of the log has to be written but where it is.
        let head_seq = view.log_head_seq();
        let on = |run: LogRun| OnLog {
            places: seqs.iter().map(|seq| run.place(head_seq + u64::from(*seq))).collect(),
            run,
        };
        on_log = LogRun::take(index, &view, &end, &mut space)?.map(on);
    }
    drop(seqs);
    flushed.in_place = on_log.is_some();
    space.release_blocks(&manifest_blocks);
    if !flushed.in_place {
        space.release_blocks(&end.passed);
    }
    if zeal != Zeal::Tidy && is_long(store.len() as u64, dims) {
        pace::set_long();
    }

    let mut new_router = old_router.clone();
    if store.len() > 0 {
        match old_router {
            Some(stored) if !retrain => {
                let sorter = match sorter {
                    Some(sorter) => sorter,
                    None => builder.sorter(&stored)?,
                };
                kept.push(builder.build(&sorter, &mut store, assigned, on_log, &mut space)?);
            }
            stored => {
                drop((sorter, assigned));
                flushed.trained = true;
                let (router, segment) = builder.train_and_build(&mut store, &mut space)?;
                new_router = Some(router);
                kept.push(segment);
                let outdated = stored.into_iter().flat_map(|stored| stored.column.extents);
                space.release(outdated);
            }
        }
    }
    flushed.segments = kept.len();
    flushed.buckets = new_router.as_ref().map_or(0, |router| router.buckets);
    let manifest = Manifest { router: new_router, segments: kept };
    let is_untidy = !Due::of(&manifest, dims, 0, Zeal::Tidy).is_none();
    commit(index, job, manifest, Some(end), space)?;
    background::flush_is_done(index, View::take(index)?.log_pages(), log_limit);
    if is_untidy {
        background::tidy_later(index);
    }
    Ok(flushed)
}

/// Makes `manifest` the truth, and removes the arenas of segments it no longer has.
pub fn commit(
    index: Index,
    _job: &JobLock,
    manifest: Manifest,
    flushed: Option<LogEnd>,
    mut space: Space,
) -> Read<()> {
    let blocks: Vec<u32> = space
        .take(u64::from(manifest.pages()))
        .into_iter()
        .flat_map(|extent| extent.start..extent.start + extent.len)
        .collect();
    let root = manifest.write(index, &blocks);
    let aside = |end: &LogEnd| log_pages_aside(end.pages_passed, index.blocks());
    let spare = flushed.as_ref().map_or(0, aside);
    let spare = space.spare(spare);
    let head = flushed.as_ref().map(LogEnd::start);
    publish(index, &Flip { manifest: root, flushed, spare })?;
    if let Some(head) = head {
        memtable::trim(index, head);
    }
    sweep(index, &manifest);
    Ok(())
}

/// The second bucket of each row of a segment that is sorted by the router in use, if its arena
/// tells: they are the same whatever segment the row is in.
fn second_buckets(
    builder: &SegmentBuilder<'_>,
    sorter: &Sorter,
    segment: &Segment,
) -> Option<Vec<u32>> {
    let SegmentBuilder { index, metric, dims, .. } = *builder;
    let routing = sorter.routing();
    let arena = open_arena(index, metric, dims, routing, segment)?;
    // One that is damaged in part is made again by who searches it.
    let second = arena.second_buckets().ok()?;
    let is_known = |bucket: &u32| *bucket == NO_BUCKET || (*bucket as usize) < routing.len();
    second.iter().all(is_known).then_some(second)
}

/// Calls `row` with the numbers of the live rows of a segment, these and their buckets.
fn read_rows(
    index: Index,
    dims: usize,
    segment: &Segment,
    router_buckets: u32,
    mut row: impl FnMut(usize, Tid, &[f32], u32),
) -> Read<()> {
    let shapes = segment.read_buckets(index, router_buckets)?;
    let buckets =
        shapes.iter().flat_map(|shape| std::iter::repeat_n(shape.bucket, shape.rows as usize));
    let buckets: Vec<u32> = buckets.collect();
    let map = RowMap::new(index, segment, dims)?;
    let pages = TidReader::new(index, &map);
    let mut tids = Vec::with_capacity(buckets.len());
    for page in 0..pages.pages() {
        breathe();
        tids.extend(pages.page(page)?);
    }
    let mut seen = 0;
    VectorReader::new(index, &map).for_each(|number, vector| {
        let number = number as usize;
        if let (Some(tid), Some(bucket)) = (tids.get(number), buckets.get(number)) {
            if tid.is_valid() {
                row(number, *tid, vector, *bucket);
            }
        }
        seen += 1;
        if seen % BREATH_ROWS == 0 {
            breathe();
        }
    })
}
