//! The drift log: what was inserted and is in no segment yet.
//!
//! A chain of pages, each with a [`LogHead`] and whole [`RecordHead`] frames. Appending to the
//! last page is one WAL record that touches that page alone; starting a new page is one that
//! also links it and moves the metapage's tail. Locks are taken in the order metapage, tail,
//! new page.

use super::buffer::Locked;
use super::extension::extend_by;
use super::fault::{Fault, Read};
use super::layout::{
    Extent, Kind, LogHead, MetaPayload, RecordHead, Tail, Tid, META_BLOCK, NO_BLOCK, PAGE, PAYLOAD,
};
use super::meta::{self, View};
use super::patch::{Patch, Record};
use super::wal::{tail, Change, PageMut};
use super::{Identity, Index};
use pgrx::pg_sys;
use std::cell::Cell;
use std::mem::size_of;

const HEAD: usize = size_of::<LogHead>();
const FRAME: usize = size_of::<RecordHead>();
/// Bytes of records a page takes.
const ROOM: usize = PAYLOAD - HEAD;

/// Pages after which a walk along the log looks whether there are as many.
const CIRCLE_CHECK: usize = 1024;

/// Pages that an append follows from the last one it knows of, before it asks the metapage for the
/// last: they lead through all that segments have taken over.
const MOST_FOLLOWED: u32 = 4;

/// Where a reader came to the log's end.
#[derive(Clone, Debug)]
pub struct LogEnd {
    /// Sequence number of the next record.
    pub seq: u64,
    /// The page that will take it, or be followed by the one that does.
    pub block: u32,
    /// Pages read before that one.
    pub pages_passed: u32,
    /// Their blocks.
    pub passed: Vec<u32>,
    /// First sequence number of the page that reading began on.
    pub first_seq: u64,
    /// First sequence number of `block`.
    pub block_seq: u64,
}

impl LogEnd {
    /// Where reading goes on later.
    pub fn start(&self) -> LogStart {
        LogStart { block: self.block, seq: self.seq }
    }
}

/// A page that recently was the last one of a log.
#[derive(Clone, Copy)]
pub struct Hint {
    log_id: Identity,
    block: u32,
    /// The buffer it was in.
    buffer: u32,
}

impl Hint {
    /// The log it is a page of.
    pub fn log_id(&self) -> Identity {
        self.log_id
    }

    /// The page.
    pub fn block(&self) -> u32 {
        self.block
    }
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug)]
pub struct LogStart {
    /// A page whose first record is not beyond the one wanted.
    pub block: u32,
    /// The first record wanted.
    pub seq: u64,
}

/// What an append leaves for its caller to act on.
pub struct Appended {
    /// Where to try first the next time; the page that the record ends on.
    pub hint: Hint,
    /// The record's sequence number.
    pub seq: u64,
    /// Pages of the log before and after, if this append added some.
    pub grown: Option<(u32, u32)>,
}

/// Appends a row. `vector` has the index's dimensions.
pub fn append(index: Index, hint: Option<Hint>, tid: Tid, vector: &[f32]) -> Read<Appended> {
    if FRAME + size_of_val(vector) <= ROOM {
        if let Some(hint) = hint {
            if let Some((hint, seq)) = append_to_last(index, hint, tid, vector)? {
                return Ok(Appended { hint, seq, grown: None });
            }
        }
    }
    append_with_meta(index, tid, vector)
}

/// Appends on the last page reached from `block`, if there is room and it is still the log's.
fn append_to_last(
    index: Index,
    Hint { log_id, mut block, buffer }: Hint,
    tid: Tid,
    vector: &[f32],
) -> Read<Option<(Hint, u64)>> {
    let recent = Cell::new(buffer);
    for _ in 0..MOST_FOLLOWED {
        pgrx::check_for_interrupts!();
        let page = Locked::exclusive_recent(index, block, &recent);
        let Ok(tail) = page.owned_tail(Kind::Log, log_id) else { return Ok(None) };
        if tail.next != NO_BLOCK {
            block = tail.next;
            continue;
        }
        let head = read_head(&page, vector.len())?;
        if !has_room(&head, vector) {
            return Ok(None);
        }
        push_record(index, &page, head, tid, vector);
        return Ok(Some((Hint { log_id, block, buffer: recent.get() }, head.next_seq())));
    }
    Ok(None)
}

/// Appends under the metapage's lock, on new pages if the last has no room.
fn append_with_meta(index: Index, tid: Tid, vector: &[f32]) -> Read<Appended> {
    let meta_page = Locked::exclusive(index, META_BLOCK);
    let before = meta::read(&meta_page)?;
    let mut meta = before;
    if meta.log_tail_block >= index.blocks() {
        return Err(Fault::damaged(META_BLOCK, "log position"));
    }
    let last = Locked::exclusive(index, meta.log_tail_block);
    let last_tail = log_tail(&last, meta.log_id)?;
    if last_tail.next != NO_BLOCK {
        return Err(Fault::damaged(last.block(), "log link"));
    }
    let last_head = read_head(&last, vector.len())?;
    if has_room(&last_head, vector) {
        push_record(index, &last, last_head, tid, vector);
        return Ok(Appended {
            hint: Hint { log_id: meta.log_id, block: last.block(), buffer: last.number() },
            seq: last_head.next_seq(),
            grown: None,
        });
    }

    let seq = last_head.next_seq();
    let frame = RecordHead::new(seq, tid, vector);
    let mut bytes = Vec::with_capacity(FRAME + size_of_val(vector));
    bytes.extend_from_slice(bytemuck::bytes_of(&frame));
    bytes.extend_from_slice(bytemuck::cast_slice(vector));
    let mut parts: Vec<&[u8]> = bytes.chunks(ROOM).collect();

    // The rest of a long record first, from its end, on pages nothing leads to yet.
    let mut next = NO_BLOCK;
    let mut end = None;
    let mut added = 1;
    while parts.len() > 1 {
        let Some(part) = parts.pop() else { break };
        let page = new_page(index, &mut meta)?;
        let change = Change::begin(index);
        let mut image = change.fill(&page, Tail { next, ..tail(Kind::Log, meta.log_id, 0) });
        let head = LogHead { first_seq: seq + 1, count: 0, used: PAYLOAD as u32 };
        fill_page(&mut image, head, part);
        change.commit();
        next = page.block();
        end.get_or_insert((next, page.number()));
        added += 1;
    }

    let first = new_page(index, &mut meta)?;
    let whole = parts.first().copied().unwrap_or_default();
    let used = if end.is_some() { PAYLOAD } else { HEAD + whole.len() };
    let (end_block, end_buffer) = end.unwrap_or((first.block(), first.number()));
    meta.log_tail_block = end_block;
    meta.log_pages = meta.log_pages.saturating_add(added);
    let mut record = Record::new();
    record.fill(&first, Tail { next, ..tail(Kind::Log, meta.log_id, 0) }, |image| {
        fill_page(image, LogHead { first_seq: seq, count: 1, used: used as u32 }, whole);
    });
    record.patch(&last, Patch::of_tail(Tail { next: first.block(), ..last_tail }));
    record.patch(&meta_page, meta::patch(&before, &meta));
    record.commit(index);
    Ok(Appended {
        hint: Hint { log_id: meta.log_id, block: meta.log_tail_block, buffer: end_buffer },
        seq,
        grown: Some((meta.log_pages - added, meta.log_pages)),
    })
}

/// Where nothing is left of what was set aside, the relation grows by this part of the log, up to so
/// many pages: each time it does costs far more than a page.
const SHARE_AHEAD: u32 = 8;
const MOST_AHEAD: u32 = 63;

/// A page for the log: one set aside for it, or a new one at the relation's end.
fn new_page(index: Index, meta: &mut MetaPayload) -> Read<Locked> {
    // From its begin on, so that what a segment takes over of the log is a run of pages too.
    let Some(run) = meta.log_reserve.iter_mut().rev().find(|extent| extent.len > 0) else {
        let more = (meta.log_pages / SHARE_AHEAD).min(MOST_AHEAD);
        if more == 0 {
            return Ok(Locked::extend(index, pg_sys::ForkNumber::MAIN_FORKNUM));
        }
        let start = extend_by(index, 1 + more);
        meta.log_reserve[0] = Extent { start: start.saturating_add(1), len: more };
        return Ok(Locked::overwrite(index, start));
    };
    let block = run.start;
    (run.start, run.len) = (run.start.saturating_add(1), run.len - 1);
    if block == META_BLOCK || block == NO_BLOCK {
        return Err(Fault::damaged(META_BLOCK, "log reserve"));
    }
    // Extension is not logged: after a crash, or on a promoted standby, the file may end before a
    // page that was set aside.
    while index.blocks() <= block {
        pgrx::check_for_interrupts!();
        drop(Locked::extend(index, pg_sys::ForkNumber::MAIN_FORKNUM));
    }
    Ok(Locked::overwrite(index, block))
}

fn has_room(head: &LogHead, vector: &[f32]) -> bool {
    head.used as usize + FRAME + size_of_val(vector) <= PAYLOAD
}

/// Adds a record to a page that has room for it.
fn push_record(index: Index, page: &Locked, mut head: LogHead, tid: Tid, vector: &[f32]) {
    let frame = RecordHead::new(head.next_seq(), tid, vector);
    let start = head.used as usize;
    let end = start + FRAME + size_of_val(vector);
    head.count += 1;
    head.used = end as u32;
    let mut patch = Patch::new(end, end - start + 3 * FRAME);
    patch.put(0, &[bytemuck::bytes_of(&head)]);
    patch.put(start, &[bytemuck::bytes_of(&frame), bytemuck::cast_slice(vector)]);
    patch.commit(index, page);
}

fn fill_page(image: &mut PageMut<'_>, head: LogHead, bytes: &[u8]) {
    let payload = image.payload();
    payload[..HEAD].copy_from_slice(bytemuck::bytes_of(&head));
    payload[HEAD..HEAD + bytes.len()].copy_from_slice(bytes);
    image.set_used(HEAD + bytes.len());
}

/// The tail of a page that the log must own, since the metapage that leads to it is locked.
fn log_tail(page: &Locked, log_id: Identity) -> Read<Tail> {
    page.owned_tail(Kind::Log, log_id).map_err(|_| Fault::damaged(page.block(), "log owner"))
}

/// A page's header, if the bytes in use are those of its records.
pub(super) fn read_head(page: &Locked, dims: usize) -> Read<LogHead> {
    let head: LogHead = bytemuck::pod_read_unaligned(&page.payload()[..HEAD]);
    let (used, count) = (head.used as usize, head.count as usize);
    let record = FRAME + dims * size_of::<f32>();
    let sound = if record <= ROOM {
        count <= ROOM / record && used == HEAD + count * record
    } else {
        count <= 1 && (HEAD..=PAYLOAD).contains(&used)
    };
    if sound && head.first_seq.checked_add(count as u64).is_some() {
        Ok(head)
    } else {
        Err(Fault::damaged(page.block(), "log header"))
    }
}

/// One log page, copied out from under its lock.
struct PageCopy {
    /// Eight-byte aligned, so that the vectors in it are aligned too.
    words: Box<[u64; PAGE / 8]>,
    block: u32,
    next: u32,
    head: LogHead,
    /// Blocks the relation is known to have.
    blocks: u32,
}

impl PageCopy {
    fn empty() -> PageCopy {
        PageCopy {
            words: Box::new([0; PAGE / 8]),
            block: NO_BLOCK,
            next: NO_BLOCK,
            head: LogHead { first_seq: 0, count: 0, used: 0 },
            blocks: 0,
        }
    }

    fn load(&mut self, index: Index, view: &View, block: u32) -> Read<()> {
        if block >= self.blocks {
            self.blocks = index.blocks();
        }
        if block >= self.blocks {
            let from = if self.block == NO_BLOCK { META_BLOCK } else { self.block };
            return Err(Fault::damaged(from, "log link"));
        }
        let page = Locked::share(index, block);
        let tail = page.owned_tail(Kind::Log, view.log_id())?;
        self.head = read_head(&page, view.dims())?;
        self.block = block;
        self.next = tail.next;
        let used = self.head.used as usize;
        bytemuck::cast_slice_mut(self.words.as_mut_slice())[..used]
            .copy_from_slice(&page.payload()[..used]);
        Ok(())
    }

    /// The payload's bytes in use.
    fn used(&self) -> &[u8] {
        &bytemuck::cast_slice(self.words.as_slice())[..self.head.used as usize]
    }
}

/// A record's place: what vacuum keys its deletions by.
#[derive(Clone, Copy)]
struct Place {
    block: u32,
    offset: usize,
}

/// Calls `row` with each record from the view's head to the end, in order.
///
/// `row` gets sequence number, TID (perhaps [`Tid::INVALID`]) and vector.
pub fn read(index: Index, view: &View, row: impl FnMut(u64, Tid, &[f32])) -> Read<LogEnd> {
    read_from(index, view, view.log_start(), u32::MAX, row)
}

/// As [`read`], from a later record on and for about `pages` pages at most.
pub fn read_from(
    index: Index,
    view: &View,
    start: LogStart,
    pages: u32,
    mut row: impl FnMut(u64, Tid, &[f32]),
) -> Read<LogEnd> {
    walk(index, view, start, pages, |_, head, vector| row(head.seq, head.tid, vector))
}

/// Walks the records with their places.
fn walk(
    index: Index,
    view: &View,
    start: LogStart,
    pages: u32,
    mut record: impl FnMut(Place, &RecordHead, &[f32]),
) -> Read<LogEnd> {
    let first = start.seq;
    let mut page = PageCopy::empty();
    let mut long = Vec::new();
    let mut block = start.block;
    let mut passed = Vec::new();
    let mut seq = None;
    let mut first_seq = None;
    loop {
        pgrx::check_for_interrupts!();
        // Pages without records follow one another in number, even in a circle.
        if passed.len() % CIRCLE_CHECK == CIRCLE_CHECK - 1 && passed.len() > index.blocks() as usize
        {
            return Err(Fault::damaged(block, "log link"));
        }
        page.load(index, view, block)?;
        // A page whose numbers do not follow on has been used again further along the log.
        let follows = match seq {
            None => page.head.first_seq <= first,
            Some(seq) => page.head.first_seq == seq,
        };
        if !follows {
            return Err(Fault::Recycled(page.block));
        }
        let block_seq = page.head.first_seq;
        let first_seq = *first_seq.get_or_insert(block_seq);
        let start = page.block;
        let mut offset = HEAD;
        for nth in 0..page.head.count {
            let place = Place { block: start, offset };
            let bytes = page.used();
            let body = offset + FRAME;
            let Some(frame) = bytes.get(offset..body) else {
                return Err(Fault::damaged(start, "log record"));
            };
            let frame: RecordHead = bytemuck::pod_read_unaligned(frame);
            let len = frame.dims as usize * size_of::<f32>();
            if frame.dims as usize != view.dims()
                || frame.seq != page.head.first_seq + u64::from(nth)
            {
                return Err(Fault::damaged(start, "log record"));
            }
            offset = body + len;
            if offset <= PAYLOAD {
                let Some(vector) = bytes.get(body..offset) else {
                    return Err(Fault::damaged(start, "log record"));
                };
                deliver(first, place, &frame, vector, &mut record)?;
                continue;
            }
            // The rest of a long record stands on the pages behind, which hold nothing else.
            long.clear();
            long.resize(len.div_ceil(8), 0u64);
            let mut have = 0;
            let gathered: &mut [u8] = bytemuck::cast_slice_mut(&mut long);
            let mut take = |from: &[u8]| {
                let n = from.len().min(len - have);
                gathered[have..have + n].copy_from_slice(&from[..n]);
                have += n;
                have < len
            };
            let mut more = take(&page.used()[body..]);
            while more {
                passed.push(page.block);
                page.load(index, view, page.next)?;
                if page.head.count != 0 || page.head.first_seq != frame.seq + 1 {
                    return Err(Fault::Recycled(page.block));
                }
                more = take(&page.used()[HEAD..]);
            }
            let vector = &bytemuck::cast_slice(&long)[..len];
            deliver(first, place, &frame, vector, &mut record)?;
            break;
        }
        let next_seq = page.head.next_seq();
        seq = Some(next_seq);
        let pages_passed = passed.len() as u32;
        if page.next == NO_BLOCK || pages_passed >= pages {
            let seq = next_seq.max(first);
            return Ok(LogEnd {
                seq,
                block: page.block,
                pages_passed,
                passed,
                first_seq,
                block_seq,
            });
        }
        passed.push(page.block);
        block = page.next;
    }
}

fn deliver(
    first: u64,
    place: Place,
    frame: &RecordHead,
    vector: &[u8],
    record: &mut impl FnMut(Place, &RecordHead, &[f32]),
) -> Read<()> {
    if frame.seq < first {
        return Ok(());
    }
    if !frame.is_sound(vector) {
        return Err(Fault::damaged(place.block, "log record checksum"));
    }
    let vector = bytemuck::try_cast_slice(vector)
        .map_err(|_| Fault::damaged(place.block, "log record alignment"))?;
    record(place, frame, vector);
    Ok(())
}

/// Asks `is_dead` about every live row of the log and overwrites the TIDs of those that are.
///
/// Returns rows kept, rows removed and where the log ended. The caller holds the job lock, so no
/// record moves. Views taken from now on tell copies made before from those made after.
pub fn kill_rows(
    index: Index,
    view: &View,
    mut is_dead: impl FnMut(Tid) -> bool,
) -> Read<(u64, u64, LogEnd)> {
    let mut kept = 0;
    let mut dead: Vec<Place> = Vec::new();
    // A bulk delete that was cancelled may have left some that nobody has been told of.
    let mut earlier = false;
    let end = walk(index, view, view.log_start(), u32::MAX, |place, frame, _| {
        if !frame.tid.is_valid() {
            earlier = true;
        } else if is_dead(frame.tid) {
            dead.push(place);
        } else {
            kept += 1;
        }
    })?;
    for group in dead.chunk_by(|a, b| a.block == b.block) {
        pgrx::check_for_interrupts!();
        let page = Locked::exclusive(index, group[0].block);
        log_tail(&page, view.log_id())?;
        let change = Change::begin(index);
        let mut image = change.edit(&page);
        for place in group {
            let span = place.offset..place.offset + FRAME;
            let mut frame: RecordHead =
                bytemuck::pod_read_unaligned(&image.payload()[span.clone()]);
            frame.set_tid(Tid::INVALID);
            image.payload()[span].copy_from_slice(bytemuck::bytes_of(&frame));
        }
        change.commit();
    }
    if earlier || !dead.is_empty() {
        meta::count_kill(index)?;
    }
    Ok((kept, dead.len() as u64, end))
}
