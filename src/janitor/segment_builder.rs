//! Rows to a segment: assign to buckets, sort by them, write pages and arena.

use super::arena_builder::{ArenaBuilder, RowsInMemory};
use super::background::pace::breathe;
use super::crew::Crew;
use super::leads::KnownLeads;
use super::progress::{Phase, Progress};
use super::router;
use super::routing;
use super::rows::RowStore;
use super::temp_file::TempFile;
use crate::arena::RoutingArena;
use crate::cluster::{Router, Stopped, Trained, NO_BUCKET};
use crate::courtesy;
use crate::metric::Metric;
use crate::page::layout::Tid;
use crate::page::{
    BucketShape, Column, ColumnWriter, Identity, Index, Kind, LogRun, Logged, Read, RouterRef,
    RowMap, Segment, Space, VectorReader,
};
use crate::quant::{self, sign};
use crate::search::{Calibration, Trial};
use crate::simd::kernels;
use rayon::prelude::*;
use std::borrow::Cow;
use std::mem::size_of;
use std::ops::Range;

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

/// The stored router of an index, and its arena.
pub struct Sorter {
    router: Router,
    routing: RoutingArena,
}

/// Where rows belong.
#[derive(Default)]
pub struct Assigned {
    /// The bucket of each row.
    pub buckets: Vec<u32>,
    /// The second bucket of each row, [`NO_BUCKET`] where there is none; of some it is not known
    /// yet, as it is not of those behind the last.
    pub second: Vec<Option<u32>>,
    /// Leads of rows from the first on, where rows have sign codes.
    leads: KnownLeads,
    /// Rows that have just been assigned and are unlike those the router was trained on.
    pub strangers: u64,
    /// Root of the mean squared distance of a bucket's rows to its centroid.
    radii: Vec<f32>,
}

/// Rows of the log whose vectors stay on its pages.
pub struct OnLog {
    /// The pages.
    pub run: LogRun,
    /// The place there of each row of the store.
    pub places: Vec<u32>,
}

impl Sorter {
    /// The router, as searches see it.
    pub fn routing(&self) -> &RoutingArena {
        &self.routing
    }
}

impl SegmentBuilder<'_> {
    /// Trains a router on the rows and writes it with a segment of all of them.
    ///
    /// # Errors
    /// What reading back pages gave.
    pub fn train_and_build(
        &self,
        store: &mut RowStore,
        space: &mut Space,
    ) -> Read<(RouterRef, Segment)> {
        self.progress.begin(Phase::Train, store.len() as u64);
        let (trained, mut trial) = router::train(self.crew, self.metric, self.dims, store);
        let Trained { centroids, space: learned } = trained;
        let count = centroids.len() / self.dims;
        let untried = Router::within(learned, self.metric, centroids, vec![0.0; count]);
        let mut assigned = self.assign(&untried, store, Some(&mut trial));
        let router = untried.with_radii(std::mem::take(&mut assigned.radii));
        let bytes = router::encode(&router);
        let extents = space.take(Column::pages(bytes.len() as u64));
        let column = ColumnWriter::write_all(self.index, Kind::Router, extents, &bytes);
        let routing = routing::make(self.index, self.crew, column.id, &router);
        let calibration = {
            let (routing, Assigned { buckets, second, .. }) = (&routing, &assigned);
            let second: Vec<u32> = second.iter().map(|known| known.unwrap_or(NO_BUCKET)).collect();
            self.crew.run(|stop| trial.finish(routing, buckets, &second, stop))
        };
        let stored = RouterRef {
            buckets: count as u32,
            trained_rows: store.len() as u64,
            // A stopped job has already ended the statement.
            calibration: calibration.unwrap_or(Calibration::EVERYTHING),
            column,
        };
        let segment = self.write(&router, &routing, store, assigned, None, space)?;
        Ok((stored, segment))
    }

    /// Opens the stored router.
    ///
    /// # Errors
    /// What reading its pages gave.
    pub fn sorter(&self, stored: &RouterRef) -> Read<Sorter> {
        let (router, routing) =
            routing::load_with_router(self.index, self.metric, self.dims, stored)?;
        Ok(Sorter { router, routing })
    }

    /// Finds the buckets of all rows.
    pub fn sort(&self, sorter: &Sorter, store: &mut RowStore) -> Assigned {
        self.assign(&sorter.router, store, None)
    }

    /// Writes a segment of rows whose buckets are known. Where they are all of the log, and in memory,
    /// `on_log` may have the pages to leave their vectors on, and their places there.
    ///
    /// # Errors
    /// What reading back pages gave.
    pub fn build(
        &self,
        sorter: &Sorter,
        store: &mut RowStore,
        assigned: Assigned,
        on_log: Option<OnLog>,
        space: &mut Space,
    ) -> Read<Segment> {
        self.write(&sorter.router, &sorter.routing, store, assigned, on_log, space)
    }

    /// Finds the buckets of all rows, and shows `trial` the rows.
    fn assign(
        &self,
        router: &Router,
        store: &mut RowStore,
        mut trial: Option<&mut Trial>,
    ) -> Assigned {
        let (dims, metric) = (self.dims, self.metric);
        self.progress.begin(Phase::Assign, store.len() as u64);
        let mut buckets = Vec::with_capacity(store.len());
        let mut second = Vec::new();
        let spills = sign::are_used(metric, dims);
        let projection = &router.space().projection;
        let keeps = spills && KnownLeads::fit(projection, store);
        let mut leads = KnownLeads::default();
        leads.reserve(projection, if keeps { store.len() } else { 0 });
        let mut squares = vec![0f64; router.len()];
        let mut counts = vec![0u64; router.len()];
        let is_stranger = router.strangers();
        let mut strangers = 0;
        store.for_each_block(|first, vectors| {
            let rows = vectors.len() / dims;
            let trial = trial.as_deref_mut();
            let found = self.crew.run(|stop| {
                let (stored, vectors) = (vectors, &*as_compared(metric, dims, vectors));
                if let Some(trial) = trial {
                    trial.observe(first, vectors, stop)?;
                }
                let (mut found, mut others) = (vec![0u32; rows], Vec::new());
                if spills {
                    others.resize(rows, 0);
                    let points = router.assign_and_spill(vectors, &mut found, &mut others, stop)?;
                    if keeps {
                        leads.push(metric, projection, stored, vectors, &points);
                    }
                } else {
                    router.assign(vectors, &mut found, stop)?;
                }
                let distances: Vec<f32> = vectors
                    .par_chunks(dims)
                    .zip(&found)
                    .map(|(row, bucket)| {
                        (kernels().l2_squared)(row, router.centroid(*bucket as usize))
                    })
                    .collect();
                Ok::<_, Stopped>((found, others, distances))
            });
            // A stopped job has already ended the statement.
            let (found, others, distances) = found.unwrap_or_default();
            second.extend(others.into_iter().map(Some));
            for (&bucket, distance) in found.iter().zip(distances) {
                squares[bucket as usize] += f64::from(distance);
                counts[bucket as usize] += 1;
                strangers += u64::from(is_stranger(bucket, distance));
            }
            buckets.extend(found);
            self.progress.done((first + rows) as u64);
            breathe();
        });
        let radius = |(sum, count): (f64, u64)| (sum / count.max(1) as f64).sqrt() as f32;
        let radii = squares.into_iter().zip(counts).map(radius).collect();
        Assigned { buckets, second, leads, strangers, radii }
    }

    /// Writes columns, bucket by bucket, and the arena.
    fn write(
        &self,
        router: &Router,
        routing: &RoutingArena,
        store: &mut RowStore,
        mut assigned: Assigned,
        on_log: Option<OnLog>,
        space: &mut Space,
    ) -> Read<Segment> {
        let mut leads = std::mem::take(&mut assigned.leads);
        assert!(on_log.is_none() || store.in_memory().is_some(), "rows on the log are in memory");
        let buckets = &assigned.buckets;
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
        let mut column = |kind, row_bytes: usize| {
            ColumnWriter::new(self.index, kind, extents(rows * row_bytes as u64))
        };
        let mut output = Output {
            tids: column(Kind::Tids, size_of::<Tid>()),
            bodies: match on_log {
                Some(_) => column(Kind::Places, size_of::<u32>()),
                None => column(Kind::Vectors, self.dims * size_of::<f32>()),
            },
            written: 0,
        };
        let table: &[u8] = bytemuck::cast_slice(&shapes);
        let table =
            ColumnWriter::write_all(self.index, Kind::Buckets, extents(table.len() as u64), table);

        let (index, metric, dims, crew) = (self.index, self.metric, self.dims, self.crew);
        let arena = ArenaBuilder { index, metric, dims, crew, router, routing };
        let id = Identity::random();
        let (run, places) = on_log.map(|OnLog { run, places }| (run, places)).unzip();
        let segment = |output: Output| {
            let bodies = output.bodies.finish();
            let (vectors, logged) = match run {
                Some(LogRun { first_seq, vectors }) => {
                    (vectors, Some(Logged { first_seq, places: bodies }))
                }
                None => (bodies, None),
            };
            let tids = output.tids.finish();
            Segment { id, rows, live: rows, tids, vectors, buckets: table, logged }
        };
        let Some(vectors) = store.in_memory() else {
            drop(leads);
            self.write_spilled(store, buckets, &rows_of, &mut output);
            let segment = segment(output);
            let mut pages = VectorReader::new(index, &RowMap::new(index, &segment, dims)?);
            arena.write(id, &shapes, None, &mut pages, |_| ())?;
            return Ok(segment);
        };
        let (order, tids) = (sorted_by_bucket(buckets, &rows_of), store.tids());
        let row = |nth: usize| {
            let nth = order[nth] as usize;
            let body = match &places {
                Some(places) => bytemuck::bytes_of(&places[nth]),
                None => bytemuck::cast_slice(&vectors[nth * dims..(nth + 1) * dims]),
            };
            (tids[nth], body)
        };
        let second = self.second_buckets(router, vectors, &assigned);
        let second: Vec<u32> = match second.len() {
            0 => Vec::new(),
            _ => order.iter().map(|nth| second[*nth as usize]).collect(),
        };
        let fits = KnownLeads::fit(&router.space().projection, store);
        let leads = (sign::are_used(metric, dims) && fits).then(|| {
            self.complete(&mut leads, router, vectors);
            leads.ordered(&order)
        });
        let mut source = RowsInMemory { dims, vectors, order: &order, leads };
        let beside = |rows| self.write_rows(rows, row, &mut output);
        arena.write(id, &shapes, Some(&second), &mut source, beside)?;
        // An arena that could not be written has not asked for all.
        self.write_rows(store.len() - output.written, row, &mut output);
        Ok(segment(output))
    }

    /// The second buckets of all rows, as far as they are known already or now found out; empty
    /// where rows have none.
    fn second_buckets(&self, router: &Router, vectors: &[f32], assigned: &Assigned) -> Vec<u32> {
        let (metric, dims) = (self.metric, self.dims);
        if !sign::are_used(metric, dims) {
            return Vec::new();
        }
        let rows = assigned.buckets.len();
        let known = |row: usize| assigned.second.get(row).copied().flatten();
        let step = (SPILL_BYTES / (dims * size_of::<f32>())).max(1);
        let mut second = Vec::with_capacity(rows);
        while second.len() < rows {
            let first = second.len();
            second.extend((first..rows).map_while(known));
            let start = second.len();
            let unknown = (start..rows).take(step).take_while(|row| known(*row).is_none());
            let run = start..start + unknown.count();
            if run.is_empty() {
                continue;
            }
            breathe();
            let (vectors, buckets) =
                (&vectors[run.start * dims..run.end * dims], &assigned.buckets[run]);
            let found = self.crew.run(|stop| {
                let mut found = vec![0; buckets.len()];
                router.spill(&as_compared(metric, dims, vectors), buckets, &mut found, stop)?;
                Ok::<_, Stopped>(found)
            });
            // A stopped job has already ended the statement.
            second.extend(found.unwrap_or_else(|Stopped| vec![NO_BUCKET; buckets.len()]));
        }
        second
    }

    /// Finds out what is not known yet of the leads of all rows.
    fn complete(&self, leads: &mut KnownLeads, router: &Router, vectors: &[f32]) {
        let (metric, dims) = (self.metric, self.dims);
        let (space, known) = (router.space(), leads.rows() * dims);
        leads.reserve(&space.projection, vectors.len() / dims);
        let step = (SPILL_BYTES / (dims * size_of::<f32>())).max(1) * dims;
        for vectors in vectors[known..].chunks(step) {
            breathe();
            let done = self.crew.run(|stop| {
                let (stored, vectors) = (vectors, &*as_compared(metric, dims, vectors));
                let points = space.project_rows(vectors, stop)?;
                leads.push(metric, &space.projection, stored, vectors, &points);
                Ok::<_, Stopped>(())
            });
            // A stopped job has already ended the statement.
            done.unwrap_or_default();
        }
    }

    /// Sorts rows that do not fit in memory through one temporary file for each run of buckets
    /// that does.
    fn write_spilled(
        &self,
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
            let first = output.written;
            let row = |nth: usize| {
                let record = records[order[nth - first] as usize];
                let tid: Tid = bytemuck::pod_read_unaligned(
                    &bytemuck::cast_slice::<u32, u8>(&record[1..3])[..size_of::<Tid>()],
                );
                (tid, bytemuck::cast_slice(&record[3..]))
            };
            self.write_rows(rows, row, output);
        }
    }

    /// Writes the next `rows` rows; `row` gives the TID of the one of that number, and its vector or
    /// place.
    fn write_rows<'r>(
        &self,
        rows: usize,
        row: impl Fn(usize) -> (Tid, &'r [u8]),
        output: &mut Output,
    ) {
        let first = output.written;
        for nth in first..first + rows {
            courtesy::give_way();
            let (tid, body) = row(nth);
            output.tids.push(bytemuck::bytes_of(&tid));
            output.bodies.push(body);
            if nth % BREATH_ROWS == 0 {
                self.progress.done(nth as u64);
                breathe();
            }
        }
        output.written += rows;
        self.progress.done(output.written as u64);
        breathe();
    }
}

/// Vectors whose second buckets are found at a time, in bytes.
const SPILL_BYTES: usize = 8 << 20;

/// Row-major vectors as a router compares them: under cosine of length one.
fn as_compared(metric: Metric, dims: usize, vectors: &[f32]) -> Cow<'_, [f32]> {
    if metric != Metric::Cosine {
        return Cow::Borrowed(vectors);
    }
    let mut unit = vectors.to_vec();
    unit.par_chunks_mut(dims).for_each(|row| quant::normalize_rows(dims, row));
    Cow::Owned(unit)
}

/// Rows written between two breaths.
const BREATH_ROWS: usize = 256;

/// What a segment is written to.
struct Output {
    tids: ColumnWriter,
    /// The vectors, or their places in the log.
    bodies: ColumnWriter,
    written: usize,
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
