//! How rows come into the memtable and leave it.

use super::slot::{give_slot, label, Chunks, Held, Key, Slot, GENERATIONS};
use crate::courtesy;
use crate::graph::{Corrupt, Graph, Scratch, CODED_BLOCK};
use crate::page::{
    read_log_from, Appended, Fault, Index, LogEnd, LogStart, NewRows, Read, Tid, View,
};
use std::cell::RefCell;
use std::mem::size_of;

/// Pages that an insert reads at most to catch up with the log.
const CATCH_UP_PAGES: u32 = 64;
/// Pages read at a time, without a lock, before their rows are published.
const BATCH_PAGES: u32 = 8;
/// How far ahead of the published rows one may be put, for others to fill the gap.
const AHEAD: u64 = 512;
/// Bytes of vectors that may be unlinked: looking at the codes of all of them costs hardly more
/// than a walk of the graph.
const TAIL_BYTES: usize = 2 << 20;
/// Bytes from which on the janitor links what is searched. A log is flushed when it has half as
/// many: if flushes keep up, nothing is linked in vain.
const SEARCHED_TAIL_BYTES: usize = 16 << 20;
/// Bytes from which on inserts link too what is searched, since nobody else keeps up. They are
/// slowed for the sake of the janitor first.
const LONG_TAIL_BYTES: usize = 64 << 20;
/// Components of the vectors linked in one step, about: a step holds off interrupts.
const STEP_COMPONENTS: u32 = 2048;
/// Rows linked in one step.
const STEP_ROWS: u32 = 16;
/// Rows that an insert links, which slows it down to a tenth: it adds one.
const INSERTERS_SHARE: u32 = 2;

/// Blocks that an insert gives codes to when another is full, of an index that is searched: some
/// may have none from before.
const INSERTERS_BLOCKS: u32 = 2;
/// Rows without codes that a search does not mind, and blocks that it gives codes to if there are
/// more.
const UNCODED: u32 = 512;
const SEARCHERS_BLOCKS: u32 = 16;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends the backend's search memory.
pub fn with_scratch<T>(with: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(with)
}

/// A record of the log.
struct Record {
    seq: u64,
    tid: Tid,
}

/// Takes the records that were just appended. True if from now on it is time to link.
pub fn publish(index: Index, appended: &Appended, rows: NewRows<'_>) -> bool {
    if !super::is_shared() {
        return false;
    }
    let place = match Held::find(index) {
        Some(held) if held.slot().key() == Key::new(index, appended.hint.log_id()) => {
            let start = LogStart { block: appended.hint.block(), seq: appended.seq };
            put(&held, start, rows)
        }
        _ => Place::Behind,
    };
    match place {
        // Not by each row: the metapage has to be looked at.
        Place::Behind if appended.grown.is_some() => {
            catch_up(index, CATCH_UP_PAGES).unwrap_or_else(|_| {
                // The row is in the log; what is wrong with others is for their readers to be told.
                forget(index);
            });
        }
        Place::Spoilt => forget(index),
        Place::LongTail => {
            for _ in 0..rows.len() {
                if let Some(held) = Held::find(index) {
                    link_step(held, INSERTERS_SHARE, LONG_TAIL_BYTES);
                }
            }
        }
        Place::NewTail => return true,
        Place::Done => {}
        Place::Behind => {}
    }
    false
}

/// What became of a record.
enum Place {
    /// It is there, or there is no room.
    Done,
    /// It is there, and is the first of more rows than are to be looked at one by one.
    NewTail,
    /// It is there, and too many are not linked.
    LongTail,
    /// Too many before it are missing.
    Behind,
    /// The slot cannot be used.
    Spoilt,
}

/// Puts successive records into their places, which may be ahead of others that are still to come.
fn put(held: &Held, at: LogStart, rows: NewRows<'_>) -> Place {
    let slot = held.slot();
    let _lock = held.append_lock();
    let Some((generation, graph)) = held.graph(slot.active()) else { return Place::Spoilt };
    let Some(first) = at.seq.checked_sub(generation.base()) else { return Place::Done };
    let end = first.saturating_add(rows.len() as u64);
    let len = u64::from(graph.len());
    if end > len.saturating_add(AHEAD) || end > u64::from(u32::MAX) {
        return Place::Behind;
    }
    let tail = |graph: &Graph<'_, Chunks>| (graph.len() - graph.linked()) as usize;
    let tail_before = tail(&graph);
    for ((tid, vector), row) in rows.iter().zip(first as u32..) {
        if !held.make_room(slot.active(), generation, row) {
            return Place::Done;
        }
        if graph.put(row, label(tid), vector).is_err() {
            return Place::Spoilt;
        }
    }
    let is_searched = slot.was_searched_lately();
    let blocks = INSERTERS_BLOCKS + rows.len() as u32 / CODED_BLOCK;
    if is_searched && is_behind(&graph, CODED_BLOCK) && graph.encode(blocks).is_err() {
        return Place::Spoilt;
    }
    if u64::from(graph.len()) < end {
        return Place::Done;
    }
    slot.set_last_block(at.block);
    let (tail, bytes) = (tail(&graph), rows.dims() * size_of::<f32>());
    let new_tail = SEARCHED_TAIL_BYTES / bytes;
    if is_searched && tail > LONG_TAIL_BYTES / bytes {
        Place::LongTail
    } else if tail_before <= new_tail && tail > new_tail {
        Place::NewTail
    } else {
        Place::Done
    }
}

/// Gives codes to some rows that have none, of an index that is searched after a while in which
/// nobody was interested in them.
pub fn encode_for_search(held: &Held) -> Result<(), Corrupt> {
    for generation in 0..GENERATIONS {
        let Some((_, graph)) = held.graph(generation) else { continue };
        if is_behind(&graph, UNCODED) {
            if let Some(_lock) = held.try_append_lock() {
                graph.encode(SEARCHERS_BLOCKS)?;
            }
        }
    }
    Ok(())
}

/// Whether at least so many rows have no codes.
fn is_behind(graph: &Graph<'_, Chunks>, rows: u32) -> bool {
    // Others add rows and codes between the two looks.
    graph.len().saturating_sub(graph.coded()) >= rows
}

/// Reads from pages what the memtable is behind the log by, at most about `pages` pages.
///
/// # Errors
/// What reading pages gave, unless it is that they have been given to something else.
pub fn catch_up(index: Index, pages: u32) -> Read<()> {
    if !super::is_shared() {
        return Ok(());
    }
    let view = &View::take(index)?;
    if !make_current(index, view) {
        return Ok(());
    }
    let key = Key::new(index, view.log_id());
    let mut records = Vec::new();
    let mut vectors = Vec::new();
    let mut read = 0;
    while read < pages {
        pgrx::check_for_interrupts!();
        let Some(start) = where_to_go_on(index, key, view) else { return Ok(()) };
        records.clear();
        vectors.clear();
        let end = read_log_from(index, view, start, BATCH_PAGES, |seq, tid, vector| {
            records.push(Record { seq, tid });
            vectors.extend_from_slice(vector);
        });
        let end = match end {
            Ok(end) => end,
            // The log has moved on; the next reader starts over.
            Err(Fault::Recycled(_)) => {
                forget(index);
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        let at_end = end.seq <= start.seq && end.block == start.block;
        if at_end || !take(index, key, view, &records, &vectors, &end) {
            return Ok(());
        }
        read += end.pages_passed.max(1);
    }
    Ok(())
}

/// Makes sure there is a slot whose rows are of the view's log and not outdated.
fn make_current(index: Index, view: &View) -> bool {
    let key = Key::new(index, view.log_id());
    if let Some(held) = Held::find(index) {
        let slot = held.slot();
        let is_current = slot.key() == key && slot.kills() == view.log_kills();
        let first = slot.first_seq();
        let next = next_seq(&held);
        drop(held);
        if is_current && next.is_some_and(|next| (first..=next).contains(&view.log_head_seq())) {
            if first < view.log_head_seq() {
                trim(index, view.log_start());
            }
            return true;
        }
        if is_current && first <= view.log_head_seq() {
            if let Some(held) = Held::exclusive(index, key) {
                held.restart(view.log_start());
            }
            return true;
        }
    }
    give_slot(index, view)
}

fn next_seq(held: &Held) -> Option<u64> {
    let (generation, graph) = held.graph(held.slot().active())?;
    generation.base().checked_add(u64::from(graph.len()))
}

/// The first record that is missing, and a page to look for it from; none if there is no room.
fn where_to_go_on(index: Index, key: Key, view: &View) -> Option<LogStart> {
    let held = Held::find(index)?;
    let slot = held.slot();
    let fits = slot.key() == key && slot.kills() == view.log_kills() && !held.is_full();
    let _lock = held.append_lock();
    let seq = next_seq(&held).filter(|_| fits)?;
    Some(LogStart { block: slot.last_block(), seq })
}

/// Takes records that were read under `view`. False if it is no use to go on.
fn take(
    index: Index,
    key: Key,
    view: &View,
    records: &[Record],
    vectors: &[f32],
    end: &LogEnd,
) -> bool {
    let Some(held) = Held::find(index) else { return false };
    let slot = held.slot();
    // If TIDs were overwritten meanwhile, these may be among them.
    if slot.key() != key || slot.kills() != view.log_kills() {
        return false;
    }
    let _lock = held.append_lock();
    let Some((generation, graph)) = held.graph(slot.active()) else { return false };
    for (record, vector) in records.iter().zip(vectors.chunks_exact(view.dims())) {
        let row = record.seq.checked_sub(generation.base());
        let Some(row) = row.and_then(|row| u32::try_from(row).ok()) else { continue };
        if !held.make_room(slot.active(), generation, row) {
            return false;
        }
        if graph.put(row, label(record.tid), vector).is_err() {
            return false;
        }
    }
    let next = generation.base().saturating_add(u64::from(graph.len()));
    if next >= end.seq {
        slot.set_last_block(end.block);
    }
    next >= end.seq
}

/// Forgets what is held of an index: it cannot be used.
pub fn forget(index: Index) {
    if let Some(held) = Held::find(index) {
        held.forget();
    }
}

/// A flush will move the log's head to `end`: rows from there on are kept apart.
pub fn seal(index: Index, end: LogStart) {
    if let Some(held) = exclusive(index) {
        held.split(end);
    }
}

/// The log's head has been moved: rows before it are in segments, and their memory is free.
pub fn trim(index: Index, head: LogStart) {
    if let Some(held) = exclusive(index) {
        if held.split(head) {
            held.drop_before(head.seq);
        } else {
            held.restart(head);
        }
    }
}

fn exclusive(index: Index) -> Option<Held> {
    let key = Held::find(index)?.slot().key();
    Held::exclusive(index, key)
}

/// Links some rows of any index in use whose unlinked tail is long, in steps of a few milliseconds;
/// returns how many. Needs neither a database nor a transaction.
pub fn link_some() -> u32 {
    link_where(|slot| slot.was_used_lately(), TAIL_BYTES)
}

/// The same, but only for indexes that are being searched: others will be flushed sooner.
pub fn link_for_searches() -> u32 {
    link_where(|slot| slot.was_searched_lately(), SEARCHED_TAIL_BYTES)
}

fn link_where(is_worth_it: impl Fn(&Slot) -> bool, tail_bytes: usize) -> u32 {
    let slots = (0..super::area::SLOTS).filter(|_| super::is_shared());
    let wanted = |held: &Held| is_worth_it(held.slot());
    let held = slots.filter_map(Held::try_nth).filter(wanted);
    held.map(|held| link_step(held, STEP_ROWS, tail_bytes)).sum()
}

/// Links at most `rows` rows of a slot, if its unlinked tail has more than so many bytes.
fn link_step(held: Held, rows: u32, tail_bytes: usize) -> u32 {
    let dims = held.slot().dims().max(1);
    courtesy::give_way();
    let step = || {
        let (_, graph) = held.graph(held.slot().active())?;
        let unlinked = graph.len().saturating_sub(graph.linked()) as usize;
        if unlinked <= tail_bytes / size_of::<f32>() / dims as usize {
            return None;
        }
        let _lock = held.try_link_lock()?;
        let rows = (STEP_COMPONENTS / dims).clamp(1, rows);
        Some(with_scratch(|scratch| graph.link(scratch, rows)))
    };
    match step() {
        Some(Ok(rows)) => rows,
        Some(Err(Corrupt)) => {
            held.forget();
            0
        }
        None => 0,
    }
}
