//! What an arena holds of one bucket, and how it is made from rows.

use super::format::{signs_padded, SpilledRow};
use super::{Plan, RoutingArena};
use crate::metric::Metric;
use crate::quant::{self, sign, Factors, Rotation};
use crate::simd::{SignRows, SIGN_BLOCK};
use rayon::prelude::*;
use std::ops::Range;

/// The sign codes of a bucket's own rows, and behind them of rows spilled into it from others.
#[derive(Clone, Copy, Debug)]
pub struct SignCodes<'a> {
    /// Blocks of codes.
    pub codes: &'a [u8],
    /// Three numbers a row, whole blocks of them.
    pub rows: SignRows<'a>,
    /// Where the spilled rows' int8 codes are.
    pub spilled: &'a [SpilledRow],
}

/// The codes of one bucket, ready to be written.
#[derive(Clone, Debug, Default)]
pub struct EncodedBucket {
    pub(super) signs: Vec<u8>,
    /// Columns `add`, `scale` and `error`.
    pub(super) columns: [Vec<f32>; 3],
    pub(super) spilled: Vec<SpilledRow>,
    pub(super) factors: Vec<Factors>,
    pub(super) codes: Vec<i8>,
}

/// Encodes rows.
struct Encoder<'r> {
    metric: Metric,
    rotation: &'r Rotation,
    middle: &'r [f32],
    rotated: Vec<f32>,
    residual: Vec<f64>,
    unused: Vec<i8>,
}

impl<'r> Encoder<'r> {
    /// An encoder of rows for buckets of this routing arena.
    fn new(metric: Metric, routing: &'r RoutingArena) -> Encoder<'r> {
        let rotation = routing.rotation();
        let stride = quant::stride(rotation.padded());
        Encoder {
            metric,
            rotation,
            middle: routing.middle(),
            rotated: vec![0.0; rotation.padded()],
            residual: Vec::new(),
            unused: vec![0; stride],
        }
    }

    /// Encodes a bucket: its own rows, and those spilled into it with the places of their own
    /// codes, which are left out where there are no sign codes. `centroid` is rotated.
    fn bucket<'v>(
        &mut self,
        centroid: &[f32],
        rows: impl ExactSizeIterator<Item = &'v [f32]>,
        spilled: impl ExactSizeIterator<Item = (SpilledRow, &'v [f32])>,
    ) -> EncodedBucket {
        let stride = quant::stride(self.rotation.padded());
        let padded = signs_padded(self.metric, self.rotation.dim());
        let mut out = EncodedBucket {
            factors: Vec::with_capacity(rows.len()),
            codes: vec![0; rows.len() * stride],
            ..EncodedBucket::default()
        };
        if padded > 0 {
            let blocks = (rows.len() + spilled.len()).div_ceil(SIGN_BLOCK);
            out.signs = vec![0; blocks * sign::block_bytes(padded)];
            let none = sign::SignFactors::NO_ROW;
            out.columns = [none.add, none.scale, none.error].map(|x| vec![x; blocks * SIGN_BLOCK]);
        }
        let (metric, rounding) = (self.metric, self.rotation.rounding());
        let mut place = 0;
        for (row, codes) in rows.zip(0..) {
            self.rotation.rotate(row, &mut self.rotated);
            let codes = &mut out.codes[codes * stride..][..stride];
            out.factors.push(quant::encode(
                metric,
                &self.rotated,
                centroid,
                rounding,
                &mut self.residual,
                codes,
            ));
            if padded > 0 {
                out.push_signs(metric, &self.residual, centroid, self.middle, place);
                place += 1;
            }
        }
        if padded > 0 {
            for (spilled, row) in spilled {
                self.rotation.rotate(row, &mut self.rotated);
                let (residual, unused) = (&mut self.residual, &mut self.unused);
                quant::encode(metric, &self.rotated, centroid, rounding, residual, unused);
                out.push_signs(metric, &self.residual, centroid, self.middle, place);
                out.spilled.push(spilled);
                place += 1;
            }
        }
        out
    }
}

/// Encodes a run of a plan's entries on the current rayon pool. `vectors` has, row-major, the own
/// rows of all entries in order, and behind these the rows spilled into each in order.
pub fn encode_run(
    metric: Metric,
    routing: &RoutingArena,
    plan: &Plan,
    entries: Range<usize>,
    vectors: &[f32],
) -> Vec<EncodedBucket> {
    let dim = routing.rotation().dim();
    let own: usize = plan.shapes()[entries.clone()].iter().map(|shape| shape.rows as usize).sum();
    let mut starts = Vec::with_capacity(entries.len());
    let (mut row, mut spilled) = (0, own);
    for entry in entries.clone() {
        starts.push((row, spilled));
        row += plan.shapes()[entry].rows as usize;
        spilled += plan.spilled(entry).len();
    }
    let vector = |nth: usize| &vectors[nth * dim..(nth + 1) * dim];
    entries
        .into_par_iter()
        .zip(starts)
        .map_init(
            || Encoder::new(metric, routing),
            |encoder, (entry, (row, spilled))| {
                let shape = plan.shapes()[entry];
                let rows = (row..row + shape.rows as usize).map(vector);
                let of = |(nth, of): (usize, &SpilledRow)| (*of, vector(spilled + nth));
                let spilled = plan.spilled(entry).iter().enumerate().map(of);
                encoder.bucket(routing.centroid(shape.bucket), rows, spilled)
            },
        )
        .collect()
}

impl EncodedBucket {
    fn push_signs(
        &mut self,
        metric: Metric,
        residual: &[f64],
        centroid: &[f32],
        middle: &[f32],
        place: usize,
    ) {
        let bytes = sign::block_bytes(residual.len());
        let block = &mut self.signs[place / SIGN_BLOCK * bytes..][..bytes];
        let factors = sign::encode(metric, residual, centroid, middle, block, place % SIGN_BLOCK);
        let parts = [factors.add, factors.scale, factors.error];
        self.columns.iter_mut().zip(parts).for_each(|(column, part)| column[place] = part);
    }
}
