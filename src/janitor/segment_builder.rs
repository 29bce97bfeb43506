//! Rows to a segment: assign to buckets, sort by them, write pages and arena.

use super::arena_builder::{ArenaBuilder, RowsInMemory};
use super::background::pace::breathe;
use super::crew::Crew;
use super::leads::KnownLeads;
use super::progress::{Phase, Progress};
use super::router;
use super::routing;
use super::rows::RowStore;
use super::segment_writer::{Body, BucketShapes, SegmentWriter};
use super::sorter::Sorter;
use crate::arena::{Arena, RoutingArena};
use crate::cluster::{Router, Stopped, Trained};
use crate::courtesy;
use crate::metric::Metric;
use crate::page::{Column, ColumnWriter, Index, Kind, LogPages, Read, RouterRef, Segment, Space};
use crate::quant::{self, sign};
use crate::search::{Calibration, Trial};
use crate::simd::kernels;
use rayon::prelude::*;
use std::borrow::Cow;
use std::rc::Rc;

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

/// Where rows belong.
#[derive(Default)]
pub struct Assigned {
    /// The bucket of each row.
    pub buckets: Vec<u32>,
    /// The second bucket of each row, [`NO_BUCKET`](crate::cluster::NO_BUCKET) where there is none;
    /// empty where rows have no sign codes.
    second: Vec<u32>,
    /// The rows' leads, where they have sign codes and there is memory for them.
    leads: Option<KnownLeads>,
    /// Rows that have just been assigned and are unlike those the router was trained on.
    pub strangers: u64,
    /// Root of the mean squared distance of a bucket's rows to its centroid.
    radii: Vec<f32>,
}

/// Pages of the log that rows' vectors stay on.
pub struct OnLog {
    /// The pages.
    pub pages: LogPages,
    /// The place there of each row of the store.
    pub places: Vec<u32>,
    /// What is added to the places of each segment's rows that is merged with them.
    pub first_places: Vec<u32>,
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
            self.crew.run(|stop| trial.finish(routing, buckets, second, stop))
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
    pub fn sorter(&self, stored: &RouterRef) -> Read<Rc<Sorter>> {
        Sorter::open(self.index, self.metric, self.dims, stored)
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
        let mut leads = keeps.then(|| KnownLeads::of(projection, store.len()));
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
                    if let Some(leads) = &mut leads {
                        leads.push(metric, projection, stored, vectors, &points);
                    }
                } else {
                    router.assign(vectors, &mut found, stop)?;
                }
                let distances: Vec<f32> = vectors
                    .par_chunks(dims)
                    .zip(&found)
                    .map(|(row, bucket)| {
                        courtesy::give_way();
                        (kernels().l2_squared)(row, router.centroid(*bucket as usize))
                    })
                    .collect();
                Ok::<_, Stopped>((found, others, distances))
            });
            // A stopped job has already ended the statement.
            let (found, others, distances) = found.unwrap_or_default();
            second.extend(others);
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

    /// Makes arenas of segments that are sorted so.
    pub fn arenas<'a>(&'a self, sorter: &'a Sorter) -> ArenaBuilder<'a> {
        self.arenas_of(&sorter.router, &sorter.routing)
    }

    fn arenas_of<'a>(&'a self, router: &'a Router, routing: &'a RoutingArena) -> ArenaBuilder<'a> {
        let (index, metric, dims, crew) = (self.index, self.metric, self.dims, self.crew);
        ArenaBuilder { index, metric, dims, crew, router, routing }
    }

    /// The codes of rows whose buckets are known, as an arena in memory, and the order they have
    /// there. `None` where rows are not in memory, or there is no room for the codes.
    ///
    /// # Errors
    /// None, as long as rows are in memory.
    pub fn encode(
        &self,
        sorter: &Sorter,
        store: &RowStore,
        assigned: &Assigned,
    ) -> Read<Option<(Arena, Vec<u32>)>> {
        let Some(vectors) = store.in_memory() else { return Ok(None) };
        let shapes = BucketShapes::of(&assigned.buckets, sorter.router.len());
        let order = shapes.sort(&assigned.buckets);
        let second = ordered(&assigned.second, &order);
        let leads = assigned.leads.as_ref().map(|leads| leads.ordered(vectors, &order));
        let mut source = RowsInMemory { dims: self.dims, vectors, order: &order, leads };
        let arena = self.arenas(sorter).in_memory(shapes.table(), &second, &mut source)?;
        Ok(arena.map(|arena| (arena, order)))
    }

    /// Writes columns, bucket by bucket, and the arena.
    fn write(
        &self,
        router: &Router,
        routing: &RoutingArena,
        store: &mut RowStore,
        assigned: Assigned,
        on_log: Option<OnLog>,
        space: &mut Space,
    ) -> Read<Segment> {
        let dims = self.dims;
        assert!(on_log.is_none() || store.in_memory().is_some(), "rows on the log are in memory");
        let Assigned { buckets, second, leads, .. } = assigned;
        self.progress.begin(Phase::Write, store.len() as u64);
        let shapes = BucketShapes::of(&buckets, router.len());
        let body = if on_log.is_some() { Body::Place } else { Body::Vector(dims) };
        let mut writer = SegmentWriter::new(self.index, self.progress, &shapes, body, space);
        let arena = self.arenas_of(router, routing);
        let (pages, places) = on_log.map(|on_log| (on_log.pages, on_log.places)).unzip();
        let Some(vectors) = store.in_memory() else {
            drop(leads);
            writer.write_spilled(dims, store, &buckets, &shapes);
            let segment = writer.finish(pages);
            arena.write_again(&segment, shapes.table())?;
            return Ok(segment);
        };
        let (order, tids) = (shapes.sort(&buckets), store.tids());
        let row = |nth: usize| {
            let nth = order[nth] as usize;
            let body = match &places {
                Some(places) => bytemuck::bytes_of(&places[nth]),
                None => bytemuck::cast_slice(&vectors[nth * dims..(nth + 1) * dims]),
            };
            (tids[nth], body)
        };
        let second = ordered(&second, &order);
        let leads = leads.as_ref().map(|leads| leads.ordered(vectors, &order));
        let mut source = RowsInMemory { dims, vectors, order: &order, leads };
        let (id, rows) = (writer.id(), store.len());
        let beside = |rows| writer.write_rows(rows, row);
        arena.write(id, shapes.table(), Some(&second), &mut source, beside)?;
        // An arena that could not be written has not asked for all.
        writer.write_rows(rows - writer.written(), row);
        Ok(writer.finish(pages))
    }
}

/// What is known of rows, if anything is, in the order they have in their segment.
fn ordered(known: &[u32], order: &[u32]) -> Vec<u32> {
    match known.len() {
        0 => Vec::new(),
        _ => order.iter().map(|nth| known[*nth as usize]).collect(),
    }
}

/// Row-major vectors as a router compares them: under cosine of length one.
fn as_compared(metric: Metric, dims: usize, vectors: &[f32]) -> Cow<'_, [f32]> {
    if metric != Metric::Cosine {
        return Cow::Borrowed(vectors);
    }
    let mut unit = vectors.to_vec();
    unit.par_chunks_mut(dims).for_each(|row| quant::normalize_rows(dims, row));
    Cow::Owned(unit)
}
