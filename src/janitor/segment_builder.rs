//! Rows to a segment: assign to buckets, sort by them, write pages and arena.

use super::background::pace::breathe;
use super::crew::Crew;
use super::progress::{Phase, Progress};
use super::router::{self, normalize_rows};
use super::rows::RowStore;
use super::sweep::arena_place;
use super::temp_file::TempFile;
use crate::arena::{BucketShape as ArenaBucket, Layout, Writer};
use crate::cluster::{Router, Stopped};
use crate::metric::Metric;
use crate::page::layout::Tid;
use crate::page::{
    BucketShape, Column, ColumnWriter, Identity, Index, Kind, RouterRef, Segment, Space,
};
use crate::quant::{self, Factors};
use crate::search::Trial;
use crate::simd::kernels;
use rayon::prelude::*;
use std::mem::size_of;
use std::ops::Range;

/// A bucket not yet known.
pub const UNASSIGNED: u32 = u32::MAX;

/// What all steps of one segment need.
pub struct SegmentBuilder<'j> {
    /// The index being written.
    pub index: Index,
    /// Its distance.
    pub metric: Metric,
    /// Components of its vectors.
    pub dims: usize,
    /// Threads for the arithmetic.
    pub crew: &'j Crew,
    /// Who is told.
    pub progress: Progress,
}

/// A router that has not been written yet, and what assigning with it found.
struct Assigned {
    buckets: Vec<u32>,
    /// Root of the mean squared distance of a bucket's rows to its centroid.
    radii: Vec<f32>,
}

impl SegmentBuilder<'_> {
    /// Trains a router on the rows and writes it with a segment of all of them.
    pub fn train_and_build(&self, store: &mut RowStore, space: &mut Space) -> (RouterRef, Segment) {
        self.progress.begin(Phase::Train, store.len() as u64);
        let (centroids, mut trial) = router::train(self.crew, self.metric, self.dims, store);
        let count = centroids.len() / self.dims;
        let untried = Router::new(self.metric, self.dims, centroids, vec![0.0; count]);
        let unassigned = vec![UNASSIGNED; store.len()];
        let assigned = self.assign(&untried, store, unassigned, Some(&mut trial));
        let router =
            Router::new(self.metric, self.dims, untried.centroids().to_vec(), assigned.radii);
        let bytes = router::encode(&router);
        let extents = space.take(Column::pages(bytes.len() as u64));
        let calibration = self.crew.run(|_| trial.finish(&router, &assigned.buckets));
        let stored = RouterRef {
            buckets: count as u32,
            trained_rows: store.len() as u64,
            calibration,
            column: ColumnWriter::write_all(self.index, Kind::Router, extents, &bytes),
        };
        (stored, self.write(&router, store, &assigned.buckets, space))
    }

    /// Writes a segment of rows whose buckets are known, or found with `router` where they are
    /// [`UNASSIGNED`].
    pub fn build(
        &self,
        router: &Router,
        store: &mut RowStore,
        buckets: Vec<u32>,
        space: &mut Space,
    ) -> Segment {
        let assigned = self.assign(router, store, buckets, None);
        self.write(router, store, &assigned.buckets, space)
    }

    /// Finds the buckets that are not known, and shows `trial` the rows.
    fn assign(
        &self,
        router: &Router,
        store: &mut RowStore,
        mut buckets: Vec<u32>,
        mut trial: Option<&mut Trial>,
    ) -> Assigned {
        let (dims, metric) = (self.dims, self.metric);
        self.progress.begin(Phase::Assign, store.len() as u64);
        let mut squares = vec![0f64; router.len()];
        let mut counts = vec![0u64; router.len()];
        store.for_each_block(|first, vectors| {
            let rows = vectors.len() / dims;
            let known = &mut buckets[first..first + rows];
            if known.contains(&UNASSIGNED) {
                let trial = trial.as_deref_mut();
                let found = self.crew.run(|stop| {
                    if let Some(trial) = trial {
                        trial.observe(first, vectors, stop)?;
                    }
                    let mut unit;
                    let vectors = if metric == Metric::Cosine {
                        unit = vectors.to_vec();
                        unit.par_chunks_mut(dims).for_each(|row| normalize_rows(dims, row));
                        &unit
                    } else {
                        vectors
                    };
                    let mut found = vec![0u32; rows];
                    router.assign(vectors, &mut found, stop)?;
                    let distances: Vec<f32> = vectors
                        .par_chunks(dims)
                        .zip(&found)
                        .map(|(row, bucket)| {
                            (kernels().l2_squared)(row, router.centroid(*bucket as usize))
                        })
                        .collect();
                    Ok::<_, Stopped>((found, distances))
                });
                // A stopped job has already ended the statement.
                let (found, distances) = found.unwrap_or_default();
                for ((known, bucket), distance) in known.iter_mut().zip(found).zip(distances) {
                    if *known == UNASSIGNED {
                        *known = bucket;
                        squares[bucket as usize] += f64::from(distance);
                        counts[bucket as usize] += 1;
                    }
                }
            }
            self.progress.done((first + rows) as u64);
            breathe();
        });
        let radius = |(sum, count): (f64, u64)| (sum / count.max(1) as f64).sqrt() as f32;
        Assigned { buckets, radii: squares.into_iter().zip(counts).map(radius).collect() }
    }

    /// Writes columns and arena, bucket by bucket.
    fn write(
        &self,
        router: &Router,
        store: &mut RowStore,
        buckets: &[u32],
        space: &mut Space,
    ) -> Segment {
        self.progress.begin(Phase::Write, store.len() as u64);
        let mut rows_of = vec![0u32; router.len()];
        buckets.iter().for_each(|bucket| rows_of[*bucket as usize] += 1);
        let shapes: Vec<BucketShape> = rows_of
            .iter()
            .zip(0..)
            .filter(|(rows, _)| **rows > 0)
            .map(|(rows, bucket)| BucketShape { bucket, rows: *rows })
            .collect();

        let rows = store.len() as u64;
        let mut extents = |bytes: u64| space.take(Column::pages(bytes));
        let mut output = Output {
            id: Identity::random(),
            tids: ColumnWriter::new(
                self.index,
                Kind::Tids,
                extents(rows * size_of::<Tid>() as u64),
            ),
            vectors: ColumnWriter::new(
                self.index,
                Kind::Vectors,
                extents(rows * (self.dims * size_of::<f32>()) as u64),
            ),
            arena: None,
            written: 0,
        };
        let table: &[u8] = bytemuck::cast_slice(&shapes);
        let table =
            ColumnWriter::write_all(self.index, Kind::Buckets, extents(table.len() as u64), table);
        output.arena = self.create_arena(output.id, rows, &shapes);

        match store.in_memory() {
            Some(vectors) => {
                let order = sorted_by_bucket(buckets, &rows_of);
                let (tids, dims) = (store.tids(), self.dims);
                let row = |nth: usize| {
                    let nth = order[nth] as usize;
                    (tids[nth], &vectors[nth * dims..(nth + 1) * dims])
                };
                self.write_rows(router, &shapes, row, &mut output);
            }
            None => self.write_spilled(router, store, buckets, &rows_of, &mut output),
        }
        if let Some(Err(error)) = output.arena.map(Writer::finish) {
            report_unwritten(self.index, &error);
        }
        Segment {
            id: output.id,
            rows,
            live: rows,
            tids: output.tids.finish(),
            vectors: output.vectors.finish(),
            buckets: table,
        }
    }

    fn create_arena(&self, id: Identity, rows: u64, shapes: &[BucketShape]) -> Option<Writer> {
        let (directory, name) = arena_place(self.index, id);
        let layout = arena_layout(id, self.dims, self.metric, rows, shapes);
        layout
            .and_then(|layout| Writer::create(&directory, &name, layout))
            .inspect_err(|error| report_unwritten(self.index, error))
            .ok()
    }

    /// Sorts rows that do not fit in memory through one temporary file for each run of buckets
    /// that does.
    fn write_spilled(
        &self,
        router: &Router,
        store: &mut RowStore,
        buckets: &[u32],
        rows_of: &[u32],
        output: &mut Output,
    ) {
        let record = size_of::<u32>() * 3 + self.dims * size_of::<f32>();
        let fitting = (store.budget() / record).max(1);
        let parts = partition(rows_of, fitting);
        let mut part_of = vec![0u32; rows_of.len()];
        for (part, range) in parts.iter().enumerate() {
            part_of[range.clone()].fill(part as u32);
        }
        let mut files: Vec<TempFile> = parts.iter().map(|_| TempFile::new()).collect();
        let tids = store.tids().to_vec();
        store.for_each_block(|first, vectors| {
            for (vector, nth) in vectors.chunks_exact(self.dims).zip(first..) {
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
            let shapes: Vec<BucketShape> = counts
                .iter()
                .zip(range.start as u32..)
                .filter(|(rows, _)| **rows > 0)
                .map(|(rows, bucket)| BucketShape { bucket, rows: *rows })
                .collect();
            let row = |nth: usize| {
                let record = records[order[nth] as usize];
                let tid: Tid = bytemuck::pod_read_unaligned(
                    &bytemuck::cast_slice::<u32, u8>(&record[1..3])[..size_of::<Tid>()],
                );
                (tid, bytemuck::cast_slice(&record[3..]))
            };
            self.write_rows(router, &shapes, row, output);
        }
    }

    /// Writes the rows of successive buckets; `row` gives them in the order of the buckets.
    fn write_rows<'r>(
        &self,
        router: &Router,
        shapes: &[BucketShape],
        row: impl Fn(usize) -> (Tid, &'r [f32]) + Sync,
        output: &mut Output,
    ) {
        let mut first = 0;
        for group in groups(self.dims, shapes) {
            let rows: usize = group.iter().map(|shape| shape.rows as usize).sum();
            let (metric, dims) = (self.metric, self.dims);
            let coded = output.arena.is_some().then(|| {
                self.crew.run(|_| encode_buckets(metric, dims, router, group, first, &row))
            });
            if let (Some(coded), Some(arena)) = (coded, &mut output.arena) {
                let written =
                    coded.iter().try_for_each(|(factors, codes)| arena.push_bucket(factors, codes));
                if let Err(error) = written {
                    report_unwritten(self.index, &error);
                    output.arena = None;
                }
            }
            for nth in first..first + rows {
                let (tid, vector) = row(nth);
                output.tids.push(bytemuck::bytes_of(&tid));
                output.vectors.push(bytemuck::cast_slice(vector));
                if nth % BREATH_ROWS == 0 {
                    breathe();
                }
            }
            first += rows;
            output.written += rows as u64;
            self.progress.done(output.written);
            breathe();
        }
    }
}

/// Rows written between two breaths.
const BREATH_ROWS: usize = 256;

/// Vectors encoded at a time.
const GROUP_BYTES: usize = 8 << 20;

/// Successive buckets, in groups of about [`GROUP_BYTES`] of vectors and at least one bucket.
pub fn groups(dims: usize, shapes: &[BucketShape]) -> impl Iterator<Item = &[BucketShape]> {
    let most = GROUP_BYTES / (dims * size_of::<f32>());
    let mut rows = 0;
    shapes.chunk_by(move |shape, _| {
        rows += shape.rows as usize;
        let full = rows >= most;
        rows = if full { 0 } else { rows };
        !full
    })
}

/// What a segment is written to.
struct Output {
    id: Identity,
    tids: ColumnWriter,
    vectors: ColumnWriter,
    /// None once it could not be written: pages are the truth.
    arena: Option<Writer>,
    written: u64,
}

/// The shape of the arena of a segment.
pub fn arena_layout(
    id: Identity,
    dims: usize,
    metric: Metric,
    rows: u64,
    shapes: &[BucketShape],
) -> Result<Layout, crate::arena::ArenaError> {
    let identity = crate::arena::Identity {
        segment: id.as_u128(),
        dim: dims as u32,
        metric,
        rows,
        buckets: shapes.len() as u32,
    };
    let shapes: Vec<ArenaBucket> =
        shapes.iter().map(|shape| ArenaBucket { bucket: shape.bucket, rows: shape.rows }).collect();
    Layout::new(identity, &shapes)
}

/// Encodes the rows of successive buckets, the first of which begin at `first`.
pub fn encode_buckets<'r>(
    metric: Metric,
    dims: usize,
    router: &Router,
    shapes: &[BucketShape],
    first: usize,
    row: &(impl Fn(usize) -> (Tid, &'r [f32]) + Sync),
) -> Vec<(Vec<Factors>, Vec<i8>)> {
    let starts: Vec<usize> = shapes
        .iter()
        .scan(first, |next, shape| {
            let start = *next;
            *next += shape.rows as usize;
            Some(start)
        })
        .collect();
    let stride = quant::stride(dims);
    shapes
        .par_iter()
        .zip(starts)
        .map(|(shape, start)| {
            let rows = shape.rows as usize;
            let centroid = router.centroid(shape.bucket as usize);
            let mut codes = vec![0i8; rows * stride];
            let mut scratch = Vec::new();
            let factors = codes
                .chunks_exact_mut(stride)
                .zip(start..)
                .map(|(codes, nth)| {
                    quant::encode(metric, row(nth).1, centroid, &mut scratch, codes)
                })
                .collect();
            (factors, codes)
        })
        .collect()
}

/// Tells the log that a segment goes without its arena.
pub fn report_unwritten(index: Index, error: &crate::arena::ArenaError) {
    pgrx::ereport!(
        LOG,
        pgrx::PgSqlErrorCode::ERRCODE_IO_ERROR,
        format!("could not write an arena of index \"{}\": {error}", index.name()),
        "Searches use memory or pages instead until it can be written."
    );
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
