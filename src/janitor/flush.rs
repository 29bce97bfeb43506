//! The job that turns log rows into a segment, and merges segments while it is at it.

use super::background::{self, pace, pace::breathe};
use super::crew::Crew;
use super::due::{is_long, is_mostly_alive, is_untidy, Due, Fresh, Zeal};
use super::lock::JobLock;
use super::merge::{merge, read_rows};
use super::progress::Progress;
use super::rows::RowStore;
use super::segment_builder::{Assigned, OnLog, SegmentBuilder};
use super::sweep::sweep;
use crate::memtable;
use crate::page::{
    log_pages_aside, publish, read_log, Fault, Flip, Index, Kind, LogEnd, LogPages, Manifest, Read,
    Segment, Space, View,
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
    /// All these rows stay on the log's pages.
    pub in_place: bool,
}

impl fmt::Display for Flushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log rows: {}, merged segments: {} with {} rows{}, segments now: {}, buckets: {}{}",
            self.rows,
            self.merged,
            self.merged_rows,
            if self.in_place { ", all in place" } else { "" },
            self.segments,
            self.buckets,
            if self.trained { " (trained anew)" } else { "" }
        )
    }
}

/// A row unlike those the router was trained on counts as so many fewer of these: where such rows
/// come, recall does not wait for the table to grow.
const COST_OF_STRANGER: u64 = 12;
/// Some are unlike in any table; fewer, and a smaller share of a log's rows, mean nothing.
const FEWEST_STRANGERS: u64 = 32;
const STRANGERS_IN_LOG: f64 = 0.1;
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
    let zeal = if background::is_on(index) { Zeal::Rush } else { Zeal::Flush };
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

fn try_flush(index: Index, job: &JobLock, mut zeal: Zeal) -> Read<Flushed> {
    if zeal == Zeal::Tidy {
        let view = View::take(index)?;
        let (manifest, _) = Manifest::read(index, view.manifest())?;
        if !is_untidy(&manifest, view.dims()) {
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
    store.reserve((log_pages as usize).saturating_mul(pg_sys::BLCKSZ as usize));
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
    } else if Due::of(&manifest, dims, Fresh::NONE, zeal).is_none() {
        return Ok(flushed);
    }
    let crew = Crew::new();
    let builder = SegmentBuilder { index, metric, dims, crew: &crew, progress: Progress::Silent };
    let mut assigned = Assigned::default();
    let mut sorter = None;
    let is_alive = is_mostly_alive(flushed.rows, from_log);
    let may_stay = flushed.rows == 0 || (is_alive && store.in_memory().is_some());
    let fresh = Fresh { rows: flushed.rows, may_stay };
    // Where it is trained anew, no row keeps its bucket.
    let retrains = Due::of(&manifest, dims, fresh, zeal).retrain;
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
    let Due { retrain, merged, in_place } = Due::of(&manifest, dims, fresh, zeal);

    let mut log_blocks = end.passed.clone();
    log_blocks.push(end.block);
    let mut space = Space::new(index, &view, blocks, &manifest, &manifest_blocks, &log_blocks)?;
    let Manifest { router: old_router, segments } = manifest;
    let (mut kept, mut old) = (Vec::new(), Vec::new());
    let chosen = segments.into_iter().zip(merged);
    chosen.for_each(|(segment, merge)| if merge { &mut old } else { &mut kept }.push(segment));
    flushed.merged = old.len();
    flushed.merged_rows = old.iter().map(|segment| segment.live).sum();

    let mut on_log = None;
    if in_place && !retrain && may_stay && (flushed.rows > 0 || !old.is_empty()) {
        on_log = stay_on_log(index, &view, &end, &seqs, &old, &mut space)?;
    }
    drop(seqs);
    flushed.in_place = on_log.is_some();
    for column in old.iter().flat_map(|segment| segment.columns()) {
        if on_log.is_none() || column.kind != Kind::Log {
            space.release(column.extents.iter().copied());
        }
    }
    space.release_blocks(&manifest_blocks);
    if flushed.rows == 0 || on_log.is_none() {
        space.release_blocks(&end.passed);
    }
    let written = flushed.rows + if flushed.in_place { 0 } else { flushed.merged_rows };
    if zeal != Zeal::Tidy && is_long(written, dims) {
        pace::set_long();
    }

    let mut new_router = old_router.clone();
    match old_router {
        _ if flushed.rows == 0 && old.is_empty() => {}
        Some(stored) if !retrain => {
            let sorter = match sorter {
                Some(sorter) => sorter,
                None => builder.sorter(&stored)?,
            };
            kept.extend(if old.is_empty() {
                Some(builder.build(&sorter, &mut store, assigned, on_log, &mut space)?)
            } else {
                merge(&builder, &sorter, &mut store, assigned, on_log, &old, &mut space)?
            });
        }
        stored => {
            drop((sorter, assigned));
            for segment in &old {
                read_rows(index, dims, segment, |_, tid, vector| store.push(tid, vector))?;
            }
            if store.len() > 0 {
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
    let left = Due::of(&manifest, dims, Fresh::NONE, Zeal::Tidy);
    let is_short = left.is_short(&manifest, dims);
    commit(index, job, manifest, Some(end), space)?;
    background::flush_is_done(index, View::take(index)?.log_pages(), log_limit);
    if !left.is_none() {
        background::tidy_later(index, is_short);
    }
    Ok(flushed)
}

/// What it takes to leave the rows of `old` segments, and those of the log with these numbers from
/// its head on, where they are. `None` where that is on other pages, or most of what is on these is
/// dead.
fn stay_on_log(
    index: Index,
    view: &View,
    end: &LogEnd,
    seqs: &[u32],
    old: &[Segment],
    space: &mut Space,
) -> Read<Option<OnLog>> {
    let mut pages = LogPages::none(view);
    let first_places: Option<Vec<u32>> = old.iter().map(|segment| pages.extend(segment)).collect();
    let Some(first_places) = first_places else { return Ok(None) };
    if !is_mostly_alive(old.iter().map(|segment| segment.live).sum(), pages.room()) {
        return Ok(None);
    }
    let mut places = Vec::new();
    if !seqs.is_empty() {
        let Some(taken) = pages.take(index, view, end, space)? else { return Ok(None) };
        let head = view.log_head_seq();
        places.extend(seqs.iter().map(|seq| taken.place(head + u64::from(*seq))));
    }
    Ok(Some(OnLog { pages, places, first_places }))
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
