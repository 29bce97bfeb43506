//! Vectors that stay where they were appended: a segment that took over pages of the log.
//!
//! ```text
//! vectors  | log page     | log page     | ... | copy of the last page |   in the order of the log
//!          | record | ... | record | ... |     | record |              |
//! places   | u32 | u32 | ...                                               in the order of buckets
//! ```
//!
//! A place is the number of a row's record, counted as if all pages were full, as all but the last
//! are, so that it tells the page too. The last page of a log is still appended to
//! and stays the log's: the segment has a copy of what was read of it. A reader knows a page by its
//! first sequence number, which none of the log's later pages has.
//!
//! The TIDs in the records count no more: the segment has its own, which vacuum clears.
//!
//! Such segments become one by having their pages one behind the other, as [`Run`]s.

use super::buffer::Locked;
use super::column::{Column, ColumnMap, ColumnReader};
use super::fault::{Fault, Read};
use super::layout::{record_bytes, records_per_page, Extent, Kind, LogHead, RecordHead, PAYLOAD};
use super::log::{read_head, LogEnd};
use super::meta::View;
use super::segment::Segment;
use super::space::runs_of;
use super::wal::{tail, Change};
use super::{Index, Space};
use bytemuck::{Pod, Zeroable};
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::rc::Rc;

/// Places on a page.
const PLACES_PER_PAGE: usize = PAYLOAD / size_of::<u32>();

/// Rows read before it is looked whether the statement has to end.
const ROWS_BETWEEN_INTERRUPTS: u64 = 256;

/// How to find a segment's rows on pages of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The pages, as far as they follow each other in the log.
    pub runs: Vec<Run>,
    /// For each row, in the order of the segment, its record's place, a u32.
    pub places: Column,
}

impl Logged {
    /// Whether so many like this one may become one.
    pub fn may_join(&self, others: usize) -> bool {
        self.runs.len().saturating_mul(others) <= MOST_RUNS
    }

    /// Rows of so many components that there is room for on the pages.
    pub fn room(&self, dims: usize) -> u64 {
        room(&self.runs, records_per_page(dims))
    }

    /// The place of each row.
    ///
    /// # Errors
    /// What reading them gave.
    pub fn read_places(&self, index: Index) -> Read<Vec<u32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.places.read_all(index)?))
    }
}

/// Pages that followed each other in the log.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// Sequence number of the first record on the first page.
    pub first_seq: u64,
    /// How many they are.
    pub pages: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Run>() == 16);
const _: () = assert!(offset_of!(Run, pages) == 8);

/// Records that fit on pages that take so many each.
fn room(runs: &[Run], per_page: usize) -> u64 {
    runs.iter().map(|run| u64::from(run.pages) * per_page as u64).sum()
}

/// A segment of more runs is written in order: to read one of its rows is to find its run.
const MOST_RUNS: usize = 1024;

/// Pages of the log that a segment is to take over.
#[derive(Clone, Debug)]
pub struct LogPages {
    /// As [`Logged::runs`].
    pub runs: Vec<Run>,
    /// The pages.
    pub vectors: Column,
    per_page: u32,
}

impl LogPages {
    /// None yet.
    pub fn none(view: &View) -> LogPages {
        let id = view.log_id();
        LogPages {
            runs: Vec::new(),
            vectors: Column { id, kind: Kind::Log, bytes: 0, crc: 0, extents: Vec::new() },
            per_page: records_per_page(view.dims()) as u32,
        }
    }

    /// Adds those of a segment, which is not to be used any more, and tells what is added to its
    /// rows' places. `None`, and nothing is done, where it has none, or they would be too many.
    pub fn extend(&mut self, segment: &Segment) -> Option<u32> {
        let (logged, vectors) = (segment.logged.as_ref()?, &segment.vectors);
        if self.runs.len() + logged.runs.len() > MOST_RUNS || self.vectors.id != vectors.id {
            return None;
        }
        let pages = logged.runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
        let place = u32::try_from(self.room()).ok()?;
        u32::try_from(self.room() + pages * u64::from(self.per_page)).ok()?;
        self.runs.extend_from_slice(&logged.runs);
        self.vectors.extents.extend_from_slice(&vectors.extents);
        self.vectors.bytes += pages * PAYLOAD as u64;
        Some(place)
    }

    /// Rows there is room for on them.
    pub fn room(&self) -> u64 {
        room(&self.runs, self.per_page as usize)
    }

    /// Adds the pages of what was read of the log from its head to `end`, the last one copied onto a
    /// free page; one that has no row of the segment is given back. `None`, and nothing is done,
    /// where they are not as a segment needs them: with records longer than a page, or too many.
    ///
    /// # Errors
    /// What reading the last page gave.
    pub fn take(
        &mut self,
        index: Index,
        view: &View,
        end: &LogEnd,
        space: &mut Space,
    ) -> Read<Option<Taken>> {
        let per_page = u64::from(self.per_page);
        let passed = end.passed.len() as u64;
        let is_full = end.block_seq.checked_sub(end.first_seq) == Some(passed * per_page);
        let room = u32::try_from(self.room() + (passed + 1) * per_page);
        if per_page == 0 || !is_full || room.is_err() || self.runs.len() == MOST_RUNS {
            return Ok(None);
        }
        // A page whose records are all in segments already has no row of this one.
        let flushed = view.log_head_seq().saturating_sub(end.first_seq) / per_page;
        let (before, taken) = end.passed.split_at((flushed as usize).min(end.passed.len()));
        space.release_blocks(before);
        let first_seq = end.first_seq + before.len() as u64 * per_page;
        let mut extents = runs_of(taken);
        if end.seq > end.block_seq {
            extents.extend(copy_last(index, view, end, space)?);
        }
        let place = self.room() as u32;
        let pages = extents.iter().map(|extent| extent.len).sum();
        self.runs.push(Run { first_seq, pages, reserved: 0 });
        self.vectors.bytes += u64::from(pages) * PAYLOAD as u64;
        self.vectors.extents.extend(extents);
        Ok(Some(Taken { place, first_seq }))
    }
}

/// Where pages that were taken from the log begin.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    place: u32,
    first_seq: u64,
}

impl Taken {
    /// The place of a record that was read.
    pub fn place(&self, seq: u64) -> u32 {
        self.place + (seq - self.first_seq) as u32
    }
}

/// Copies the records of the log's last page that come before `end`.
fn copy_last(index: Index, view: &View, end: &LogEnd, space: &mut Space) -> Read<Vec<Extent>> {
    let extents = space.take(1);
    let Some(extent) = extents.first() else { return Ok(extents) };
    let count = end.seq - end.block_seq;
    let used = size_of::<LogHead>() + count as usize * record_bytes(view.dims());
    let last = Locked::share(index, end.block);
    last.owned_tail(Kind::Log, view.log_id())?;
    let head = read_head(&last, view.dims())?;
    if head.first_seq != end.block_seq || u64::from(head.count) < count {
        return Err(Fault::damaged(end.block, "log header"));
    }
    let mut bytes = last.payload()[..used].to_vec();
    drop(last);
    let head = LogHead { count: count as u32, used: used as u32, ..head };
    bytes[..size_of::<LogHead>()].copy_from_slice(bytemuck::bytes_of(&head));
    let page = Locked::overwrite(index, extent.start);
    let change = Change::begin(index);
    let mut image = change.fill(&page, tail(Kind::LogCopy, view.log_id(), 0));
    image.payload()[..used].copy_from_slice(&bytes);
    image.set_used(used);
    change.commit();
    Ok(extents)
}

/// Where a segment's rows are on pages of the log; see [`ColumnMap`].
#[derive(Clone, Debug)]
pub struct LoggedMap {
    dims: usize,
    per_page: u32,
    /// Number of the first page and of its first record, of each run.
    runs: Rc<[(u32, u64)]>,
    logged: Rc<Logged>,
    places: Rc<ColumnMap>,
    pages: Rc<ColumnMap>,
}

impl LoggedMap {
    /// Maps so many rows of `dims` components on the pages of `vectors`.
    pub fn new(
        index: Index,
        vectors: &Column,
        logged: &Logged,
        rows: u64,
        dims: usize,
    ) -> Read<LoggedMap> {
        if Some(logged.places.bytes) != rows.checked_mul(size_of::<u32>() as u64) {
            return Err(Fault::damaged(0, "place column length"));
        }
        let per_page = records_per_page(dims) as u32;
        if per_page == 0 {
            return Err(Fault::damaged(0, "vector column kind"));
        }
        let places = Rc::new(ColumnMap::new(index, &logged.places)?);
        let pages = Rc::new(ColumnMap::new(index, vectors)?);
        let mut runs = Vec::with_capacity(logged.runs.len());
        let mut first = 0u32;
        for run in &logged.runs {
            runs.push((first, run.first_seq));
            first = first.checked_add(run.pages).ok_or(Fault::damaged(0, "runs of log pages"))?;
        }
        if Column::pages(vectors.bytes) != u64::from(first) {
            return Err(Fault::damaged(0, "runs of log pages"));
        }
        let logged = Rc::new(logged.clone());
        Ok(LoggedMap { dims, per_page, runs: runs.into(), logged, places, pages })
    }

    /// Sequence number of the first record on a page.
    fn first_seq(&self, ordinal: u32) -> Option<u64> {
        let after = self.runs.partition_point(|(first, _)| *first <= ordinal);
        let (first, first_seq) = self.runs.get(after.checked_sub(1)?)?;
        first_seq.checked_add(u64::from(ordinal - first) * u64::from(self.per_page))
    }

    /// Asks the processor for a row's vector, as far as it is on pages that were read before. A hint.
    pub fn prefetch(&self, row: u64) {
        let (ordinal, at) = place_of(row);
        if let Some(place) = self.places.peek::<u32>(ordinal, at) {
            let body = self.body(place % self.per_page);
            self.pages.prefetch(place / self.per_page, 0..size_of::<LogHead>());
            self.pages
                .prefetch(place / self.per_page, body.start - size_of::<RecordHead>()..body.end);
        }
    }

    /// Where the vector of a page's record is.
    fn body(&self, nth: u32) -> Range<usize> {
        let end = size_of::<LogHead>() + (nth as usize + 1) * record_bytes(self.dims);
        end - self.dims * size_of::<f32>()..end
    }
}

/// The page of a row's place, and where on it that is.
fn place_of(row: u64) -> (u32, usize) {
    let (page, nth) = (row / PLACES_PER_PAGE as u64, row % PLACES_PER_PAGE as u64);
    (page as u32, nth as usize * size_of::<u32>())
}

/// Reads vectors on pages of the log.
pub struct LoggedReader {
    index: Index,
    map: LoggedMap,
    places: ColumnReader,
    pages: ColumnReader,
}

impl LoggedReader {
    /// Prepares to read what is mapped.
    pub fn new(index: Index, map: &LoggedMap) -> LoggedReader {
        let [places, pages] =
            [&map.places, &map.pages].map(|column| ColumnReader::new(index, column.clone()));
        LoggedReader { index, map: map.clone(), places, pages }
    }

    /// Hands `with` the vector of row `row`, which is one of the segment's, in place.
    pub fn row<T>(&self, row: u64, with: impl FnOnce(&[f32]) -> T) -> Read<T> {
        self.record(self.place(row)?, |_, vector| with(bytemuck::cast_slice(vector)))
    }

    /// Appends the vectors of rows `first..first + count`, checked, to `out`.
    pub fn rows(&self, first: u64, count: usize, out: &mut Vec<f32>) -> Read<()> {
        for row in first..first + count as u64 {
            if row % ROWS_BETWEEN_INTERRUPTS == 0 {
                pgrx::check_for_interrupts!();
            }
            self.append(self.place(row)?, out)?;
        }
        Ok(())
    }

    /// Calls `row` with the numbers of all rows and their vectors, checked: in the order of the pages,
    /// so that each is met once.
    pub fn for_each(&self, mut row: impl FnMut(u64, &[f32])) -> Read<()> {
        let places = self.map.logged.read_places(self.index)?;
        let mut places: Vec<(u32, u32)> = places.into_iter().zip(0..).collect();
        places.sort_unstable();
        let mut vectors = Vec::new();
        for page in places.chunk_by(|a, b| a.0 / self.map.per_page == b.0 / self.map.per_page) {
            pgrx::check_for_interrupts!();
            vectors.clear();
            page.iter().try_for_each(|(place, _)| self.append(*place, &mut vectors))?;
            // With no page locked.
            let rows = page.iter().zip(vectors.chunks_exact(self.map.dims));
            rows.for_each(|((_, number), vector)| row(u64::from(*number), vector));
        }
        Ok(())
    }

    /// The place of a row.
    fn place(&self, row: u64) -> Read<u32> {
        let (ordinal, at) = place_of(row);
        self.places.page(ordinal, |payload| {
            bytemuck::pod_read_unaligned(&payload[at..at + size_of::<u32>()])
        })
    }

    /// Appends the vector of the record at a place, whose checksum has to be right.
    fn append(&self, place: u32, out: &mut Vec<f32>) -> Read<()> {
        let is_sound = self.record(place, |head, vector| {
            out.extend_from_slice(bytemuck::cast_slice(vector));
            head.is_sound(vector)
        })?;
        if !is_sound {
            let block = self.map.pages.block(place / self.map.per_page)?;
            return Err(Fault::damaged(block, "log record checksum"));
        }
        Ok(())
    }

    /// Hands `with` the record at a place, and the bytes of its vector.
    fn record<T>(&self, place: u32, with: impl FnOnce(&RecordHead, &[u8]) -> T) -> Read<T> {
        let LoggedMap { dims, per_page, pages, .. } = &self.map;
        let (ordinal, nth) = (place / per_page, place % per_page);
        let page = self.pages.lock(ordinal)?;
        let owner = pages.owner();
        page.owned_tail(Kind::Log, owner).or_else(|_| page.owned_tail(Kind::LogCopy, owner))?;
        let payload = page.payload();
        let head: LogHead = bytemuck::pod_read_unaligned(&payload[..size_of::<LogHead>()]);
        if self.map.first_seq(ordinal) != Some(head.first_seq) {
            return Err(Fault::Recycled(page.block()));
        }
        let body = self.map.body(nth);
        let frame: RecordHead = bytemuck::pod_read_unaligned(
            &payload[body.start - size_of::<RecordHead>()..body.start],
        );
        let seq = head.first_seq.wrapping_add(u64::from(nth));
        if nth >= head.count || frame.seq != seq || frame.dims as usize != *dims {
            return Err(Fault::damaged(page.block(), "log record"));
        }
        Ok(with(&frame, &payload[body]))
    }
}
