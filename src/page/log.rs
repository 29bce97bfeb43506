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

/// Rows to be appended, at least one, of as many dimensions as the index has.
#[derive(Clone, Copy)]
pub struct NewRows<'r> {
    tids: &'r [Tid],
    /// Row-major.
    vectors: &'r [f32],
    dims: usize,
}

impl<'r> NewRows<'r> {
    /// One row.
    pub fn one(tid: &'r Tid, vector: &'r [f32]) -> NewRows<'r> {
        NewRows { tids: std::slice::from_ref(tid), vectors: vector, dims: vector.len() }
    }

    /// Several, row-major; none where there are none, or not as many vectors.
    pub fn several(tids: &'r [Tid], vectors: &'r [f32]) -> Option<NewRows<'r>> {
        let dims = vectors.len().checked_div(tids.len())?;
        (dims * tids.len() == vectors.len()).then_some(NewRows { tids, vectors, dims })
    }

    /// The first so many, and the others if there are any.
    pub fn split(self, at: usize) -> (NewRows<'r>, Option<NewRows<'r>>) {
        let at = at.clamp(1, self.tids.len());
        let (tids, other_tids) = self.tids.split_at(at);
        let (vectors, other_vectors) = self.vectors.split_at(at * self.dims);
        (NewRows { tids, vectors, ..self }, NewRows::several(other_tids, other_vectors))
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.tids.len()
    }

    /// Components of a vector.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Row by row.
    pub fn iter(&self) -> impl Iterator<Item = (Tid, &'r [f32])> {
        self.tids.iter().copied().zip(self.vectors.chunks_exact(self.dims))
    }

    /// Bytes of a record.
    fn record(&self) -> usize {
        FRAME + self.dims * size_of::<f32>()
    }
}

/// What an append leaves for its caller to act on.
pub struct Appended {
    /// Where to try first the next time; the page that the last record ends on.
    pub hint: Hint,
    /// The first record's sequence number; those of others follow.
    pub seq: u64,
    /// How many of the rows have been appended, one or more: those that were for the same page.
    pub rows: usize,
    /// Pages of the log before and after, if this append added some.
    pub grown: Option<(u32, u32)>,
}

/// Appends as many of the rows as one page takes.
pub fn append(index: Index, hint: Option<Hint>, rows: NewRows<'_>) -> Read<Appended> {
    if rows.record() <= ROOM {
        if let Some(hint) = hint {
            if let Some(appended) = append_to_last(index, hint, rows)? {
                return Ok(appended);
            }
        }
    }
    append_with_meta(index, rows)
}

/// Appends on the last page reached from `block`, if there is room and it is still the log's.
fn append_to_last(
    index: Index,
    Hint { log_id, mut block, buffer }: Hint,
    rows: NewRows<'_>,
) -> Read<Option<Appended>> {
    let recent = Cell::new(buffer);
    for _ in 0..MOST_FOLLOWED {
        pgrx::check_for_interrupts!();
        let page = Locked::exclusive_recent(index, block, &recent);
        let Ok(tail) = page.owned_tail(Kind::Log, log_id) else { return Ok(None) };
        if tail.next != NO_BLOCK {
            block = tail.next;
            continue;
        }
        let head = read_head(&page, rows.dims())?;
        let Some(rows) = first_rows(rows, head.used as usize) else { return Ok(None) };
        push_records(index, &page, head, rows);
        let hint = Hint { log_id, block, buffer: recent.get() };
        return Ok(Some(Appended { hint, seq: head.next_seq(), rows: rows.len(), grown: None }));
    }
    Ok(None)
}

/// Appends under the metapage's lock, on new pages if the last has no room.
fn append_with_meta(index: Index, rows: NewRows<'_>) -> Read<Appended> {
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
    let last_head = read_head(&last, rows.dims())?;
    if let Some(rows) = first_rows(rows, last_head.used as usize) {
        push_records(index, &last, last_head, rows);
        return Ok(Appended {
            hint: Hint { log_id: meta.log_id, block: last.block(), buffer: last.number() },
            seq: last_head.next_seq(),
            rows: rows.len(),
            grown: None,
        });
    }

    let seq = last_head.next_seq();
    // One that is longer than a page has its pages for itself.
    let rows = first_rows(rows, HEAD).unwrap_or_else(|| rows.split(1).0);
    let count = rows.len() as u32;
    let mut bytes = Vec::with_capacity(rows.len() * rows.record());
    for ((tid, vector), seq) in rows.iter().zip(seq..) {
        bytes.extend_from_slice(bytemuck::bytes_of(&RecordHead::new(seq, tid, vector)));
        bytes.extend_from_slice(bytemuck::cast_slice(vector));
    }
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
        fill_page(image, LogHead { first_seq: seq, count, used: used as u32 }, whole);
    });
    record.patch(&last, Patch::of_tail(Tail { next: first.block(), ..last_tail }));
    record.patch(&meta_page, meta::patch(&before, &meta));
    record.commit(index);
    Ok(Appended {
        hint: Hint { log_id: meta.log_id, block: meta.log_tail_block, buffer: end_buffer },
        seq,
        rows: rows.len(),
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

/// Those of the rows that a page has room for of which so many bytes are in use.
fn first_rows(rows: NewRows<'_>, used: usize) -> Option<NewRows<'_>> {
    let count = PAYLOAD.saturating_sub(used) / rows.record();
    (count > 0).then(|| rows.split(count).0)
}

/// Adds records to a page that has room for them.
fn push_records(index: Index, page: &Locked, head: LogHead, rows: NewRows<'_>) {
    let start = head.used as usize;
    let end = start + rows.len() * rows.record();
    let seqs = head.next_seq()..;
    let head = LogHead { count: head.count + rows.len() as u32, used: end as u32, ..head };
    let mut patch = Patch::new(end, end - start + (2 + rows.len()) * FRAME);
    patch.put(0, &[bytemuck::bytes_of(&head)]);
    let places = (start..).step_by(rows.record());
    for ((place, seq), (tid, vector)) in places.zip(seqs).zip(rows.iter()) {
        let frame = RecordHead::new(seq, tid, vector);
        patch.put(place, &[bytemuck::bytes_of(&frame), bytemuck::cast_slice(vector)]);
    }
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
