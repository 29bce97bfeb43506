//! Estimates from int8 codes in single precision, for searches that need not be exact.
//!
//! The formulae are those of [`BucketQuery::estimate`](super::BucketQuery::estimate), without what
//! makes its bounds certain: rounding is left out of account, and what the query's codes miss, where
//! it has any, is taken to be as long as that of evenly spread values.

use super::{stride, Estimate, Factors};
use crate::metric::Metric;
use crate::simd::kernels;

/// Whether estimates of this metric can be had: codes say as much of sums of absolutes, but there
/// the certain bounds are as good as any.
pub fn is_supported(metric: Metric) -> bool {
    metric != Metric::L1
}

/// A query, prepared once for all buckets.
#[derive(Clone, Debug)]
pub struct Query {
    metric: Metric,
    /// Rotated, of length one under cosine.
    values: Vec<f32>,
    square: f32,
    /// Share of a bound's worst case that is allowed for.
    confidence: f32,
    /// Codes of `values`, and the step between them.
    codes: Vec<i8>,
    scale: f32,
    /// Length of what these codes miss.
    missed: f32,
}

impl Query {
    /// Prepares a rotated query, which under [`Metric::Cosine`] has length one. `confidence` is as
    /// for [`BucketQuery::estimate`](super::BucketQuery::estimate).
    pub fn new(metric: Metric, rotated: &[f32], confidence: f32) -> Query {
        let values = rotated.to_vec();
        let mut codes = vec![0; stride(values.len())];
        let k = kernels();
        let scale = (k.quantize)(&values, &vec![0.0; values.len()], &mut codes[..values.len()]);
        // A rounding error has a variance of a twelfth of a step squared.
        let missed = scale * (values.len() as f32 / 12.0).sqrt();
        let square = (k.inner_product)(&values, &values);
        Query { metric, values, square, confidence, codes, scale, missed }
    }

    /// The rank of the rotated centroid of a bucket.
    pub fn rank(&self, centroid: &[f32]) -> f32 {
        let k = kernels();
        match self.metric {
            Metric::L2 | Metric::L1 => (k.l2_squared)(&self.values, centroid),
            Metric::InnerProduct => -(k.inner_product)(&self.values, centroid),
            Metric::Cosine => 1.0 - (k.inner_product)(&self.values, centroid),
        }
    }

    /// Estimates the rank of a row of the bucket with this rotated centroid, whose own rank is
    /// known. The bound holds with the wanted confidence.
    pub fn estimate(
        &self,
        (rank, centroid): (f32, &[f32]),
        factors: &Factors,
        codes: &[i8],
    ) -> Estimate {
        let (value, lower) = match self.metric {
            Metric::L2 | Metric::L1 => {
                // Few rows of a bucket are looked at: codes of the query for each are not worth it.
                let product = (kernels().residual_i8)(&self.values, centroid, codes);
                let square = rank + factors.norm - 2.0 * factors.scale * product;
                let distance = square.max(0.0).sqrt() - self.confidence * factors.error;
                // What is no number stays none, whatever the maxima hide.
                let value = square.max(0.0) + factors.error * factors.error + square * 0.0;
                (value, distance.max(0.0).powi(2))
            }
            Metric::InnerProduct | Metric::Cosine => {
                let mut dot = [0];
                (kernels().dot_i8_rows)(&self.codes, codes, codes.len(), &mut dot);
                let value = rank - self.scale * factors.scale * dot[0] as f32;
                let slack = self.square.sqrt() * factors.error + self.missed * factors.norm.sqrt();
                (value, value - self.confidence * slack)
            }
        };
        if value.is_finite() && lower.is_finite() {
            Estimate { value, lower }
        } else {
            Estimate::UNKNOWN
        }
    }
}

/// Rows whose bounds are computed side by side.
const RUN: usize = 64;

impl Query {
    /// Appends the bounds of neighbouring rows to `out`, whose codes were taken about zero. A row of
    /// which nothing is known has one below every rank.
    ///
    /// # Panics
    /// When `codes` does not hold [`stride`] bytes for each of the factors.
    pub fn bounds(&self, factors: &[Factors], codes: &[i8], out: &mut Vec<f32>) {
        let stride = self.codes.len();
        assert_eq!(codes.len(), factors.len() * stride, "codes of every row");
        let length = self.square.sqrt();
        let mut dots = [0i32; RUN];
        let (mut scales, mut norms, mut errors) = ([0.0f32; RUN], [0.0f32; RUN], [0.0f32; RUN]);
        for (factors, codes) in factors.chunks(RUN).zip(codes.chunks(RUN * stride)) {
            let dots_here = &mut dots[..factors.len()];
            (kernels().dot_i8_rows)(&self.codes, codes, stride, dots_here);
            for (nth, row) in factors.iter().enumerate() {
                (scales[nth], norms[nth], errors[nth]) = (row.scale, row.norm, row.error);
            }
            let mut bounds = [0.0f32; RUN];
            for nth in 0..RUN {
                let factors = Factors { scale: scales[nth], norm: norms[nth], error: errors[nth] };
                bounds[nth] = self.bound(length, &factors, dots[nth]);
            }
            out.extend_from_slice(&bounds[..factors.len()]);
        }
    }

    /// As [`Query::bounds`], of one row.
    pub fn bound_of(&self, factors: &Factors, codes: &[i8]) -> f32 {
        let mut dot = [0];
        (kernels().dot_i8_rows)(&self.codes, codes, codes.len(), &mut dot);
        self.bound(self.square.sqrt(), factors, dot[0])
    }

    /// The bound of a row from the product of its codes and the query's, whose length is given.
    #[inline(always)]
    fn bound(&self, length: f32, factors: &Factors, dot: i32) -> f32 {
        let Factors { scale, norm, error } = *factors;
        let product = self.scale * scale * dot as f32;
        let missed = self.missed * norm.sqrt();
        let bound = match self.metric {
            Metric::L2 | Metric::L1 => {
                let square = self.square + norm - 2.0 * product;
                let slack = 2.0 * self.confidence * missed;
                let distance = (square - slack).max(0.0).sqrt() - self.confidence * error;
                let distance = distance.max(0.0);
                distance * distance
            }
            Metric::InnerProduct => -product - self.confidence * (length * error + missed),
            Metric::Cosine => 1.0 - product - self.confidence * (length * error + missed),
        };
        if bound.is_finite() {
            bound
        } else {
            f32::NEG_INFINITY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{self as quant, Rotation};
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    #[test]
    fn bounds_of_many_rows_are_just_below_the_estimates_of_each() {
        let mut rng = SmallRng::seed_from_u64(6);
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            for (dim, rows) in [(3, 1), (16, 63), (100, 64), (128, 200)] {
                let mut draw =
                    || -> Vec<f32> { (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let zero = vec![0.0; dim];
                let mut query = vec![0.0; dim];
                quant::normalize(&draw(), &mut query);
                let query = Query::new(metric, &query, 0.3);
                let stride = stride(dim);
                let mut codes = vec![0; rows * stride];
                let factors: Vec<Factors> = codes
                    .chunks_exact_mut(stride)
                    .enumerate()
                    .map(|(nth, codes)| {
                        let mut row = draw();
                        if nth == 7 {
                            row[0] = f32::INFINITY;
                        }
                        quant::encode(metric, &row, &zero, 0.0, &mut Vec::new(), codes)
                    })
                    .collect();
                let mut bounds = vec![5.0];
                query.bounds(&factors, &codes, &mut bounds);
                assert_eq!(bounds.len(), rows + 1);
                let each = factors.iter().zip(codes.chunks_exact(stride)).zip(&bounds[1..]);
                let about = (query.rank(&zero), &zero[..]);
                for (nth, ((factors, codes), bound)) in each.enumerate() {
                    let Estimate { value, lower } = query.estimate(about, factors, codes);
                    let what = format!("{metric:?} {dim}: row {nth}, {bound} of {lower}");
                    assert_eq!(*bound, query.bound_of(factors, codes), "{what}");
                    if factors.error.is_infinite() {
                        let least = if metric == Metric::L2 { 0.0 } else { f32::NEG_INFINITY };
                        assert_eq!((lower, *bound), (f32::NEG_INFINITY, least), "{what}");
                        continue;
                    }
                    // The codes of the query miss something, which is allowed for under L2.
                    let apart = (2.0 * query.missed * factors.norm.sqrt()).max(1e-5);
                    assert!((lower - bound).abs() <= apart, "{what}");
                    assert!(*bound <= value, "{what}");
                }
            }
        }
    }

    #[test]
    fn estimates_are_close_to_ranks_and_bounds_just_below() {
        let mut rng = SmallRng::seed_from_u64(4);
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            for dim in [64, 100, 384] {
                let rotation = Rotation::new(metric, dim);
                let mut draw =
                    || -> Vec<f32> { (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let turn = |vector: &[f32]| {
                    let mut out = vec![0.0; rotation.padded()];
                    rotation.rotate(vector, &mut out);
                    out
                };
                let mut unit = vec![0.0; dim];
                let (centre, query) = (draw(), draw());
                let mut routed = query.clone();
                if metric == Metric::Cosine {
                    quant::normalize(&query, &mut routed);
                }
                quant::normalize(&centre, &mut unit);
                let centroid = turn(&unit);
                let confidence = 3.0 / (dim as f32).sqrt();
                let prepared = Query::new(metric, &turn(&routed), confidence);
                let about = (prepared.rank(&centroid), &centroid[..]);
                let (mut above, mut off, mut slack) = (0, 0.0, 0.0);
                for _ in 0..300 {
                    let row = draw();
                    let mut codes = vec![0; stride(rotation.padded())];
                    let factors = quant::encode(
                        metric,
                        &turn(&row),
                        &centroid,
                        0.0,
                        &mut Vec::new(),
                        &mut codes,
                    );
                    let got = prepared.estimate(about, &factors, &codes);
                    let rank = metric.rank(&query, &row);
                    above += u32::from(f64::from(got.lower) > rank);
                    off += (f64::from(got.value) - rank).abs();
                    slack += rank - f64::from(got.lower);
                }
                assert!(above <= 3, "{metric:?} {dim}: {above} bounds above the rank");
                assert!(slack > 1.5 * off && slack < 12.0 * off, "{metric:?} {dim}: {slack} {off}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_unknown() {
        let zero = &[0.0; 64][..];
        let query = Query::new(Metric::L2, &[f32::NAN; 64], 0.5);
        let factors = Factors { scale: 1.0, norm: 1.0, error: 0.1 };
        let about = (query.rank(zero), zero);
        assert_eq!(query.estimate(about, &factors, &[1; 64]), Estimate::UNKNOWN);
        let query = Query::new(Metric::L2, &[1.0; 64], 0.5);
        let about = (query.rank(zero), zero);
        assert_eq!(query.estimate(about, &Factors::UNKNOWN, &[0; 64]), Estimate::UNKNOWN);
    }
}
