//! An arena made again from a segment's pages.

use super::background::pace::breathe;
use super::crew::Crew;
use super::lock::JobLock;
use super::router;
use super::segment_builder::{arena_layout, encode_buckets, groups, report_unwritten};
use super::sweep::arena_place;
use crate::arena::{self, Arena, ArenaError, Writer};
use crate::cluster::Router;
use crate::metric::Metric;
use crate::page::{BucketShape, Index, Manifest, Read, Segment, Tid, VectorReader, View};

/// Maps a segment's arena if it is there and sound; an unsound one is reported.
pub fn open_arena(index: Index, metric: Metric, dims: usize, segment: &Segment) -> Option<Arena> {
    let (directory, name) = arena_place(index, segment.id);
    let identity = arena::Identity {
        segment: segment.id.as_u128(),
        dim: dims as u32,
        metric,
        rows: segment.rows,
        buckets: (segment.buckets.bytes / size_of::<BucketShape>() as u64) as u32,
    };
    match Arena::open(&directory, &name, &identity) {
        Ok(arena) => Some(arena),
        Err(ArenaError::Missing) => None,
        Err(error) => {
            pgrx::ereport!(
                LOG,
                pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                format!("an arena of index \"{}\" is not usable: {error}", index.name()),
                "It is derived from the index's pages and is made again."
            );
            None
        }
    }
}

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
    for place in [Place::File, Place::Memory] {
        let arena = write_arena(index, metric, dims, router, segment, shapes, place)?;
        if arena.is_some() {
            return Ok(arena);
        }
    }
    Ok(None)
}

/// What a rebuild of an index's missing arenas did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rebuilt {
    /// Arenas made.
    pub arenas: usize,
    /// Their rows.
    pub rows: u64,
    /// Arenas that could not be written; the log tells why.
    pub unwritten: usize,
}

/// Makes the arenas an index lacks. None if another process is at it.
///
/// # Errors
/// What reading pages gave.
pub fn rebuild_missing(index: Index) -> Read<Option<Rebuilt>> {
    let Some(_lock) = JobLock::try_arenas(index) else { return Ok(None) };
    let view = View::take(index)?;
    let (manifest, _) = Manifest::read(index, view.manifest())?;
    let (metric, dims) = (view.metric, view.dims());
    let mut rebuilt = Rebuilt::default();
    let Some(stored) = &manifest.router else { return Ok(Some(rebuilt)) };
    let router = router::load(index, metric, dims, stored)?;
    for segment in &manifest.segments {
        breathe();
        if open_arena(index, metric, dims, segment).is_some() {
            continue;
        }
        let shapes = segment.read_buckets(index, stored.buckets)?;
        match write_arena(index, metric, dims, &router, segment, &shapes, Place::File)? {
            Some(_) => {
                rebuilt.arenas += 1;
                rebuilt.rows += segment.rows;
            }
            None => rebuilt.unwritten += 1,
        }
    }
    Ok(Some(rebuilt))
}

/// Where an arena is made.
#[derive(Clone, Copy)]
enum Place {
    File,
    Memory,
}

/// None if it cannot be made there, which is reported.
fn write_arena(
    index: Index,
    metric: Metric,
    dims: usize,
    router: &Router,
    segment: &Segment,
    shapes: &[BucketShape],
    place: Place,
) -> Read<Option<Arena>> {
    let layout = arena_layout(segment.id, dims, metric, segment.rows, shapes);
    let created = layout.and_then(|layout| match place {
        Place::File => {
            let (directory, name) = arena_place(index, segment.id);
            Writer::create(&directory, &name, layout)
        }
        Place::Memory => Writer::in_memory(layout),
    });
    let finished = match created {
        Ok(writer) => fill(index, metric, dims, router, segment, shapes, writer)?,
        Err(error) => Err(error),
    };
    Ok(finished.inspect_err(|error| report_unwritten(index, error)).ok())
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
        breathe();
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
