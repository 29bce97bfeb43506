//! What an arena holds of one bucket, and how it is made from rows.

use super::format::SpilledRow;
use super::{Plan, RoutingArena};
use crate::cluster::{project_rows, Stopped};
use crate::courtesy;
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{self, Factors, Rotation};
use crate::simd::{kernels, SignRows, SIGN_BLOCK};
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

/// A row to be encoded.
#[derive(Clone, Copy)]
struct Row<'v> {
    vector: &'v [f32],
    /// Its components with a code in a learned space; empty where none was learned.
    lead: &'v [f32],
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
        let mut out = EncodedBucket {
            factors: Vec::with_capacity(rows.len()),
            codes: vec![0; rows.len() * stride],
            ..EncodedBucket::default()
        };
        let places = sign::places(rows.len() + spilled.len());
        if let Some(coding) = self.routing.coding() {
            let blocks = places.div_ceil(SIGN_BLOCK);
            out.signs = vec![0; blocks * sign::block_bytes(coding.code_bits())];
            let none = sign::SignFactors::NO_ROW;
            out.columns = [none.add, none.scale, none.error].map(|x| vec![x; blocks * SIGN_BLOCK]);
        }
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
            if sign::is_narrow(places) {
                out.signs = sign::narrow(&out.signs, places);
                out.columns.iter_mut().for_each(|column| column.truncate(places));
            }
        }
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
        let whole = square(row.vector);
        let unit = match self.metric {
            // Without a sound length nothing is known of the row.
            Metric::Cosine => quant::to_unit(whole, row.vector.len()).unwrap_or(f64::NAN),
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
    let projection = routing.projection();
    let lead = if projection.is_learned() { projection.lead() } else { 0 };
    let mut leads = Vec::new();
    if lead > 0 {
        // The flag is nobody's.
        let made =
            project_rows(projection, routing.basis(), lead, vectors, &AtomicBool::new(false));
        leads = made.unwrap_or_else(|Stopped| Vec::new());
    }
    let vector = |nth: usize| Row {
        vector: &vectors[nth * dim..(nth + 1) * dim],
        lead: &leads[nth * lead..(nth + 1) * lead],
    };
    entries
        .into_par_iter()
        .zip(starts)
        .map_init(
            || Encoder::new(metric, routing),
            |encoder, (entry, (row, spilled))| {
                courtesy::give_way();
                let shape = plan.shapes()[entry];
                let rows = (row..row + shape.rows as usize).map(vector);
                let of = |(nth, of): (usize, &SpilledRow)| (*of, vector(spilled + nth));
                let spilled = plan.spilled(entry).iter().enumerate().map(of);
                encoder.bucket(shape.bucket, rows, spilled)
            },
        )
        .collect()
}

impl EncodedBucket {
    fn push_signs(&mut self, metric: Metric, coding: &Coding, row: &sign::Row<'_>, place: usize) {
        let bytes = sign::block_bytes(coding.code_bits());
        let block = &mut self.signs[place / SIGN_BLOCK * bytes..][..bytes];
        let factors = sign::encode(metric, coding, row, block, place % SIGN_BLOCK);
        let parts = [factors.add, factors.scale, factors.error];
        self.columns.iter_mut().zip(parts).for_each(|(column, part)| column[place] = part);
    }
}
