//! What is to be done and who does it: the table in shared memory, without the shared memory.
//!
//! Everything is fixed-width and plain, for processes that map it at no particular place. Times
//! are microseconds of the server's clock, passed in.

use bytemuck::{Pod, Zeroable};

#[cfg(test)]
mod tests;

/// Indexes that can be announced at a time.
const ENTRIES: usize = 256;
/// Workers at a time.
pub const SEATS: usize = 2;
/// Databases that can be barred at a time.
const BARS: usize = 32;

/// The log is to be flushed.
pub const FLUSH: u32 = 1;
/// An arena is missing.
pub const ARENAS: u32 = 2;
/// The segments are to be put in order, now that nobody writes; a flush goes with it.
pub const TIDY: u32 = 4;

const SECOND: i64 = 1_000_000;
/// Failures in a row after which nobody is to rely on the janitor for an index.
const HOPELESS: u32 = 3;
/// Failures in a row to get into a database after which it is taken for gone.
const LOST: u32 = 6;
/// The longest pause after a failure.
const LONGEST_PAUSE: i64 = 300 * SECOND;
/// How long after a flush an index is taken for one that nobody writes to, and the longest such
/// time after others were cut short.
const QUIET: i64 = 3 * SECOND;
const LONGEST_QUIET: i64 = 3600 * SECOND;
/// How long a worker may take from its registration to its first step.
const START_LIMIT: i64 = 60 * SECOND;

/// An index with rows in its log, or with work.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Entry {
    database: u32,
    relation: u32,
    /// [`FLUSH`], [`ARENAS`].
    wanted: u32,
    /// What a worker is at.
    taken: u32,
    failures: u32,
    /// 1 + the seat of that worker.
    seat: u32,
    /// How often putting in order was cut short since it was done.
    cut_short: u32,
    /// Pages of the log that the flush a worker is at has begun to read.
    in_hand: u32,
    /// Nobody tries before.
    not_before: i64,
    /// When the segments are to be put in order, if no flush comes before; 0 if they are.
    tidy_at: i64,
    /// WAL position of the oldest row that is in the log and not announced for a flush; 0 if none.
    since: u64,
}

/// A worker's place.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Seat {
    /// 0 while the seat is free.
    database: u32,
    /// Told to the worker, so that one that comes late does not take another's place.
    generation: u32,
    /// 0 until the worker has come.
    pid: i32,
    /// The worker is to leave.
    leave: u32,
    /// The worker has got into the database.
    arrived: u32,
    unused: u32,
    since: i64,
}

/// A database that is to be free of workers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Bar {
    database: u32,
    /// Whose statement it is.
    pid: i32,
    until: i64,
}

/// The table.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Board {
    entries: [Entry; ENTRIES],
    seats: [Seat; SEATS],
    bars: [Bar; BARS],
    generation: u32,
    /// The entry after which to look for work, so that all get their turn.
    cursor: u32,
}

/// A worker's ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Number of the seat.
    pub seat: usize,
    /// Which worker on it.
    pub generation: u32,
}

/// An index, by the OIDs of its database and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// `pg_database.oid`.
    pub database: u32,
    /// `pg_class.oid`.
    pub relation: u32,
}

/// What came of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is new; the launcher is to be woken.
    New,
    /// It was known.
    Known,
    /// The janitor has failed at this index again and again.
    Failing,
    /// There is no room.
    Full,
}

/// A worker's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Do this to that relation.
    Job {
        /// `pg_class.oid`.
        relation: u32,
        /// Any of [`FLUSH`], [`ARENAS`] and [`TIDY`].
        work: u32,
    },
    /// Leave the database.
    Leave,
}

impl Board {
    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| e.relation == key.relation && e.database == key.database)
    }

    /// Somebody has work for the janitor (`wanted`), or has put the first row since the last
    /// flush into a log, at WAL position `since` (0: none that a checkpoint has to do with).
    pub fn announce(&mut self, key: Key, wanted: u32, since: u64) -> Heard {
        if self.entry(key).is_none() {
            let free = self.entries.iter_mut().find(|entry| entry.relation == 0);
            let Some(free) = free else { return Heard::Full };
            *free = Entry { database: key.database, relation: key.relation, ..Entry::zeroed() };
        }
        let Some(entry) = self.entry(key) else { return Heard::Full };
        if since != 0 && (entry.since == 0 || since < entry.since) {
            entry.since = since;
        }
        let new = wanted & !entry.wanted != 0;
        entry.wanted |= wanted;
        match (entry.failures >= HOPELESS, new) {
            (true, _) => Heard::Failing,
            (false, true) => Heard::New,
            (false, false) => Heard::Known,
        }
    }

    /// The log has grown to so many pages, more than its limit. While a worker flushes what it was
    /// then, only what has come since is held against the limit.
    pub fn announce_log(&mut self, key: Key, pages: u32, limit: u32) -> Heard {
        let in_hand = match self.entry(key) {
            // Putting in order gives way to a log that is due, with all that is in it.
            Some(entry) if entry.taken & (FLUSH | TIDY) == FLUSH => entry.in_hand,
            _ => 0,
        };
        let wanted = if pages > limit.saturating_add(in_hand) { FLUSH } else { 0 };
        self.announce(key, wanted, 0)
    }

    /// Rows older than `redo` are to be flushed. Whether there are any.
    pub fn seal(&mut self, redo: u64) -> bool {
        let old = |entry: &&mut Entry| entry.since != 0 && entry.since < redo;
        self.entries.iter_mut().filter(old).fold(false, |_, entry| {
            entry.since = 0;
            entry.wanted |= FLUSH;
            true
        })
    }

    /// A flush of this index begins to read its log: all that was announced so far is in hand.
    pub fn flush_begins(&mut self, key: Key) {
        if let Some(entry) = self.entry(key) {
            entry.since = 0;
            entry.in_hand = 0;
            entry.wanted &= !FLUSH;
            entry.forget_if_idle();
        }
    }

    /// The log had so many pages when that flush took its view; none are in hand any more once it
    /// has published.
    pub fn has_in_hand(&mut self, key: Key, pages: u32) {
        if let Some(entry) = self.entry(key) {
            entry.in_hand = pages;
            if pages > 0 && entry.taken & TIDY == 0 {
                // By pages that came before the view.
                entry.wanted &= !FLUSH;
            }
        }
    }

    /// The segments of an index may be put in order once it has been left alone for a while; if
    /// that is a short job, however often longer ones were cut short.
    pub fn tidy_later(&mut self, key: Key, now: i64, is_short: bool) {
        self.announce(key, 0, 0);
        if let Some(entry) = self.entry(key) {
            let quiet = if is_short { QUIET } else { entry.quiet() };
            entry.tidy_at = now.saturating_add(quiet);
        }
    }

    /// The same where it may be known, or be done just now; whether it was not.
    pub fn untidy_seen(&mut self, key: Key, now: i64) -> bool {
        let known = self.entry(key).is_some_and(|e| e.tidy_at != 0 || e.taken & TIDY != 0);
        if !known {
            self.tidy_later(key, now, false);
        }
        !known
    }

    /// Whether somebody waits for a flush of this index.
    pub fn is_flush_wanted(&mut self, key: Key) -> bool {
        self.entry(key).is_some_and(|entry| entry.wanted & FLUSH != 0)
    }

    /// A database that has work of these kinds and needs a worker, which gets a seat.
    pub fn seat(&mut self, kinds: u32, now: i64) -> Option<(Ticket, u32)> {
        let seat = self.seats.iter().position(|seat| seat.database == 0)?;
        let starting = |database: u32| {
            self.seats.iter().filter(|s| s.database == database && s.pid == 0).count()
        };
        let places = (0..ENTRIES).map(|step| (self.cursor as usize + step) % ENTRIES);
        let mut due = [0usize; ENTRIES];
        let place = places.into_iter().find(|place| {
            let entry = &self.entries[*place];
            if !entry.is_due(kinds, now) || self.is_barred(entry.database) {
                return false;
            }
            // One worker on its way is enough for one piece of work.
            let first = (0..ENTRIES)
                .find(|other| self.entries[*other].database == entry.database)
                .unwrap_or(*place);
            due[first] += 1;
            due[first] > starting(entry.database)
        })?;
        let database = self.entries[place].database;
        self.cursor = (place as u32 + 1) % ENTRIES as u32;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        self.seats[seat] = Seat { database, generation, since: now, ..Seat::zeroed() };
        Some((Ticket { seat, generation }, database))
    }

    fn holder(&mut self, ticket: Ticket) -> Option<&mut Seat> {
        let seat = self.seats.get_mut(ticket.seat)?;
        (seat.database != 0 && seat.generation == ticket.generation).then_some(seat)
    }

    /// A worker has come. The database it is for, unless it is no longer wanted.
    pub fn enter(&mut self, ticket: Ticket, pid: i32) -> Option<u32> {
        let database = self.holder(ticket)?.database;
        if self.is_barred(database) {
            self.cancel(ticket);
            return None;
        }
        self.holder(ticket)?.pid = pid;
        Some(database)
    }

    /// Whether a worker has been told to leave.
    pub fn is_to_leave(&mut self, ticket: Ticket) -> bool {
        self.holder(ticket).is_none_or(|seat| seat.leave != 0)
    }

    /// The next job of a worker that is in the database.
    pub fn next(&mut self, ticket: Ticket, kinds: u32, now: i64) -> Next {
        let Some(seat) = self.holder(ticket) else { return Next::Leave };
        seat.arrived = 1;
        let seat = *seat;
        if seat.leave != 0 {
            return Next::Leave;
        }
        let due = |e: &&mut Entry| e.database == seat.database && e.is_due(kinds, now);
        // Those that wait longest since their last failure first.
        let Some(entry) = self.entries.iter_mut().filter(due).min_by_key(|e| e.not_before) else {
            return Next::Leave;
        };
        entry.taken = entry.work(now) & kinds;
        entry.wanted &= !entry.taken;
        if entry.taken & TIDY != 0 {
            entry.taken |= FLUSH;
            entry.tidy_at = 0;
        }
        entry.seat = ticket.seat as u32 + 1;
        entry.in_hand = 0;
        entry.not_before = now;
        Next::Job { relation: entry.relation, work: entry.taken }
    }

    fn job(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        self.holder(ticket)?;
        let seat = ticket.seat as u32 + 1;
        self.entries.iter_mut().find(|entry| entry.seat == seat && entry.taken != 0)
    }

    /// The job is done, or its relation is gone.
    pub fn done(&mut self, ticket: Ticket) {
        if let Some(entry) = self.job(ticket) {
            if entry.taken & TIDY != 0 && entry.tidy_at == 0 {
                entry.cut_short = 0;
            }
            (entry.taken, entry.seat, entry.failures) = (0, 0, 0);
            entry.forget_if_idle();
        }
    }

    /// The job could not be done now, for no fault of its own: it is tried again after `pause`.
    pub fn postpone(&mut self, ticket: Ticket, now: i64, pause: i64) {
        if let Some(entry) = self.job(ticket) {
            // The flush that goes with it is what it gave way to.
            let pause = if entry.taken & TIDY != 0 { 0 } else { pause };
            entry.give_back(now.saturating_add(pause));
        }
    }

    /// The worker could not be started, or is no longer needed.
    pub fn cancel(&mut self, ticket: Ticket) {
        if let Some(seat) = self.holder(ticket) {
            *seat = Seat::zeroed();
        }
    }

    /// The worker goes. A job it has not ended has failed. If it has not even got into the
    /// database, all that is to be done there has; a database that none gets into is forgotten.
    pub fn vacate(&mut self, ticket: Ticket, now: i64) {
        let Some(seat) = self.holder(ticket).copied() else { return };
        if let Some(entry) = self.job(ticket) {
            entry.fail(now);
        }
        if seat.arrived == 0 && seat.leave == 0 {
            let there = |e: &&mut Entry| e.database == seat.database && e.taken == 0;
            for entry in self.entries.iter_mut().filter(there) {
                if entry.failures < LOST {
                    entry.fail(now);
                } else {
                    *entry = Entry::zeroed();
                }
            }
        }
        self.cancel(ticket);
    }

    /// Keeps workers out of a database. False if there is no room.
    pub fn bar(&mut self, database: u32, pid: i32, until: i64) -> bool {
        for seat in self.seats.iter_mut().filter(|seat| seat.database == database) {
            seat.leave = 1;
        }
        match self.bars.iter_mut().find(|bar| bar.database == 0) {
            Some(free) => *free = Bar { database, pid, until },
            None => return false,
        }
        true
    }

    /// Lets workers into the database again, as far as this process is concerned.
    pub fn unbar(&mut self, database: u32, pid: i32) {
        let own = |bar: &&mut Bar| bar.database == database && bar.pid == pid;
        if let Some(bar) = self.bars.iter_mut().find(own) {
            *bar = Bar::zeroed();
        }
    }

    fn is_barred(&self, database: u32) -> bool {
        self.bars.iter().any(|bar| bar.database == database)
    }

    /// Whether workers are in a database or on their way; calls `pid` for those that are there.
    pub fn is_visited(&self, database: u32, mut pid: impl FnMut(i32)) -> bool {
        let mut visited = false;
        for seat in self.seats.iter().filter(|seat| seat.database == database) {
            visited = true;
            if seat.pid != 0 {
                pid(seat.pid);
            }
        }
        visited
    }

    /// Tells all workers to leave when their job is done.
    pub fn dismiss(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.leave = 1);
    }

    /// A database is gone.
    pub fn forget(&mut self, database: u32) {
        for entry in self.entries.iter_mut().filter(|entry| entry.database == database) {
            *entry = Entry::zeroed();
        }
    }

    /// Workers that have a job.
    pub fn busy(&self) -> usize {
        self.entries.iter().filter(|entry| entry.taken != 0).count()
    }

    /// Frees what processes have left behind that ended without a word, and bars that have stood
    /// too long.
    pub fn reap(&mut self, now: i64, is_running: impl Fn(i32) -> bool) {
        for bar in self.bars.iter_mut().filter(|bar| bar.database != 0) {
            if bar.until < now || !is_running(bar.pid) {
                *bar = Bar::zeroed();
            }
        }
        for number in 0..SEATS {
            let seat = self.seats[number];
            let gone = match seat.pid {
                0 => seat.since + START_LIMIT < now,
                pid => !is_running(pid),
            };
            if seat.database != 0 && gone {
                self.vacate(Ticket { seat: number, generation: seat.generation }, now);
            }
        }
    }

    /// When the next postponed piece of work of these kinds becomes due, if there is one.
    pub fn next_due(&self, kinds: u32, now: i64) -> Option<i64> {
        let waiting = |e: &&Entry| e.taken == 0 && !e.is_due(kinds, now);
        self.entries.iter().filter(waiting).filter_map(|entry| entry.due(kinds)).min()
    }
}

impl Entry {
    /// What there is to be done.
    fn work(&self, now: i64) -> u32 {
        let is_quiet = self.wanted & FLUSH == 0 && self.tidy_at != 0 && self.tidy_at <= now;
        self.wanted | if is_quiet { TIDY } else { 0 }
    }

    fn is_due(&self, kinds: u32, now: i64) -> bool {
        self.work(now) & kinds != 0 && self.taken == 0 && self.not_before <= now
    }

    /// When there will be work of these kinds.
    fn due(&self, kinds: u32) -> Option<i64> {
        match self.wanted & kinds {
            0 if kinds & TIDY == 0 || self.tidy_at == 0 => None,
            0 => Some(self.tidy_at.max(self.not_before)),
            _ => Some(self.not_before),
        }
    }

    fn quiet(&self) -> i64 {
        (QUIET << self.cut_short.min(16)).min(LONGEST_QUIET)
    }

    fn fail(&mut self, now: i64) {
        let pause = SECOND << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.give_back(now.saturating_add(pause.min(LONGEST_PAUSE)));
    }

    /// What was taken is to be done later. Of a [`TIDY`] that is the flush that goes with it: it
    /// may have begun, and others count on that.
    fn give_back(&mut self, not_before: i64) {
        if self.taken & TIDY != 0 {
            self.taken &= !TIDY;
            self.cut_short = self.cut_short.saturating_add(1);
            self.tidy_at = not_before.saturating_add(self.quiet());
        }
        self.wanted |= self.taken;
        (self.taken, self.seat) = (0, 0);
        self.not_before = not_before;
    }

    fn forget_if_idle(&mut self) {
        if self.wanted == 0 && self.taken == 0 && self.since == 0 && self.tidy_at == 0 {
            *self = Entry::zeroed();
        }
    }
}
