//! What this backend's scans need of an index's current manifest, kept until it changes.

use crate::arena::{self, Arena};
use crate::cluster::Router;
use crate::janitor::{
    arena_place, background, load_router, open_arena, rebuild_arena, sweep_if_idle, JobLock,
};
use crate::metric::Metric;
use crate::page::{
    BucketShape, Identity, Index, Manifest, Read, Segment, Tid, TidReader, VectorReader, View,
};
use crate::search::{Bucket, Calibration, Rows};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// The segments and the router of one manifest.
pub struct Snapshot {
    manifest_id: Identity,
    router_id: Identity,
    router: Option<Rc<Router>>,
    segments: Vec<Rc<LiveSegment>>,
    live_rows: u64,
    calibration: Calibration,
}

/// One segment, with its arena if that is to be had.
struct LiveSegment {
    segment: Segment,
    arena: OnceCell<Arena>,
    /// A bucket's codes did not match their checksum.
    damaged: Cell<bool>,
    /// The bucket table from pages, for when there is no arena.
    buckets: OnceCell<Vec<(BucketShape, u64)>>,
}

/// Indexes whose snapshots a backend keeps.
const KEPT: usize = 64;

thread_local! {
    static SNAPSHOTS: RefCell<HashMap<(u32, u32, u32), Rc<Snapshot>>> = RefCell::default();
}

impl Snapshot {
    /// The snapshot of `view`'s manifest; what the last one had is used again.
    pub fn of(index: Index, view: &View) -> Read<Rc<Snapshot>> {
        let key = index.file_key();
        let known = SNAPSHOTS.with_borrow(|snapshots| snapshots.get(&key).cloned());
        let current = match known {
            Some(known) if known.is_complete_for(view) => return Ok(known),
            known => Rc::new(Snapshot::load(index, view, known.as_deref())?),
        };
        SNAPSHOTS.with_borrow_mut(|snapshots| {
            if snapshots.len() >= KEPT && !snapshots.contains_key(&key) {
                snapshots.clear();
            }
            snapshots.insert(key, current.clone());
        });
        Ok(current)
    }

    fn is_complete_for(&self, view: &View) -> bool {
        self.manifest_id == view.manifest().id
            && self.segments.iter().all(|segment| segment.has_sound_arena())
    }

    fn load(index: Index, view: &View, known: Option<&Snapshot>) -> Read<Snapshot> {
        background::log_seen(index);
        let (manifest, _) = Manifest::read(index, view.manifest())?;
        let live_rows = manifest.live_rows();
        let calibration =
            manifest.router.as_ref().map_or(Calibration::EVERYTHING, |r| r.calibration);
        let router_id = manifest.router.as_ref().map_or(Identity::NONE, |r| r.column.id);
        let router = match (&manifest.router, known) {
            (Some(_), Some(known)) if known.router_id == router_id => known.router.clone(),
            (Some(stored), _) => {
                Some(Rc::new(load_router(index, view.metric, view.dims(), stored)?))
            }
            (None, _) => None,
        };
        let same = |segment: &Segment| {
            let known = known?.segments.iter().find(|known| known.segment.id == segment.id)?;
            if known.damaged.get() {
                discard_arena(index, segment);
            }
            known.has_sound_arena().then(|| known.clone())
        };
        let mut segments = Vec::with_capacity(manifest.segments.len());
        for segment in manifest.segments {
            segments.push(match (same(&segment), &router) {
                (Some(known), _) => known,
                (None, Some(router)) => {
                    Rc::new(LiveSegment::open(index, view.metric, view.dims(), router, segment)?)
                }
                // A manifest with segments has a router.
                (None, None) => continue,
            });
        }
        Ok(Snapshot {
            manifest_id: view.manifest().id,
            router_id,
            router,
            segments,
            live_rows,
            calibration,
        })
    }

    /// The router; none while there is no segment.
    pub fn router(&self) -> Option<&Router> {
        self.router.as_deref()
    }

    /// Rows of the segments that were alive when the manifest was written.
    pub fn live_rows(&self) -> u64 {
        self.live_rows
    }

    /// What a recall costs.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Segments, and those of them that have an arena.
    pub fn arenas(&self) -> (usize, usize) {
        let with = self.segments.iter().filter(|segment| segment.has_sound_arena()).count();
        (self.segments.len(), with)
    }

    /// Every TID of the segments.
    pub fn tids(&self, index: Index) -> Read<Vec<Tid>> {
        let mut tids = Vec::new();
        for live in &self.segments {
            let reader = TidReader::new(index, &live.segment)?;
            for page in 0..reader.pages() {
                tids.extend(reader.page(page)?.into_iter().filter(|tid| tid.is_valid()));
            }
        }
        Ok(tids)
    }
}

impl LiveSegment {
    /// Maps the segment's arena, or makes it again if it is missing or unusable.
    fn open(
        index: Index,
        metric: Metric,
        dims: usize,
        router: &Router,
        segment: Segment,
    ) -> Read<LiveSegment> {
        let shapes = OnceCell::new();
        let load_shapes =
            || -> Read<Vec<BucketShape>> { segment.read_buckets(index, router.len() as u32) };
        let mut arena = open_arena(index, metric, dims, &segment);
        let mut rebuilt = false;
        // Unless the janitor makes it, this scan reading pages meanwhile,
        if arena.is_none() && !background::announce_arenas(index) {
            // one backend makes it again; the others read pages.
            if let Some(_lock) = JobLock::try_arenas(index) {
                arena = open_arena(index, metric, dims, &segment);
                if arena.is_none() {
                    let shapes = load_shapes()?;
                    arena = rebuild_arena(index, metric, dims, router, &segment, &shapes)?;
                    rebuilt = true;
                }
            }
        }
        if rebuilt {
            sweep_if_idle(index)?;
        }
        let cell = OnceCell::new();
        match arena {
            Some(arena) => {
                let _ = cell.set(arena);
            }
            None => {
                let _ = shapes.set(with_starts(load_shapes()?));
            }
        }
        Ok(LiveSegment { segment, arena: cell, damaged: Cell::new(false), buckets: shapes })
    }

    fn has_sound_arena(&self) -> bool {
        self.arena.get().is_some() && !self.damaged.get()
    }

    fn bucket(&self, bucket: u32) -> Bucket<'_> {
        let Some(arena) = self.arena.get() else {
            let buckets = self.buckets.get().map_or(&[][..], Vec::as_slice);
            return match buckets.binary_search_by_key(&bucket, |(shape, _)| shape.bucket) {
                Ok(at) => {
                    let (shape, first_row) = buckets[at];
                    Bucket::Uncoded { first_row, rows: u64::from(shape.rows) }
                }
                Err(_) => Bucket::Empty,
            };
        };
        let Some(at) = arena.find(bucket) else { return Bucket::Empty };
        match arena.bucket(at) {
            Ok(codes) => Bucket::Coded {
                first_row: codes.first_row,
                factors: codes.factors,
                codes: codes.codes,
                stride: codes.stride,
            },
            Err(_) => {
                // This search reads the bucket from pages; the next one makes the arena again.
                self.damaged.set(true);
                let entry = &arena.buckets()[at];
                Bucket::Uncoded { first_row: entry.first_row, rows: u64::from(entry.rows) }
            }
        }
    }
}

fn with_starts(shapes: Vec<BucketShape>) -> Vec<(BucketShape, u64)> {
    let mut next = 0;
    shapes
        .into_iter()
        .map(|shape| {
            let start = next;
            next += u64::from(shape.rows);
            (shape, start)
        })
        .collect()
}

/// Removes an arena whose codes did not match their checksum, so that it is made again.
fn discard_arena(index: Index, segment: &Segment) {
    let (directory, name) = arena_place(index, segment.id);
    let removed = arena::remove(&directory, &name);
    pgrx::ereport!(
        LOG,
        pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!("an arena of index \"{}\" has a bad checksum", index.name()),
        match removed {
            Ok(()) => "It is derived from the index's pages and is made again.".to_string(),
            Err(error) => format!("It could not be removed: {error}"),
        }
    );
}

/// Reads the rows of a snapshot for one scan.
pub struct SnapshotRows {
    snapshot: Rc<Snapshot>,
    vectors: Vec<VectorReader>,
    tids: Vec<TidReader>,
}

impl SnapshotRows {
    /// Prepares to read.
    pub fn new(index: Index, dims: usize, snapshot: Rc<Snapshot>) -> Read<SnapshotRows> {
        let segments = || snapshot.segments.iter().map(|live| &live.segment);
        let vectors = segments().map(|segment| VectorReader::new(index, segment, dims));
        let vectors = vectors.collect::<Read<Vec<_>>>()?;
        let tids = segments().map(|segment| TidReader::new(index, segment));
        let tids = tids.collect::<Read<Vec<_>>>()?;
        Ok(SnapshotRows { snapshot, vectors, tids })
    }

    /// The snapshot that is read.
    pub fn snapshot(&self) -> &Rc<Snapshot> {
        &self.snapshot
    }

    /// The heap's address of a row.
    pub fn tid(&self, segment: u32, row: u64) -> Read<Tid> {
        self.tids[segment as usize].tid(row)
    }
}

impl Rows for SnapshotRows {
    type Error = crate::page::Fault;

    fn segments(&self) -> u32 {
        self.snapshot.segments.len() as u32
    }

    fn bucket(&mut self, segment: u32, bucket: u32) -> Bucket<'_> {
        // An exact search looks into every bucket before it delivers a row.
        pgrx::check_for_interrupts!();
        self.snapshot.segments[segment as usize].bucket(bucket)
    }

    fn vector<T>(&mut self, segment: u32, row: u64, with: impl FnOnce(&[f32]) -> T) -> Read<T> {
        pgrx::check_for_interrupts!();
        self.vectors[segment as usize].row(row, with)
    }
}
