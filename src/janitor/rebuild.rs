//! Arenas that are there, and those that have to be made again.

use super::arena_builder::{report_unusable, ArenaBuilder};
use super::background::pace::breathe;
use super::crew::Crew;
use super::lock::JobLock;
use super::routing;
use super::sweep::arena_place;
use crate::arena::{self, Arena, ArenaError, RoutingArena};
use crate::metric::Metric;
use crate::page::{BucketShape, Index, Manifest, Read, Segment, View};

/// Maps a segment's arena if it is there and sound; an unsound one is reported. `routing` is that
/// of the segment's router.
pub fn open_arena(
    index: Index,
    metric: Metric,
    dims: usize,
    routing: &RoutingArena,
    segment: &Segment,
) -> Option<Arena> {
    let (directory, name) = arena_place(index, segment.id);
    let identity = arena::Identity {
        segment: segment.id.as_u128(),
        dim: dims as u32,
        metric,
        rows: segment.rows,
        buckets: (segment.buckets.bytes / size_of::<BucketShape>() as u64) as u32,
        code_bits: routing.code_bits(),
    };
    match Arena::open(&directory, &name, &identity) {
        Ok(arena) => Some(arena),
        Err(ArenaError::Missing) => None,
        Err(error) => {
            report_unusable(index, &error);
            None
        }
    }
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
    match rebuild_missing_of(index, &view) {
        Ok(rebuilt) => Ok(Some(rebuilt)),
        // No page that the current manifest leads to is given to anything else.
        Err(fault) if View::take(index)?.manifest() == view.manifest() => Err(fault.under_lock()),
        Err(fault) => Err(fault),
    }
}

fn rebuild_missing_of(index: Index, view: &View) -> Read<Rebuilt> {
    let (manifest, _) = Manifest::read(index, view.manifest())?;
    let (metric, dims) = (view.metric, view.dims());
    let mut rebuilt = Rebuilt::default();
    let Some(stored) = &manifest.router else { return Ok(rebuilt) };
    let (router, routing) = &routing::load_with_router(index, metric, dims, stored)?;
    let crew = &Crew::new();
    let builder = ArenaBuilder { index, metric, dims, crew, router, routing };
    for segment in &manifest.segments {
        breathe();
        if open_arena(index, metric, dims, routing, segment).is_some() {
            continue;
        }
        let shapes = segment.read_buckets(index, stored.buckets)?;
        match builder.write_again(segment, &shapes)? {
            Some(_) => {
                rebuilt.arenas += 1;
                rebuilt.rows += segment.rows;
            }
            None => rebuilt.unwritten += 1,
        }
    }
    Ok(rebuilt)
}
