//! What this backend's scans need of an index's current manifest, kept until it changes.

use super::heap_pages::HeapPages;
use crate::arena::{self, Arena, ArenaError, BucketCodes, RoutingArena};
use crate::janitor::{
    arena_place, background, is_untidy, load_router, open_arena, open_routing, sweep_if_idle,
    ArenaBuilder, Crew, JobLock,
};
use crate::metric::Metric;
use crate::page::{
    BucketShape, Identity, Index, Manifest, Read, RouterRef, RowMap, Segment, Tid, TidReader,
    VectorReader, View,
};
use crate::search::{Bucket, Calibration, Coded, Rows};
use rustc_hash::FxHashMap;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

/// The segments and the router of one manifest.
pub struct Snapshot {
    manifest_id: Identity,
    router_id: Identity,
    routing: Option<Rc<RoutingArena>>,
    segments: Vec<Rc<LiveSegment>>,
    live_rows: u64,
    calibration: Calibration,
    /// Rows that the last scan delivered, and the one before.
    delivered: Cell<[usize; 2]>,
    heap: Rc<HeapPages>,
}

/// One segment, with its arena if that is to be had.
struct LiveSegment {
    segment: Segment,
    rows: RowMap,
    arena: OnceCell<Arena>,
    /// A bucket's codes did not match their checksum.
    damaged: Cell<bool>,
    /// All of the arena has been found to be what was written.
    seen_sound: Cell<bool>,
    /// The bucket table from pages, for when there is no arena.
    buckets: OnceCell<Vec<(BucketShape, u64)>>,
}

/// What a scan is expected to be asked for at least, without and with some more to be sure, and at
/// most.
pub const FEWEST_WANTED: u64 = 10;
const FEWEST_EXPECTED: usize = 12;
const MOST_EXPECTED: usize = 2_000;

/// Indexes whose snapshots a backend keeps.
const KEPT: usize = 64;

thread_local! {
    static SNAPSHOTS: RefCell<FxHashMap<(u32, u32, u32), Rc<Snapshot>>> = RefCell::default();
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
            && self.routing.as_ref().is_none_or(|routing| !routing.is_damaged())
    }

    fn load(index: Index, view: &View, known: Option<&Snapshot>) -> Read<Snapshot> {
        background::log_seen(index);
        let (manifest, _) = Manifest::read(index, view.manifest())?;
        if is_untidy(&manifest, view.dims()) {
            background::untidy_seen(index);
        }
        let live_rows = manifest.live_rows();
        let calibration =
            manifest.router.as_ref().map_or(Calibration::EVERYTHING, |r| r.calibration);
        if let Some(known) = known.filter(|k| k.routing.as_ref().is_some_and(|r| r.is_damaged())) {
            discard_arena(index, known.router_id);
        }
        let router_id = manifest.router.as_ref().map_or(Identity::NONE, |r| r.column.id);
        let routing = match (&manifest.router, known) {
            (Some(_), Some(known)) if known.has_routing(router_id) => known.routing.clone(),
            (Some(stored), _) => {
                let (routing, made) = open_routing(index, view.metric, view.dims(), stored)?;
                if made {
                    // A manifest that is outdated by now may have named it.
                    sweep_if_idle(index)?;
                }
                Some(Rc::new(routing))
            }
            (None, _) => None,
        };
        let same = |segment: &Segment| {
            let known = known?.segments.iter().find(|known| known.segment.id == segment.id)?;
            if known.damaged.get() {
                discard_arena(index, segment.id);
            }
            known.has_sound_arena().then(|| known.clone())
        };
        let mut segments = Vec::with_capacity(manifest.segments.len());
        for segment in manifest.segments {
            segments.push(match (same(&segment), &manifest.router, &routing) {
                (Some(known), ..) => known,
                (None, Some(stored), Some(routing)) => {
                    let (metric, dims) = (view.metric, view.dims());
                    Rc::new(LiveSegment::open(index, metric, dims, stored, routing, segment)?)
                }
                // A manifest with segments has a router.
                _ => continue,
            });
        }
        Ok(Snapshot {
            manifest_id: view.manifest().id,
            router_id,
            routing,
            segments,
            live_rows,
            calibration,
            delivered: Cell::new(known.map_or([0; 2], |known| known.delivered.get())),
            heap: known.map_or_else(Rc::default, |known| known.heap.clone()),
        })
    }

    fn has_routing(&self, id: Identity) -> bool {
        self.router_id == id && self.routing.as_ref().is_some_and(|routing| !routing.is_damaged())
    }

    /// As [`Snapshot::of`], for a search that may not be led astray by damage not met yet.
    pub fn of_sound(index: Index, view: &View) -> Read<Rc<Snapshot>> {
        let snapshot = Snapshot::of(index, view)?;
        let is_routing_sound = snapshot.routing().is_none_or(RoutingArena::is_sound);
        // All are looked at: what is damaged is made again at once.
        let damaged = snapshot.segments.iter().filter(|segment| !segment.is_sound()).count();
        match is_routing_sound && damaged == 0 {
            true => Ok(snapshot),
            false => Snapshot::of(index, view),
        }
    }

    /// The router, as searches see it; none while there is no segment.
    pub fn routing(&self) -> Option<&RoutingArena> {
        self.routing.as_deref()
    }

    /// How many rows the next scan is likely to be asked for: somewhat more than the last one was,
    /// as those that codes take for the nearest are not quite in order.
    pub fn expected(&self) -> usize {
        let [last, _] = self.delivered.get();
        (last + last / 5).clamp(FEWEST_EXPECTED, MOST_EXPECTED)
    }

    /// How many rows the first buckets of the next scan are to be right for: what the last two scans
    /// delivered both. Where they differ, one that turns out to want more widens its search.
    pub fn wanted(&self) -> u64 {
        let [last, before] = self.delivered.get();
        (last.min(before).min(MOST_EXPECTED) as u64).max(FEWEST_WANTED)
    }

    /// Takes note of how many rows a scan has delivered.
    pub fn has_delivered(&self, rows: usize) {
        let [last, _] = self.delivered.get();
        self.delivered.set([rows, last]);
    }

    /// Where this backend met the pages of the table.
    pub fn heap(&self) -> &HeapPages {
        &self.heap
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
            let reader = TidReader::new(index, &live.rows);
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
        stored: &RouterRef,
        routing: &RoutingArena,
        segment: Segment,
    ) -> Read<LiveSegment> {
        let shapes = OnceCell::new();
        let load_shapes =
            || -> Read<Vec<BucketShape>> { segment.read_buckets(index, stored.buckets) };
        let mut arena = open_arena(index, metric, dims, routing, &segment);
        let mut rebuilt = false;
        // Unless the janitor makes it, this scan reading pages meanwhile,
        if arena.is_none() && !background::announce_arenas(index) {
            // one backend makes it again; the others read pages.
            if let Some(_lock) = JobLock::try_arenas(index) {
                arena = open_arena(index, metric, dims, routing, &segment);
                if arena.is_none() {
                    let shapes = load_shapes()?;
                    let router = &load_router(index, metric, dims, stored)?;
                    routing.teach(router);
                    let crew = &Crew::new();
                    let builder = ArenaBuilder { index, metric, dims, crew, router, routing };
                    arena = builder.rebuild(&segment, &shapes)?;
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
        let rows = RowMap::new(index, &segment, dims)?;
        let (damaged, seen_sound) = (Cell::new(false), Cell::new(false));
        Ok(LiveSegment { segment, rows, arena: cell, damaged, seen_sound, buckets: shapes })
    }

    /// Whether all of the arena is what was written, as far as this backend has seen for itself.
    fn is_sound(&self) -> bool {
        let Some(arena) = self.arena.get() else { return true };
        if !self.seen_sound.get() {
            let is_block_sound = |nth| {
                pgrx::check_for_interrupts!();
                arena.is_block_sound(nth)
            };
            match arena.is_table_sound() && (0..arena.buckets().len()).all(is_block_sound) {
                true => self.seen_sound.set(true),
                false => self.damaged.set(true),
            }
        }
        self.seen_sound.get()
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
        let Some(entry) = arena.find(bucket) else { return Bucket::Empty };
        if arena.buckets().get(entry).is_none_or(|of| of.bucket != bucket) {
            // The directory is not what was found sound.
            self.damaged.set(true);
            return Bucket::Empty;
        }
        self.entry(arena, entry, arena.bucket(entry))
    }

    /// The bucket at this index of the arena's table, of which `codes` were found.
    fn entry<'a>(
        &self,
        arena: &'a Arena,
        entry: usize,
        codes: Result<BucketCodes<'a>, ArenaError>,
    ) -> Bucket<'a> {
        let Some(of) = arena.buckets().get(entry) else { return Bucket::Empty };
        match codes {
            Ok(BucketCodes { first_row, factors, codes, stride, signs }) => {
                let (bucket, entry) = (of.bucket, entry as u32);
                Bucket::Coded(Coded { bucket, entry, first_row, factors, codes, stride, signs })
            }
            Err(_) => {
                // This search reads the bucket from pages; the next one makes the arena again.
                self.damaged.set(true);
                Bucket::Uncoded { first_row: of.first_row, rows: u64::from(of.rows) }
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
fn discard_arena(index: Index, id: Identity) {
    let (directory, name) = arena_place(index, id);
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
    pub fn new(index: Index, snapshot: Rc<Snapshot>) -> SnapshotRows {
        let segments = || snapshot.segments.iter();
        let vectors = segments().map(|live| VectorReader::new(index, &live.rows)).collect();
        let tids = segments().map(|live| TidReader::new(index, &live.rows)).collect();
        SnapshotRows { snapshot, vectors, tids }
    }

    /// The snapshot that is read.
    pub fn snapshot(&self) -> &Rc<Snapshot> {
        &self.snapshot
    }

    fn arena(&self, segment: u32) -> Option<&Arena> {
        self.snapshot.segments[segment as usize].arena.get()
    }

    /// The arena of a segment, and where its table has a bucket.
    fn find(&self, segment: u32, bucket: u32) -> Option<(&Arena, usize)> {
        let arena = self.arena(segment)?;
        arena.find(bucket).map(|entry| (arena, entry))
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

    fn bucket(&self, segment: u32, bucket: u32) -> Bucket<'_> {
        // An exact search looks into every bucket before it delivers a row.
        pgrx::check_for_interrupts!();
        self.snapshot.segments[segment as usize].bucket(bucket)
    }

    fn prefetch_place(&self, segment: u32, bucket: u32) {
        if let Some((arena, entry)) = self.find(segment, bucket) {
            arena.prefetch_entry(entry);
        }
    }

    fn codes_ahead(&self, segment: u32, bucket: u32) -> &[u8] {
        self.find(segment, bucket).map_or(&[], |(arena, entry)| arena.codes_ahead(entry))
    }

    fn prefetch_entry(&self, segment: u32, entry: u32) {
        if let Some(arena) = self.arena(segment) {
            arena.prefetch_entry(entry as usize);
        }
    }

    fn entry(&self, segment: u32, entry: u32) -> Bucket<'_> {
        let live = &self.snapshot.segments[segment as usize];
        let Some(arena) = live.arena.get() else { return Bucket::Empty };
        live.entry(arena, entry as usize, arena.own_rows(entry as usize))
    }

    fn prefetch_vector(&self, segment: u32, row: u64) {
        self.snapshot.segments[segment as usize].rows.prefetch(row);
    }

    fn vector<T>(&mut self, segment: u32, row: u64, with: impl FnOnce(&[f32]) -> T) -> Read<T> {
        pgrx::check_for_interrupts!();
        let found = self.vectors[segment as usize].row(row, with)?;
        if let Some(tid) = self.snapshot.segments[segment as usize].rows.peek_tid(row) {
            self.snapshot.heap.prefetch(tid);
        }
        Ok(found)
    }
}
