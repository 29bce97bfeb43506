//! What an arena holds of one bucket, and how it is made from rows.

use super::format::SpilledRow;
use super::{Plan, RoutingArena};
use crate::cluster::{project_rows, Stopped};
use crate::courtesy;
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{self, Factors, Rotation};
use crate::simd::{kernels, prefetch, SignRows, SIGN_BLOCK};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// The sign codes of a bucket's own rows, and behind them of rows spilled into it from others.
#[derive(Clone, Copy, Debug)]
pub struct SignCodes<'a> {
    /// Blocks of codes, or a narrow one.
    pub codes: &'a [u8],
    /// Three numbers a place.
    pub rows: SignRows<'a>,
    /// Where the spilled rows' int8 codes are.
    pub spilled: &'a [SpilledRow],
}

/// Rows that the processor is asked for ahead of their turn, for they are scattered, and how much of
/// each vector.
const ROWS_AHEAD: usize = 4;
const BYTES_AHEAD: usize = 2048;

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

/// Rows in memory, and what is known of them before they are encoded: their components with a code,
/// and squared lengths, under cosine those of the rows at length one, or not a number where a row as
/// it is stored has no length that f32 holds.
#[derive(Clone, Copy, Debug)]
pub struct Leads<'l> {
    /// The rows as they are stored, row-major.
    pub vectors: &'l [f32],
    /// Components with a code, row-major, [`Projection::lead`](crate::quant::Projection::lead) each.
    pub components: &'l [f32],
    /// Squared lengths.
    pub squares: &'l [f32],
    /// For each row of the segment its number among these.
    pub order: &'l [u32],
}

impl<'l> Leads<'l> {
    /// The squared length of a row, given as it is stored and as it is compared.
    pub fn square(metric: Metric, stored: &[f32], compared: &[f32]) -> f32 {
        let square = |row| (kernels().inner_product)(row, row);
        // The distance is that of the row as it is stored.
        let is_known = metric != Metric::Cosine
            || quant::to_unit(f64::from(square(stored)), stored.len()).is_some();
        if is_known {
            square(compared)
        } else {
            f32::NAN
        }
    }

    /// The row of this number in the segment, with so many components with a code.
    fn row(&self, row: u64, width: usize, dim: usize) -> Row<'l> {
        let nth = self.order[row as usize] as usize;
        let vector = &self.vectors[nth * dim..][..dim];
        let lead = &self.components[nth * width..][..width];
        Row { vector, lead, square: Some(self.squares[nth]) }
    }

    /// Asks the processor for what is known of a row, if there is such a row.
    fn prefetch(&self, row: u64, width: usize) {
        if let Some(nth) = self.order.get(row as usize) {
            let nth = *nth as usize;
            prefetch(bytemuck::cast_slice(&self.components[nth * width..][..width]));
            prefetch(bytemuck::bytes_of(&self.squares[nth]));
        }
    }

    /// The same for its vector, of which the begin is enough: the processor's own prefetching goes on
    /// from there.
    fn prefetch_vector(&self, row: u64, dim: usize) {
        if let Some(nth) = self.order.get(row as usize) {
            let vector: &[u8] = bytemuck::cast_slice(&self.vectors[*nth as usize * dim..][..dim]);
            prefetch(&vector[..vector.len().min(BYTES_AHEAD)]);
        }
    }
}

/// A row to be encoded.
#[derive(Clone, Copy)]
struct Row<'v> {
    vector: &'v [f32],
    /// Its components with a code; empty where nothing was learned and they are those of the
    /// rotated row.
    lead: &'v [f32],
    /// Its squared length, if the lead is as of [`Leads`].
    square: Option<f32>,
}

/// Encodes rows.
struct Encoder<'r> {
    metric: Metric,
    routing: &'r RoutingArena,
    rotation: &'r Rotation,
    rotated: Vec<f32>,
    residual: Vec<f64>,
    /// Of the components with a code.
    lead_residual: Vec<f32>,
}

impl<'r> Encoder<'r> {
    /// An encoder of rows for buckets of this routing arena.
    fn new(metric: Metric, routing: &'r RoutingArena) -> Encoder<'r> {
        let rotation = routing.rotation();
        Encoder {
            metric,
            routing,
            rotation,
            rotated: vec![0.0; rotation.padded()],
            residual: Vec::new(),
            lead_residual: Vec::new(),
        }
    }

    /// Encodes a bucket: its own rows, and those spilled into it with the places of their own
    /// codes, which are left out where there are no sign codes.
    fn bucket<'v>(
        &mut self,
        bucket: u32,
        rows: impl ExactSizeIterator<Item = Row<'v>>,
        spilled: impl ExactSizeIterator<Item = (SpilledRow, Row<'v>)>,
    ) -> EncodedBucket {
        let stride = quant::stride(self.rotation.padded());
        let code_bits = self.routing.coding().map_or(0, Coding::code_bits);
        let mut out = EncodedBucket::with_room(rows.len(), spilled.len(), stride, code_bits);
        let own = rows.len();
        for (row, nth) in rows.zip(0..) {
            self.rotation.rotate(row.vector, &mut self.rotated);
            let factors = self.int8(bucket, &mut out.codes[nth * stride..][..stride]);
            out.factors.push(factors);
            self.signs(bucket, row, &mut out, nth);
        }
        if self.routing.coding().is_some() {
            for ((spilled, row), place) in spilled.zip(own..) {
                if row.lead.is_empty() {
                    self.rotation.rotate(row.vector, &mut self.rotated);
                }
                self.signs(bucket, row, &mut out, place);
                out.spilled.push(spilled);
            }
        }
        out.close();
        out
    }

    /// Writes the int8 codes of the rotated row.
    fn int8(&mut self, bucket: u32, codes: &mut [i8]) -> Factors {
        let (centroid, rounding) = (self.routing.centroid(bucket), self.rotation.rounding());
        quant::encode(self.metric, &self.rotated, centroid, rounding, &mut self.residual, codes)
    }

    /// Adds the sign code of a row, if rows have any. Where no space was learned, it is of the
    /// rotated row.
    fn signs(&mut self, bucket: u32, row: Row<'_>, out: &mut EncodedBucket, place: usize) {
        let Some(coding) = self.routing.coding() else { return };
        let components = coding.components;
        let (centroid, middle) =
            (&self.routing.point(bucket)[..components], &self.routing.middle()[..components]);
        let lead = if row.lead.is_empty() { &self.rotated } else { row.lead };
        let square = |vector| f64::from((kernels().inner_product)(vector, vector));
        let whole = row.square.map_or_else(|| square(row.vector), f64::from);
        // Without a sound length nothing is known of the row.
        let unit = match (self.metric, row.square) {
            (Metric::Cosine, Some(square)) if square > 0.0 => 1.0,
            (Metric::Cosine, Some(_)) => f64::NAN,
            (Metric::Cosine, None) => quant::to_unit(whole, row.vector.len()).unwrap_or(f64::NAN),
            _ => 1.0,
        };
        self.lead_residual.clear();
        self.lead_residual.extend(lead.iter().zip(centroid).map(|(x, c)| x * unit as f32 - c));
        let mut beyond = 0.0;
        if coding.beyond > 0.0 {
            beyond = (whole - square(lead)).max(0.0) * unit * unit;
        }
        let row = sign::Row { residual: &self.lead_residual, centroid, middle, beyond };
        out.push_signs(self.metric, coding, &row, place);
    }
}

/// Encodes a run of a plan's entries on the current rayon pool. Where there are no `leads`, `vectors`
/// has, row-major, the own rows of all entries in order, and behind these the rows spilled into each
/// in order.
pub fn encode_run(
    metric: Metric,
    routing: &RoutingArena,
    plan: &Plan,
    entries: Range<usize>,
    vectors: &[f32],
    leads: Option<Leads<'_>>,
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
    let projection = routing.projection();
    let width = projection.lead();
    let lead = if projection.is_learned() && leads.is_none() { width } else { 0 };
    let mut made = Vec::new();
    if lead > 0 {
        // The flag is nobody's.
        let stop = AtomicBool::new(false);
        let result = project_rows(projection, routing.basis(), lead, vectors, &stop);
        made = result.unwrap_or_else(|Stopped| Vec::new());
    }
    let vector = |nth: usize| &vectors[nth * dim..(nth + 1) * dim];
    let unknown = |nth: usize| Row {
        vector: vector(nth),
        lead: &made[nth * lead..(nth + 1) * lead],
        square: None,
    };
    // A row at its place among the vectors, and in the segment.
    let own = |nth: usize, row: u64| match leads {
        Some(leads) => {
            leads.prefetch_vector(row + ROWS_AHEAD as u64, dim);
            if projection.is_learned() {
                leads.prefetch(row + ROWS_AHEAD as u64, width);
                leads.row(row, width, dim)
            } else {
                // It is rotated anyway, and has its lead there.
                Row { lead: &[], square: None, ..leads.row(row, width, dim) }
            }
        }
        None => unknown(nth),
    };
    let spilled = |nth: usize, row: u64| match leads {
        Some(leads) => leads.row(row, width, dim),
        None => unknown(nth),
    };
    entries
        .into_par_iter()
        .zip(starts)
        .map_init(
            || Encoder::new(metric, routing),
            |encoder, (entry, (first, first_spilled))| {
                courtesy::give_way();
                let shape = plan.shapes()[entry];
                let row = plan.first_row(entry);
                let rows =
                    (0..shape.rows).map(|nth| own(first + nth as usize, row + u64::from(nth)));
                let all = plan.spilled(entry);
                let of = |(nth, of): (usize, &SpilledRow)| {
                    if let Some((leads, later)) = leads.zip(all.get(nth + ROWS_AHEAD)) {
                        leads.prefetch(plan.row(*later), width);
                    }
                    (*of, spilled(first_spilled + nth, plan.row(*of)))
                };
                let spilled = all.iter().enumerate().map(of);
                encoder.bucket(shape.bucket, rows, spilled)
            },
        )
        .collect()
}

impl EncodedBucket {
    /// A bucket to be filled with so many rows of its own and spilled ones: codes, and columns with
    /// a place for each, in whole blocks until it is closed.
    pub(super) fn with_room(
        own: usize,
        spilled: usize,
        stride: usize,
        code_bits: usize,
    ) -> EncodedBucket {
        let blocks = match code_bits {
            0 => 0,
            _ => sign::places(own + spilled).div_ceil(SIGN_BLOCK),
        };
        let none = sign::SignFactors::NO_ROW;
        EncodedBucket {
            signs: vec![0; blocks * sign::block_bytes(code_bits)],
            columns: [none.add, none.scale, none.error].map(|x| vec![x; blocks * SIGN_BLOCK]),
            spilled: Vec::with_capacity(spilled),
            factors: Vec::with_capacity(own),
            codes: vec![0; own * stride],
        }
    }

    /// Gives few rows their narrow block, now that all are there.
    pub(super) fn close(&mut self) {
        let places = sign::places(self.factors.len() + self.spilled.len());
        if !self.signs.is_empty() && sign::is_narrow(places) {
            self.signs = sign::narrow(&self.signs, places);
            self.columns.iter_mut().for_each(|column| column.truncate(places));
        }
    }

    /// Where the int8 codes of rows spilled into it are.
    #[cfg(test)]
    pub fn spilled(&self) -> &[SpilledRow] {
        &self.spilled
    }

    /// Fails where the codes of `other` are not those of the same rows.
    #[cfg(test)]
    pub fn assert_alike(&self, other: &EncodedBucket) {
        assert_eq!(self.codes, other.codes);
        assert_eq!(self.factors, other.factors);
        assert_eq!(self.spilled, other.spilled);
        assert_eq!(self.signs, other.signs);
        let bits =
            |columns: &[Vec<f32>]| columns.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&self.columns), bits(&other.columns));
    }

    fn push_signs(&mut self, metric: Metric, coding: &Coding, row: &sign::Row<'_>, place: usize) {
        let bytes = sign::block_bytes(coding.code_bits());
        let block = &mut self.signs[place / SIGN_BLOCK * bytes..][..bytes];
        let factors = sign::encode(metric, coding, row, block, place % SIGN_BLOCK);
        let parts = [factors.add, factors.scale, factors.error];
        self.columns.iter_mut().zip(parts).for_each(|(column, part)| column[place] = part);
    }
}
