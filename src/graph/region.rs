//! The words of a graph: where a row's vector, links and label are.

use super::level::upper_place;
use super::signs::SignShape;
use super::{Corrupt, BASE_LINKS, CODED_BLOCK, UPPER_LINKS};
use crate::metric::Metric;
use crate::quant::{self, Factors};
use crate::simd;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Upper words of a row.
const UPPER_WORDS: usize = 2;
/// Words of a row's label.
const LABEL_WORDS: usize = 2;
/// In a label's second word: the row has been put.
const PRESENT: u32 = 1 << 31;
/// Words of the factors of a row's codes.
const FACTOR_WORDS: usize = size_of::<Factors>() / size_of::<u32>();
const _: () = assert!(size_of::<Factors>().is_multiple_of(4) && align_of::<Factors>() <= 4);

/// Chunks of words that a graph lives in.
///
/// # Safety
/// A chunk's words are zero when it is first handed out, and as long as a reference to it lives
/// nobody but the graph changes them.
pub unsafe trait Region {
    /// Chunk number `nth`, if there is one.
    fn chunk(&self, nth: u32) -> Option<&[AtomicU32]>;
}

// SAFETY: as the region it refers to.
unsafe impl<R: Region> Region for &R {
    fn chunk(&self, nth: u32) -> Option<&[AtomicU32]> {
        (**self).chunk(nth)
    }
}

/// How many rows there are.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Header {
    /// Rows that are published.
    len: AtomicU32,
    /// Rows, from the first on, that are linked.
    linked: AtomicU32,
    /// Rows, from the first on, that have codes: whole blocks of them.
    coded: AtomicU32,
}

impl Header {
    /// Rows that are published, and those of them that are linked.
    pub fn counts(&self) -> (u32, u32) {
        let linked = self.linked.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        (len, linked.min(len))
    }

    /// No rows. Nobody else uses the graph at this moment.
    pub fn clear(&self) {
        self.linked.store(0, Ordering::Relaxed);
        self.coded.store(0, Ordering::Relaxed);
        self.len.store(0, Ordering::Release);
    }
}

/// How rows lie in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub(super) dims: usize,
    chunk_words: usize,
    rows_per_chunk: u32,
    pub(super) signs: SignShape,
}

/// Chunks that would have fewer rows do without sign codes.
const FEWEST_SIGNED: usize = 8;

impl Shape {
    /// Rows of `dims` components in chunks of `chunk_words` words; none if not one fits.
    pub fn new(dims: usize, chunk_words: usize) -> Option<Shape> {
        let codes = dims.checked_next_multiple_of(64)? / size_of::<u32>();
        let others = BASE_LINKS + UPPER_WORDS + LABEL_WORDS + FACTOR_WORDS;
        let row = dims.checked_add(codes)?.checked_add(others)?;
        let most = chunk_words / row;
        let fits = |rows: &usize| rows * row + SignShape::new(dims, *rows).words() <= chunk_words;
        let (rows, signs) = match (FEWEST_SIGNED..=most).rev().find(fits) {
            Some(rows) => (rows, SignShape::new(dims, rows)),
            None => (most, SignShape::NONE),
        };
        let rows_per_chunk = u32::try_from(rows).ok()?;
        let shape = Shape { dims, chunk_words, rows_per_chunk, signs };
        (dims > 0 && rows_per_chunk > 0).then_some(shape)
    }

    /// Number of the chunk that `row` is in.
    pub fn chunk_of(&self, row: u32) -> u32 {
        row / self.rows_per_chunk
    }

    /// Rows in a chunk.
    pub fn rows_per_chunk(&self) -> u32 {
        self.rows_per_chunk
    }

    fn links_start(&self) -> usize {
        self.dims * self.rows_per_chunk as usize
    }

    fn upper_start(&self) -> usize {
        self.links_start() + BASE_LINKS * self.rows_per_chunk as usize
    }

    fn labels_start(&self) -> usize {
        self.upper_start() + UPPER_WORDS * self.rows_per_chunk as usize
    }

    fn factors_start(&self) -> usize {
        self.labels_start() + LABEL_WORDS * self.rows_per_chunk as usize
    }

    fn codes_start(&self) -> usize {
        self.factors_start() + FACTOR_WORDS * self.rows_per_chunk as usize
    }

    /// Where sign codes begin.
    pub(super) fn signs_start(&self) -> usize {
        self.codes_start() + self.code_words() * self.rows_per_chunk as usize
    }

    /// Words of a row's codes.
    fn code_words(&self) -> usize {
        quant::stride(self.dims) / size_of::<u32>()
    }
}

/// A graph in a region.
pub struct Graph<'a, R> {
    pub(super) region: R,
    header: &'a Header,
    pub(super) shape: Shape,
    pub(super) metric: Metric,
}

impl<'a, R: Region> Graph<'a, R> {
    /// The graph of `shape` that is in `region`, of rows counted by `header`.
    pub fn new(region: R, header: &'a Header, shape: Shape, metric: Metric) -> Self {
        Graph { region, header, shape, metric }
    }

    /// Components of a vector.
    pub fn dims(&self) -> usize {
        self.shape.dims
    }

    /// Rows that are published.
    pub fn len(&self) -> u32 {
        self.header.len.load(Ordering::Acquire)
    }

    /// Whether no row is published.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows, from the first on, that are linked; not more than are published.
    pub fn linked(&self) -> u32 {
        self.header.counts().1
    }

    /// Rows, from the first on, that have codes; not more than are published.
    pub fn coded(&self) -> u32 {
        self.header.coded.load(Ordering::Acquire).min(self.len())
    }

    /// Gives codes to the next published rows, at most `blocks` whole blocks of them. One writer at
    /// a time.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn encode(&self, blocks: u32) -> Result<(), Corrupt> {
        let first = self.coded() / CODED_BLOCK;
        let end = (self.len() / CODED_BLOCK).min(first.saturating_add(blocks));
        for block in first..end {
            self.put_block(block)?;
            self.header.coded.store((block + 1) * CODED_BLOCK, Ordering::Release);
        }
        Ok(())
    }

    pub(super) fn set_linked(&self, linked: u32) {
        self.header.linked.store(linked, Ordering::Release);
    }

    /// Writes `row`, whose chunk is there, unless it has been written before. It is published once
    /// all before it are.
    ///
    /// `label` is 62 bits that come back from [`Graph::label`]. One writer at a time.
    ///
    /// # Errors
    /// [`Corrupt`] if the row's chunk is not there or the vector has other dimensions.
    pub fn put(&self, row: u32, label: u64, vector: &[f32]) -> Result<(), Corrupt> {
        let (chunk, at) = self.place(row)?;
        let label_words = self.label_words(chunk, at)?;
        if row < self.len() || label_words[1].load(Ordering::Relaxed) & PRESENT != 0 {
            return Ok(());
        }
        let dims = self.shape.dims;
        if vector.len() != dims {
            return Err(Corrupt);
        }
        let words = chunk.get(at * dims..(at + 1) * dims).ok_or(Corrupt)?;
        for (word, component) in words.iter().zip(vector) {
            word.store(component.to_bits(), Ordering::Relaxed);
        }
        label_words[0].store(label as u32, Ordering::Relaxed);
        let high = (label >> 32) as u32 & !PRESENT;
        label_words[1].store(high | PRESENT, Ordering::Release);
        self.publish()
    }

    /// Writes the int8 codes of a row.
    pub(super) fn put_codes(
        &self,
        row: u32,
        factors: Factors,
        codes: &[i8],
    ) -> Result<(), Corrupt> {
        let (chunk, at) = self.place(row)?;
        let factors: [u32; FACTOR_WORDS] = bytemuck::cast(factors);
        put_words(chunk, self.shape.factors_start() + at * FACTOR_WORDS, &factors)?;
        let codes = bytemuck::cast_slice::<i8, u32>(codes);
        put_words(chunk, self.shape.codes_start() + at * codes.len(), codes)
    }

    /// Moves the end of the published rows past all that are present.
    fn publish(&self) -> Result<(), Corrupt> {
        let mut len = self.len();
        while len < u32::MAX && self.is_present(len) {
            len += 1;
        }
        self.header.len.store(len, Ordering::Release);
        Ok(())
    }

    fn is_present(&self, row: u32) -> bool {
        let words = self.place(row).and_then(|(chunk, at)| self.label_words(chunk, at));
        words.is_ok_and(|words| words[1].load(Ordering::Acquire) & PRESENT != 0)
    }

    /// What was put beside a published row.
    ///
    /// # Errors
    /// [`Corrupt`] if there is no such row.
    pub fn label(&self, row: u32) -> Result<u64, Corrupt> {
        let (chunk, at) = self.place(row)?;
        let words = self.label_words(chunk, at)?;
        let high = words[1].load(Ordering::Acquire);
        if high & PRESENT == 0 {
            return Err(Corrupt);
        }
        Ok(u64::from(high & !PRESENT) << 32 | u64::from(words[0].load(Ordering::Relaxed)))
    }

    /// The vector of a published row.
    ///
    /// # Errors
    /// [`Corrupt`] if its chunk is not there.
    pub fn vector(&self, row: u32) -> Result<&[f32], Corrupt> {
        let (chunk, at) = self.place(row)?;
        let dims = self.shape.dims;
        chunk.get(at * dims..(at + 1) * dims).map(as_floats).ok_or(Corrupt)
    }

    /// The vectors of neighbouring published rows, each with the number of its first.
    ///
    /// # Errors
    /// [`Corrupt`] if a chunk is not there.
    pub(super) fn runs(
        &self,
        rows: Range<u32>,
        mut run: impl FnMut(u32, &[f32]),
    ) -> Result<(), Corrupt> {
        let dims = self.shape.dims;
        let mut row = rows.start;
        while row < rows.end {
            let (chunk, at) = self.place(row)?;
            let count = (self.shape.rows_per_chunk - at as u32).min(rows.end - row);
            let words = chunk.get(at * dims..(at + count as usize) * dims).ok_or(Corrupt)?;
            run(row, as_floats(words));
            row += count;
        }
        Ok(())
    }

    /// The int8 codes of neighbouring rows that have codes with their factors, [`quant::stride`]
    /// bytes a row, each run with the number of its first.
    ///
    /// # Errors
    /// [`Corrupt`] if a chunk is not there.
    pub(super) fn coded_runs(
        &self,
        rows: Range<u32>,
        mut run: impl FnMut(u32, &[Factors], &[i8]),
    ) -> Result<(), Corrupt> {
        let mut row = rows.start;
        while row < rows.end {
            let (chunk, at) = self.place(row)?;
            let count = (self.shape.rows_per_chunk - at as u32).min(rows.end - row);
            let words = |start: usize, each: usize| {
                let start = start + at * each;
                chunk.get(start..start + count as usize * each).map(as_words).ok_or(Corrupt)
            };
            let factors = words(self.shape.factors_start(), FACTOR_WORDS)?;
            let codes = words(self.shape.codes_start(), self.shape.code_words())?;
            run(row, bytemuck::cast_slice(factors), bytemuck::cast_slice(codes));
            row += count;
        }
        Ok(())
    }

    /// Asks the processor for a row's codes. A hint.
    pub fn prefetch_codes(&self, row: u32) {
        let Ok((chunk, at)) = self.place(row) else { return };
        let words = self.shape.code_words();
        let start = self.shape.codes_start() + at * words;
        if let Some(words) = chunk.get(start..start + words) {
            simd::prefetch(bytemuck::cast_slice(as_words(words)));
        }
    }

    /// Asks the processor for a row's vector. A hint.
    pub fn prefetch_vector(&self, row: u32) {
        if let Ok(vector) = self.vector(row) {
            simd::prefetch(bytemuck::cast_slice(vector));
        }
    }

    /// The words of a row's links on level 0.
    pub(super) fn base_links(&self, row: u32) -> Result<&[AtomicU32], Corrupt> {
        let (chunk, at) = self.place(row)?;
        let start = self.shape.links_start() + at * BASE_LINKS;
        chunk.get(start..start + BASE_LINKS).ok_or(Corrupt)
    }

    /// The words of a row's links on an upper level.
    pub(super) fn upper_links(
        &self,
        level: u32,
        row: u32,
    ) -> Result<[&AtomicU32; UPPER_LINKS], Corrupt> {
        let word = |nth: usize| {
            let (row, which) = upper_place(level, row, nth as u32);
            let (chunk, at) = self.place(row)?;
            // Apart, so that one level's links stand side by side.
            let start = self.shape.upper_start() + which * self.shape.rows_per_chunk as usize;
            chunk.get(start + at).ok_or(Corrupt)
        };
        let mut words = [word(0)?; UPPER_LINKS];
        for (nth, place) in words.iter_mut().enumerate().skip(1) {
            *place = word(nth)?;
        }
        Ok(words)
    }

    fn label_words<'c>(
        &self,
        chunk: &'c [AtomicU32],
        at: usize,
    ) -> Result<&'c [AtomicU32], Corrupt> {
        let start = self.shape.labels_start() + at * LABEL_WORDS;
        chunk.get(start..start + LABEL_WORDS).ok_or(Corrupt)
    }

    /// The chunk of `row` and its place in it.
    fn place(&self, row: u32) -> Result<(&[AtomicU32], usize), Corrupt> {
        let nth = row / self.shape.rows_per_chunk;
        let at = row - nth * self.shape.rows_per_chunk;
        match self.region.chunk(nth) {
            Some(chunk) if chunk.len() >= self.shape.chunk_words => Ok((chunk, at as usize)),
            _ => Err(Corrupt),
        }
    }
}

/// Writes words of a chunk.
fn put_words(chunk: &[AtomicU32], start: usize, values: &[u32]) -> Result<(), Corrupt> {
    let words = chunk.get(start..start + values.len()).ok_or(Corrupt)?;
    words.iter().zip(values).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
    Ok(())
}

/// Words that nobody changes any more, as the numbers they are.
fn as_floats(words: &[AtomicU32]) -> &[f32] {
    bytemuck::cast_slice(as_words(words))
}

/// Words that nobody changes any more.
pub(super) fn as_words(words: &[AtomicU32]) -> &[u32] {
    // SAFETY: an atomic word has the layout of a word. These are of published vectors and codes, or
    // were put by the one writer that reads them; no one writes to them again while the region's
    // chunks are borrowed (the contract of `Region`).
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u32>(), words.len()) }
}
