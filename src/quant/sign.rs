//! One bit a component: the sign of each component of a rotated residual.
//!
//! After Gao and Long, "RaBitQ" (SIGMOD 2024). With r a row's residual and x = sign(r) / sqrt(D),
//! the product of r and a query's residual q is estimated without bias by
//!
//! ```text
//! <r, q>  =~  |r|^2 / sum|r_i| * sum(sign(r_i) * q_i)
//! ```
//!
//! and off by a number whose standard deviation is close to
//! `|r| |q| sqrt((1 - a^2) / a^2) / sqrt(D - 1)` with `a = <r / |r|, x> = sum|r_i| / (sqrt(D) |r|)`
//! (theorem 3.2). The sum over a query's components is looked up four at a time
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
//! sum(sign(r_i) * (q_i - c_i))  =  sum(sign(r_i) * (q_i - m_i)) - sum(sign(r_i) * (c_i - m_i))
//! ```
//!
//! The second part is the row's own and goes into [`SignFactors::add`]; the first one takes the
//! same tables in every bucket. The farther the query is from m, the coarser are their steps, for
//! which [`Query::for_bucket`] makes up.
//!
//! Inner products order rows alike whatever the query's length, so the query is brought to the
//! length of a typical centroid first, which keeps q - c short.

use crate::metric::Metric;
use crate::simd::{kernels, sign_block_bytes, SignRows, SignTerms, SIGN_BLOCK, SIGN_GROUP};

/// Rotated vectors have a multiple of so many components: whole registers of tables.
pub const DIM_MULTIPLE: usize = 64;

/// Whether rows of an index have sign codes. Short vectors are as well off with their int8 codes,
/// and sums of absolutes cannot be told from a rotated vector.
pub fn are_used(metric: Metric, dim: usize) -> bool {
    metric != Metric::L1 && dim >= DIM_MULTIPLE
}

/// Bytes of the codes of a block of [`SIGN_BLOCK`] rows of `padded` components.
pub const fn block_bytes(padded: usize) -> usize {
    sign_block_bytes(padded / SIGN_GROUP)
}

/// The share of a random direction's square that its signs miss: 1 - 2 / pi.
const MISSED: f32 = 1.0 - std::f32::consts::FRAC_2_PI;

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

/// Writes the signs of a residual to place `place` of its block, which held zeroes there.
///
/// `residual` is what [`encode`](super::encode) left in its scratch: of a rotated row, under
/// [`Metric::Cosine`] brought to length one. `middle` is what queries will be given.
///
/// # Panics
/// When the block has another length than [`block_bytes`], or `place` is not in it.
pub fn encode(
    metric: Metric,
    residual: &[f64],
    centroid: &[f32],
    middle: &[f32],
    block: &mut [u8],
    place: usize,
) -> SignFactors {
    assert!(block.len() == block_bytes(residual.len()) && place < SIGN_BLOCK, "place in a block");
    let (mut squares, mut absolutes, mut product, mut signed) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for ((&r, &c), &m) in residual.iter().zip(centroid).zip(middle) {
        squares += r * r;
        absolutes += r.abs();
        product += r * f64::from(c);
        let shift = f64::from(c) - f64::from(m);
        signed += if r > 0.0 { shift } else { -shift };
    }
    let (row, half) = (place % 16, place / 16 * SIGN_GROUP);
    for (codes, group) in block.as_chunks_mut::<16>().0.iter_mut().zip(residual.chunks(SIGN_GROUP))
    {
        let bits = group.iter().rev().fold(0u8, |bits, r| bits << 1 | u8::from(*r > 0.0));
        codes[row] |= bits << half;
    }
    if absolutes == 0.0 {
        return SignFactors { add: 0.0, scale: 0.0, error: 0.0 };
    }
    let dim = residual.len() as f64;
    let alignment = absolutes * absolutes / (dim * squares);
    let deviation = (squares * (1.0 / alignment - 1.0).max(0.0) / (dim - 1.0)).sqrt();
    let (add, factor) = match metric {
        Metric::L2 | Metric::L1 => (squares, 2.0),
        Metric::Cosine => (squares / 2.0, 1.0),
        Metric::InnerProduct => (-product, 1.0),
    };
    let scale = -factor * squares / absolutes;
    let factors = SignFactors {
        add: (add - scale * signed) as f32,
        scale: scale as f32,
        error: (factor * deviation) as f32,
    };
    let known = [factors.add, factors.scale, factors.error].iter().all(|x| x.is_finite());
    if known {
        factors
    } else {
        SignFactors::UNKNOWN
    }
}

/// A query, prepared once for all buckets.
#[derive(Clone, Debug)]
pub struct Query {
    metric: Metric,
    /// Rotated; of length one under cosine, of a centroid's typical one under inner product.
    values: Vec<f32>,
    /// Factor that undoes a change of length in the ranks.
    weight: f32,
    /// Of `values` less the middle.
    tables: Vec<u8>,
    step: f32,
    /// What the product with a row's signs is when all entries are zero.
    shift: f32,
    /// Square of a distance between query and centroid at which sign codes are off by as much as
    /// the tables are.
    coarseness: f32,
}

impl Query {
    /// Prepares a rotated query, which under [`Metric::Cosine`] has length one. `typical` is the
    /// length of a typical centroid; it only matters under [`Metric::InnerProduct`]. `middle` is
    /// that of the codes.
    pub fn new(metric: Metric, rotated: &[f32], typical: f32, middle: &[f32]) -> Query {
        let mut values = rotated.to_vec();
        let mut weight = 1.0;
        if metric == Metric::InnerProduct {
            let stretch = typical / (kernels().inner_product)(rotated, rotated).sqrt();
            if stretch.is_normal() && (1.0 / stretch).is_normal() {
                values.iter_mut().for_each(|x| *x *= stretch);
                weight = 1.0 / stretch;
            }
        }
        let shifted: Vec<f32> = values.iter().zip(middle).map(|(x, m)| x - m).collect();
        let mut tables = vec![0; rotated.len() / SIGN_GROUP * 16];
        let scale = (kernels().sign_tables)(&shifted, &mut tables);
        let step = 2.0 * scale.step;
        // Each of D / 4 entries is off by up to half a step, so the sum has a variance of
        // D / 48 step^2; that of a row's code is (1 - a^2) |q - c|^2 in the same unit, and a^2 is
        // close to 2 / pi.
        let coarseness = step * step * rotated.len() as f32 / (48.0 * MISSED);
        Query {
            metric,
            values,
            weight,
            tables,
            step,
            shift: 2.0 * scale.least - shifted.iter().sum::<f32>(),
            coarseness,
        }
    }

    /// Prepares the query for the rows of the bucket with this rotated centroid; a bound will be
    /// `deviations` standard deviations below the estimate. None when nothing can be said.
    pub fn for_bucket(&self, centroid: &[f32], deviations: f32) -> Option<SignTerms> {
        let square = (kernels().l2_squared)(&self.values, centroid);
        let base = match self.metric {
            Metric::L2 | Metric::L1 => square,
            Metric::Cosine => square / 2.0,
            Metric::InnerProduct => -(kernels().inner_product)(&self.values, centroid),
        };
        let terms = SignTerms {
            base: base * self.weight,
            weight: self.weight,
            step: self.step,
            shift: self.shift,
            reach: deviations * (square + self.coarseness).sqrt(),
        };
        let parts = [terms.base, terms.weight, terms.step, terms.shift, terms.reach];
        parts.iter().all(|x| x.is_finite()).then_some(terms)
    }

    /// Writes the bounds of the rows of whole blocks to `out`, with the terms that
    /// [`Query::for_bucket`] returned last.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn bounds(&self, terms: &SignTerms, rows: SignRows<'_>, codes: &[u8], out: &mut [f32]) {
        (kernels().sign_bounds)(&self.tables, codes, rows, terms, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{self as quant, Rotation};
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    /// Ranks and bounds of 320 random rows about a centroid far from the origin.
    fn trial(metric: Metric, dim: usize, deviations: f32, length: f32) -> Vec<(f64, f32)> {
        trial_about(metric, dim, deviations, length, 0.5)
    }

    /// The same; the middle is so much of the centroid.
    fn trial_about(
        metric: Metric,
        dim: usize,
        deviations: f32,
        length: f32,
        middle: f32,
    ) -> Vec<(f64, f32)> {
        let mut rng = SmallRng::seed_from_u64(dim as u64);
        let rotation = Rotation::new(metric, dim);
        let centre: Vec<f32> = (0..dim).map(|_| rng.random_range(-2.0..2.0)).collect();
        let mut draw = |spread: f32| -> Vec<f32> {
            // Few components carry most of the residual, as in real data before it is rotated.
            let heavy = |i: usize| if i.is_multiple_of(16) { spread } else { spread / 8.0 };
            (0..dim).map(|i| centre[i] + rng.random_range(-1.0..1.0) * heavy(i)).collect()
        };
        let rows: Vec<Vec<f32>> = (0..10 * SIGN_BLOCK).map(|_| draw(1.0)).collect();
        let query: Vec<f32> = draw(1.0).iter().map(|x| x * length).collect();
        let mut routed = query.clone();
        let mut unit_centre = centre.clone();
        if metric == Metric::Cosine {
            quant::normalize(&query, &mut routed);
            quant::normalize(&centre, &mut unit_centre);
        }
        let turn = |vector: &[f32]| {
            let mut out = vec![0.0; rotation.padded()];
            rotation.rotate(vector, &mut out);
            out
        };
        let centroid = turn(&unit_centre);
        let typical = (kernels().inner_product)(&centroid, &centroid).sqrt();
        let middle: Vec<f32> = centroid.iter().map(|c| c * middle).collect();
        let bytes = block_bytes(rotation.padded());
        let mut codes = vec![0; rows.len() / SIGN_BLOCK * bytes];
        let (mut scratch, mut int8) = (Vec::new(), vec![0; rotation.padded()]);
        let factors: Vec<SignFactors> = rows
            .iter()
            .enumerate()
            .map(|(nth, row)| {
                quant::encode(metric, &turn(row), &centroid, 0.0, &mut scratch, &mut int8);
                let block = &mut codes[nth / SIGN_BLOCK * bytes..][..bytes];
                encode(metric, &scratch, &centroid, &middle, block, nth % SIGN_BLOCK)
            })
            .collect();
        let column = |part: fn(&SignFactors) -> f32| factors.iter().map(part).collect::<Vec<_>>();
        let (add, scale, error) = (column(|f| f.add), column(|f| f.scale), column(|f| f.error));
        let prepared = Query::new(metric, &turn(&routed), typical, &middle);
        let terms = prepared.for_bucket(&centroid, deviations).unwrap();
        let mut out = vec![f32::NAN; rows.len()];
        let columns = SignRows { add: &add, scale: &scale, error: &error };
        prepared.bounds(&terms, columns, &codes, &mut out);
        rows.iter().zip(out).map(|(row, bound)| (metric.rank(&query, row), bound)).collect()
    }

    #[test]
    fn bounds_lie_as_far_below_ranks_as_asked_for() {
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
            for dim in [64, 100, 128, 384, 1100] {
                for length in [1.0, 0.01, 40.0] {
                    let estimates = trial(metric, dim, 0.0, length);
                    let bounds = trial(metric, dim, 3.0, length);
                    let above =
                        bounds.iter().filter(|(rank, bound)| f64::from(*bound) > *rank).count();
                    assert!(
                        above * 50 <= bounds.len(),
                        "{metric:?} {dim}: {above} bounds too high"
                    );
                    // Without bias, about as many estimates are above as are below.
                    let above =
                        estimates.iter().filter(|(rank, got)| f64::from(*got) > *rank).count();
                    let share = above as f64 / estimates.len() as f64;
                    assert!(
                        (0.25..0.75).contains(&share),
                        "{metric:?} {dim} {length}: {share} above"
                    );
                    let gap = |pairs: &[(f64, f32)]| {
                        pairs
                            .iter()
                            .map(|(rank, got)| (rank - f64::from(*got)).powi(2))
                            .sum::<f64>()
                            .sqrt()
                    };
                    let ratio = gap(&bounds) / gap(&estimates);
                    assert!((1.8..6.0).contains(&ratio), "{metric:?} {dim}: {ratio}");
                }
            }
        }
    }

    #[test]
    fn estimates_scatter_about_ranks_by_the_deviation_named() {
        for dim in [64, 100, 128, 384, 1024, 1100, 1536] {
            let estimates = trial(Metric::L2, dim, 0.0, 1.0);
            let bounds = trial(Metric::L2, dim, 1.0, 1.0);
            let scores: Vec<f64> = estimates
                .iter()
                .zip(&bounds)
                .map(|((rank, got), (_, bound))| (f64::from(*got) - rank) / f64::from(got - bound))
                .collect();
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            let square = scores.iter().map(|x| x * x).sum::<f64>() / scores.len() as f64;
            assert!(mean.abs() < 0.2, "{dim}: {mean}");
            assert!((0.7..1.3).contains(&square.sqrt()), "{dim}: {}", square.sqrt());
        }
    }

    #[test]
    fn bounds_hold_however_far_the_middle_is() {
        for (metric, dim) in [(Metric::L2, 128), (Metric::Cosine, 384), (Metric::L2, 1100)] {
            for middle in [1.0, 0.0, -20.0, -400.0] {
                let bounds = trial_about(metric, dim, 3.0, 1.0, middle);
                let above = bounds.iter().filter(|(rank, got)| f64::from(*got) > *rank).count();
                assert!(above * 50 <= bounds.len(), "{metric:?} {dim} {middle}: {above} too high");
                let infinite = bounds.iter().any(|(_, bound)| !bound.is_finite());
                assert!(!infinite, "{metric:?} {dim} {middle}");
            }
        }
    }

    #[test]
    fn what_cannot_be_known_is_below_every_rank() {
        let mut block = vec![0; block_bytes(64)];
        let residual = vec![f64::INFINITY; 64];
        let factors = encode(Metric::L2, &residual, &[0.0; 64], &[0.0; 64], &mut block, 3);
        assert_eq!(factors, SignFactors::UNKNOWN);
        let query = Query::new(Metric::L2, &[f32::NAN; 64], 1.0, &[0.0; 64]);
        assert_eq!(query.for_bucket(&[0.0; 64], 1.0), None);
        let query = Query::new(Metric::InnerProduct, &[0.0; 64], 1.0, &[0.0; 64]);
        assert!(query.for_bucket(&[1.0; 64], 1.0).is_some());
    }

    #[test]
    fn a_row_at_its_centroid_has_an_exact_bound() {
        let mut block = vec![0; block_bytes(64)];
        let factors = encode(Metric::L2, &[0.0; 64], &[0.0; 64], &[1.0; 64], &mut block, 31);
        assert_eq!(factors, SignFactors { add: 0.0, scale: 0.0, error: 0.0 });
    }
}
