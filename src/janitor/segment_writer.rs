//! The pages of a segment, written in the order of its buckets.

use super::background::pace::breathe;
use super::progress::Progress;
use super::rows::RowStore;
use super::temp_file::TempFile;
use crate::courtesy;
use crate::page::layout::Tid;
use crate::page::{
    BucketShape, Column, ColumnWriter, Identity, Index, Kind, LogPages, Logged, Segment, Space,
};
use std::mem::size_of;
use std::ops::Range;

/// Rows written between two breaths.
const BREATH_ROWS: usize = 256;

/// How many rows of a segment each bucket of a router has.
pub struct BucketShapes {
    rows_of: Vec<u32>,
    table: Vec<BucketShape>,
}

/// What is written of each row beside its TID.
#[derive(Clone, Copy)]
pub enum Body {
    /// A vector of so many components.
    Vector(usize),
    /// The place of its record on pages of the log, a u32.
    Place,
}

/// Writes a segment.
pub struct SegmentWriter {
    id: Identity,
    progress: Progress,
    rows: u64,
    table: Column,
    tids: ColumnWriter,
    bodies: ColumnWriter,
    written: usize,
}

impl BucketShapes {
    /// Those of rows in these of so many buckets.
    pub fn of(buckets: &[u32], count: usize) -> BucketShapes {
        let mut rows_of = vec![0u32; count];
        buckets.iter().for_each(|bucket| rows_of[*bucket as usize] += 1);
        let rows = rows_of.iter().zip(0..).filter(|(rows, _)| **rows > 0);
        let table = rows.map(|(rows, bucket)| BucketShape { bucket, rows: *rows }).collect();
        BucketShapes { rows_of, table }
    }

    /// The buckets that have rows.
    pub fn table(&self) -> &[BucketShape] {
        &self.table
    }

    /// The numbers of these rows in the order of their buckets.
    pub fn sort(&self, buckets: &[u32]) -> Vec<u32> {
        sorted_by_bucket(buckets, &self.rows_of)
    }
}

impl SegmentWriter {
    /// Takes space for a segment of this shape, and writes that.
    pub fn new(
        index: Index,
        progress: Progress,
        shapes: &BucketShapes,
        body: Body,
        space: &mut Space,
    ) -> SegmentWriter {
        let rows = shapes.table.iter().map(|shape| u64::from(shape.rows)).sum();
        let mut extents = |bytes: u64| space.take(Column::pages(bytes));
        let mut column = |kind, row_bytes: usize| {
            ColumnWriter::new(index, kind, extents(rows * row_bytes as u64))
        };
        let tids = column(Kind::Tids, size_of::<Tid>());
        let bodies = match body {
            Body::Vector(dims) => column(Kind::Vectors, dims * size_of::<f32>()),
            Body::Place => column(Kind::Places, size_of::<u32>()),
        };
        let table: &[u8] = bytemuck::cast_slice(&shapes.table);
        let table =
            ColumnWriter::write_all(index, Kind::Buckets, extents(table.len() as u64), table);
        SegmentWriter { id: Identity::random(), progress, rows, table, tids, bodies, written: 0 }
    }

    /// The id the segment will have.
    pub fn id(&self) -> Identity {
        self.id
    }

    /// Rows written.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Writes the next `rows` rows; `row` gives the TID of the one of that number, and its body.
    pub fn write_rows<'r>(&mut self, rows: usize, row: impl Fn(usize) -> (Tid, &'r [u8])) {
        let first = self.written;
        for nth in first..first + rows {
            courtesy::give_way();
            let (tid, body) = row(nth);
            self.tids.push(bytemuck::bytes_of(&tid));
            self.bodies.push(body);
            if nth % BREATH_ROWS == 0 {
                self.progress.done(nth as u64);
                breathe();
            }
        }
        self.written += rows;
        self.progress.done(self.written as u64);
        breathe();
    }

    /// Sorts rows that do not fit in memory through one temporary file for each run of buckets
    /// that does.
    pub fn write_spilled(
        &mut self,
        dims: usize,
        store: &mut RowStore,
        buckets: &[u32],
        shapes: &BucketShapes,
    ) {
        let rows_of = &shapes.rows_of;
        let record = size_of::<u32>() * 3 + dims * size_of::<f32>();
        let fitting = (store.budget() / record).max(1);
        let parts = partition(rows_of, fitting);
        let mut part_of = vec![0u32; rows_of.len()];
        for (part, range) in parts.iter().enumerate() {
            part_of[range.clone()].fill(part as u32);
        }
        let mut files: Vec<TempFile> = parts.iter().map(|_| TempFile::new()).collect();
        let tids = store.tids().to_vec();
        store.for_each_block(|first, vectors| {
            for (vector, nth) in vectors.chunks_exact(dims).zip(first..) {
                let file = &mut files[part_of[buckets[nth] as usize] as usize];
                file.write(&buckets[nth].to_le_bytes());
                file.write(bytemuck::bytes_of(&tids[nth]));
                file.write(&[0; 2]);
                file.write(bytemuck::cast_slice(vector));
            }
            breathe();
        });
        for (range, mut file) in parts.into_iter().zip(files) {
            let counts = &rows_of[range.clone()];
            let rows: usize = counts.iter().map(|rows| *rows as usize).sum();
            let mut words = vec![0u32; rows * record / size_of::<u32>()];
            file.rewind();
            file.read(bytemuck::cast_slice_mut(&mut words));
            drop(file);
            let records: Vec<&[u32]> = words.chunks_exact(record / size_of::<u32>()).collect();
            let local: Vec<u32> =
                records.iter().map(|record| record[0] - range.start as u32).collect();
            let order = sorted_by_bucket(&local, counts);
            let first = self.written;
            let row = |nth: usize| {
                let record = records[order[nth - first] as usize];
                let tid: Tid = bytemuck::pod_read_unaligned(
                    &bytemuck::cast_slice::<u32, u8>(&record[1..3])[..size_of::<Tid>()],
                );
                (tid, bytemuck::cast_slice(&record[3..]))
            };
            self.write_rows(rows, row);
        }
    }

    /// Completes the segment. Rows with places have their vectors on `pages`.
    pub fn finish(self, pages: Option<LogPages>) -> Segment {
        let (id, rows, buckets) = (self.id, self.rows, self.table);
        let (tids, bodies) = (self.tids.finish(), self.bodies.finish());
        let (vectors, logged) = match pages {
            Some(LogPages { runs, vectors, .. }) => {
                (vectors, Some(Logged { runs, places: bodies }))
            }
            None => (bodies, None),
        };
        Segment { id, rows, live: rows, tids, vectors, buckets, logged }
    }
}

/// The numbers of the rows in the order of their buckets (a counting sort).
fn sorted_by_bucket(buckets: &[u32], rows_of: &[u32]) -> Vec<u32> {
    let mut next: Vec<u32> = rows_of
        .iter()
        .scan(0, |sum, rows| {
            let start = *sum;
            *sum += rows;
            Some(start)
        })
        .collect();
    let mut order = vec![0u32; buckets.len()];
    for (bucket, nth) in buckets.iter().zip(0..) {
        let place = &mut next[*bucket as usize];
        order[*place as usize] = nth;
        *place += 1;
    }
    order
}

/// Runs of buckets with at most `fitting` rows each, or one bucket.
fn partition(rows_of: &[u32], fitting: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut rows = 0;
    for (bucket, count) in rows_of.iter().enumerate() {
        if rows > 0 && rows + *count as usize > fitting {
            parts.push(start..bucket);
            (start, rows) = (bucket, 0);
        }
        rows += *count as usize;
    }
    parts.push(start..rows_of.len());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_bucket_and_keep_their_order_within() {
        assert_eq!(sorted_by_bucket(&[2, 0, 2, 1, 0], &[2, 1, 2]), [1, 4, 3, 0, 2]);
    }

    #[test]
    fn parts_fit_unless_one_bucket_does_not() {
        assert_eq!(partition(&[3, 3, 9, 0, 1, 4], 6), [0..2, 2..3, 3..6]);
        assert_eq!(partition(&[7], 6), vec![0..1]);
    }
}
