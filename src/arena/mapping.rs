//! Mapping files.

use super::proofs::Proofs;
use super::ArenaError;
use memmap2::{Mmap, MmapMut};
use std::fs::File;
use std::io;

/// Maps an open file of at least so many bytes, which has its final name already.
///
/// # Errors
/// [`ArenaError::Io`], [`ArenaError::Damaged`] and [`ArenaError::Truncated`].
pub fn map(file: &File, least: u64) -> Result<(Mmap, Proofs), ArenaError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ArenaError::Damaged("not a file"));
    }
    if metadata.len() < least {
        return Err(ArenaError::Truncated);
    }
    // SAFETY: the file is in the server's data directory and is written only before it takes
    // its name: its length and bytes no longer change while it is mapped.
    let map = unsafe { Mmap::map(file) }?;
    // What was just written is in huge pages already. What has to be read from disk is only if it
    // is asked for, and is then read in pieces of that size: good for a file that is going to be
    // in memory as a whole, too much where each piece would push out another.
    #[cfg(target_os = "linux")]
    if metadata.len() <= memory() / 4 {
        // A hint: without it everything works.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok((map, Proofs::of(&metadata)))
}

/// Memory of this process, in huge pages if the system has some.
pub fn anonymous(length: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(length)?;
    // A hint: without it everything works.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Bytes of memory this machine has.
#[cfg(target_os = "linux")]
fn memory() -> u64 {
    // SAFETY: reads a number.
    let of = |name| unsafe { libc::sysconf(name) };
    u64::try_from(of(libc::_SC_PHYS_PAGES) * of(libc::_SC_PAGESIZE)).unwrap_or(0)
}
