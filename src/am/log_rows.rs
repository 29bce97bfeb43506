//! The log's rows for one scan: the nearest from the memtable, the others from pages.

use crate::memtable::{self, Known, Nearest, Wanted};
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
    known: Known,
    wanted: Wanted,
    /// The rank beyond which the memtable has other rows.
    horizon: Option<f64>,
    /// Records the memtable has given.
    seen: HashSet<u64>,
    /// TIDs of the rows, as they were given to the search.
    tids: Vec<Tid>,
}

impl LogRows {
    /// Takes the newest view, and notes which rows of its log the memtable has.
    pub fn take(index: Index, recall: f64) -> Read<(View, LogRows)> {
        let (view, known) = memtable::take(index)?;
        let wanted = Wanted { recall, round: 0, expected: 0, cutoff: f64::INFINITY };
        let (seen, tids) = (HashSet::new(), Vec::new());
        Ok((view, LogRows { view, known, wanted, horizon: None, seen, tids }))
    }

    /// Gives the search the memtable's rows that are nearest to `query`, of which about so many are
    /// expected to be wanted and none beyond the rank `cutoff`; and what is in pages only.
    pub fn give(
        &mut self,
        index: Index,
        query: &[f32],
        expected: usize,
        cutoff: f64,
        search: &mut Search,
    ) -> Read<()> {
        self.wanted = Wanted { expected, cutoff, ..self.wanted };
        if !self.known.is_empty() && !self.give_nearest(index, query, search) {
            if View::take(index)?.log_head_seq() != self.view.log_head_seq() {
                // Flushed meanwhile: a newer view has less to read.
                return Err(Fault::Recycled(self.view.log_head_block()));
            }
            self.known = Known::nothing(&self.view);
        }
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
        let round = self.wanted.round + 1;
        self.wanted = Wanted { round, cutoff: f64::INFINITY, ..self.wanted };
        if self.give_nearest(index, query, search) {
            return Ok(());
        }
        if View::take(index)?.log_head_seq() != self.view.log_head_seq() {
            // They have been flushed: a newer view has less to read.
            return Err(Fault::Recycled(self.view.log_head_block()));
        }
        // They are no longer in memory.
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

    /// False if the memtable no longer has the rows.
    fn give_nearest(&mut self, index: Index, query: &[f32], search: &mut Search) -> bool {
        let found = memtable::nearest(index, &self.view, query, self.known, self.wanted);
        let Some(Nearest { rows, horizon }) = found else { return false };
        self.horizon = horizon;
        for near in rows {
            if self.seen.insert(near.seq) {
                search.add_ranked(self.tids.len() as u32, near.rank);
                self.tids.push(near.tid);
            }
        }
        true
    }

    /// The heap's address of a row that was given.
    pub fn tid(&self, place: u32) -> Tid {
        self.tids.get(place as usize).copied().unwrap_or(Tid::INVALID)
    }
}
