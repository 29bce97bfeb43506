//! Vectors that stay where they were appended: a segment that took over pages of the log.
//!
//! ```text
//! vectors  | log page     | log page     | ... | copy of the last page |   in the order of the log
//!          | record | ... | record | ... |     | record |              |
//! places   | u32 | u32 | ...                                               in the order of buckets
//! ```
//!
//! A place is the number of a row's record, counted from the first on the first page. All pages but
//! the last are full, so that it tells the page too. The last page of a log is still appended to
//! and stays the log's: the segment has a copy of what was read of it. A reader knows a page by its
//! first sequence number, which none of the log's later pages has.
//!
//! The TIDs in the records count no more: the segment has its own, which vacuum clears.

use super::buffer::Locked;
use super::column::{Column, ColumnMap, ColumnReader};
use super::fault::{Fault, Read};
use super::layout::{record_bytes, records_per_page, Extent, Kind, LogHead, RecordHead, PAYLOAD};
use super::log::{read_head, LogEnd};
use super::meta::View;
use super::space::runs_of;
use super::wal::{tail, Change};
use super::{Index, Space};
use std::mem::size_of;
use std::ops::Range;
use std::rc::Rc;

/// Places on a page.
const PLACES_PER_PAGE: usize = PAYLOAD / size_of::<u32>();

/// Rows read before it is looked whether the statement has to end.
const ROWS_BETWEEN_INTERRUPTS: u64 = 256;

/// How to find a segment's rows on pages of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Sequence number of the first record on the first page.
    pub first_seq: u64,
    /// For each row, in the order of the segment, its record's number from there, a u32.
    pub places: Column,
}

/// Pages of the log that a segment is to take over.
#[derive(Clone, Debug)]
pub struct LogRun {
    /// Sequence number of the first record on the first page.
    pub first_seq: u64,
    /// The pages.
    pub vectors: Column,
}

impl LogRun {
    /// The pages of what was read of the log from its head to `end`, the last one copied onto a free
    /// page; one that has no row of the segment is given back. None where they are not as a segment
    /// needs them: with records longer than a page.
    ///
    /// # Errors
    /// What reading the last page gave.
    pub fn take(
        index: Index,
        view: &View,
        end: &LogEnd,
        space: &mut Space,
    ) -> Read<Option<LogRun>> {
        let per_page = records_per_page(view.dims()) as u64;
        let passed = end.passed.len() as u64;
        let is_full = end.block_seq.checked_sub(end.first_seq) == Some(passed * per_page);
        let last_place = u32::try_from(end.seq - end.first_seq);
        if per_page == 0 || !is_full || last_place.is_err() {
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
        let pages = extents.iter().map(|extent| u64::from(extent.len)).sum::<u64>();
        let bytes = pages * PAYLOAD as u64;
        let vectors = Column { id: view.log_id(), kind: Kind::Log, bytes, crc: 0, extents };
        Ok(Some(LogRun { first_seq, vectors }))
    }

    /// The place of a record.
    pub fn place(&self, seq: u64) -> u32 {
        (seq - self.first_seq) as u32
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
    first_seq: u64,
    places: Rc<ColumnMap>,
    places_crc: u32,
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
        let (first_seq, places_crc) = (logged.first_seq, logged.places.crc);
        Ok(LoggedMap { dims, per_page, first_seq, places, places_crc, pages })
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
    map: LoggedMap,
    places: ColumnReader,
    pages: ColumnReader,
}

impl LoggedReader {
    /// Prepares to read what is mapped.
    pub fn new(index: Index, map: &LoggedMap) -> LoggedReader {
        let [places, pages] =
            [&map.places, &map.pages].map(|column| ColumnReader::new(index, column.clone()));
        LoggedReader { map: map.clone(), places, pages }
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

    /// Calls `row` with the numbers of `rows` rows, which are all, and their vectors, checked: in the
    /// order of the log, so that each page is met once.
    pub fn for_each(&self, rows: u64, mut row: impl FnMut(u64, &[f32])) -> Read<()> {
        let mut places: Vec<(u32, u32)> = Vec::with_capacity(rows as usize);
        let mut hasher = crc32fast::Hasher::new();
        while (places.len() as u64) < rows {
            pgrx::check_for_interrupts!();
            let (ordinal, _) = place_of(places.len() as u64);
            let on_page = (rows - places.len() as u64).min(PLACES_PER_PAGE as u64) as usize;
            self.places.page(ordinal, |payload| {
                let bytes = &payload[..on_page * size_of::<u32>()];
                hasher.update(bytes);
                let numbers = places.len() as u32..;
                let place = |(bytes, row): (&[u8], u32)| (bytemuck::pod_read_unaligned(bytes), row);
                places.extend(bytes.chunks_exact(size_of::<u32>()).zip(numbers).map(place));
            })?;
        }
        if hasher.finalize() != self.map.places_crc {
            return Err(Fault::damaged(self.map.places.block(0)?, "checksum"));
        }
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
        let LoggedMap { dims, per_page, first_seq, pages, .. } = &self.map;
        let (ordinal, nth) = (place / per_page, place % per_page);
        let page = self.pages.lock(ordinal)?;
        let owner = pages.owner();
        page.owned_tail(Kind::Log, owner).or_else(|_| page.owned_tail(Kind::LogCopy, owner))?;
        let payload = page.payload();
        let head: LogHead = bytemuck::pod_read_unaligned(&payload[..size_of::<LogHead>()]);
        if first_seq.checked_add(u64::from(ordinal * per_page)) != Some(head.first_seq) {
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
