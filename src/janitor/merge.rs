//! Segments, and rows of the log with them, become one segment. All are of one router, so that rows
//! keep their buckets and codes.

use super::arena_builder::{report_unusable, report_unwritten};
use super::background::pace::breathe;
use super::progress::Phase;
use super::rebuild::open_arena;
use super::rows::RowStore;
use super::segment_builder::{Assigned, OnLog, SegmentBuilder};
use super::segment_writer::{Body, BucketShapes, SegmentWriter};
use super::sorter::Sorter;
use crate::arena::{Arena, ArenaError, Origin};
use crate::page::{Index, LogPages, Read, RowMap, Segment, Space, Tid, TidReader, VectorReader};
use std::vec;

/// Rows read between two breaths.
const BREATH_ROWS: u64 = 256;

/// Makes rows of the log, which are all in `store`, and the live rows of `old` segments one segment;
/// `None` where there are none. If their vectors are to stay `on_log`, those of the store are in
/// memory, and those of the segments on pages of it already.
///
/// # Errors
/// What reading pages gave.
pub fn merge(
    builder: &SegmentBuilder<'_>,
    sorter: &Sorter,
    store: &mut RowStore,
    assigned: Assigned,
    on_log: Option<OnLog>,
    old: &[Segment],
    space: &mut Space,
) -> Read<Option<Segment>> {
    let mut merge = Merge::begin(builder, sorter, store, assigned, on_log)?;
    old.iter().try_for_each(|segment| merge.add(segment))?;
    merge.write(space)
}

/// A merge in the making.
struct Merge<'j> {
    builder: &'j SegmentBuilder<'j>,
    sorter: &'j Sorter,
    bodies: Bodies<'j>,
    /// The bucket of each row.
    buckets: Vec<u32>,
    /// Where each row's codes are.
    origins: Vec<Origin>,
    /// Arenas with the codes, unless one is missing.
    parts: Option<Vec<Arena>>,
}

/// What is written of rows beside their codes.
enum Bodies<'j> {
    /// TIDs and vectors.
    Store(&'j mut RowStore),
    /// TIDs, and where on pages of the log the vectors are.
    OnLog { tids: Vec<Tid>, places: Vec<u32>, pages: LogPages, first_places: vec::IntoIter<u32> },
}

impl<'j> Merge<'j> {
    /// Begins with the rows of the log.
    fn begin(
        builder: &'j SegmentBuilder<'j>,
        sorter: &'j Sorter,
        store: &'j mut RowStore,
        assigned: Assigned,
        on_log: Option<OnLog>,
    ) -> Read<Merge<'j>> {
        let (mut parts, mut origins) = (Some(Vec::new()), Vec::new());
        if store.len() > 0 {
            let encoded = builder.encode(sorter, store, &assigned)?;
            origins.resize(store.len(), Origin { part: 0, row: 0 });
            parts = encoded.map(|(arena, order)| {
                order.iter().zip(0..).for_each(|(nth, row)| origins[*nth as usize].row = row);
                vec![arena]
            });
        }
        let buckets = assigned.buckets;
        let bodies = match on_log {
            Some(OnLog { pages, places, first_places }) => Bodies::OnLog {
                tids: store.tids().to_vec(),
                places,
                pages,
                first_places: first_places.into_iter(),
            },
            None => Bodies::Store(store),
        };
        Ok(Merge { builder, sorter, bodies, buckets, origins, parts })
    }

    /// Adds the live rows of the next segment.
    fn add(&mut self, segment: &Segment) -> Read<()> {
        let SegmentBuilder { index, metric, dims, .. } = *self.builder;
        let routing = self.sorter.routing();
        let shapes = segment.read_buckets(index, routing.len() as u32)?;
        let part = self.parts.as_ref().map_or(0, Vec::len) as u32;
        let arena = open_arena(index, metric, dims, routing, segment);
        self.parts = self.parts.take().zip(arena).map(|(mut parts, arena)| {
            parts.push(arena);
            parts
        });
        let runs = shapes.iter().map(|shape| (shape.bucket, shape.rows as usize));
        let buckets: Vec<u32> =
            runs.flat_map(|(bucket, rows)| std::iter::repeat_n(bucket, rows)).collect();
        let (own, origins) = (&mut self.buckets, &mut self.origins);
        let mut push = |row: u32| {
            own.push(buckets[row as usize]);
            origins.push(Origin { part, row });
        };
        match &mut self.bodies {
            Bodies::Store(store) => read_rows(index, dims, segment, |row, tid, vector| {
                store.push(tid, vector);
                push(row);
            }),
            Bodies::OnLog { tids, places, first_places, .. } => {
                let first_place = first_places.next().unwrap_or(0);
                let known = read_tids(index, &RowMap::new(index, segment, dims)?)?;
                let read = segment.logged.as_ref().map(|logged| logged.read_places(index));
                let rows = (0..).zip(known.into_iter().zip(read.transpose()?.unwrap_or_default()));
                for (row, (tid, place)) in rows.filter(|(_, (tid, _))| tid.is_valid()) {
                    tids.push(tid);
                    // There was room for all of them.
                    places.push(first_place.saturating_add(place));
                    push(row);
                }
                Ok(())
            }
        }
    }

    /// Writes the segment.
    fn write(self, space: &mut Space) -> Read<Option<Segment>> {
        let Merge { builder, sorter, mut bodies, buckets, origins, parts } = self;
        if buckets.is_empty() {
            return Ok(None);
        }
        let SegmentBuilder { index, dims, progress, .. } = *builder;
        progress.begin(Phase::Write, buckets.len() as u64);
        let shapes = BucketShapes::of(&buckets, sorter.routing().len());
        let body = match bodies {
            Bodies::Store(_) => Body::Vector(dims),
            Bodies::OnLog { .. } => Body::Place,
        };
        let mut writer = SegmentWriter::new(index, progress, &shapes, body, space);
        let order = shapes.sort(&buckets);
        if let Bodies::Store(store) = &mut bodies {
            if store.in_memory().is_none() {
                writer.write_spilled(dims, store, &buckets, &shapes);
            }
        }
        drop(buckets);
        let row = |nth: usize| {
            let nth = order[nth] as usize;
            match &bodies {
                Bodies::Store(store) => {
                    let vectors = store.in_memory().unwrap_or_default();
                    let vector = &vectors[nth * dims..(nth + 1) * dims];
                    (store.tids()[nth], bytemuck::cast_slice(vector))
                }
                Bodies::OnLog { tids, places, .. } => (tids[nth], bytemuck::bytes_of(&places[nth])),
            }
        };
        let arena = builder.arenas(sorter);
        let mut is_arena_due = true;
        if let Some(parts) = parts {
            let origins: Vec<Origin> = order.iter().map(|nth| origins[*nth as usize]).collect();
            let id = writer.id();
            let beside = |rows: usize| {
                writer.write_rows(rows.min(order.len() - writer.written()), row);
            };
            match arena.merge(id, shapes.table(), &parts, &origins, beside) {
                Err(error @ ArenaError::Damaged(_)) => report_unusable(index, &error),
                Err(error) => {
                    report_unwritten(index, &error);
                    is_arena_due = false;
                }
                Ok(_) => is_arena_due = false,
            }
        }
        writer.write_rows(order.len() - writer.written(), row);
        let pages = match bodies {
            Bodies::Store(_) => None,
            Bodies::OnLog { pages, .. } => Some(pages),
        };
        let segment = writer.finish(pages);
        if is_arena_due {
            arena.write_again(&segment, shapes.table())?;
        }
        Ok(Some(segment))
    }
}

/// The TIDs of all rows.
fn read_tids(index: Index, map: &RowMap) -> Read<Vec<Tid>> {
    let pages = TidReader::new(index, map);
    let mut tids = Vec::new();
    for page in 0..pages.pages() {
        breathe();
        tids.extend(pages.page(page)?);
    }
    Ok(tids)
}

/// Calls `row` with the numbers of the live rows of a segment and these.
///
/// # Errors
/// What reading its pages gave.
pub fn read_rows(
    index: Index,
    dims: usize,
    segment: &Segment,
    mut row: impl FnMut(u32, Tid, &[f32]),
) -> Read<()> {
    let map = RowMap::new(index, segment, dims)?;
    let tids = read_tids(index, &map)?;
    let mut seen = 0;
    VectorReader::new(index, &map).for_each(|number, vector| {
        if let Some(tid) = tids.get(number as usize).filter(|tid| tid.is_valid()) {
            row(number as u32, *tid, vector);
        }
        seen += 1;
        if seen % BREATH_ROWS == 0 {
            breathe();
        }
    })
}
