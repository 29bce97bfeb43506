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
    let mut can_reserve = true;
    while next < end {
        let until = end.min(last_of_file(next));
        if can_reserve && !next.is_multiple_of(FILE_PAGES) && next < until {
            can_reserve = reserve(index, next, until).is_ok();
            if can_reserve {
                next = until;
                continue;
            }
        }
        // The server begins each file, and ends it: that a full one is full has to last, for the
        // next one to be found, and only what it has written does a checkpoint sync. It also tells
        // what is wrong with a file that cannot grow.
        write_zeroes(index, next);
        next += 1;
    }
    // SAFETY: the lock is held.
    unsafe { pg_sys::UnlockRelationForExtension(index.relation(), lock) };
    first
}

/// The last block of the file that a block is in.
fn last_of_file(block: u32) -> u32 {
    (block - block % FILE_PAGES).saturating_add(FILE_PAGES - 1)
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

#[cfg(feature = "pg_test")]
#[pgrx::pg_schema]
mod tests {
    use super::super::buffer::Locked;
    use super::*;
    use pgrx::prelude::*;
    use pgrx::PgRelation;

    #[test]
    fn each_file_ends_with_its_last_block() {
        assert_eq!(last_of_file(0), FILE_PAGES - 1);
        assert_eq!(last_of_file(FILE_PAGES - 1), FILE_PAGES - 1);
        assert_eq!(last_of_file(FILE_PAGES), 2 * FILE_PAGES - 1);
        assert_eq!(last_of_file(u32::MAX), u32::MAX);
    }

    #[pg_test]
    fn an_index_grows_beyond_the_end_of_its_first_file() {
        const FIND: &str = "SELECT id FROM x ORDER BY e <-> '[7,7]' LIMIT 1";
        Spi::run(
            "CREATE TABLE x (id integer, e vector(2));
             CREATE INDEX x_e ON x USING drift (e);
             SET enable_seqscan = off;
             INSERT INTO x SELECT i, ARRAY[i, i]::vector FROM generate_series(1, 100) i;",
        )
        .expect("as the test set up");
        {
            let relation =
                PgRelation::open_with_name_and_share_lock("x_e").expect("as the test set up");
            // SAFETY: the relation is open until the end of the block.
            let index = unsafe { Index::new(relation.as_ptr()) };
            let mut end = index.blocks();
            // The second file is begun by the first of them, and goes on with the next.
            for pages in [FILE_PAGES + 9, 1, 64] {
                assert_eq!(extend_by(index, pages), end);
                end += pages;
                assert_eq!(index.blocks(), end);
            }
            for block in [FILE_PAGES - 2, FILE_PAGES - 1, FILE_PAGES, end - 1] {
                assert!(Locked::share(index, block).bytes().iter().all(|byte| *byte == 0));
            }
        }
        Spi::run("SELECT drift_flush('x_e')").expect("pages that were added are free");
        assert_eq!(Spi::get_one::<i32>(FIND), Ok(Some(7)));
    }
}
