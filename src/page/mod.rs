//! Truth: the index's pages. Every buffer access and every WAL record of the extension is here.
//!
//! ```text
//! block 0      metapage   who we are, where the log and the manifest are
//! any block    log        appended records, a chain from the metapage's head to its tail
//!              manifest   the list of live segments and of all columns, a chain
//!              column     a byte string on runs of pages: a segment's heap TIDs (vacuum
//!                         overwrites dead ones), its f32 vectors and its bucket table, the
//!                         router's centroids
//! ```
//!
//! A flush in haste leaves the vectors on the log's pages, which are the segment's from then on.
//!
//! All pages of one manifest, column or log carry its random 128-bit id in their special area.
//! What neither the manifest nor the log reaches is free; a reader that meets a page of another
//! owner, or of the log with other numbers, holds an outdated manifest and starts over
//! ([`Fault::Recycled`]).
//!
//! New pages are written first, then the metapage flips: one WAL record commits a whole flush,
//! merge or build, and a crash before it leaves nothing but free pages.

mod buffer;
mod column;
mod extension;
mod fault;
pub mod heap;
mod identity;
pub mod layout;
mod log;
mod logged;
mod manifest;
mod meta;
mod patch;
mod relation;
mod segment;
mod space;
mod wal;

pub use column::{Column, ColumnWriter};
pub use fault::{Fault, OrRaise, Read};
pub use identity::Identity;
pub use layout::{Kind, Tid};
pub use log::{
    append, kill_rows as kill_log_rows, read as read_log, read_from as read_log_from, Appended,
    Hint, LogEnd, LogStart, NewRows,
};
#[cfg(test)]
pub use logged::Run;
pub use logged::{LogPages, Logged};
pub use manifest::{Manifest, RouterRef};
pub use meta::{create, log_pages_aside, publish, Flip, View};
pub use relation::Index;
pub use segment::{BucketShape, RowMap, Segment, TidReader, VectorReader};
pub use space::Space;
