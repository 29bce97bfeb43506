//! Arenas: the codes of one segment in one mmapped file.
//!
//! An arena is *derived*: everything in it can be computed again from the segment's pages, nothing
//! in it is ever returned to a user, and it is removed, rebuilt or ignored at will. So it is never
//! trusted either. It is recognised by the random id of its segment, not by its name; opening
//! checks header, table and lengths, and the first touch of a bucket checks its bytes; what one
//! process of a server has checked the others need not ([`proofs`]). Whatever fails is an
//! [`ArenaError`], upon which the caller reads the pages instead.
//!
//! ```text
//!      0  header, 128 bytes: magic, version, CRC32 of itself,
//!         segment, rows, dimensions, buckets, metric, stride,
//!         offsets of all below, length of the file, CRC32 of the table
//!    128  table: one entry of 32 bytes a bucket, ids ascending:
//!         bucket, rows, first row, offset, CRC32 of its block, spilled rows;
//!         zeroes to the next 64
//!      *  directory: one word of 16 bytes for 64 bucket ids, up to the highest:
//!         which of them the table has, and how many entries are before these;
//!         zeroes to the next 64
//!      *  block of the first bucket:
//!           sign codes of its rows and of those spilled into it, in blocks of 32 rows,
//!             or a narrow one of 2, 4, 8 or 16
//!           their columns add, scale and error, 4 bytes each, whole blocks as well
//!           SpilledRow[spilled], 8 bytes each, behind whole blocks zeroes to the next 64
//!           Factors[rows], 12 bytes each, zeroes to the next 64
//!           int8 codes, rows * stride bytes, zeroes to the next 64
//!      *  blocks of the others
//!      *  footer, 64 bytes: magic, length of the file, segment, CRC32 of itself
//! ```
//!
//! All numbers are little-endian and used in place; what is read in whole registers begins at a
//! multiple of 64.
//! Every byte, padding included, is covered by one of the checksums. The stride is
//! [`quant::stride`](crate::quant::stride) of the dimensions. Row numbers count the segment's rows
//! in the order of its pages, which is that of the table.
//!
//! A mapped file that shrinks kills its reader (SIGBUS). None does: a file is written in full under
//! a temporary name, synced and renamed, and from then on only ever unlinked or replaced by
//! another file of the same name. Both leave the inode to those who have it mapped. What remains
//! is a medium that cannot read a block back, as under any mapped file.

mod bucket;
mod directory;
mod format;
mod mapping;
mod merge;
mod plan;
mod proofs;
mod reader;
mod routing;
#[cfg(test)]
mod tests;
mod writer;

pub use bucket::{encode_run, EncodedBucket, Leads, SignCodes};
pub use directory::{list, remove, ArenaName, Listed};
pub use format::{BucketEntry, BucketShape, Identity, Layout, SpilledRow};
pub use merge::{Merge, Origin};
pub use plan::Plan;
pub use proofs::{share_proofs, PROOFS};
pub use reader::{Arena, BucketCodes};
pub use routing::{routed_by, RoutingArena, RoutingIdentity};
pub use writer::Writer;

use std::io;

/// Why an arena cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// There is no such file.
    #[error("the arena does not exist")]
    Missing,
    /// The file is shorter than it was when written.
    #[error("the arena is truncated")]
    Truncated,
    /// The file is sound and belongs to another segment, or to another shape of this one.
    #[error("the arena belongs to another segment")]
    OtherSegment,
    /// The file has a format this code does not know.
    #[error("the arena has an unknown format version")]
    Version,
    /// The named part of the file is not what was written.
    #[error("the arena is damaged: {0}")]
    Damaged(&'static str),
    /// What was asked for does not fit the arena: a mistake of the caller.
    #[error("not an arena's layout: {0}")]
    Layout(&'static str),
    /// The operating system's word.
    #[error("input or output of an arena failed: {0}")]
    Io(#[from] io::Error),
}

impl ArenaError {
    /// Whether there was no room for the file, so that [`Writer::in_memory`] is the way.
    pub fn is_out_of_space(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, ArenaError::Io(e)
            if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}
