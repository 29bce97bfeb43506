//! The log's rows for one scan: the nearest from the memtable, the others from pages.

use crate::memtable::{self, Known, Near, Nearest, Wanted};
use crate::page::{read_log_from, Fault, Index, Read, Tid, View};
use crate::search::{Hit, Search};
use std::collections::HashSet;

/// Rows read from pages from which on the memtable is to have them.
const MANY_ROWS: u32 = 64;
/// Pages passed from which on it is to know of that.
const MANY_PAGES: u32 = 8;

/// What a search was given of the log.
pub struct LogRows {
    view: View,
    wanted: Wanted,
    known: Known,
    /// The rank beyond which the memtable has other rows.
    horizon: Option<f64>,
    /// Records the memtable has given.
    seen: HashSet<u64>,
    /// TIDs of the rows, as they were given to the search.
    tids: Vec<Tid>,
    /// Not given to the search yet.
    rows: Vec<Near>,
}

impl LogRows {
    /// Takes the newest view, with the rows of the memtable that are nearest to `query`.
    pub fn take(index: Index, query: &[f32], recall: f64) -> Read<(View, LogRows)> {
        let wanted = Wanted { recall, round: 0 };
        let (view, Nearest { rows, horizon, known }) = memtable::nearest(index, query, wanted)?;
        let (seen, tids) = (HashSet::new(), Vec::new());
        Ok((view, LogRows { view, wanted, known, horizon, seen, tids, rows }))
    }

    /// Gives the search what was taken, and what is in pages only.
    pub fn give(&mut self, index: Index, search: &mut Search) -> Read<()> {
        self.give_rows(search);
        let mut others = 0;
        let read = read_log_from(index, &self.view, self.known.rest, u32::MAX, |_, tid, vector| {
            others += 1;
            if tid.is_valid() {
                search.add(self.tids.len() as u32, vector);
                self.tids.push(tid);
            }
        });
        if let (Err(Fault::Recycled(_)), false) = (&read, self.known.is_empty()) {
            // Perhaps only the page the memtable knows of.
            memtable::forget(index);
        }
        let end = read?;
        if others >= MANY_ROWS || end.pages_passed >= MANY_PAGES {
            memtable::catch_up(index, u32::MAX)?;
        }
        Ok(())
    }

    fn give_rows(&mut self, search: &mut Search) {
        for near in self.rows.drain(..) {
            if self.seen.insert(near.seq) {
                search.add_ranked(self.tids.len() as u32, near.rank);
                self.tids.push(near.tid);
            }
        }
    }

    /// Whether the memtable may have rows that go before `next`.
    pub fn may_have_nearer(&self, next: Option<&Hit>) -> bool {
        match (self.horizon, next) {
            (None, _) => false,
            // A rank that is not a number is beyond every horizon.
            (Some(horizon), Some(next)) => next.rank.is_nan() || next.rank > horizon,
            (Some(_), None) => true,
        }
    }

    /// Gives the search more of the memtable's rows.
    pub fn give_more(&mut self, index: Index, query: &[f32], search: &mut Search) -> Read<()> {
        self.wanted.round += 1;
        let more = memtable::more(index, &self.view, query, self.known, self.wanted);
        if let Some(more) = more {
            self.rows = more.rows;
            self.horizon = more.horizon;
            self.give_rows(search);
            return Ok(());
        }
        // They have been flushed, then the pages tell, or are no longer in memory.
        self.horizon = None;
        let known = self.known.records();
        read_log_from(index, &self.view, self.view.log_start(), u32::MAX, |seq, tid, vector| {
            if tid.is_valid() && known.contains(&seq) && self.seen.insert(seq) {
                search.add(self.tids.len() as u32, vector);
                self.tids.push(tid);
            }
        })?;
        Ok(())
    }

    /// The heap's address of a row that was given.
    pub fn tid(&self, place: u32) -> Tid {
        self.tids.get(place as usize).copied().unwrap_or(Tid::INVALID)
    }
}
