//! An arena made again from a segment's pages.

use super::crew::Crew;
use super::segment_builder::{arena_layout, encode_buckets, groups, report_unwritten};
use super::sweep::arena_place;
use crate::arena::{Arena, ArenaError, Writer};
use crate::cluster::Router;
use crate::metric::Metric;
use crate::page::{BucketShape, Index, Read, Segment, Tid, VectorReader};

/// Encodes a segment's rows into a new arena: a file, or memory of this backend if no file can be
/// written.
///
/// # Errors
/// What reading pages gave. None inside says that there is not even memory.
pub fn rebuild_arena(
    index: Index,
    metric: Metric,
    dims: usize,
    router: &Router,
    segment: &Segment,
    shapes: &[BucketShape],
) -> Read<Option<Arena>> {
    let layout = || arena_layout(segment.id, dims, metric, segment.rows, shapes);
    let (directory, name) = arena_place(index, segment.id);
    let on_disk = || Writer::create(&directory, &name, layout()?);
    let in_memory = || Writer::in_memory(layout()?);
    let mut attempts: [&dyn Fn() -> Result<Writer, ArenaError>; 2] = [&on_disk, &in_memory];
    for create in &mut attempts {
        let finished = match create() {
            Ok(writer) => fill(index, metric, dims, router, segment, shapes, writer)?,
            Err(error) => Err(error),
        };
        match finished {
            Ok(arena) => return Ok(Some(arena)),
            Err(error) => report_unwritten(index, &error),
        }
    }
    Ok(None)
}

fn fill(
    index: Index,
    metric: Metric,
    dims: usize,
    router: &Router,
    segment: &Segment,
    shapes: &[BucketShape],
    mut writer: Writer,
) -> Read<Result<Arena, ArenaError>> {
    let crew = Crew::new();
    let vectors = VectorReader::new(index, segment, dims)?;
    let mut block = Vec::new();
    let mut first = 0;
    for group in groups(dims, shapes) {
        let rows: usize = group.iter().map(|shape| shape.rows as usize).sum();
        block.clear();
        vectors.rows(first, rows, &mut block)?;
        let row = |nth: usize| (Tid::INVALID, &block[nth * dims..(nth + 1) * dims]);
        let coded = crew.run(|_| encode_buckets(metric, dims, router, group, 0, &row));
        for (factors, codes) in &coded {
            if let Err(error) = writer.push_bucket(factors, codes) {
                return Ok(Err(error));
            }
        }
        first += rows as u64;
    }
    Ok(writer.finish())
}
