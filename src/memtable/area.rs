//! The shared memory and its locks.
//!
//! ```text
//! | pool | slots | chunk owners | chunk tables of generations | chunks ... |
//! ```

use super::slot::{Slot, GENERATIONS};
use pgrx::{pg_guard, pg_sys, GucContext, GucFlags, GucRegistry, GucSetting};
use std::mem::size_of;
use std::ptr::addr_of;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Indexes that can have rows in memory at the same time.
pub const SLOTS: usize = 64;
/// Words of a chunk: two vectors of 16,000 dimensions fit.
pub const CHUNK_WORDS: usize = 1 << 15;
const CHUNK_BYTES: usize = CHUNK_WORDS * size_of::<u32>();
/// Lightweight locks of a slot.
const LOCKS_PER_SLOT: usize = 3;
/// The shared memory's name, and that of its locks in pg_stat_activity.
const NAME: &std::ffi::CStr = c"drift_memtable";
const ALIGNMENT: usize = 128;

/// In kB, as the setting is.
static MEMTABLE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(128 * 1024);

static mut NEXT_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut NEXT_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Where the area is in this process; null if there is none.
static AREA: AtomicPtr<Area> = AtomicPtr::new(std::ptr::null_mut());

/// What all slots share.
#[repr(C)]
pub struct Pool {
    /// Counts the times chunks were given back.
    pub released: AtomicU32,
    /// Where to look for a free chunk first: about all before it are taken.
    pub hint: AtomicU32,
}

/// The shared memory, as this process sees it.
pub struct Area {
    pool: &'static Pool,
    slots: &'static [Slot],
    /// For each chunk, whose it is: [`Slot`] and generation, or 0.
    owners: &'static [AtomicU32],
    /// For each generation of each slot, the numbers of its chunks.
    tables: &'static [AtomicU32],
    words: &'static [AtomicU32],
    locks: *mut pg_sys::LWLockPadded,
}

/// Whether the library is being loaded at server start, and so may ask for shared memory.
fn is_preloading() -> bool {
    // SAFETY: reads a flag on the process's only thread.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether there is a memtable.
pub fn is_shared() -> bool {
    area().is_some()
}

/// Defines `drift.memtable_size` and asks for the memory, if this is the server's start.
pub fn define_settings() {
    if !is_preloading() {
        return;
    }
    GucRegistry::define_int_guc(
        c"drift.memtable_size",
        c"Sets the shared memory that drift indexes keep recently inserted rows in.",
        c"All indexes of all databases share it. 0 is none.",
        &MEMTABLE_SIZE,
        0,
        i32::MAX,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    // SAFETY: called once, from _PG_init, on the process's only thread.
    unsafe {
        NEXT_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        NEXT_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(start_up);
    }
}

/// Whether there is a memtable, or will be once the server has started.
pub fn is_wanted() -> bool {
    is_shared() || (is_preloading() && chunk_count() > 0)
}

/// Chunks the setting allows.
fn chunk_count() -> usize {
    MEMTABLE_SIZE.get().unsigned_abs() as usize / (CHUNK_BYTES / 1024)
}

/// Where the parts of the area begin, in bytes, and its size.
struct Layout {
    slots: usize,
    owners: usize,
    tables: usize,
    words: usize,
    end: usize,
}

impl Layout {
    fn of(chunks: usize) -> Layout {
        let aligned = |at: usize| at.next_multiple_of(ALIGNMENT);
        let slots = aligned(size_of::<Pool>());
        let owners = aligned(slots + SLOTS * size_of::<Slot>());
        let tables = aligned(owners + chunks * size_of::<u32>());
        let words = aligned(tables + SLOTS * GENERATIONS * chunks * size_of::<u32>());
        Layout { slots, owners, tables, words, end: words + chunks * CHUNK_BYTES }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: the server calls the hook when memory may be asked for; the hook that was there
    // before comes first.
    unsafe {
        if let Some(next) = *addr_of!(NEXT_REQUEST) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| next());
        }
        if chunk_count() > 0 {
            pg_sys::RequestAddinShmemSpace(Layout::of(chunk_count()).end + ALIGNMENT);
            let locks = 1 + SLOTS * LOCKS_PER_SLOT;
            pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), locks as i32);
        }
    }
}

/// Runs at server start, and again when a crash has reset shared memory: all zero is an empty
/// memtable.
#[pg_guard]
unsafe extern "C-unwind" fn start_up() {
    // SAFETY: the server calls the hook when shared memory is there. The area is aligned, as long
    // as its layout says, zeroed by us before anyone else sees it, and stays as long as the
    // process; its types are all atomics, for which any bits are valid.
    unsafe {
        if let Some(next) = *addr_of!(NEXT_STARTUP) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| next());
        }
        let chunks = chunk_count();
        if chunks == 0 {
            return;
        }
        let layout = Layout::of(chunks);
        let mut found = false;
        let size = layout.end + ALIGNMENT;
        let start = pg_sys::ShmemInitStruct(NAME.as_ptr(), size, &mut found).cast::<u8>();
        let start = start.add(start.align_offset(ALIGNMENT));
        if !found {
            // Chunks are zeroed when they are given out.
            start.write_bytes(0, layout.words);
        }
        let words = |at: usize, count: usize| {
            std::slice::from_raw_parts(start.add(at).cast::<AtomicU32>(), count)
        };
        let area = Area {
            pool: &*start.cast::<Pool>(),
            slots: std::slice::from_raw_parts(start.add(layout.slots).cast::<Slot>(), SLOTS),
            owners: words(layout.owners, chunks),
            tables: words(layout.tables, SLOTS * GENERATIONS * chunks),
            words: words(layout.words, chunks * CHUNK_WORDS),
            locks: pg_sys::GetNamedLWLockTranche(NAME.as_ptr()),
        };
        // Once, or once more after each crash.
        AREA.store(Box::into_raw(Box::new(area)), Ordering::Release);
    }
}

/// The area, if there is one.
pub fn area() -> Option<&'static Area> {
    // SAFETY: null, or what `start_up` leaked.
    unsafe { AREA.load(Ordering::Acquire).as_ref() }
}

impl Area {
    /// What all slots share.
    pub fn pool(&self) -> &'static Pool {
        self.pool
    }

    /// All slots.
    pub fn slots(&self) -> &'static [Slot] {
        self.slots
    }

    /// For each chunk, whose it is.
    pub fn owners(&self) -> &'static [AtomicU32] {
        self.owners
    }

    /// The numbers of the chunks of a generation.
    pub fn table(&self, slot: usize, generation: usize) -> &'static [AtomicU32] {
        let chunks = self.owners.len();
        let start = (slot * GENERATIONS + generation) * chunks;
        self.tables.get(start..start + chunks).unwrap_or_default()
    }

    /// The words of a chunk.
    pub fn chunk(&self, number: u32) -> Option<&'static [AtomicU32]> {
        let start = (number as usize).checked_mul(CHUNK_WORDS)?;
        self.words.get(start..start.checked_add(CHUNK_WORDS)?)
    }

    /// Makes all words of a chunk zero, as [`Region`](crate::graph::Region) has it.
    ///
    /// # Safety
    /// The chunk is the caller's, and in no table: nobody else looks at its words.
    pub unsafe fn clear_chunk(&self, number: u32) -> Option<()> {
        let words = self.chunk(number)?;
        // SAFETY: atomic words may be written through a shared reference, and nobody else uses
        // these. One by one, as atomic stores are, it would take several times as long.
        unsafe { words.as_ptr().cast_mut().write_bytes(0, words.len()) };
        Some(())
    }

    /// The lock for giving slots to indexes.
    pub fn pool_lock(&self) -> Lock {
        self.lock(0)
    }

    /// The lock of a slot as a whole.
    pub fn slot_lock(&self, slot: usize) -> Lock {
        self.lock(1 + slot * LOCKS_PER_SLOT)
    }

    /// The lock of whoever publishes in a slot.
    pub fn append_lock(&self, slot: usize) -> Lock {
        self.lock(2 + slot * LOCKS_PER_SLOT)
    }

    /// The lock of whoever links in a slot.
    pub fn link_lock(&self, slot: usize) -> Lock {
        self.lock(3 + slot * LOCKS_PER_SLOT)
    }

    fn lock(&self, nth: usize) -> Lock {
        assert!(nth < 1 + SLOTS * LOCKS_PER_SLOT);
        // SAFETY: as many locks were asked for.
        Lock(unsafe { &raw mut (*self.locks.add(nth)).lock })
    }
}

/// A lightweight lock.
#[derive(Clone, Copy)]
pub struct Lock(*mut pg_sys::LWLock);

/// How to hold one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

impl Mode {
    fn code(self) -> pg_sys::LWLockMode::Type {
        match self {
            Mode::Shared => pg_sys::LWLockMode::LW_SHARED,
            Mode::Exclusive => pg_sys::LWLockMode::LW_EXCLUSIVE,
        }
    }
}

impl Lock {
    /// Waits for the lock. Interrupts are held off until it is released.
    pub fn acquire(self, mode: Mode) -> Locked {
        // SAFETY: the lock is in shared memory; called on the backend's own thread.
        unsafe { pg_sys::LWLockAcquire(self.0, mode.code()) };
        Locked(self.0)
    }

    /// The lock, if nobody has to be waited for.
    pub fn try_acquire(self, mode: Mode) -> Option<Locked> {
        // SAFETY: as above.
        unsafe { pg_sys::LWLockConditionalAcquire(self.0, mode.code()) }.then(|| Locked(self.0))
    }
}

/// A lock that is held. While an error unwinds, the transaction's abort releases it.
pub struct Locked(*mut pg_sys::LWLock);

impl Drop for Locked {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the lock is held, by this guard alone.
            unsafe { pg_sys::LWLockRelease(self.0) }
        }
    }
}
