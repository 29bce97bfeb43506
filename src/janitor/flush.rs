//! The job that turns log rows into a segment, and merges segments while it is at it.

use super::crew::Crew;
use super::lock::JobLock;
use super::progress::Progress;
use super::router;
use super::rows::RowStore;
use super::segment_builder::{SegmentBuilder, UNASSIGNED};
use super::sweep::sweep;
use crate::memtable;
use crate::page::layout::TIDS_PER_PAGE;
use crate::page::{
    publish, read_log, Fault, Flip, Index, LogEnd, Manifest, Read, Segment, Space, TidReader,
    VectorReader, View,
};
use pgrx::pg_sys;

/// What a flush did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushed {
    /// Rows that left the log.
    pub rows: u64,
}

/// Rows grow so many times over before the router is trained anew on all of them.
const RETRAIN_GROWTH: u64 = 4;
/// A segment with less than this share of its rows alive is written anew.
const LEAST_ALIVE: f64 = 0.7;
/// Pages kept aside for the log.
const LOG_SPARE_PAGES: u32 = 256;

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
    let (router, segment) = builder.train_and_build(&mut store, &mut space);
    commit(index, &job, Manifest { router: Some(router), segments: vec![segment] }, None, space)
}

/// Moves the log's rows into a segment, together with the segments that are due to be merged or
/// are full of dead rows.
///
/// # Errors
/// What reading pages gave.
pub fn flush(index: Index, job: &JobLock) -> Read<Flushed> {
    try_flush(index, job).map_err(Fault::under_lock)
}

fn try_flush(index: Index, job: &JobLock) -> Read<Flushed> {
    let (view, blocks) = View::take_with_blocks(index)?;
    let (manifest, manifest_blocks) = Manifest::read(index, view.manifest())?;
    let (metric, dims) = (view.metric, view.dims());

    let mut store = RowStore::new(dims, job_memory());
    let end = read_log(index, &view, |_, tid, vector| {
        if tid.is_valid() {
            store.push(tid, vector);
        }
    })?;
    let flushed = Flushed { rows: store.len() as u64 };
    let from_log = end.seq - view.log_head_seq();

    let total = manifest.live_rows() + flushed.rows;
    let trained_rows = manifest.router.as_ref().map_or(0, |router| router.trained_rows);
    let retrain = flushed.rows > 0 && total >= trained_rows.saturating_mul(RETRAIN_GROWTH);
    let sizes: Vec<(u64, u64)> = manifest.segments.iter().map(|s| (s.rows, s.live)).collect();
    let merged = if retrain { vec![true; sizes.len()] } else { due(&sizes, flushed.rows) };
    if from_log == 0 && !merged.contains(&true) {
        return Ok(flushed);
    }

    memtable::seal(index, end.start());
    let mut log_blocks = end.passed.clone();
    log_blocks.push(end.block);
    let mut space = Space::new(index, &view, blocks, &manifest, &manifest_blocks, &log_blocks)?;
    let Manifest { router: old_router, segments } = manifest;
    let mut kept = Vec::new();
    let mut buckets = vec![UNASSIGNED; store.len()];
    let router_buckets = old_router.as_ref().map_or(0, |router| router.buckets);
    for (segment, merge) in segments.into_iter().zip(merged) {
        if !merge {
            kept.push(segment);
            continue;
        }
        read_rows(index, dims, &segment, router_buckets, |tid, vector, bucket| {
            store.push(tid, vector);
            buckets.push(bucket);
        })?;
        for column in segment.columns() {
            space.release(column.extents.iter().copied());
        }
    }
    space.release_blocks(&manifest_blocks);
    space.release_blocks(&end.passed);

    let crew = Crew::new();
    let builder = SegmentBuilder { index, metric, dims, crew: &crew, progress: Progress::Silent };
    let mut new_router = old_router.clone();
    if store.len() > 0 {
        match old_router {
            Some(stored) if !retrain => {
                let router = router::load(index, metric, dims, &stored)?;
                kept.push(builder.build(&router, &mut store, buckets, &mut space));
            }
            stored => {
                let (router, segment) = builder.train_and_build(&mut store, &mut space);
                new_router = Some(router);
                kept.push(segment);
                let outdated = stored.into_iter().flat_map(|stored| stored.column.extents);
                space.release(outdated);
            }
        }
    }
    let manifest = Manifest { router: new_router, segments: kept };
    commit(index, job, manifest, Some(end), space)?;
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
    let spare = space.spare(LOG_SPARE_PAGES);
    let head = flushed.as_ref().map(LogEnd::start);
    publish(index, &Flip { manifest: root, flushed, spare })?;
    if let Some(head) = head {
        memtable::trim(index, head);
    }
    sweep(index, &manifest);
    Ok(())
}

/// Calls `row` with the live rows of a segment and their buckets.
fn read_rows(
    index: Index,
    dims: usize,
    segment: &Segment,
    router_buckets: u32,
    mut row: impl FnMut(crate::page::Tid, &[f32], u32),
) -> Read<()> {
    let shapes = segment.read_buckets(index, router_buckets)?;
    let mut buckets =
        shapes.iter().flat_map(|shape| std::iter::repeat_n(shape.bucket, shape.rows as usize));
    let tids = TidReader::new(index, segment)?;
    let vectors = VectorReader::new(index, segment, dims)?;
    let mut block = Vec::new();
    for page in 0..tids.pages() {
        pgrx::check_for_interrupts!();
        let tids = tids.page(page)?;
        block.clear();
        vectors.rows(u64::from(page) * TIDS_PER_PAGE as u64, tids.len(), &mut block)?;
        for ((tid, vector), bucket) in
            tids.into_iter().zip(block.chunks_exact(dims)).zip(&mut buckets)
        {
            if tid.is_valid() {
                row(tid, vector, bucket);
            }
        }
    }
    Ok(())
}

/// Which segments, given as rows and live rows, are to be written anew with `fresh` rows.
///
/// From the smallest on, each that is not more than twice what is being written anyway: sizes
/// grow geometrically, so that their number, and how often a row is written, stay logarithmic.
fn due(segments: &[(u64, u64)], fresh: u64) -> Vec<bool> {
    let mut by_size: Vec<usize> = (0..segments.len()).collect();
    by_size.sort_by_key(|nth| segments[*nth].1);
    let mut merged = vec![false; segments.len()];
    let mut writing = fresh;
    for nth in by_size {
        let (rows, live) = segments[nth];
        let bloated = (live as f64) < rows as f64 * LEAST_ALIVE;
        if bloated || (writing > 0 && live <= writing * 2) {
            merged[nth] = true;
            writing += live;
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_flushes_keep_few_segments_and_write_each_row_few_times() {
        let (mut sizes, mut written) = (Vec::<(u64, u64)>::new(), 0);
        for _ in 0..1000 {
            let merged = due(&sizes, 10);
            let sum: u64 =
                10 + sizes.iter().zip(&merged).filter(|(_, m)| **m).map(|(s, _)| s.1).sum::<u64>();
            let mut keep = merged.iter();
            sizes.retain(|_| keep.next() == Some(&false));
            sizes.push((sum, sum));
            written += sum;
            assert!(sizes.len() <= 12, "{sizes:?}");
        }
        assert_eq!(sizes.iter().map(|s| s.1).sum::<u64>(), 10_000);
        assert!(written < 10_000 * 12, "{written}");
    }

    #[test]
    fn segments_full_of_dead_rows_are_rewritten_though_nothing_is_fresh() {
        assert_eq!(due(&[(1000, 990), (1000, 400)], 0), [false, true]);
        assert_eq!(due(&[(1000, 990)], 0), [false]);
    }
}
