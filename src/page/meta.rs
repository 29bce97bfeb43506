//! The metapage: creation, the view a reader takes of it, and the flip that commits.

use super::buffer::Locked;
use super::fault::{Fault, Read};
use super::layout::{
    Extent, Kind, LogHead, ManifestRef, MetaPayload, FORMAT, LOG_RESERVE, META_BLOCK, META_MAGIC,
    NO_BLOCK,
};
use super::log::{LogEnd, LogStart};
use super::patch::Patch;
use super::wal::{tail, Change, PageMut};
use super::{Identity, Index};
use crate::metric::Metric;
use bytemuck::Zeroable;
use pgrx::pg_sys;
use std::mem::size_of;

/// Components a vector has at most.
const MAX_DIMS: u32 = 16_000;
/// The first page of a new index's log.
const FIRST_LOG_BLOCK: u32 = 1;

/// What a reader knows of the index: a copy of the metapage and what was there when it was taken.
#[derive(Clone, Copy)]
pub struct View {
    meta: MetaPayload,
    /// The distance the index answers.
    pub metric: Metric,
}

impl View {
    /// Copies the metapage and checks it.
    pub fn take(index: Index) -> Read<View> {
        View::of(&Locked::share(index, META_BLOCK))
    }

    /// Copies the metapage, and counts the relation's blocks before its log can grow on.
    pub fn take_with_blocks(index: Index) -> Read<(View, u32)> {
        let page = Locked::share(index, META_BLOCK);
        Ok((View::of(&page)?, index.blocks()))
    }

    fn of(page: &Locked) -> Read<View> {
        let meta = read(page)?;
        Ok(View { meta, metric: metric_of(&meta)? })
    }

    /// Components of every vector.
    pub fn dims(&self) -> usize {
        self.meta.dims as usize
    }

    /// The manifest at this moment.
    pub fn manifest(&self) -> ManifestRef {
        self.meta.manifest
    }

    /// Owner of the log's pages.
    pub fn log_id(&self) -> Identity {
        self.meta.log_id
    }

    /// Records from this sequence number on are in no segment.
    pub fn log_head_seq(&self) -> u64 {
        self.meta.log_head_seq
    }

    /// The page that holds the log's head.
    pub fn log_head_block(&self) -> u32 {
        self.meta.log_head_block
    }

    /// Where the log's records begin.
    pub fn log_start(&self) -> LogStart {
        LogStart { block: self.meta.log_head_block, seq: self.meta.log_head_seq }
    }

    /// Changes whenever TIDs in the log have been overwritten.
    pub fn log_kills(&self) -> u32 {
        self.meta.log_kills
    }

    /// Pages from the log's head to its tail.
    pub fn log_pages(&self) -> u32 {
        self.meta.log_pages
    }

    /// Runs that are set aside for the log.
    pub fn log_reserve(&self) -> impl Iterator<Item = Extent> + '_ {
        self.meta.log_reserve.iter().copied().filter(|extent| extent.len > 0)
    }
}

/// Checks and copies the metapage's payload.
pub fn read(page: &Locked) -> Read<MetaPayload> {
    let meta: MetaPayload =
        bytemuck::pod_read_unaligned(&page.payload()[..size_of::<MetaPayload>()]);
    if meta.magic != META_MAGIC {
        return Err(Fault::damaged(META_BLOCK, "magic number"));
    }
    if meta.format > FORMAT {
        return Err(Fault::NewerFormat(meta.format));
    }
    if meta.crc != checksum(&meta) {
        return Err(Fault::damaged(META_BLOCK, "checksum"));
    }
    if !(1..=MAX_DIMS).contains(&meta.dims) {
        return Err(Fault::damaged(META_BLOCK, "number of dimensions"));
    }
    if [meta.log_head_block, meta.log_tail_block].iter().any(|b| [META_BLOCK, NO_BLOCK].contains(b))
    {
        return Err(Fault::damaged(META_BLOCK, "log position"));
    }
    Ok(meta)
}

/// Puts `meta` on the page and seals it with its checksum.
pub fn write(page: &mut PageMut<'_>, meta: &MetaPayload) {
    let sealed = MetaPayload { crc: checksum(meta), ..*meta };
    page.payload()[..size_of::<MetaPayload>()].copy_from_slice(bytemuck::bytes_of(&sealed));
    page.set_used(size_of::<MetaPayload>());
}

/// What makes of a page with `before`, as it was read from it, one with `after`.
pub fn patch(before: &MetaPayload, after: &MetaPayload) -> Patch {
    let sealed = MetaPayload { crc: checksum(after), ..*after };
    let (old, new) = (bytemuck::bytes_of(before), bytemuck::bytes_of(&sealed));
    let differ = |at: &usize| old[*at] != new[*at];
    let start = (0..new.len()).find(differ).unwrap_or(0);
    let end = (start..new.len()).rfind(differ).map_or(start, |last| last + 1);
    let mut patch = Patch::new(new.len(), end - start + 16);
    patch.put(start, &[&new[start..end]]);
    patch
}

fn checksum(meta: &MetaPayload) -> u32 {
    crc32fast::hash(bytemuck::bytes_of(&MetaPayload { crc: 0, ..*meta }))
}

fn metric_of(meta: &MetaPayload) -> Read<Metric> {
    u8::try_from(meta.metric)
        .ok()
        .and_then(Metric::from_code)
        .ok_or(Fault::damaged(META_BLOCK, "metric"))
}

/// Writes the metapage and an empty log to an empty fork.
pub fn create(index: Index, fork: pg_sys::ForkNumber::Type, dims: usize, metric: Metric) {
    let log_id = Identity::random();
    let meta_page = Locked::extend(index, fork);
    let log_page = Locked::extend(index, fork);
    let meta = MetaPayload {
        magic: META_MAGIC,
        format: FORMAT,
        metric: metric as u32,
        dims: dims as u32,
        manifest: ManifestRef::NONE,
        log_id,
        log_head_block: FIRST_LOG_BLOCK,
        log_tail_block: FIRST_LOG_BLOCK,
        log_pages: 1,
        ..MetaPayload::zeroed()
    };
    let change = Change::begin(index);
    let mut image = change.fill(&meta_page, tail(Kind::Meta, log_id, 0));
    write(&mut image, &meta);
    let mut image = change.fill(&log_page, tail(Kind::Log, log_id, 0));
    let head = LogHead { first_seq: 0, count: 0, used: size_of::<LogHead>() as u32 };
    image.payload()[..size_of::<LogHead>()].copy_from_slice(bytemuck::bytes_of(&head));
    image.set_used(size_of::<LogHead>());
    change.commit();
    drop((meta_page, log_page));
    if fork == pg_sys::ForkNumber::INIT_FORKNUM {
        // An init fork must reach the WAL though its relation's other pages never do.
        // SAFETY: the relation is open and its fork has the two pages written above.
        unsafe { pg_sys::log_newpage_range(index.relation(), fork, 0, 2, true) };
    }
}

/// What one flip of the metapage changes.
pub struct Flip {
    /// The new manifest, already written.
    pub manifest: ManifestRef,
    /// Where the log was read to, if its rows up to there are in the new manifest's segments.
    pub flushed: Option<LogEnd>,
    /// Runs that are free once the flip is done, for the log to grow into: [`log_pages_aside`] of
    /// what was read of it.
    pub spare: Vec<Extent>,
}

/// Pages set aside for any log, as many as are whatever the relation's size, and the part of a large
/// one that is not more than they may be.
const FEWEST_ASIDE: u32 = 16;
const ANY_ASIDE: u32 = 4096;
const ASIDE_OF_BLOCKS: u32 = 16;

/// Pages to set aside for a log that has so many to give back, or to keep, in a relation of so many
/// blocks.
///
/// What a flush has read of a log is added to what is left, whatever number it had this time: a log
/// that was long once will be so again, and cannot grow into what is free for segments. So the
/// relation has room for the longest log and the most segments there were, and grows no further. A
/// log that is long for the relation's size grows at its end until it no longer is: it may have been
/// the only such.
pub fn log_pages_aside(pages: u32, blocks: u32) -> u32 {
    pages.clamp(FEWEST_ASIDE, ANY_ASIDE.max(blocks / ASIDE_OF_BLOCKS))
}

/// Commits a new manifest. The caller holds the job lock.
pub fn publish(index: Index, flip: &Flip) -> Read<()> {
    let page = Locked::exclusive(index, META_BLOCK);
    let mut meta = read(&page)?;
    // An index of an earlier format is one of this from the first manifest on.
    meta.format = FORMAT;
    meta.manifest = flip.manifest;
    meta.manifest_version += 1;
    if let Some(end) = &flip.flushed {
        meta.log_head_seq = end.seq;
        meta.log_head_block = end.block;
        meta.log_pages = meta.log_pages.saturating_sub(end.pages_passed).max(1);
        let blocks = index.blocks();
        refill(&mut meta.log_reserve, &flip.spare, end.pages_passed, blocks);
    }
    let change = Change::begin(index);
    write(&mut change.edit(&page), &meta);
    change.commit();
    Ok(())
}

/// Makes it known that TIDs in the log have been overwritten.
pub fn count_kill(index: Index) -> Read<()> {
    let page = Locked::exclusive(index, META_BLOCK);
    let mut meta = read(&page)?;
    meta.log_kills = meta.log_kills.wrapping_add(1);
    let change = Change::begin(index);
    write(&mut change.edit(&page), &meta);
    change.commit();
    Ok(())
}

/// Adds `returned` pages of what is spare to what is left, keeping the longest runs.
fn refill(reserve: &mut [Extent; LOG_RESERVE], spare: &[Extent], returned: u32, blocks: u32) {
    let left = reserve.iter().fold(0u32, |sum, extent| sum.saturating_add(extent.len));
    let mut runs: Vec<Extent> =
        reserve.iter().chain(spare).copied().filter(|extent| extent.len > 0).collect();
    runs.sort_by_key(|extent| std::cmp::Reverse(extent.len));
    runs.resize(LOG_RESERVE, Extent::zeroed());
    let mut pages = log_pages_aside(left.saturating_add(returned), blocks);
    for run in &mut runs {
        run.len = run.len.min(pages);
        pages -= run.len;
    }
    reserve.copy_from_slice(&runs);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u32, len: u32) -> Extent {
        Extent { start, len }
    }

    fn pages(reserve: &[Extent]) -> u32 {
        reserve.iter().map(|run| run.len).sum()
    }

    #[test]
    fn the_reserve_keeps_its_longest_runs_and_as_many_pages_as_the_log_had() {
        let mut reserve = [Extent::zeroed(); LOG_RESERVE];
        reserve[3] = extent(10, 4);
        refill(&mut reserve, &[extent(100, 2), extent(200, 50)], 48, 400);
        assert_eq!(reserve[..3], [extent(200, 50), extent(10, 2), extent(100, 0)]);
        // A short log after it does not give up what the long one needed.
        reserve[0].len -= 3;
        refill(&mut reserve, &[extent(300, 16)], 3, 400);
        assert_eq!(pages(&reserve), 52);
    }

    #[test]
    fn the_reserve_has_its_bounds() {
        let mut reserve = [Extent::zeroed(); LOG_RESERVE];
        refill(&mut reserve, &[extent(100, 40)], 1, 400);
        assert_eq!(pages(&reserve), 16);
        refill(&mut reserve, &[extent(1000, 5000)], 5000, 40_000);
        assert_eq!(pages(&reserve), 4096);
        let mut reserve = [Extent::zeroed(); LOG_RESERVE];
        refill(&mut reserve, &[extent(1000, 5000)], 5000, 160_000);
        assert_eq!(pages(&reserve), 5000);
    }
}
