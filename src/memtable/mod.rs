//! L0, the memtable: rows of the log, in shared memory.
//!
//! It is a cache. For each index it holds a run of the log's records without gaps, addressed by
//! sequence number, and knows the page of the log from which reading goes on where it ends. What
//! it does not hold is read from pages. So every mishap has the same remedy, which is to forget
//! the rows and read them again ([`catch_up`]): a restart, a standby, a crash that resets shared
//! memory, an index that was evicted or did not fit, an error in the middle of a change.
//!
//! | file | what it knows |
//! |---|---|
//! | `area` | the shared memory: how it is asked for and laid out, its locks |
//! | `slot` | one index's rows: generations of [`crate::graph`], and the chunks they are in |
//! | `write` | publishing, catching up, forgetting what was flushed, linking |
//! | `read` | the rows nearest to a query |
//!
//! # Which rows
//!
//! A slot belongs to a relation's file and its log's random id; another id means other contents.
//! A reader locks the slot before it takes the metapage's view, and notes which records it has
//! from the view's log head on. A flush moves the head first and trims the slot after that, under
//! the slot's exclusive lock: no row is seen twice and none is missed. The reader searches them
//! later, under the lock again, when it knows from the segments which ranks are of interest. If
//! they are gone by then, it starts over on a newer view where they have been flushed, and reads
//! the pages of its view where not.
//!
//! Vacuum overwrites the TIDs of dead rows in the log's pages, on a standby by replay, and counts
//! that in the metapage before it returns. The slot remembers the count its rows were read under.
//! A reader whose view has another one forgets the rows: the heap may have given such a TID to
//! another row, but no snapshot taken before the view can see that one.
//!
//! # Locks
//!
//! A slot has three lightweight locks. *Slot*: shared by all who use it, exclusive for those who
//! trim, empty or evict it. *Append*: whoever publishes. *Link*: whoever links. They are taken in
//! this order, after the pool's if that is needed; another slot's only if nobody has it. A buffer
//! may be locked under a slot's shared lock, never the other way round.

mod area;
mod read;
mod slot;
#[cfg(feature = "pg_test")]
mod tests;
mod write;

pub use area::{define_settings, is_shared, is_wanted};
pub use read::{nearest, take, Known, Nearest, Wanted};
pub use write::{catch_up, forget, link_for_searches, link_some, publish, seal, trim};

use crate::page::Index;

/// What is held of an index: rows, and those of them that are linked. None if nothing is.
pub fn held_rows(index: Index) -> Option<(u64, u64)> {
    let held = slot::Held::find(index)?;
    Some(held.slot().counts())
}

/// Whether an index is being searched. One that nothing is held of is taken for such.
pub fn is_searched(index: Index) -> bool {
    slot::Held::find(index).is_none_or(|held| held.slot().was_searched_lately())
}
