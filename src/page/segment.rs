//! Segments: rows sorted by bucket, in a column of TIDs and one of vectors, or with their vectors on
//! pages of the log.

use super::column::{Column, ColumnMap, ColumnReader};
use super::fault::{Fault, Read};
use super::layout::{Tid, PAYLOAD, TIDS_PER_PAGE};
use super::logged::{Logged, LoggedMap, LoggedReader};
use super::{Identity, Index};
use bytemuck::{Pod, Zeroable};
use std::mem::size_of;
use std::rc::Rc;

/// What one build, flush or merge wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its random id, which its arena carries too.
    pub id: Identity,
    /// Rows written.
    pub rows: u64,
    /// Rows whose TID is still valid.
    pub live: u64,
    /// Heap TIDs, [`Tid::INVALID`] where vacuum removed the row.
    pub tids: Column,
    /// `rows` vectors, or the pages of the log that have them.
    pub vectors: Column,
    /// [`BucketShape`]s, ascending, of the buckets that have rows.
    pub buckets: Column,
    /// Where on these pages each row is.
    pub logged: Option<Logged>,
}

/// How many rows of a segment are in one bucket.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq)]
#[repr(C)]
pub struct BucketShape {
    /// The router's number of the bucket.
    pub bucket: u32,
    /// Its rows, more than none.
    pub rows: u32,
}

const _: () = assert!(size_of::<BucketShape>() == 8);

impl Segment {
    /// Its columns.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        let places = self.logged.iter().map(|logged| &logged.places);
        [&self.tids, &self.vectors, &self.buckets].into_iter().chain(places)
    }

    /// Reads the bucket table and checks it against the number of rows and of buckets.
    pub fn read_buckets(&self, index: Index, router_buckets: u32) -> Read<Vec<BucketShape>> {
        let block = self.buckets.extents.first().map_or(0, |extent| extent.start);
        let bytes = self.buckets.read_all(index)?;
        if !bytes.len().is_multiple_of(size_of::<BucketShape>()) {
            return Err(Fault::damaged(block, "bucket table"));
        }
        let shapes: Vec<BucketShape> = bytemuck::pod_collect_to_vec(&bytes);
        let ascending = shapes.windows(2).all(|pair| pair[0].bucket < pair[1].bucket);
        let in_range = shapes.last().is_none_or(|last| last.bucket < router_buckets);
        let rows: u64 = shapes.iter().map(|shape| u64::from(shape.rows)).sum();
        if ascending && in_range && rows == self.rows {
            Ok(shapes)
        } else {
            Err(Fault::damaged(block, "bucket table"))
        }
    }
}

/// Where a segment's rows are; see [`ColumnMap`].
#[derive(Clone, Debug)]
pub struct RowMap {
    rows: u64,
    row_bytes: usize,
    vectors: VectorMap,
    tids: Rc<ColumnMap>,
}

/// Where a segment's vectors are.
#[derive(Clone, Debug)]
enum VectorMap {
    /// One behind the other.
    Sorted(Rc<ColumnMap>),
    /// On pages of the log.
    Logged(LoggedMap),
}

impl RowMap {
    /// Maps the columns of `segment`, whose vectors have `dims` components.
    pub fn new(index: Index, segment: &Segment, dims: usize) -> Read<RowMap> {
        let (rows, row_bytes) = (segment.rows, dims * size_of::<f32>());
        if Some(segment.tids.bytes) != rows.checked_mul(size_of::<Tid>() as u64) {
            return Err(Fault::damaged(0, "TID column length"));
        }
        let vectors = match &segment.logged {
            Some(logged) => {
                VectorMap::Logged(LoggedMap::new(index, &segment.vectors, logged, rows, dims)?)
            }
            None if Some(segment.vectors.bytes) == rows.checked_mul(row_bytes as u64) => {
                VectorMap::Sorted(Rc::new(ColumnMap::new(index, &segment.vectors)?))
            }
            None => return Err(Fault::damaged(0, "vector column length")),
        };
        let tids = Rc::new(ColumnMap::new(index, &segment.tids)?);
        Ok(RowMap { rows, row_bytes, vectors, tids })
    }

    /// Asks the processor for a row's vector and TID, as far as they are on pages that were read
    /// before. A hint.
    pub fn prefetch(&self, row: u64) {
        match &self.vectors {
            VectorMap::Sorted(vectors) => prefetch_sorted(vectors, row, self.row_bytes),
            VectorMap::Logged(vectors) => vectors.prefetch(row),
        }
        let (ordinal, at) = place_of_tid(row);
        self.tids.prefetch(ordinal, at..at + size_of::<Tid>());
    }

    /// What seems to be the TID of a row, if its page was read before. For hints alone.
    pub fn peek_tid(&self, row: u64) -> Option<Tid> {
        let (ordinal, at) = place_of_tid(row);
        self.tids.peek(ordinal, at)
    }
}

fn prefetch_sorted(vectors: &ColumnMap, row: u64, row_bytes: usize) {
    let start = row.wrapping_mul(row_bytes as u64);
    let mut ordinal = (start / PAYLOAD as u64) as u32;
    let mut offset = (start % PAYLOAD as u64) as usize;
    let mut left = row_bytes;
    while left > 0 {
        let length = left.min(PAYLOAD - offset);
        vectors.prefetch(ordinal, offset..offset + length);
        (ordinal, offset, left) = (ordinal.wrapping_add(1), 0, left - length);
    }
}

/// The page of a row's TID, and where on it that is.
fn place_of_tid(row: u64) -> (u32, usize) {
    let (page, nth) = (row / TIDS_PER_PAGE as u64, row % TIDS_PER_PAGE as u64);
    (page as u32, nth as usize * size_of::<Tid>())
}

/// Pages whose rows are read before what they are read for is done.
const PAGES_AT_A_TIME: u64 = 16;

/// Reads a segment's vectors.
pub struct VectorReader {
    source: Source,
    rows: u64,
}

/// Where vectors are read.
enum Source {
    Sorted(SortedReader),
    Logged(LoggedReader),
}

/// Reads vectors that stand one behind the other.
struct SortedReader {
    column: ColumnReader,
    row_bytes: usize,
    scratch: Vec<f32>,
}

impl VectorReader {
    /// Prepares to read vectors.
    pub fn new(index: Index, map: &RowMap) -> VectorReader {
        let source = match &map.vectors {
            VectorMap::Sorted(vectors) => Source::Sorted(SortedReader {
                column: ColumnReader::new(index, vectors.clone()),
                row_bytes: map.row_bytes,
                scratch: Vec::new(),
            }),
            VectorMap::Logged(vectors) => Source::Logged(LoggedReader::new(index, vectors)),
        };
        VectorReader { source, rows: map.rows }
    }

    /// Hands `with` the vector of row `row`, in place when it stands on one page.
    pub fn row<T>(&mut self, row: u64, with: impl FnOnce(&[f32]) -> T) -> Read<T> {
        if row >= self.rows {
            return Err(Fault::damaged(0, "row number"));
        }
        match &mut self.source {
            Source::Sorted(reader) => reader.row(row, with),
            Source::Logged(reader) => reader.row(row, with),
        }
    }

    /// Calls `row` with the number and the vector of each row, in whatever order meets each page
    /// once, with no page locked.
    pub fn for_each(&self, mut row: impl FnMut(u64, &[f32])) -> Read<()> {
        match &self.source {
            Source::Sorted(reader) => reader.for_each(self.rows, row),
            Source::Logged(reader) => reader.for_each(&mut row),
        }
    }

    /// Appends the vectors of rows `first..first + count` to `out`, page by page; on pages of the
    /// log those that are not as they were written are damage.
    pub fn rows(&self, first: u64, count: usize, out: &mut Vec<f32>) -> Read<()> {
        if first + count as u64 > self.rows {
            return Err(Fault::damaged(0, "row number"));
        }
        match &self.source {
            Source::Sorted(reader) => reader.rows(first, count, out),
            Source::Logged(reader) => reader.rows(first, count, out),
        }
    }
}

impl SortedReader {
    fn row<T>(&mut self, row: u64, with: impl FnOnce(&[f32]) -> T) -> Read<T> {
        let start = row * self.row_bytes as u64;
        let mut ordinal = (start / PAYLOAD as u64) as u32;
        let mut offset = (start % PAYLOAD as u64) as usize;
        if offset + self.row_bytes <= PAYLOAD {
            return self.column.page(ordinal, |payload| {
                with(bytemuck::cast_slice(&payload[offset..offset + self.row_bytes]))
            });
        }
        self.scratch.resize(self.row_bytes / size_of::<f32>(), 0.0);
        let mut filled = 0;
        while filled < self.row_bytes {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.scratch);
            let len = (PAYLOAD - offset).min(self.row_bytes - filled);
            let piece = &mut bytes[filled..filled + len];
            self.column
                .page(ordinal, |payload| piece.copy_from_slice(&payload[offset..offset + len]))?;
            filled += len;
            ordinal += 1;
            offset = 0;
        }
        Ok(with(&self.scratch))
    }

    fn for_each(&self, rows: u64, mut row: impl FnMut(u64, &[f32])) -> Read<()> {
        let step = (PAYLOAD / self.row_bytes).max(1) as u64 * PAGES_AT_A_TIME;
        let mut vectors = Vec::new();
        for first in (0..rows).step_by(step as usize) {
            pgrx::check_for_interrupts!();
            vectors.clear();
            self.rows(first, step.min(rows - first) as usize, &mut vectors)?;
            let vectors = vectors.chunks_exact(self.row_bytes / size_of::<f32>());
            (first..).zip(vectors).for_each(|(number, vector)| row(number, vector));
        }
        Ok(())
    }

    fn rows(&self, first: u64, count: usize, out: &mut Vec<f32>) -> Read<()> {
        let mut start = first * self.row_bytes as u64;
        let end = start + (count * self.row_bytes) as u64;
        while start < end {
            let offset = (start % PAYLOAD as u64) as usize;
            let len = ((end - start) as usize).min(PAYLOAD - offset);
            self.column.page((start / PAYLOAD as u64) as u32, |payload| {
                out.extend_from_slice(bytemuck::cast_slice(&payload[offset..offset + len]));
            })?;
            start += len as u64;
        }
        Ok(())
    }
}

/// Reads and clears a segment's TIDs.
pub struct TidReader {
    column: ColumnReader,
    rows: u64,
}

impl TidReader {
    /// Prepares to read TIDs.
    pub fn new(index: Index, map: &RowMap) -> TidReader {
        TidReader { column: ColumnReader::new(index, map.tids.clone()), rows: map.rows }
    }

    /// The TID of row `row`; [`Tid::INVALID`] if vacuum removed it.
    pub fn tid(&self, row: u64) -> Read<Tid> {
        if row >= self.rows {
            return Err(Fault::damaged(0, "row number"));
        }
        let (ordinal, at) = place_of_tid(row);
        self.column.page(ordinal, |payload| {
            bytemuck::pod_read_unaligned(&payload[at..at + size_of::<Tid>()])
        })
    }

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.rows.div_ceil(TIDS_PER_PAGE as u64) as u32
    }

    /// The TIDs of page `ordinal`, whose first belongs to row `ordinal * TIDS_PER_PAGE`.
    pub fn page(&self, ordinal: u32) -> Read<Vec<Tid>> {
        let first = u64::from(ordinal) * TIDS_PER_PAGE as u64;
        let count = self.rows.saturating_sub(first).min(TIDS_PER_PAGE as u64) as usize;
        self.column.page(ordinal, |payload| {
            bytemuck::pod_collect_to_vec(&payload[..count * size_of::<Tid>()])
        })
    }

    /// Overwrites the TIDs at `places` of page `ordinal`.
    pub fn clear(&self, ordinal: u32, places: &[usize]) -> Read<()> {
        self.column.edit(ordinal, |payload| {
            for place in places {
                let at = place * size_of::<Tid>();
                payload[at..at + size_of::<Tid>()]
                    .copy_from_slice(bytemuck::bytes_of(&Tid::INVALID));
            }
        })
    }
}
