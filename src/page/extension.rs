//! Adding many pages to a relation at once.

use super::layout::PAGE;
use super::Index;
use pgrx::pg_sys;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// Pages in one file of a relation.
const FILE_PAGES: u32 = pg_sys::RELSEG_SIZE;
const FORK: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;

/// Adds `pages` zeroed pages to the main fork, to be written by
/// [`Locked::overwrite`](super::buffer::Locked::overwrite); returns the first.
///
/// They do not pass through buffers, and come under one lock: a column's pages are asked for long
/// before they are written. Where the file system can, room is set aside without a byte written,
/// as the server itself does from version 16 on; pages that a crash takes away again are nobody's.
pub fn extend_by(index: Index, pages: u32) -> u32 {
    let lock = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: the relation is open; under the extension lock nobody else adds pages.
    unsafe { pg_sys::LockRelationForExtension(index.relation(), lock) };
    let first = index.blocks();
    let end = first.saturating_add(pages);
    let mut next = first;
    // The server begins each file, and tells what is wrong with one.
    let mut can_reserve = true;
    while next < end {
        let in_file = next % FILE_PAGES;
        let until = end.min((next - in_file).saturating_add(FILE_PAGES));
        if can_reserve && in_file > 0 {
            can_reserve = reserve(index, next, until).is_ok();
            if can_reserve {
                next = until;
                continue;
            }
        }
        write_zeroes(index, next);
        next += 1;
    }
    // SAFETY: the lock is held.
    unsafe { pg_sys::UnlockRelationForExtension(index.relation(), lock) };
    first
}

/// Sets room aside for the blocks from `start` to `end`, of one file, which end it then.
#[cfg(target_os = "linux")]
fn reserve(index: Index, start: u32, end: u32) -> io::Result<()> {
    let mut path = index.path().into_os_string();
    let number = start / FILE_PAGES;
    if number > 0 {
        path.push(format!(".{number}"));
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let bytes = |pages: u32| libc::off_t::from(pages) * PAGE as libc::off_t;
    let (offset, length) = (bytes(start % FILE_PAGES), bytes(end - start));
    // SAFETY: the descriptor is open. What is behind the end of the file holds nothing, and room
    // set aside does not change what is before it.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: Index, _: u32, _: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Adds the block behind the last one.
fn write_zeroes(index: Index, block: u32) {
    /// As I/O past the kernel's cache wants it.
    #[repr(C, align(4096))]
    struct Zeros([u8; PAGE]);
    let mut zeros = Zeros([0; PAGE]);
    // SAFETY: the relation is open, its extension lock held. smgrextend only reads the page it is
    // given. A buffer of a block beyond the end cannot exist.
    unsafe {
        let file = pg_sys::RelationGetSmgr(index.relation());
        pg_sys::smgrextend(file, FORK, block, zeros.0.as_mut_ptr().cast(), false);
    }
}
