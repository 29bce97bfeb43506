//! Columns: byte strings on runs of pages, read at any place.

use super::buffer::{self, Locked};
use super::fault::{Fault, Read};
use super::layout::{Extent, Kind, Tail, HEAD, NO_BLOCK, PAGE, PAYLOAD};
use super::wal::{tail, Change, PAGES_PER_RECORD};
use super::{Identity, Index};
use bytemuck::AnyBitPattern;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// Where a column is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its own id, on each of its pages; the log's, where these are taken over from it.
    pub id: Identity,
    /// What it holds.
    pub kind: Kind,
    /// Length.
    pub bytes: u64,
    /// CRC32 of the bytes as they were written; zero where they are pages of the log.
    pub crc: u32,
    /// Its pages, in order.
    pub extents: Vec<Extent>,
}

impl Column {
    /// Pages a column of `bytes` takes.
    pub fn pages(bytes: u64) -> u64 {
        bytes.div_ceil(PAYLOAD as u64)
    }

    /// Reads an immutable column whole and checks it.
    pub fn read_all(&self, index: Index) -> Read<Vec<u8>> {
        let reader = ColumnReader::new(index, Rc::new(ColumnMap::new(index, self)?));
        let mut bytes = Vec::with_capacity(self.bytes as usize);
        for ordinal in 0..Column::pages(self.bytes) as u32 {
            pgrx::check_for_interrupts!();
            let want = (self.bytes as usize - bytes.len()).min(PAYLOAD);
            reader.page(ordinal, |payload| bytes.extend_from_slice(&payload[..want]))?;
        }
        if crc32fast::hash(&bytes) == self.crc {
            Ok(bytes)
        } else {
            Err(Fault::damaged(self.extents.first().map_or(0, |e| e.start), "checksum"))
        }
    }
}

/// Where the pages of a column are, and the buffers that this backend met them in.
#[derive(Debug)]
pub struct ColumnMap {
    kind: Kind,
    id: Identity,
    /// Runs with the ordinal of their first page.
    runs: Vec<(u32, Extent)>,
    /// For each page the number of its buffer, from 1 on, or 0. Zeroed memory is not there until it
    /// is written to, so that a page never read costs nothing.
    recent: Box<[Cell<u32>]>,
}

impl ColumnMap {
    /// Maps `column`, whose extents must hold its bytes.
    pub fn new(index: Index, column: &Column) -> Read<ColumnMap> {
        let mut runs = Vec::with_capacity(column.extents.len());
        let mut ordinal = 0u32;
        for extent in &column.extents {
            runs.push((ordinal, *extent));
            ordinal = ordinal.saturating_add(extent.len);
        }
        let blocks = index.blocks();
        let outside =
            |extent: &&Extent| extent.start.checked_add(extent.len).is_none_or(|end| end > blocks);
        if let Some(extent) = column.extents.iter().find(outside) {
            return Err(Fault::damaged(extent.start, "place in the file"));
        }
        if u64::from(ordinal) < Column::pages(column.bytes) {
            return Err(Fault::damaged(0, "column extents"));
        }
        let recent = bytemuck::zeroed_slice_box::<Cell<u32>>(ordinal as usize);
        Ok(ColumnMap { kind: column.kind, id: column.id, runs, recent })
    }

    /// The id on each of the pages.
    pub fn owner(&self) -> Identity {
        self.id
    }

    /// The block of page `ordinal`.
    pub fn block(&self, ordinal: u32) -> Read<u32> {
        let after = self.runs.partition_point(|(first, _)| *first <= ordinal);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at));
        match run {
            Some((first, extent)) if ordinal - first < extent.len => {
                let block = extent.start.checked_add(ordinal - first);
                block.filter(|block| *block != NO_BLOCK).ok_or(Fault::damaged(0, "column extents"))
            }
            _ => Err(Fault::damaged(0, "column extents")),
        }
    }

    /// Asks the processor for a span of page `ordinal`, if that was read before. A hint.
    pub fn prefetch(&self, ordinal: u32, span: Range<usize>) {
        if let Some(recent) = self.recent.get(ordinal as usize) {
            buffer::prefetch_pin(recent.get());
            buffer::prefetch(recent.get(), HEAD + span.start..HEAD + span.end);
            buffer::prefetch(recent.get(), PAGE - size_of::<Tail>()..PAGE);
        }
    }

    /// What stands at this place of page `ordinal`, if that was read before. For hints alone: see
    /// [`buffer::peek`].
    pub fn peek<T: AnyBitPattern>(&self, ordinal: u32, at: usize) -> Option<T> {
        buffer::peek(self.recent.get(ordinal as usize)?.get(), HEAD + at)
    }
}

/// Reads the pages of a column.
pub struct ColumnReader {
    index: Index,
    map: Rc<ColumnMap>,
}

impl ColumnReader {
    /// Prepares to read what is mapped.
    pub fn new(index: Index, map: Rc<ColumnMap>) -> ColumnReader {
        ColumnReader { index, map }
    }

    /// Hands `with` the payload of page `ordinal` while it is locked for reading.
    pub fn page<T>(&self, ordinal: u32, with: impl FnOnce(&[u8]) -> T) -> Read<T> {
        let page = self.lock(ordinal)?;
        page.check(self.map.kind, self.map.id, ordinal)?;
        Ok(with(page.payload()))
    }

    /// Locks page `ordinal`, whatever it is, for reading.
    pub fn lock(&self, ordinal: u32) -> Read<Locked> {
        let block = self.map.block(ordinal)?;
        Ok(match self.map.recent.get(ordinal as usize) {
            Some(recent) => Locked::share_recent(self.index, block, recent),
            None => Locked::share(self.index, block),
        })
    }

    /// Lets `edit` change page `ordinal`.
    pub fn edit(&self, ordinal: u32, edit: impl FnOnce(&mut [u8])) -> Read<()> {
        let page = Locked::exclusive(self.index, self.map.block(ordinal)?);
        page.check(self.map.kind, self.map.id, ordinal)?;
        let change = Change::begin(self.index);
        edit(change.edit(&page).payload());
        change.commit();
        Ok(())
    }
}

/// Writes a column onto free pages, a few a WAL record.
pub struct ColumnWriter {
    index: Index,
    column: Column,
    blocks: std::vec::IntoIter<u32>,
    staged: Vec<u8>,
    ordinal: u32,
    hasher: crc32fast::Hasher,
}

impl ColumnWriter {
    /// Starts a column on `extents`, which must have room for all that will be written.
    pub fn new(index: Index, kind: Kind, extents: Vec<Extent>) -> ColumnWriter {
        let blocks: Vec<u32> = extents.iter().flat_map(|e| e.start..e.start + e.len).collect();
        ColumnWriter {
            index,
            column: Column { id: Identity::random(), kind, bytes: 0, crc: 0, extents },
            blocks: blocks.into_iter(),
            staged: Vec::with_capacity(PAYLOAD * PAGES_PER_RECORD),
            ordinal: 0,
            hasher: crc32fast::Hasher::new(),
        }
    }

    /// Writes a short column whole.
    pub fn write_all(index: Index, kind: Kind, extents: Vec<Extent>, bytes: &[u8]) -> Column {
        let mut writer = ColumnWriter::new(index, kind, extents);
        writer.push(bytes);
        writer.finish()
    }

    /// Appends bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.hasher.update(bytes);
        self.column.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = PAYLOAD * PAGES_PER_RECORD - self.staged.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.staged.extend_from_slice(now);
            bytes = later;
            if self.staged.len() == PAYLOAD * PAGES_PER_RECORD {
                self.write_staged();
            }
        }
    }

    fn write_staged(&mut self) {
        let pages: Vec<Locked> = self
            .staged
            .chunks(PAYLOAD)
            .filter_map(|_| self.blocks.next())
            .map(|block| Locked::overwrite(self.index, block))
            .collect();
        assert_eq!(pages.len(), self.staged.len().div_ceil(PAYLOAD), "column has its pages");
        let change = Change::begin(self.index);
        for (page, part) in pages.iter().zip(self.staged.chunks(PAYLOAD)) {
            let mut image = change.fill(page, tail(self.column.kind, self.column.id, self.ordinal));
            image.payload()[..part.len()].copy_from_slice(part);
            image.set_used(part.len());
            self.ordinal += 1;
        }
        change.commit();
        self.staged.clear();
    }

    /// Writes what is left and tells where the column is.
    pub fn finish(mut self) -> Column {
        if !self.staged.is_empty() {
            self.write_staged();
        }
        self.column.crc = self.hasher.finalize();
        self.column
    }
}
