//! One index's rows in memory.
//!
//! The rows are in generations: each is a graph of a run of records. A flush seals the one that
//! is being added to, and when it has committed, the sealed one goes as a whole.

mod giving;
#[cfg(feature = "pg_test")]
mod mishaps;

pub use giving::give_slot;

use super::area::{area, Area, Locked, Mode, CHUNK_WORDS};
use crate::graph::{Graph, Header, Region, Shape};
use crate::metric::Metric;
use crate::page::{Index, LogStart, Tid, View};
use giving::evict;
use pgrx::pg_sys;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// Generations of a slot: one that is added to, one that is being flushed, and one for a flush
/// that failed.
pub const GENERATIONS: usize = 3;

/// A slot that has not been used for so many microseconds may be taken away.
const IDLE: i64 = 1_000_000;

/// One that has not been used for so long may be that of a dropped index.
const FORGOTTEN: i64 = 60 * 1_000_000;

/// One that has not been searched for so long is not worth a linker's while.
const UNSEARCHED: i64 = 5 * 1_000_000;

/// Nobody's.
const EMPTY: u32 = 0;
/// As it should be.
const READY: u32 = 1;
/// Being changed under the exclusive lock; whoever else sees this finds what an error left.
const CHANGING: u32 = 2;

/// The end of a generation that is being added to.
const OPEN: u64 = u64::MAX;

/// A relation's file and its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    file: (u32, u32, u32),
    log_id: (u64, u64),
}

impl Key {
    /// The key of an index whose log has this id.
    pub fn new(index: Index, log_id: crate::page::Identity) -> Key {
        let id = log_id.as_u128();
        Key { file: index.file_key(), log_id: (id as u64, (id >> 64) as u64) }
    }
}

/// An index's place in the shared memory. All of it changes only under the exclusive lock, but
/// for what is said to change under the append lock.
#[repr(C)]
pub struct Slot {
    state: AtomicU32,
    file: [AtomicU32; 3],
    log_id: [AtomicU64; 2],
    dims: AtomicU32,
    metric: AtomicU32,
    /// The metapage's count under which the rows were read.
    kills: AtomicU32,
    /// The generation that is added to.
    active: AtomicU32,
    /// A page of the log whose first record is not beyond the next one; append lock.
    last_block: AtomicU32,
    /// 0, or when a chunk was wanted in vain the pool's count of releases, plus 1; append lock.
    full: AtomicU32,
    /// When it was last used, in microseconds.
    used: AtomicI64,
    /// When it was last searched, in microseconds.
    searched: AtomicI64,
    generations: [Generation; GENERATIONS],
}

/// A run of records.
#[repr(C)]
pub struct Generation {
    in_use: AtomicU32,
    /// Chunks it has; append lock.
    chunks: AtomicU32,
    /// Sequence number of its first row.
    base: AtomicU64,
    /// Sequence number behind its last row, or [`OPEN`].
    end: AtomicU64,
    header: Header,
}

thread_local! {
    /// Where this backend last found an index.
    static PLACES: RefCell<FxHashMap<(u32, u32, u32), usize>> = RefCell::default();
    /// The shape of rows of so many dimensions.
    static SHAPE: Cell<(usize, Option<Shape>)> = const { Cell::new((0, None)) };
}

/// The chunks of one generation.
pub struct Chunks {
    area: &'static Area,
    table: &'static [AtomicU32],
    count: &'static AtomicU32,
}

// SAFETY: chunks are zeroed before they are put into a table, and leave it only under the slot's
// exclusive lock, which nobody can get while a reference to one is used under the shared lock.
unsafe impl Region for Chunks {
    fn chunk(&self, nth: u32) -> Option<&[AtomicU32]> {
        if nth >= self.count.load(Ordering::Acquire) {
            return None;
        }
        self.area.chunk(self.table.get(nth as usize)?.load(Ordering::Relaxed))
    }
}

/// A slot with its lock held.
pub struct Held {
    area: &'static Area,
    number: usize,
    mode: Mode,
    _lock: Locked,
}

impl Held {
    /// The slot of an index, locked shared, whatever its log.
    pub fn find(index: Index) -> Option<Held> {
        let area = area().filter(|_| is_eligible(index))?;
        let file = index.file_key();
        let known = PLACES.with_borrow(|places| places.get(&file).copied());
        let is_its = |slot: &Slot| slot.state() == READY && slot.file() == file;
        let number = match known {
            Some(known) if area.slots().get(known).is_some_and(is_its) => known,
            _ => area.slots().iter().position(is_its)?,
        };
        let held = Held::lock(area, number, Mode::Shared);
        if !is_its(held.slot()) {
            return None;
        }
        if known != Some(number) {
            PLACES.with_borrow_mut(|places| {
                if places.len() > super::area::SLOTS {
                    places.clear();
                }
                places.insert(file, number);
            });
        }
        Some(held)
    }

    /// The slot of an index, locked alone, if it has the key.
    pub fn exclusive(index: Index, key: Key) -> Option<Held> {
        let shared = Held::find(index)?;
        let (area, number) = (shared.area, shared.number);
        drop(shared);
        let held = Held::lock(area, number, Mode::Exclusive);
        (held.slot().state() == READY && held.slot().key() == key).then_some(held)
    }

    /// Gives the slot up, since what it holds cannot be used.
    pub fn forget(self) {
        let (area, number, key) = (self.area, self.number, self.slot().key());
        drop(self);
        let held = Held::lock(area, number, Mode::Exclusive);
        if held.slot().key() == key {
            held.vacate();
        }
    }

    /// Slot number `number`, locked shared, if that needs no waiting.
    pub fn try_nth(number: usize) -> Option<Held> {
        let area = area()?;
        let lock = area.slot_lock(number).try_acquire(Mode::Shared)?;
        let held = Held { area, number, mode: Mode::Shared, _lock: lock };
        (held.slot().state() == READY).then_some(held)
    }

    fn lock(area: &'static Area, number: usize, mode: Mode) -> Held {
        let lock = area.slot_lock(number).acquire(mode);
        Held { area, number, mode, _lock: lock }
    }

    /// The slot.
    pub fn slot(&self) -> &'static Slot {
        &self.area.slots()[self.number]
    }

    /// Waits for the right to publish.
    pub fn append_lock(&self) -> Locked {
        self.area.append_lock(self.number).acquire(Mode::Exclusive)
    }

    /// The right to publish, unless somebody else is at it.
    pub fn try_append_lock(&self) -> Option<Locked> {
        self.area.append_lock(self.number).try_acquire(Mode::Exclusive)
    }

    /// The right to link, unless somebody else is at it.
    pub fn try_link_lock(&self) -> Option<Locked> {
        self.area.link_lock(self.number).try_acquire(Mode::Exclusive)
    }

    /// Graph number `generation`, if there is one.
    pub fn graph(&self, generation: usize) -> Option<(&Generation, Graph<'_, Chunks>)> {
        let slot = self.slot();
        let it = slot.generations.get(generation)?;
        if it.in_use.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let chunks = Chunks {
            area: self.area,
            table: self.area.table(self.number, generation),
            count: &it.chunks,
        };
        Some((it, Graph::new(chunks, &it.header, slot.shape()?, slot.metric()?)))
    }

    /// Makes the slot that of an empty cache of the view's log, and gives its chunks back.
    pub fn reset(&self, key: Key, view: &View) {
        self.empty(|slot| {
            slot.set_key(key);
            slot.dims.store(view.dims() as u32, Ordering::Relaxed);
            slot.metric.store(view.metric as u32, Ordering::Relaxed);
            slot.kills.store(view.log_kills(), Ordering::Relaxed);
            slot.start_at(view.log_start());
        });
    }

    /// Forgets all rows, and goes on at `start`.
    pub fn restart(&self, start: LogStart) {
        self.empty(|slot| slot.start_at(start));
    }

    fn empty(&self, refill: impl FnOnce(&Slot)) {
        self.change(|slot| {
            for (nth, generation) in slot.generations.iter().enumerate() {
                self.release(nth);
                generation.in_use.store(0, Ordering::Relaxed);
            }
            refill(slot);
        });
    }

    /// Changes what needs the exclusive lock. If that is interrupted, all is forgotten later.
    fn change(&self, change: impl FnOnce(&Slot)) {
        debug_assert!(self.mode == Mode::Exclusive);
        let slot = self.slot();
        slot.state.store(CHANGING, Ordering::SeqCst);
        change(slot);
        slot.state.store(READY, Ordering::SeqCst);
    }

    /// Gives the slot up.
    fn vacate(&self) {
        self.empty(|_| {});
        self.slot().state.store(EMPTY, Ordering::SeqCst);
    }

    /// Gives a generation's chunks back.
    fn release(&self, generation: usize) {
        let owner = self.owner(generation);
        let mut lowest = None;
        for (nth, place) in self.area.owners().iter().enumerate() {
            if place.load(Ordering::Relaxed) == owner {
                place.store(0, Ordering::Release);
                lowest.get_or_insert(nth as u32);
            }
        }
        if let Some(generation) = self.slot().generations.get(generation) {
            generation.chunks.store(0, Ordering::Relaxed);
            generation.header.clear();
        }
        if let Some(lowest) = lowest {
            let pool = self.area.pool();
            pool.hint.fetch_min(lowest, Ordering::Relaxed);
            pool.released.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn owner(&self, generation: usize) -> u32 {
        (1 + self.number * GENERATIONS + generation) as u32
    }

    /// Makes sure that the chunk of `row` is there; the caller may append. False if there is no
    /// memory for it.
    pub fn make_room(&self, number: usize, generation: &Generation, row: u32) -> bool {
        let slot = self.slot();
        let Some(shape) = slot.shape() else { return false };
        let wanted = shape.chunk_of(row);
        loop {
            let count = generation.chunks.load(Ordering::Relaxed);
            if wanted < count {
                return true;
            }
            let Some(place) = self.area.table(self.number, number).get(count as usize) else {
                return false;
            };
            if self.is_full() {
                return false;
            }
            let released = self.area.pool().released.load(Ordering::Relaxed);
            let Some(chunk) = self.take_chunk(number) else {
                slot.full.store(released.wrapping_add(1).max(1), Ordering::Relaxed);
                return false;
            };
            place.store(chunk, Ordering::Relaxed);
            generation.chunks.store(count + 1, Ordering::Release);
        }
    }

    /// Whether memory was wanted in vain, and none has been given back since.
    pub fn is_full(&self) -> bool {
        let full = self.slot().full.load(Ordering::Relaxed);
        let released = self.area.pool().released.load(Ordering::Relaxed);
        // Others that have gone idle may be evicted.
        full == released.wrapping_add(1).max(1) && !self.others_are_idle()
    }

    fn others_are_idle(&self) -> bool {
        let now = now();
        let others = self.area.slots().iter().enumerate().filter(|(nth, _)| *nth != self.number);
        others
            .into_iter()
            .any(|(_, slot)| slot.state() == READY && slot.has_chunks() && slot.is_idle(now))
    }

    /// A zeroed chunk for a generation, taken from an idle slot if none is free.
    fn take_chunk(&self, generation: usize) -> Option<u32> {
        self.slot().touch();
        let chunk = self.free_chunk(generation).or_else(|| {
            evict(self.area, Some(self.number)).then(|| self.free_chunk(generation))?
        })?;
        // SAFETY: the chunk has just been taken: it is in no table until the caller puts it there.
        unsafe { self.area.clear_chunk(chunk) }?;
        Some(chunk)
    }

    /// The lowest free chunk, about: processes have touched those before, and may still have them in
    /// their caches.
    fn free_chunk(&self, generation: usize) -> Option<u32> {
        let owners = self.area.owners();
        let pool = self.area.pool();
        let first = pool.hint.load(Ordering::Relaxed) as usize % owners.len().max(1);
        let free = (first..owners.len()).chain(0..first).find(|nth| {
            let owner = self.owner(generation);
            owners[*nth].compare_exchange(0, owner, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        pool.hint.store(free as u32 + 1, Ordering::Relaxed);
        Some(free as u32)
    }

    /// Ends the active generation before record `start.seq`, and starts one for those from there
    /// on. False if the rows end before that, and nothing was done.
    pub fn split(&self, start: LogStart) -> bool {
        let slot = self.slot();
        let Some((old, graph)) = self.graph(slot.active()) else { return false };
        let base = old.base();
        let len = graph.len();
        if start.seq > base.saturating_add(u64::from(len)) {
            return false;
        }
        if start.seq <= base {
            return true;
        }
        let first = (start.seq - base) as u32;
        let free = slot.generations.iter().position(|it| it.in_use.load(Ordering::Relaxed) == 0);
        let Some(free) = free else {
            self.restart(start);
            return true;
        };
        let mut whole = true;
        self.change(|slot| {
            slot.open(free, start.seq);
            let Some((new, copy)) = self.graph(free) else { return whole = false };
            for row in first..len {
                let put = |at| copy.put(at, graph.label(row)?, graph.vector(row)?);
                whole = self.make_room(free, new, row - first) && put(row - first).is_ok();
                if !whole {
                    return;
                }
            }
            old.end.store(start.seq, Ordering::Relaxed);
            slot.active.store(free as u32, Ordering::Relaxed);
            // The page that was read last may be one of those that are about to be free.
            slot.set_last_block(start.block);
        });
        if !whole {
            self.restart(start);
        }
        true
    }

    /// Gives up the generations that end before record `seq`.
    pub fn drop_before(&self, seq: u64) {
        let slot = self.slot();
        let ends = |it: &Generation| {
            it.in_use.load(Ordering::Relaxed) != 0 && it.end.load(Ordering::Relaxed) <= seq
        };
        if slot.generations.iter().any(ends) {
            self.change(|slot| {
                for (nth, generation) in slot.generations.iter().enumerate() {
                    if ends(generation) {
                        generation.in_use.store(0, Ordering::Relaxed);
                        self.release(nth);
                    }
                }
            });
        }
    }
}

impl Slot {
    fn state(&self) -> u32 {
        self.state.load(Ordering::SeqCst)
    }

    fn file(&self) -> (u32, u32, u32) {
        let [database, tablespace, relation] = &self.file;
        let read = |word: &AtomicU32| word.load(Ordering::Relaxed);
        (read(database), read(tablespace), read(relation))
    }

    fn set_key(&self, key: Key) {
        let (database, tablespace, relation) = key.file;
        for (word, value) in self.file.iter().zip([database, tablespace, relation]) {
            word.store(value, Ordering::Relaxed);
        }
        self.log_id[0].store(key.log_id.0, Ordering::Relaxed);
        self.log_id[1].store(key.log_id.1, Ordering::Relaxed);
    }

    /// Whose it is.
    pub fn key(&self) -> Key {
        let [low, high] = &self.log_id;
        let log_id = (low.load(Ordering::Relaxed), high.load(Ordering::Relaxed));
        Key { file: self.file(), log_id }
    }

    fn shape(&self) -> Option<Shape> {
        let dims = self.dims.load(Ordering::Relaxed) as usize;
        let (known, shape) = SHAPE.get();
        if known == dims {
            return shape;
        }
        let shape = Shape::new(dims, CHUNK_WORDS);
        SHAPE.set((dims, shape));
        shape
    }

    /// Components of its vectors.
    pub fn dims(&self) -> u32 {
        self.dims.load(Ordering::Relaxed)
    }

    fn metric(&self) -> Option<Metric> {
        u8::try_from(self.metric.load(Ordering::Relaxed)).ok().and_then(Metric::from_code)
    }

    /// The metapage's count under which the rows were read.
    pub fn kills(&self) -> u32 {
        self.kills.load(Ordering::Relaxed)
    }

    /// The number of the generation that is added to.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed) as usize
    }

    /// Where reading the log goes on.
    pub fn last_block(&self) -> u32 {
        self.last_block.load(Ordering::Relaxed)
    }

    /// Reading the log goes on at this page.
    pub fn set_last_block(&self, block: u32) {
        self.last_block.store(block, Ordering::Relaxed);
    }

    /// The first record that is held.
    pub fn first_seq(&self) -> u64 {
        let in_use = self.generations.iter().filter(|it| it.in_use.load(Ordering::Relaxed) != 0);
        in_use.map(|it| it.base.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX)
    }

    /// Rows held, and those of them that are linked.
    pub fn counts(&self) -> (u64, u64) {
        let in_use = self.generations.iter().filter(|it| it.in_use.load(Ordering::Relaxed) != 0);
        in_use.fold((0, 0), |(rows, linked), it| {
            let (len, in_graph) = it.header.counts();
            (rows + u64::from(len), linked + u64::from(in_graph))
        })
    }

    /// It is being used.
    pub fn touch(&self) {
        self.used.store(now(), Ordering::Relaxed);
    }

    /// It is being searched.
    pub fn touch_for_search(&self) {
        let now = now();
        self.used.store(now, Ordering::Relaxed);
        self.searched.store(now, Ordering::Relaxed);
    }

    /// Whether searches come.
    pub fn was_searched_lately(&self) -> bool {
        now().saturating_sub(self.searched.load(Ordering::Relaxed)) < UNSEARCHED
    }

    /// Whether somebody may care.
    pub fn was_used_lately(&self) -> bool {
        now().saturating_sub(self.used.load(Ordering::Relaxed)) < FORGOTTEN
    }

    fn is_idle(&self, now: i64) -> bool {
        now.saturating_sub(self.used.load(Ordering::Relaxed)) > IDLE
    }

    fn has_chunks(&self) -> bool {
        self.generations.iter().any(|it| it.chunks.load(Ordering::Relaxed) > 0)
    }

    fn start_at(&self, start: LogStart) {
        self.open(0, start.seq);
        self.active.store(0, Ordering::Relaxed);
        self.last_block.store(start.block, Ordering::Relaxed);
        self.full.store(0, Ordering::Relaxed);
    }

    fn open(&self, number: usize, base: u64) {
        let Some(generation) = self.generations.get(number) else { return };
        generation.header.clear();
        generation.chunks.store(0, Ordering::Relaxed);
        generation.base.store(base, Ordering::Relaxed);
        generation.end.store(OPEN, Ordering::Relaxed);
        generation.in_use.store(1, Ordering::Relaxed);
    }
}

impl Generation {
    /// Sequence number of its first row.
    pub fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Sequence number that its rows stay below.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }
}

/// Whether the index's rows may be shared: a temporary relation is its session's own.
fn is_eligible(index: Index) -> bool {
    // SAFETY: the relation is open.
    unsafe { (*(*index.relation()).rd_rel).relpersistence != pg_sys::RELPERSISTENCE_TEMP as i8 }
}

/// The time, in microseconds.
fn now() -> i64 {
    // SAFETY: a plain call.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// A TID as a row's label.
pub fn label(tid: Tid) -> u64 {
    u64::from(tid.block()) | u64::from(tid.offset()) << 32
}

/// The TID a label stands for.
pub fn tid(label: u64) -> Tid {
    Tid::new(label as u32, (label >> 32) as u16)
}
