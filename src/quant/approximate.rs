//! Estimates from int8 codes in single precision, for searches that need not be exact.
//!
//! The formulae are those of [`BucketQuery::estimate`](super::BucketQuery::estimate), without what
//! makes its bounds certain: rounding is left out of account, and what the query's codes miss is
//! taken to be as long as that of evenly spread values.

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
    length: f32,
    /// Share of a bound's worst case that is allowed for.
    confidence: f32,
    /// For the metrics that do not shift the query by the centroid.
    own: BucketQuery,
}

/// A query, prepared for the rows of one bucket.
#[derive(Clone, Debug, Default)]
pub struct BucketQuery {
    codes: Vec<i8>,
    scale: f32,
    /// The rank of the centroid.
    base: f32,
    /// Length of what the codes miss.
    missed: f32,
}

impl Query {
    /// Prepares a rotated query, which under [`Metric::Cosine`] has length one. `confidence` is as
    /// for [`BucketQuery::estimate`](super::BucketQuery::estimate).
    pub fn new(metric: Metric, rotated: &[f32], confidence: f32) -> Query {
        let mut own = BucketQuery::default();
        let zeroes = vec![0.0; rotated.len()];
        let square = own.quantize(rotated, &zeroes);
        Query { metric, values: rotated.to_vec(), length: square.sqrt(), confidence, own }
    }

    /// Prepares the query for the rows of the bucket with this rotated centroid; the buffers of
    /// `bucket` are used again.
    pub fn for_bucket(&self, centroid: &[f32], bucket: &mut BucketQuery) {
        let product = || (kernels().inner_product)(&self.values, centroid);
        match self.metric {
            Metric::L2 | Metric::L1 => bucket.base = bucket.quantize(&self.values, centroid),
            Metric::InnerProduct | Metric::Cosine => {
                bucket.clone_from(&self.own);
                bucket.base = if self.metric == Metric::Cosine { 1.0 } else { 0.0 } - product();
            }
        }
    }

    /// Estimates the rank of a row of the bucket. Its bound holds with the wanted confidence.
    pub fn estimate(&self, bucket: &BucketQuery, factors: &Factors, codes: &[i8]) -> Estimate {
        let mut dot = [0];
        (kernels().dot_i8_rows)(&bucket.codes, codes, codes.len(), &mut dot);
        let product = bucket.scale * factors.scale * dot[0] as f32;
        let root = factors.norm.sqrt();
        let (value, lower) = match self.metric {
            Metric::L2 | Metric::L1 => {
                let square = bucket.base + factors.norm - 2.0 * product;
                let slack = 2.0 * self.confidence * bucket.missed * root;
                let distance = (square - slack).max(0.0).sqrt() - self.confidence * factors.error;
                // What is no number stays none, whatever the maxima hide.
                let value = square.max(0.0) + factors.error * factors.error + square * 0.0;
                (value, distance.max(0.0).powi(2))
            }
            Metric::InnerProduct | Metric::Cosine => {
                let value = bucket.base - product;
                let slack = self.length * factors.error + bucket.missed * root;
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
    /// Appends the bounds of neighbouring rows to `out`: those of [`Query::estimate`], faster. A
    /// row of which nothing is known has one below every rank.
    ///
    /// # Panics
    /// When `codes` does not hold [`stride`] bytes for each of the factors.
    pub fn bounds(
        &self,
        bucket: &BucketQuery,
        factors: &[Factors],
        codes: &[i8],
        out: &mut Vec<f32>,
    ) {
        let stride = bucket.codes.len();
        assert_eq!(codes.len(), factors.len() * stride, "codes of every row");
        let (confidence, base, missed) = (self.confidence, bucket.base, bucket.missed);
        let mut dots = [0i32; RUN];
        let (mut scales, mut norms, mut errors) = ([0.0f32; RUN], [0.0f32; RUN], [0.0f32; RUN]);
        for (factors, codes) in factors.chunks(RUN).zip(codes.chunks(RUN * stride)) {
            let dots_here = &mut dots[..factors.len()];
            (kernels().dot_i8_rows)(&bucket.codes, codes, stride, dots_here);
            for (nth, row) in factors.iter().enumerate() {
                (scales[nth], norms[nth], errors[nth]) = (row.scale, row.norm, row.error);
            }
            let mut bounds = [0.0f32; RUN];
            for nth in 0..RUN {
                let product = bucket.scale * scales[nth] * dots[nth] as f32;
                let root = norms[nth].sqrt();
                bounds[nth] = match self.metric {
                    Metric::L2 | Metric::L1 => {
                        let square = base + norms[nth] - 2.0 * product;
                        let slack = 2.0 * confidence * missed * root;
                        let distance = (square - slack).max(0.0).sqrt() - confidence * errors[nth];
                        let distance = distance.max(0.0);
                        distance * distance
                    }
                    Metric::InnerProduct | Metric::Cosine => {
                        base - product - confidence * (self.length * errors[nth] + missed * root)
                    }
                };
            }
            let known = |bound: f32| if bound.is_finite() { bound } else { f32::NEG_INFINITY };
            out.extend(bounds[..factors.len()].iter().map(|bound| known(*bound)));
        }
    }
}

impl BucketQuery {
    /// Makes the codes of `values - centroid` and returns its squared length.
    fn quantize(&mut self, values: &[f32], centroid: &[f32]) -> f32 {
        self.codes.resize(stride(values.len()), 0);
        let (codes, _) = self.codes.split_at_mut(values.len());
        self.scale = (kernels().quantize)(values, centroid, codes);
        // A rounding error has a variance of a twelfth of a step squared.
        self.missed = self.scale * (values.len() as f32 / 12.0).sqrt();
        (kernels().l2_squared)(values, centroid)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{self as quant, Rotation};
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    #[test]
    fn bounds_of_many_rows_are_those_of_each() {
        let mut rng = SmallRng::seed_from_u64(6);
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            for (dim, rows) in [(3, 1), (16, 63), (100, 64), (128, 200)] {
                let mut draw =
                    || -> Vec<f32> { (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let zero = vec![0.0; dim];
                let mut query = vec![0.0; dim];
                quant::normalize(&draw(), &mut query);
                let query = Query::new(metric, &query, 0.3);
                let mut bucket = BucketQuery::default();
                query.for_bucket(&zero, &mut bucket);
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
                query.bounds(&bucket, &factors, &codes, &mut bounds);
                assert_eq!(bounds.len(), rows + 1);
                let each = factors.iter().zip(codes.chunks_exact(stride)).zip(&bounds[1..]);
                for (nth, ((factors, codes), bound)) in each.enumerate() {
                    let lower = query.estimate(&bucket, factors, codes).lower;
                    let least = if metric == Metric::L2 { 0.0 } else { f32::NEG_INFINITY };
                    assert_eq!(*bound, lower.max(least), "{metric:?} {dim}: row {nth}");
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
                let mut bucket = BucketQuery::default();
                prepared.for_bucket(&centroid, &mut bucket);
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
                    let got = prepared.estimate(&bucket, &factors, &codes);
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
        let query = Query::new(Metric::L2, &[f32::NAN; 64], 0.5);
        let mut bucket = BucketQuery::default();
        query.for_bucket(&[0.0; 64], &mut bucket);
        let factors = Factors { scale: 1.0, norm: 1.0, error: 0.1 };
        assert_eq!(query.estimate(&bucket, &factors, &[1; 64]), Estimate::UNKNOWN);
        let query = Query::new(Metric::L2, &[1.0; 64], 0.5);
        query.for_bucket(&[0.0; 64], &mut bucket);
        assert_eq!(query.estimate(&bucket, &Factors::UNKNOWN, &[0; 64]), Estimate::UNKNOWN);
    }
}
