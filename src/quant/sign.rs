//! A few bits a component: where it lies on a grid.
//!
//! After Gao and Long, "RaBitQ" (SIGMOD 2024), and its extension to more bits by Gao, Gou, Xu,
//! Yang, Long and Wong (SIGMOD 2025). With r a row's residual, of D components that are alike, and
//! o the point of the grid next to it, the product of r and a query's residual q is estimated
//! without bias by
//!
//! ```text
//! <r, q>  =~  |r|^2 / <o, r> * <o, q>
//! ```
//!
//! and off by a number whose standard deviation is close to
//! `|r| |q| sqrt((1 - a^2) / a^2) / sqrt(D - 1)` with `a = <r, o> / (|r| |o|)` (theorem 3.2). On a
//! grid of one bit o is the signs of r, halved.
//!
//! A component's place on the grid is a binary number, and o the sum of its digits, taken as signs,
//! times 1/2, 1, 2 and 4. So a code of two or four bits is a code of signs for a query that has
//! each component twice or four times, with these weights, and the sum over the digits is looked up
//! four at a time whatever their meaning
//! ([`Kernels::sign_bounds`](crate::simd::Kernels::sign_bounds)).
//!
//! A rank, with c the centroid and x the row, is
//!
//! | metric | of the query and the centroid | of the row | product |
//! |---|---|---|---|
//! | L2 | \|q - c\|^2 | \|r\|^2 | -2 <q - c, r> |
//! | cosine, on vectors of length one | \|q - c\|^2 / 2 | \|r\|^2 / 2 | -<q - c, r> |
//! | inner product | -<q, c> | -<c, r> | -<q - c, r> |
//!
//! With m any vector, the middle of all centroids for one, the sum is split:
//!
//! ```text
//! <o, q - c>  =  <o, q - m> - <o, c - m>
//! ```
//!
//! The second part is the row's own and goes into [`SignFactors::add`]; the first one takes the
//! same tables in every bucket. The farther the query is from m, the coarser are their steps, for
//! which [`Query::for_bucket`] makes up.
//!
//! Vectors may have more to them than the components with a code: a [`Projection`] leaves out
//! directions in which little happens ("MRQ", Yang, Li and Wang, 2024). Of that part, `x'` of a row
//! and `q'` of a query, only the lengths are known. The squares are added to the rank's terms; the
//! product `<q', x'>` is taken to be zero, which it is but for a standard deviation of
//! `|q'| |x'| / sqrt(n)`, n being [`Coding::beyond`]. That holds of rows like those the directions
//! were learned from; of one with more beyond than [`Coding::usual`] nothing is known but that the
//! product is at most `|q'| |x'|`, as if n were one. It has to be put, with the other deviation,
//! into one product of a number of the row and one of the query. For any w > 0
//!
//! ```text
//! e^2 |q - c|^2 + |x'|^2 |q'|^2 / n  <=  (e^2 + w |x'|^2) (|q - c|^2 + |q'|^2 / (w n))
//! ```
//!
//! of which the right side is least at about `w = sqrt((1 - a^2) / a^2 / (2 D n))` where rows and
//! queries are beyond by as much, and the query is sqrt(2) times as far from the centroid as a row.
//!
//! Inner products order rows alike whatever the query's length, so the query is brought to the
//! length of a typical centroid first, which keeps q - c short.
//!
//! [`Projection`]: super::Projection

mod narrow;
#[cfg(test)]
mod tests;

pub use narrow::{codes_bytes, copy_code, is_narrow, narrow, places, Widened};

use crate::metric::Metric;
use crate::simd::{
    kernels, sign_block_bytes, Grid, GridRow, GridSums, SignRows, SignTerms, SIGN_BLOCK, SIGN_GROUP,
};

/// Rotated vectors have a multiple of so many components: whole registers of tables.
pub const DIM_MULTIPLE: usize = 64;

/// Components of a rotated vector of `dim` dimensions that has a code.
pub const fn padded(dim: usize) -> usize {
    dim.next_multiple_of(DIM_MULTIPLE)
}

/// Standard deviations between a row's estimate and the bound that a search goes by.
pub const DEVIATIONS: f32 = 1.6;

/// The most bits a component's code may have.
pub const MOST_BITS: usize = 4;

/// Whether rows of an index have sign codes. Short vectors are as well off with their int8 codes,
/// and sums of absolutes cannot be told from a rotated vector.
pub fn are_used(metric: Metric, dim: usize) -> bool {
    metric != Metric::L1 && dim >= DIM_MULTIPLE
}

/// Bytes of the codes of a block of [`SIGN_BLOCK`] rows of so many bits.
pub const fn block_bytes(code_bits: usize) -> usize {
    sign_block_bytes(code_bits / SIGN_GROUP)
}

/// How components become bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coding {
    /// Components with a code.
    pub components: usize,
    /// Bits of each: 1, 2 or 4.
    pub bits: usize,
    /// How many directions the rest of a vector is spread over, about; zero where there is none.
    pub beyond: f32,
    /// The square up to which the rest of a row is that of a usual one.
    pub usual: f32,
}

/// A grid of so many bits for a component that is normally distributed with deviation one:
/// the best step, the mean square of the grid's points in steps, and the share of the square that
/// is missed (Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6, 1960, table II).
struct Quantizer {
    step: f32,
    mean_square: f32,
    missed: f32,
}

impl Coding {
    /// One bit for each of so many components, and nothing beyond.
    pub fn signs(components: usize) -> Coding {
        Coding { components, bits: 1, beyond: 0.0, usual: 0.0 }
    }

    /// Bits of a row's code.
    pub fn code_bits(&self) -> usize {
        self.components * self.bits
    }

    /// Whether there can be codes of this kind.
    pub fn is_sound(&self) -> bool {
        matches!(self.bits, 1 | 2 | 4)
            && self.components > 0
            && self.code_bits().is_multiple_of(DIM_MULTIPLE)
            && self.beyond >= 0.0
            && self.beyond.is_finite()
            && self.usual >= 0.0
    }

    /// The square of an estimate's deviation, for a row and a query at distance one from the
    /// centroid in the components with a code.
    pub fn variance(&self) -> f32 {
        let missed = self.grid().missed;
        missed / (1.0 - missed) / self.components as f32
    }

    fn grid(&self) -> Quantizer {
        match self.bits {
            1 => Quantizer {
                step: 1.0,
                mean_square: 0.25,
                missed: 1.0 - std::f32::consts::FRAC_2_PI,
            },
            2 => Quantizer { step: 0.9957, mean_square: 0.889, missed: 0.1188 },
            _ => Quantizer { step: 0.3352, mean_square: 8.797, missed: 0.01154 },
        }
    }

    /// The weight of what is beyond in a row's deviation.
    fn weight(&self) -> f32 {
        match self.beyond {
            0.0 => 0.0,
            beyond => (self.variance() / (2.0 * beyond)).sqrt(),
        }
    }
}

/// What is kept of a row beside its signs; see [`SignTerms`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignFactors {
    /// The row's own part of the rank.
    pub add: f32,
    /// Factor of the sum of the query's components with the row's signs.
    pub scale: f32,
    /// Standard deviation of the estimate, for a query at distance one from the centroid.
    pub error: f32,
}

impl SignFactors {
    /// Of a row of which nothing is known: its bound is below every rank.
    pub const UNKNOWN: SignFactors = SignFactors { add: f32::NEG_INFINITY, scale: 0.0, error: 0.0 };
    /// Of a place without a row: its bound is above every rank.
    pub const NO_ROW: SignFactors = SignFactors { add: f32::INFINITY, scale: 0.0, error: 0.0 };
}

/// A row that is to have a code.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// What is left of its components with a code when the centroid's are taken away. Under
    /// [`Metric::Cosine`] the row has length one.
    pub residual: &'a [f32],
    /// Those of the centroid.
    pub centroid: &'a [f32],
    /// What queries will be given.
    pub middle: &'a [f32],
    /// Squared length of what the row has beyond these components.
    pub beyond: f64,
}

/// Writes the code of a row to place `place` of its block, which held zeroes there.
///
/// # Panics
/// When the block or the row has another length than the coding's, or `place` is not in it.
pub fn encode(
    metric: Metric,
    coding: &Coding,
    row: &Row<'_>,
    block: &mut [u8],
    place: usize,
) -> SignFactors {
    let Row { residual, centroid, middle, beyond } = *row;
    assert!(residual.len() == coding.components, "components of a code");
    assert!(block.len() == block_bytes(coding.code_bits()) && place < SIGN_BLOCK, "place");
    let k = kernels();
    let squares = (k.inner_product)(residual, residual);
    let dim = residual.len() as f64;
    let grid = coding.grid();
    let inverse = match squares {
        0.0 => 0.0,
        _ => 1.0 / (grid.step * (squares / residual.len() as f32).sqrt()),
    };
    let (half, top) = ((1 << (coding.bits - 1)) as f32, (1 << coding.bits) - 1);
    let (column, upper) = (place % 16, place / 16 * SIGN_GROUP);
    let (mut few, mut many) = ([0; FEW], Vec::new());
    let digits = match few.get_mut(..residual.len()) {
        Some(digits) => digits,
        None => {
            many.resize(residual.len(), 0);
            &mut many
        }
    };
    let row = GridRow { residual, centroid, middle };
    let sums = (k.grid)(row, &Grid { inverse, half, top }, digits);
    match coding.bits {
        1 => put_digits::<4>(digits, block, column, upper),
        2 => put_digits::<2>(digits, block, column, upper),
        _ => put_digits::<1>(digits, block, column, upper),
    }
    let GridSums { along, lengths, product, shifted } = sums;
    let [squares, along, lengths] = [squares, along, lengths].map(f64::from);
    let [product, shifted] = [product, shifted].map(f64::from);
    let (add, factor) = match metric {
        Metric::L2 | Metric::L1 => (squares + beyond, 2.0),
        Metric::Cosine => ((squares + beyond) / 2.0, 1.0),
        Metric::InnerProduct => (-product, 1.0),
    };
    let (mut scale, mut variance) = (0.0, 0.0);
    if squares != 0.0 {
        scale = -factor * squares / along;
        let alignment = along * along / (lengths * squares);
        variance = squares * (1.0 / alignment - 1.0).max(0.0) / (dim - 1.0);
    }
    let is_usual = beyond <= f64::from(coding.usual);
    let directions = if is_usual { 1.0 } else { f64::from(coding.beyond) };
    let variance = variance + f64::from(coding.weight()) * beyond * directions;
    let factors = SignFactors {
        add: (add - scale * shifted) as f32,
        scale: scale as f32,
        error: (factor * variance.sqrt()) as f32,
    };
    let known = [factors.add, factors.scale, factors.error].iter().all(|x| x.is_finite());
    if known {
        factors
    } else {
        SignFactors::UNKNOWN
    }
}

/// Components whose digits are on the stack.
const FEW: usize = 512;

/// Puts digits into a column of a block, in the lower or the upper half of its bytes: `IN_GROUP`
/// are a group's.
fn put_digits<const IN_GROUP: usize>(digits: &[u8], block: &mut [u8], column: usize, upper: usize) {
    let groups = block.as_chunks_mut::<16>().0.iter_mut();
    for (group, digits) in groups.zip(digits.as_chunks::<IN_GROUP>().0) {
        let bits =
            digits.iter().rev().fold(0, |bits, digit| bits << (SIGN_GROUP / IN_GROUP) | digit);
        group[column] |= bits << upper;
    }
}

/// A query, prepared once for all buckets.
#[derive(Clone, Debug)]
pub struct Query {
    metric: Metric,
    /// Its components with a code; under inner product of a centroid's typical length.
    values: Vec<f32>,
    /// Factor that undoes a change of length in the ranks.
    weight: f32,
    /// Of `values` less the middle.
    tables: Vec<u8>,
    step: f32,
    /// What the product with a grid's point is when all entries are zero.
    shift: f32,
    /// Square of a distance between query and centroid at which codes are off by as much as the
    /// tables are.
    coarseness: f32,
    /// Square of what the query has beyond `values`.
    beyond: f32,
    /// The same for the deviation of what codes say.
    reach_beyond: f32,
}

impl Query {
    /// Prepares a query of which `values` are the components with a code, and `beyond` the squared
    /// length of the rest; under [`Metric::Cosine`] it has length one. `typical` is the length of a
    /// typical centroid; it only matters under [`Metric::InnerProduct`]. `middle` is that of the
    /// codes.
    pub fn new(
        metric: Metric,
        coding: &Coding,
        values: &[f32],
        beyond: f32,
        typical: f32,
        middle: &[f32],
    ) -> Query {
        let (mut values, mut beyond) = (values.to_vec(), beyond);
        let mut weight = 1.0;
        if metric == Metric::InnerProduct {
            let stretch = typical / (kernels().inner_product)(&values, &values).sqrt();
            if stretch.is_normal() && (1.0 / stretch).is_normal() {
                values.iter_mut().for_each(|x| *x *= stretch);
                beyond *= stretch * stretch;
                weight = 1.0 / stretch;
            }
        }
        let mut digits = Vec::with_capacity(coding.code_bits());
        for (x, m) in values.iter().zip(middle) {
            let mut digit = 0.5 * (x - m);
            for _ in 0..coding.bits {
                digits.push(digit);
                digit *= 2.0;
            }
        }
        let mut tables = vec![0; digits.len() / SIGN_GROUP * 16];
        let scale = (kernels().sign_tables)(&digits, &mut tables);
        let step = 2.0 * scale.step;
        // Each entry is off by up to half a step, so the sum of T has a variance of T / 12 step^2;
        // that of a row's code is (1 - a^2) |o|^2 / D |q - c|^2 in the same unit.
        let Quantizer { mean_square, missed, .. } = coding.grid();
        let entries = (digits.len() / SIGN_GROUP) as f32;
        let coarseness = step * step * entries / (12.0 * mean_square * missed);
        let reach_beyond = match coding.beyond {
            0.0 => 0.0,
            directions => beyond / (coding.weight() * directions),
        };
        Query {
            metric,
            values,
            weight,
            tables,
            step,
            shift: 2.0 * scale.least - digits.iter().sum::<f32>(),
            coarseness,
            beyond,
            reach_beyond,
        }
    }

    /// Prepares the query for the rows of the bucket with this centroid, of which at least the
    /// components with a code are given; a bound will be `deviations` standard deviations below the
    /// estimate. None when nothing can be said.
    ///
    /// # Panics
    /// When the centroid has fewer components.
    pub fn for_bucket(&self, centroid: &[f32], deviations: f32) -> Option<SignTerms> {
        let centroid = &centroid[..self.values.len()];
        let square = (kernels().l2_squared)(&self.values, centroid);
        let base = match self.metric {
            Metric::L2 | Metric::L1 => square + self.beyond,
            Metric::Cosine => (square + self.beyond) / 2.0,
            Metric::InnerProduct => -(kernels().inner_product)(&self.values, centroid),
        };
        let terms = SignTerms {
            base: base * self.weight,
            weight: self.weight,
            step: self.step,
            shift: self.shift,
            reach: deviations * (square + self.coarseness + self.reach_beyond).sqrt(),
        };
        let parts = [terms.base, terms.weight, terms.step, terms.shift, terms.reach];
        parts.iter().all(|x| x.is_finite()).then_some(terms)
    }

    /// Writes the bounds of the rows of whole blocks to `out`, with the terms that
    /// [`Query::for_bucket`] returned last. The processor is asked for the bytes `ahead` meanwhile.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn bounds(
        &self,
        terms: &SignTerms,
        rows: &SignRows<'_>,
        codes: &[u8],
        ahead: &[u8],
        out: &mut [f32],
    ) {
        (kernels().sign_bounds)(&self.tables, codes, rows, terms, ahead, out);
    }
}
