//! A segment's arena, made from its rows: while a segment is being written, or from pages when its
//! arena is missing.

use super::background::pace::breathe;
use super::crew::Crew;
use super::sweep::arena_place;
use crate::arena::{
    encode_run, Arena, ArenaError, BucketShape as ArenaBucket, EncodedBucket,
    Identity as ArenaIdentity, Layout, Leads, Merge, Origin, Plan, RoutingArena, Writer,
};
use crate::cluster::{Router, Stopped};
use crate::courtesy;
use crate::metric::Metric;
use crate::page::{BucketShape, Identity, Index, Read, RowMap, Segment, VectorReader};
use crate::quant::{self, sign};
use crate::simd::prefetch;
use rayon::prelude::*;
use std::mem::size_of;
use std::ops::Range;

/// Where a segment's vectors are read from while its arena is made.
pub trait VectorSource {
    /// Appends the vectors of successive rows.
    fn block(&mut self, first: u64, count: usize, out: &mut Vec<f32>) -> Read<()>;

    /// Appends the vector of one row.
    fn row(&mut self, row: u64, out: &mut Vec<f32>) -> Read<()>;

    /// What is known of the rows, if all of them are in memory.
    fn leads(&self) -> Option<Leads<'_>>;
}

impl VectorSource for VectorReader {
    fn block(&mut self, first: u64, count: usize, out: &mut Vec<f32>) -> Read<()> {
        self.rows(first, count, out)
    }

    fn row(&mut self, row: u64, out: &mut Vec<f32>) -> Read<()> {
        VectorReader::row(self, row, |vector| out.extend_from_slice(vector))
    }

    fn leads(&self) -> Option<Leads<'_>> {
        None
    }
}

/// Rows in memory, and the order they have in the segment.
pub struct RowsInMemory<'r> {
    /// Components of a row.
    pub dims: usize,
    /// All rows.
    pub vectors: &'r [f32],
    /// For each row of the segment its number among `vectors`.
    pub order: &'r [u32],
    /// What else is known of them, in the same order.
    pub leads: Option<Leads<'r>>,
}

/// Rows of scattered vectors that the processor is asked for ahead of their turn, and how much of
/// each: its own prefetching goes on from there.
const ROWS_AHEAD: usize = 4;
const BYTES_AHEAD: usize = 2048;

impl RowsInMemory<'_> {
    fn vector(&self, nth: u32) -> &[f32] {
        &self.vectors[nth as usize * self.dims..][..self.dims]
    }
}

impl VectorSource for RowsInMemory<'_> {
    fn block(&mut self, first: u64, count: usize, out: &mut Vec<f32>) -> Read<()> {
        (first..first + count as u64).try_for_each(|row| {
            if let Some(later) = self.order.get(row as usize + ROWS_AHEAD) {
                let later: &[u8] = bytemuck::cast_slice(self.vector(*later));
                prefetch(&later[..later.len().min(BYTES_AHEAD)]);
            }
            self.row(row, out)
        })
    }

    fn row(&mut self, row: u64, out: &mut Vec<f32>) -> Read<()> {
        courtesy::give_way();
        out.extend_from_slice(self.vector(self.order[row as usize]));
        Ok(())
    }

    fn leads(&self) -> Option<Leads<'_>> {
        self.leads
    }
}

/// Vectors worked on at a time.
const GROUP_BYTES: usize = 8 << 20;

/// Makes the arena of one segment.
pub struct ArenaBuilder<'j> {
    /// The index it belongs to.
    pub index: Index,
    /// Its distance.
    pub metric: Metric,
    /// Components of its vectors.
    pub dims: usize,
    /// Threads for the arithmetic.
    pub crew: &'j Crew,
    /// The router its buckets are of.
    pub router: &'j Router,
    /// The same, as searches see it.
    pub routing: &'j RoutingArena,
}

impl ArenaBuilder<'_> {
    /// Makes the arena as a file, while its segment is being written. None when it could not be
    /// written, which the log then tells. `second` has the rows' second buckets, if they are known,
    /// or is empty where there are none. `beside` is called with a number of rows when the turn
    /// comes to the next so many, perhaps not to the last, and works while the crew does.
    ///
    /// # Errors
    /// What reading rows gave.
    pub fn write(
        &self,
        id: Identity,
        shapes: &[BucketShape],
        second: Option<&[u32]>,
        source: &mut impl VectorSource,
        beside: impl FnMut(usize),
    ) -> Read<Option<Arena>> {
        if !self.routing.is_sound() {
            // Codes made of it would not fit the one that takes its place.
            report_unwritten(self.index, &ArenaError::Damaged("centroids of the router"));
            return Ok(None);
        }
        let plan = match second {
            Some(second) => Plan::new(&own_rows(shapes), second),
            None => self.plan(shapes, source)?,
        };
        let (directory, name) = arena_place(self.index, id);
        let writer = self
            .layout(id, shapes, &plan)
            .and_then(|layout| Writer::create(&directory, &name, layout));
        self.fill_or_report(writer, &plan, source, beside)
    }

    /// Makes the arena of rows that are no segment yet, in memory of this backend. `None` when the
    /// router's own is not sound, or there is not even memory.
    ///
    /// # Errors
    /// What reading rows gave.
    pub fn in_memory(
        &self,
        shapes: &[BucketShape],
        second: &[u32],
        source: &mut impl VectorSource,
    ) -> Read<Option<Arena>> {
        if !self.routing.is_sound() {
            return Ok(None);
        }
        let plan = Plan::new(&own_rows(shapes), second);
        let layout = self.layout(Identity::random(), shapes, &plan);
        self.fill_or_report(layout.and_then(Writer::in_memory), &plan, source, |_| ())
    }

    /// Makes the arena of a segment of rows whose codes are in `parts`, as a file; `origins` tells
    /// of each row in order where. `beside` is called as by [`ArenaBuilder::write`].
    ///
    /// # Errors
    /// [`ArenaError::Damaged`] when a part is not what was written, [`ArenaError::Io`].
    pub fn merge(
        &self,
        id: Identity,
        shapes: &[BucketShape],
        parts: &[Arena],
        origins: &[Origin],
        beside: impl FnMut(usize),
    ) -> Result<Arena, ArenaError> {
        let own = own_rows(shapes);
        let merge = self.crew.run(|stop| Merge::new(parts, &own, origins, stop))?;
        self.copy(id, shapes, &merge, beside)
    }

    fn copy(
        &self,
        id: Identity,
        shapes: &[BucketShape],
        merge: &Merge<'_>,
        mut beside: impl FnMut(usize),
    ) -> Result<Arena, ArenaError> {
        let plan = merge.plan();
        if plan.shapes().last().is_some_and(|last| last.bucket as usize >= self.routing.len()) {
            return Err(ArenaError::Damaged("second bucket of a row"));
        }
        let (directory, name) = arena_place(self.index, id);
        let mut writer = Writer::create(&directory, &name, self.layout(id, shapes, plan)?)?;
        // Written while the next ones are copied.
        let mut copied = Vec::new();
        for group in self.groups(&all_rows(plan)) {
            let own: usize = plan.shapes()[group.clone()].iter().map(|s| s.rows as usize).sum();
            breathe();
            let mut written = Ok(());
            let next = self.crew.run_beside(
                |_| merge.copy_run(group),
                || {
                    written = push_buckets(&mut writer, &copied);
                    beside(own);
                },
            );
            written?;
            copied = next?;
        }
        push_buckets(&mut writer, &copied)?;
        writer.finish()
    }

    /// Makes the arena of a segment again from its pages: a file, or memory of this backend if no
    /// file can be written. None says that there is not even memory.
    ///
    /// # Errors
    /// What reading pages gave.
    pub fn rebuild(&self, segment: &Segment, shapes: &[BucketShape]) -> Read<Option<Arena>> {
        if let Some(arena) = self.write_again(segment, shapes)? {
            return Ok(Some(arena));
        }
        if self.routing.is_damaged() {
            return Ok(None);
        }
        let mut source = self.pages(segment)?;
        let plan = self.plan(shapes, &mut source)?;
        let layout = self.layout(segment.id, shapes, &plan);
        self.fill_or_report(layout.and_then(Writer::in_memory), &plan, &mut source, |_| ())
    }

    /// Makes the arena of a segment again from its pages, as a file. None when it could not be
    /// written, which the log then tells.
    ///
    /// # Errors
    /// What reading pages gave.
    pub fn write_again(&self, segment: &Segment, shapes: &[BucketShape]) -> Read<Option<Arena>> {
        self.write(segment.id, shapes, None, &mut self.pages(segment)?, |_| ())
    }

    fn pages(&self, segment: &Segment) -> Read<VectorReader> {
        let map = RowMap::new(self.index, segment, self.dims)?;
        Ok(VectorReader::new(self.index, &map))
    }

    /// Finds out which rows go where.
    fn plan(&self, shapes: &[BucketShape], source: &mut impl VectorSource) -> Read<Plan> {
        let own = own_rows(shapes);
        let mut second = Vec::new();
        if sign::are_used(self.metric, self.dims) {
            let mut vectors = Vec::new();
            let mut first_buckets = Vec::new();
            for group in self.groups(&own) {
                vectors.clear();
                first_buckets.clear();
                for (bucket, rows) in &own[group] {
                    first_buckets.extend(std::iter::repeat_n(*bucket, *rows as usize));
                }
                breathe();
                source.block(second.len() as u64, first_buckets.len(), &mut vectors)?;
                let (metric, dims, router) = (self.metric, self.dims, self.router);
                let found = self.crew.run(|stop| {
                    if metric == Metric::Cosine {
                        let rows = vectors.par_chunks_mut(dims);
                        rows.for_each(|row| quant::normalize_rows(dims, row));
                    }
                    let mut found = vec![0; first_buckets.len()];
                    router.spill(&vectors, &first_buckets, &mut found, stop)?;
                    Ok::<_, Stopped>(found)
                });
                // A stopped job has already ended the statement.
                second.extend(found.unwrap_or_default());
            }
        }
        Ok(Plan::new(&own, &second))
    }

    fn layout(
        &self,
        id: Identity,
        shapes: &[BucketShape],
        plan: &Plan,
    ) -> Result<Layout, ArenaError> {
        let identity = ArenaIdentity {
            segment: id.as_u128(),
            dim: self.dims as u32,
            metric: self.metric,
            rows: shapes.iter().map(|shape| u64::from(shape.rows)).sum(),
            buckets: shapes.len() as u32,
            code_bits: self.routing.code_bits(),
        };
        Layout::new(identity, plan.shapes())
    }

    fn fill_or_report(
        &self,
        writer: Result<Writer, ArenaError>,
        plan: &Plan,
        source: &mut impl VectorSource,
        beside: impl FnMut(usize),
    ) -> Read<Option<Arena>> {
        let filled = match writer {
            Ok(writer) => self.fill(writer, plan, source, beside)?,
            Err(error) => Err(error),
        };
        Ok(filled.inspect_err(|error| report_unwritten(self.index, error)).ok())
    }

    fn fill(
        &self,
        mut writer: Writer,
        plan: &Plan,
        source: &mut impl VectorSource,
        mut beside: impl FnMut(usize),
    ) -> Read<Result<Arena, ArenaError>> {
        let mut vectors = Vec::new();
        // Written while the next ones are made.
        let mut encoded = Vec::new();
        for group in self.groups(&all_rows(plan)) {
            vectors.clear();
            let own: usize = plan.shapes()[group.clone()].iter().map(|s| s.rows as usize).sum();
            if source.leads().is_none() {
                source.block(plan.first_row(group.start), own, &mut vectors)?;
                for entry in group.clone() {
                    for spilled in plan.spilled(entry) {
                        source.row(plan.row(*spilled), &mut vectors)?;
                    }
                    breathe();
                }
            }
            let (metric, routing, leads) = (self.metric, self.routing, source.leads());
            let encode = |_: &_| encode_run(metric, routing, plan, group, &vectors, leads);
            let mut written = Ok(());
            let next = self.crew.run_beside(encode, || {
                written = push_buckets(&mut writer, &encoded);
                beside(own);
            });
            if let Err(error) = written {
                return Ok(Err(error));
            }
            encoded = next;
        }
        Ok(push_buckets(&mut writer, &encoded).and_then(|()| writer.finish()))
    }

    /// Runs of buckets with about [`GROUP_BYTES`] of vectors, or one bucket.
    fn groups(&self, sizes: &[(u32, u32)]) -> Vec<Range<usize>> {
        let most = GROUP_BYTES / (self.dims * size_of::<f32>());
        let mut groups = Vec::new();
        let (mut start, mut rows) = (0, 0);
        for (nth, (_, size)) in sizes.iter().enumerate() {
            if nth > start && rows + *size as usize > most {
                groups.push(start..nth);
                (start, rows) = (nth, 0);
            }
            rows += *size as usize;
        }
        if start < sizes.len() {
            groups.push(start..sizes.len());
        }
        groups
    }
}

fn push_buckets(writer: &mut Writer, buckets: &[EncodedBucket]) -> Result<(), ArenaError> {
    buckets.iter().try_for_each(|bucket| {
        courtesy::give_way();
        writer.push_bucket(bucket)
    })
}

/// The buckets with how many rows each has of its own.
fn own_rows(shapes: &[BucketShape]) -> Vec<(u32, u32)> {
    shapes.iter().map(|shape| (shape.bucket, shape.rows)).collect()
}

/// The buckets with how many rows each has, of its own and spilled.
fn all_rows(plan: &Plan) -> Vec<(u32, u32)> {
    let rows = |shape: &ArenaBucket| shape.rows.saturating_add(shape.spilled);
    plan.shapes().iter().map(|shape| (shape.bucket, rows(shape))).collect()
}

/// Tells the log that something is made again.
pub fn report_unusable(index: Index, error: &ArenaError) {
    pgrx::ereport!(
        LOG,
        pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!("an arena of index \"{}\" is not usable: {error}", index.name()),
        "It is derived from the index's pages and is made again."
    );
}

/// Tells the log that something goes without its arena.
pub fn report_unwritten(index: Index, error: &ArenaError) {
    pgrx::ereport!(
        LOG,
        pgrx::PgSqlErrorCode::ERRCODE_IO_ERROR,
        format!("could not write an arena of index \"{}\": {error}", index.name()),
        "Searches use memory or pages instead until it can be written."
    );
}
