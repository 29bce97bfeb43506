//! Codes of rows, made a block of neighbouring ones at a time.
//!
//! A row has int8 codes, taken about zero: there are no buckets here. Those of a block
//! ([`CODED_BLOCK`]) share sign codes too, which stand in the chunk that has the last of them. The
//! rows of a chunk's blocks are taken relative to the mean of the first of these blocks, the
//! chunk's centre.

use super::region::{as_words, Graph, Region, Shape};
use super::{Corrupt, CODED_BLOCK};
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{self, Factors, Rotation};
use crate::simd::{kernels, SignRows, SIGN_BLOCK};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Words of the columns of a block.
const COLUMN_WORDS: usize = 3 * SIGN_BLOCK;
/// Standard deviations between a row's estimate and its bound.
const DEVIATIONS: f32 = 2.0;
/// Bits of a component: far from any centroid, one says too little.
const BITS: usize = 2;

/// How rotated rows become bits.
fn coding(padded: usize) -> Coding {
    Coding { bits: BITS, ..Coding::signs(padded) }
}

/// The words of a chunk that sign codes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SignShape {
    /// Components of a rotated row; 0 if there are no sign codes.
    padded: usize,
    blocks_per_chunk: usize,
}

impl SignShape {
    pub const NONE: SignShape = SignShape { padded: 0, blocks_per_chunk: 0 };

    /// For chunks of so many rows of `dims` components.
    pub fn new(dims: usize, rows_per_chunk: usize) -> SignShape {
        if dims < sign::DIM_MULTIPLE {
            return SignShape::NONE;
        }
        SignShape {
            padded: dims.next_multiple_of(sign::DIM_MULTIPLE),
            blocks_per_chunk: rows_per_chunk.div_ceil(SIGN_BLOCK),
        }
    }

    /// A block's words: its codes, and behind them the columns `add`, `scale` and `error`.
    fn block_words(&self) -> usize {
        sign::block_bytes(self.padded * BITS) / size_of::<u32>() + COLUMN_WORDS
    }

    /// Words of the centre and all blocks.
    pub fn words(&self) -> usize {
        match self.padded {
            0 => 0,
            padded => padded + self.blocks_per_chunk * self.block_words(),
        }
    }
}

/// What it takes to encode rows, made once for one index after the other.
struct Encoder {
    metric: Metric,
    rotation: Rotation,
    rotated: Vec<f32>,
    /// As many zeroes as a vector has components, and as a rotated one has.
    zeroes: Vec<f32>,
    residual: Vec<f64>,
    codes: Vec<i8>,
}

thread_local! {
    static ENCODER: RefCell<Option<Encoder>> = const { RefCell::new(None) };
}

/// Lends the thread's encoder, made anew if the last one was for other rows.
fn with_encoder<T>(metric: Metric, dims: usize, with: impl FnOnce(&mut Encoder) -> T) -> T {
    ENCODER.with_borrow_mut(|encoder| {
        if !encoder.as_ref().is_some_and(|encoder| encoder.fits(metric, dims)) {
            *encoder = None;
        }
        with(encoder.get_or_insert_with(|| Encoder::new(metric, dims)))
    })
}

impl Encoder {
    fn new(metric: Metric, dims: usize) -> Encoder {
        let rotation = Rotation::new(metric, dims);
        let padded = rotation.padded();
        Encoder {
            metric,
            rotation,
            rotated: vec![0.0; SIGN_BLOCK * padded],
            zeroes: vec![0.0; padded.max(dims)],
            residual: Vec::new(),
            codes: vec![0; quant::stride(dims)],
        }
    }

    fn fits(&self, metric: Metric, dims: usize) -> bool {
        self.metric == metric && self.rotation.dim() == dims
    }

    /// Rotates row number `place` of a block.
    fn rotate(&mut self, place: usize, vector: &[f32]) {
        let padded = self.rotation.padded();
        let out = &mut self.rotated[place * padded..][..padded];
        if self.metric == Metric::Cosine {
            let mut unit = vec![0.0; vector.len()];
            quant::normalize(vector, &mut unit);
            self.rotation.rotate(&unit, out);
        } else {
            self.rotation.rotate(vector, out);
        }
    }

    /// The mean of the rows, as far as they are numbers.
    fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0.0f32; self.rotation.padded()];
        for row in self.rotated.chunks_exact(self.rotation.padded()) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / SIGN_BLOCK as f32);
        }
        if !sums.iter().all(|sum| sum.is_finite()) {
            sums.fill(0.0);
        }
        sums
    }

    /// The int8 codes of a row.
    fn int8(&mut self, vector: &[f32]) -> (Factors, &[i8]) {
        let (zero, residual) = (&self.zeroes[..vector.len()], &mut self.residual);
        let factors = quant::encode(self.metric, vector, zero, 0.0, residual, &mut self.codes);
        (factors, &self.codes)
    }

    /// The words of a block of the rotated rows about a centre.
    fn signs(&self, centre: &[f32], words: &mut [u32]) {
        let padded = self.rotation.padded();
        let middle = &self.zeroes[..padded];
        let mut residual = vec![0.0; padded];
        let (codes, columns) = words.split_at_mut(words.len() - COLUMN_WORDS);
        let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
        let columns: &mut [f32] = bytemuck::cast_slice_mut(columns);
        for (place, row) in self.rotated.chunks_exact(padded).enumerate() {
            for (r, (x, c)) in residual.iter_mut().zip(row.iter().zip(centre)) {
                *r = x - c;
            }
            let row = sign::Row { residual: &residual, centroid: centre, middle, beyond: 0.0 };
            let factors = sign::encode(self.metric, &coding(padded), &row, codes, place);
            columns[place] = factors.add;
            columns[SIGN_BLOCK + place] = factors.scale;
            columns[2 * SIGN_BLOCK + place] = factors.error;
        }
    }
}

/// A query, prepared for sign codes.
pub struct Signed(sign::Query);

impl Signed {
    /// None where rows have no sign codes.
    pub fn new(metric: Metric, query: &[f32]) -> Option<Signed> {
        if !sign::are_used(metric, query.len()) {
            return None;
        }
        with_encoder(metric, query.len(), |encoder| {
            encoder.rotate(0, query);
            let padded = encoder.rotation.padded();
            let rotated = &encoder.rotated[..padded];
            let length = (kernels().inner_product)(rotated, rotated).sqrt();
            let (coding, middle) = (coding(padded), vec![0.0; padded]);
            Some(Signed(sign::Query::new(metric, &coding, rotated, 0.0, length, &middle)))
        })
    }
}

impl Shape {
    /// The chunk that has a block, and the block's place among those of the chunk.
    fn place_of_block(&self, block: u32) -> (u32, usize) {
        let chunk = self.chunk_of(block * CODED_BLOCK + (CODED_BLOCK - 1));
        let first =
            (chunk * self.rows_per_chunk()).saturating_sub(CODED_BLOCK - 1).div_ceil(CODED_BLOCK);
        (chunk, (block - first) as usize)
    }
}

impl<R: Region> Graph<'_, R> {
    fn has_signs(&self) -> bool {
        self.shape.signs.padded > 0 && sign::are_used(self.metric, self.shape.dims)
    }

    /// The words of a chunk's centre, and of one of its blocks.
    fn sign_words(&self, chunk: u32, nth: usize) -> Result<(&[AtomicU32], &[AtomicU32]), Corrupt> {
        let signs = &self.shape.signs;
        let words = self.region.chunk(chunk).ok_or(Corrupt)?;
        let words = words.get(self.shape.signs_start()..).ok_or(Corrupt)?;
        let centre = words.get(..signs.padded).ok_or(Corrupt)?;
        let start = signs.padded + nth * signs.block_words();
        let block = words.get(start..start + signs.block_words()).ok_or(Corrupt)?;
        Ok((centre, block))
    }

    /// Writes the codes of a block of rows that are all published.
    pub(super) fn put_block(&self, block: u32) -> Result<(), Corrupt> {
        let rows = block * CODED_BLOCK..(block + 1) * CODED_BLOCK;
        with_encoder(self.metric, self.shape.dims, |encoder| {
            for row in rows.clone() {
                let (factors, codes) = encoder.int8(self.vector(row)?);
                self.put_codes(row, factors, codes)?;
            }
            if !self.has_signs() {
                return Ok(());
            }
            let (chunk, nth) = self.shape.place_of_block(block);
            let (centre, words) = self.sign_words(chunk, nth)?;
            for (place, row) in rows.enumerate() {
                encoder.rotate(place, self.vector(row)?);
            }
            if nth == 0 {
                store(centre, bytemuck::cast_slice(&encoder.mean()));
            }
            let mut encoded = vec![0u32; words.len()];
            encoder.signs(bytemuck::cast_slice(as_words(centre)), &mut encoded);
            store(words, &encoded);
            Ok(())
        })
    }

    /// The rows of whole blocks among `rows`, which have codes, if there are sign codes.
    pub fn signed_rows(&self, rows: &Range<u32>) -> Range<u32> {
        let first = rows.start.div_ceil(CODED_BLOCK).saturating_mul(CODED_BLOCK);
        let end = rows.end / CODED_BLOCK * CODED_BLOCK;
        if self.has_signs() && first < end {
            first..end
        } else {
            rows.end..rows.end
        }
    }

    /// Appends to `bounds`, for every row of `rows`, which [`Graph::signed_rows`] has found, a
    /// number that its rank is hardly ever below.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn sign_bounds(
        &self,
        query: &Signed,
        rows: Range<u32>,
        bounds: &mut Vec<f32>,
    ) -> Result<(), Corrupt> {
        let codes_words = self.shape.signs.block_words() - COLUMN_WORDS;
        let mut terms = None;
        for block in rows.start / CODED_BLOCK..rows.end / CODED_BLOCK {
            let (chunk, nth) = self.shape.place_of_block(block);
            let (centre, words) = self.sign_words(chunk, nth)?;
            let terms = match terms {
                Some((of, terms)) if of == chunk => terms,
                _ => {
                    let centre: &[f32] = bytemuck::cast_slice(as_words(centre));
                    let new = query.0.for_bucket(centre, DEVIATIONS);
                    terms = Some((chunk, new));
                    new
                }
            };
            let start = bounds.len();
            bounds.resize(start + SIGN_BLOCK, f32::NEG_INFINITY);
            let Some(terms) = terms else { continue };
            let (codes, columns) = as_words(words).split_at(codes_words);
            let columns: &[f32] = bytemuck::cast_slice(columns);
            let column = |nth: usize| &columns[nth * SIGN_BLOCK..][..SIGN_BLOCK];
            let columns = SignRows { add: column(0), scale: column(1), error: column(2) };
            let codes = bytemuck::cast_slice(codes);
            query.0.bounds(&terms, &columns, codes, &[], &mut bounds[start..]);
            for bound in &mut bounds[start..] {
                // What is not a number bounds nothing.
                *bound = if bound.is_nan() { f32::NEG_INFINITY } else { *bound };
            }
        }
        Ok(())
    }
}

fn store(words: &[AtomicU32], values: &[u32]) {
    for (word, value) in words.iter().zip(values) {
        word.store(*value, Ordering::Relaxed);
    }
}
