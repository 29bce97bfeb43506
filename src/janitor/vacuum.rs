//! Vacuum's bulk delete: every live entry is shown to the callback, dead ones lose their TID.

use super::flush::commit;
use super::lock::JobLock;
use crate::page::layout::TIDS_PER_PAGE;
use crate::page::{
    kill_log_rows, Fault, Index, Manifest, Read, RowMap, Space, Tid, TidReader, View,
};

/// What a bulk delete found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deleted {
    /// Entries left.
    pub live: u64,
    /// Entries removed.
    pub removed: u64,
}

/// Asks `is_dead` about every entry, the log's included, and removes those that are.
///
/// Takes the job lock for all of it, so that no entry moves into a new segment unseen. Deletions
/// are keyed by the entry's place, never by its TID.
pub fn bulk_delete(index: Index, is_dead: impl FnMut(Tid) -> bool) -> Read<Deleted> {
    try_bulk_delete(index, is_dead).map_err(Fault::under_lock)
}

fn try_bulk_delete(index: Index, mut is_dead: impl FnMut(Tid) -> bool) -> Read<Deleted> {
    let job = JobLock::wait(index);
    let (view, blocks) = View::take_with_blocks(index)?;
    let (mut manifest, manifest_blocks) = Manifest::read(index, view.manifest())?;
    let mut total = Deleted::default();
    // Also when an earlier job was interrupted after it had removed rows.
    let mut recounted = false;
    for segment in &mut manifest.segments {
        let tids = TidReader::new(index, &RowMap::new(index, segment, view.dims())?);
        let mut live = 0;
        let mut places = Vec::with_capacity(TIDS_PER_PAGE);
        for page in 0..tids.pages() {
            delay_point();
            places.clear();
            for (place, tid) in tids.page(page)?.into_iter().enumerate() {
                if !tid.is_valid() {
                } else if is_dead(tid) {
                    places.push(place);
                } else {
                    live += 1;
                }
            }
            if !places.is_empty() {
                tids.clear(page, &places)?;
                total.removed += places.len() as u64;
            }
        }
        recounted |= segment.live != live;
        segment.live = live;
        total.live += live;
    }
    let (live, removed, end) = kill_log_rows(index, &view, &mut is_dead)?;
    total.live += live;
    total.removed += removed;

    if recounted {
        let mut log_blocks = end.passed;
        log_blocks.push(end.block);
        let mut space = Space::new(index, &view, blocks, &manifest, &manifest_blocks, &log_blocks)?;
        space.release_blocks(&manifest_blocks);
        commit(index, &job, manifest, None, space)?;
    }
    Ok(total)
}

/// Where vacuum sleeps off its cost, and can be cancelled.
fn delay_point() {
    // SAFETY: called on the backend's own thread with no buffer locked.
    unsafe { pgrx::pg_sys::vacuum_delay_point() }
}
