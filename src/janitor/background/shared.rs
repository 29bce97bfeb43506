//! The board in shared memory, its lock, and what is read without it; proofs that arenas are sound.

use super::board::Board;
use crate::arena;
use pgrx::{pg_guard, pg_sys};
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::ptr::{addr_of, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Name of the memory and of the lock's tranche.
const NAME: &CStr = c"drift janitor";

/// What all processes of the server see.
#[repr(C)]
struct Shared {
    /// Grows whenever a log begins anew, or the board may have lost what it knew.
    epoch: AtomicU64,
    /// 1 + the launcher's place among the server's processes; 0 while there is none.
    launcher: AtomicU32,
    /// The launcher could not register a worker.
    short: AtomicBool,
    /// Whoever had the lock has not put the board in order.
    poisoned: AtomicBool,
    board: UnsafeCell<Board>,
    /// What has been found sound in arenas.
    proofs: [AtomicU64; arena::PROOFS],
}

static mut SHARED: *mut Shared = null_mut();
static mut LOCK: *mut pg_sys::LWLock = null_mut();
static mut NEXT_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut NEXT_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Asks for the memory. To be called while the server preloads the library.
pub fn install() {
    // SAFETY: called once, from _PG_init, in the postmaster, which has one thread.
    unsafe {
        NEXT_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        NEXT_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: the hook that was there before gets its turn; the requests are made in the
    // postmaster at the time for them.
    unsafe {
        if let Some(next) = *addr_of!(NEXT_REQUEST) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| next());
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
        pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: the hook that was there before gets its turn. The memory is ours, of the size asked
    // for, and in use by nobody until this returns; zeros are a valid `Shared`.
    unsafe {
        if let Some(next) = *addr_of!(NEXT_STARTUP) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| next());
        }
        let mut found = false;
        let memory = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Shared>(), &mut found);
        let memory = memory.cast::<Shared>();
        if !found {
            std::ptr::write_bytes(memory, 0, 1);
            (*memory).epoch.store(1, Ordering::Relaxed);
        }
        arena::share_proofs(&(*memory).proofs);
        SHARED = memory;
        LOCK = &raw mut (*pg_sys::GetNamedLWLockTranche(NAME.as_ptr())).lock;
    }
}

fn shared() -> Option<&'static Shared> {
    // SAFETY: null, or set before the server forked; the memory lives as long as the process.
    unsafe { SHARED.as_ref() }
}

/// Lets `with` read and change the board. Nothing if the library has not been preloaded.
pub fn with_board<T>(with: impl FnOnce(&mut Board) -> T) -> Option<T> {
    let shared = shared()?;
    // SAFETY: the lock was set up together with `shared`. While it is held, this is the only
    // reference to the board. An error inside leaves the lock to the abort of the transaction, and
    // the flag set.
    unsafe {
        pg_sys::LWLockAcquire(LOCK, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let board = &mut *shared.board.get();
        if shared.poisoned.swap(true, Ordering::Relaxed) {
            *board = bytemuck::Zeroable::zeroed();
            advance_epoch();
        }
        let result = with(board);
        shared.poisoned.store(false, Ordering::Relaxed);
        pg_sys::LWLockRelease(LOCK);
        Some(result)
    }
}

/// The present epoch; nothing if the library has not been preloaded.
pub fn epoch() -> Option<u64> {
    shared().map(|shared| shared.epoch.load(Ordering::Acquire))
}

/// Has everybody announce anew.
pub fn advance_epoch() {
    if let Some(shared) = shared() {
        shared.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether there is a launcher that can start workers.
pub fn has_launcher() -> bool {
    shared().is_some_and(|shared| {
        shared.launcher.load(Ordering::Relaxed) != 0 && !shared.short.load(Ordering::Relaxed)
    })
}

/// Whether the server has no room for the workers the launcher would start.
pub fn set_short(short: bool) {
    if let Some(shared) = shared() {
        shared.short.store(short, Ordering::Relaxed);
    }
}

/// This process is the launcher from now on.
pub fn become_launcher() {
    // SAFETY: MyProc of a process with shared memory is its own entry.
    let number = unsafe { pg_sys::MyProc.as_ref() }.map(|own| own.pgprocno);
    set_launcher(number.and_then(|number| u32::try_from(number).ok()).map_or(0, |n| n + 1));
}

/// There is no launcher for now.
pub fn resign_launcher() {
    set_launcher(0);
}

fn set_launcher(number: u32) {
    if let Some(shared) = shared() {
        shared.launcher.store(number, Ordering::Relaxed);
    }
}

/// Wakes the launcher, if there is one.
pub fn wake_launcher() {
    let launcher = shared().map_or(0, |shared| shared.launcher.load(Ordering::Relaxed));
    let Some(number) = launcher.checked_sub(1) else { return };
    // SAFETY: ProcGlobal is set up before any process that gets here; a number past its array is
    // not followed. A latch may be set by anybody; if the place has been given to another process
    // meanwhile, it wakes for nothing.
    unsafe {
        let all = &*pg_sys::ProcGlobal;
        if number < all.allProcCount {
            pg_sys::SetLatch(&raw mut (*all.allProcs.add(number as usize)).procLatch);
        }
    }
}
