//! Scalar quantisation of residuals to int8, and the bounds it allows.
//!
//! Residuals, lengths and bounds are taken in f64, where the difference of two f32 is as good as
//! exact: a large common mean of rows, queries and centroids costs no precision here. What
//! remains is the rounding of the f32 kernels that compute the rank itself, for which the
//! standard bound holds in any order of summation (Higham, Accuracy and Stability of Numerical
//! Algorithms, section 3.1): n terms summed in f32 are within `n * ROUND` of the sum of their
//! absolutes, and each product below the normal range misses up to `TINY`.

use super::{stride, Estimate, Factors, MAX_DIM};
use crate::metric::Metric;
use crate::simd::{kernels, vectorised};

/// Half a unit in the last place of f32, relative, with room for terms of second order.
const ROUND: f64 = 1.01 / (1u64 << 24) as f64;
/// The smallest f32 above zero, 2^-149: twice what a rounding below the normal range loses.
const TINY: f64 = f32::from_bits(1) as f64;
/// Bounds the rounding of every f64 sum made here, relative to the sum of absolutes.
const ROUND_SUM: f64 = 1.0 / (1u64 << 36) as f64;
/// Bounds the rounding of one f64 subtraction, relative to its result.
const ROUND_STEP: f64 = 1.0 / (1u64 << 50) as f64;
/// Squared lengths and products of lengths up to this do not overflow in an f32 kernel.
const SAFE: f64 = f32::MAX as f64 / 2.0;
/// Largest code.
const TOP: f64 = 127.0;
/// Rows a block of inner products; they wait on the stack.
const BLOCK: usize = 256;

/// Sums `term` over two slices of one length, in eight lanes so that it can be vectorised.
#[inline(always)]
pub(super) fn sum<A: Copy, B: Copy>(a: &[A], b: &[B], term: impl Fn(A, B) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a.remainder().iter().zip(b.remainder()).map(|(&x, &y)| term(x, y)).sum();
    for (a, b) in a.zip(b) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(x, y);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// The largest absolute value; what is not a number is passed over.
#[inline(always)]
fn max_abs(values: &[f64]) -> f64 {
    let larger = |x: f64, y: f64| if y > x { y } else { x };
    let mut lanes = [0.0; 8];
    let chunks = values.chunks_exact(8);
    let tail = chunks.remainder().iter().fold(0.0, |m, v| larger(m, v.abs()));
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v.abs());
        }
    }
    lanes.into_iter().fold(tail, larger)
}

/// Writes the nearest codes of `values`, zeroes behind them, and returns their scale.
#[inline(always)]
fn quantize(values: &[f64], codes: &mut [i8]) -> f32 {
    // Added to a small number it leaves the nearest integer in the lowest bits of the sum, in two
    // instructions on every processor.
    const MAGIC: f64 = 1.5 * (1u64 << 52) as f64;
    let scale = (max_abs(values) / TOP) as f32;
    let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
    let (codes, padding) = codes.split_at_mut(values.len());
    for (code, v) in codes.iter_mut().zip(values) {
        *code = ((v * inverse).clamp(-TOP, TOP) + MAGIC).to_bits() as i8;
    }
    padding.fill(0);
    scale
}

/// Length of what the codes miss of `values`, rounded up, the rounding of `values` included.
#[inline(always)]
fn missed(values: &[f64], codes: &[i8], scale: f32, squares: f64) -> f64 {
    let scale = f64::from(scale);
    let square = sum(values, codes, |v, code| {
        let miss = v - scale * f64::from(code);
        miss * miss
    });
    square.sqrt() * (1.0 + ROUND_SUM) + squares.sqrt() * ROUND_STEP
}

/// The f32 at or next above `x`.
fn round_up(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) < x {
        near.next_up()
    } else {
        near
    }
}

/// The factor that brings a vector with this sum of squares to length one, if cosines of it are
/// sound in f32: a sum of squares that overflows there, or loses its last bits below the normal
/// range, makes the operator's result differ from the cosine by more than any bound.
pub(crate) fn to_unit(squares: f64, dim: usize) -> Option<f64> {
    let least = dim as f64 * TINY / ROUND;
    (squares >= least && squares <= SAFE).then(|| 1.0 / squares.sqrt())
}

/// Encodes a row's residual to its bucket's centroid, and leaves it in `residual`.
///
/// `rounding` bounds, relative to the row's length, what is wrong with the row as it is given: what
/// [`Rotation::rounding`](super::Rotation::rounding) says of a rotated one. `codes` has at least
/// the length of the row ([`stride`] of it in an arena); what is behind the row's own is zeroed.
/// Under [`Metric::Cosine`] the row may have any length, it is brought to one here, and the
/// centroid belongs to rows of length one. Given the row as it is stored, and not a
/// [`normalize`](super::normalize)d copy, [`encode`] can tell that its cosines suffer underflow or
/// overflow in f32 and declare it unknown.
///
/// A row that is not finite, or too large for the factors, gets [`Factors::UNKNOWN`].
///
/// # Panics
/// When row and centroid differ in length or `codes` is shorter.
pub fn encode(
    metric: Metric,
    row: &[f32],
    centroid: &[f32],
    rounding: f64,
    residual: &mut Vec<f64>,
    codes: &mut [i8],
) -> Factors {
    assert_eq!(row.len(), centroid.len(), "dimensions");
    assert!(codes.len() >= row.len(), "room for codes");
    encode_row(metric, row, centroid, rounding, residual, codes)
}

vectorised! {
    fn encode_row(
        metric: Metric, row: &[f32], centroid: &[f32], rounding: f64,
        residual: &mut Vec<f64>, codes: &mut [i8],
    ) -> Factors = encode_body;
    fn prepare(query: &Query, centroid: &[f32], bucket: &mut BucketQuery) = Query::for_bucket_body;
}

#[inline(always)]
fn encode_body(
    metric: Metric,
    row: &[f32],
    centroid: &[f32],
    rounding: f64,
    residual: &mut Vec<f64>,
    codes: &mut [i8],
) -> Factors {
    let squares = sum(row, row, |x, y| f64::from(x) * f64::from(y));
    let (factor, length) = match metric {
        Metric::Cosine => (to_unit(squares, row.len()).unwrap_or(f64::NAN), 1.0),
        _ => (1.0, squares.sqrt()),
    };
    residual.clear();
    residual.extend(row.iter().zip(centroid).map(|(&x, &c)| f64::from(x) * factor - f64::from(c)));
    let scale = quantize(residual, codes);
    let (used, _) = codes.split_at(row.len());
    let step = f64::from(scale);
    let (norm, error) = if metric == Metric::L1 {
        let missed = sum(residual, used, |v, code| (v - step * f64::from(code)).abs());
        let size = sum(residual, used, |v, _| v.abs());
        (0.0, missed * (1.0 + ROUND_SUM) + size * ROUND_STEP)
    } else {
        let squares = sum(residual, residual, |x, y| x * y);
        // A sum of integers, hence exact.
        let norm = step * step * sum(used, used, |x, y| f64::from(i32::from(x) * i32::from(y)));
        (norm as f32, missed(residual, used, scale, squares))
    };
    let error = error + rounding * length * (1.0 + ROUND_SUM);
    let factors = Factors { scale, norm, error: round_up(error) };
    if scale.is_finite() && norm.is_finite() && factors.error.is_finite() {
        factors
    } else {
        codes.fill(0);
        Factors::UNKNOWN
    }
}

/// A query, prepared once for all buckets.
#[derive(Clone, Debug)]
pub struct Query {
    metric: Metric,
    /// The query, of length one under cosine.
    values: Vec<f64>,
    /// Codes of `values`, for the metrics that do not shift it by the centroid.
    codes: Vec<i8>,
    /// Scale of `codes`.
    scale: f64,
    /// Length of what `codes` miss of `values`.
    error: f64,
    /// Length of `values`.
    length: f64,
    /// Bounds the length of what is wrong with `values`.
    blur: f64,
}

impl Query {
    /// Prepares a query. Under [`Metric::Cosine`] it may have any length. `rounding` is as for
    /// [`encode`].
    pub fn new(metric: Metric, query: &[f32], rounding: f64) -> Query {
        let mut values: Vec<f64> = query.iter().map(|&x| f64::from(x)).collect();
        let mut squares = sum(&values, &values, |x, y| x * y);
        if metric == Metric::Cosine {
            let factor = to_unit(squares, values.len()).unwrap_or(f64::NAN);
            values.iter_mut().for_each(|x| *x *= factor);
            squares = sum(&values, &values, |x, y| x * y);
        }
        let (mut codes, mut scale, mut error) = (Vec::new(), 0.0, 0.0);
        if matches!(metric, Metric::InnerProduct | Metric::Cosine) {
            codes.resize(stride(values.len()), 0);
            scale = quantize(&values, &mut codes);
            error = missed(&values, codes.split_at(values.len()).0, scale, squares);
        }
        let length = squares.sqrt() * (1.0 + ROUND_SUM);
        let blur = rounding * length;
        Query { metric, values, codes, scale: f64::from(scale), error, length, blur }
    }

    /// Prepares the query for the rows of one bucket; the buffers of `bucket` are used again.
    ///
    /// # Panics
    /// When the centroid's length is not the query's.
    pub fn for_bucket(&self, centroid: &[f32], bucket: &mut BucketQuery) {
        assert_eq!(centroid.len(), self.values.len(), "dimensions");
        prepare(self, centroid, bucket);
    }

    #[inline(always)]
    fn for_bucket_body(&self, centroid: &[f32], bucket: &mut BucketQuery) {
        let dim = self.values.len();
        bucket.metric = self.metric;
        bucket.dim = dim;
        match self.metric {
            Metric::L2 => {
                bucket.values.clear();
                let pairs = self.values.iter().zip(centroid);
                bucket.values.extend(pairs.map(|(q, &c)| q - f64::from(c)));
                bucket.codes.resize(stride(dim), 0);
                let scale = quantize(&bucket.values, &mut bucket.codes);
                let squares = sum(&bucket.values, &bucket.values, |x, y| x * y);
                let (used, _) = bucket.codes.split_at(dim);
                bucket.scale = f64::from(scale);
                bucket.error = missed(&bucket.values, used, scale, squares);
                bucket.base = squares;
                bucket.reach = 0.0;
            }
            Metric::InnerProduct | Metric::Cosine => {
                bucket.codes.clone_from(&self.codes);
                bucket.scale = self.scale;
                bucket.error = self.error;
                let product = sum(&self.values, centroid, |q, c| q * f64::from(c));
                bucket.base = if self.metric == Metric::Cosine { 1.0 } else { 0.0 } - product;
                let squares = sum(centroid, centroid, |x, y| f64::from(x) * f64::from(y));
                bucket.reach = squares.sqrt() * (1.0 + ROUND_SUM);
            }
            Metric::L1 => {
                bucket.shifted.clear();
                let pairs = self.values.iter().zip(centroid);
                bucket.shifted.extend(pairs.map(|(q, &c)| (q - f64::from(c)) as f32));
                let size = sum(&bucket.shifted, &bucket.shifted, |x, _| f64::from(x.abs()));
                bucket.scale = 0.0;
                // Each component was rounded to f32, below the normal range by up to TINY / 2.
                bucket.error = size * 2.0 * ROUND + dim as f64 * TINY;
                bucket.base = 0.0;
                bucket.reach = 0.0;
            }
        }
        bucket.length = self.length;
        bucket.blur = self.blur;
        bucket.known = dim <= MAX_DIM
            && [bucket.scale, bucket.error, bucket.base, bucket.reach, bucket.length, bucket.blur]
                .iter()
                .all(|x| x.is_finite());
    }
}

/// A query, prepared for the rows of one bucket by [`Query::for_bucket`].
#[derive(Clone, Debug)]
pub struct BucketQuery {
    metric: Metric,
    dim: usize,
    /// False when query or centroid are not finite, or too large to say anything.
    known: bool,
    /// Under L2 the query less the centroid.
    values: Vec<f64>,
    /// Under L1 the query less the centroid.
    shifted: Vec<f32>,
    /// Under L2 the codes of `values`, else the query's own; padded to the stride.
    codes: Vec<i8>,
    /// Scale of `codes`.
    scale: f64,
    /// Length of what `codes` (under L1 `shifted`) miss.
    error: f64,
    /// The rank of the centroid itself; under L1 zero.
    base: f64,
    /// Length of the centroid, for the metrics not taken relative to it.
    reach: f64,
    /// Length of the query, one under cosine.
    length: f64,
    /// Bounds the length of what is wrong with the query.
    blur: f64,
}

impl Default for BucketQuery {
    fn default() -> BucketQuery {
        BucketQuery {
            metric: Metric::L2,
            dim: 0,
            known: false,
            values: Vec::new(),
            shifted: Vec::new(),
            codes: Vec::new(),
            scale: 0.0,
            error: 0.0,
            base: 0.0,
            reach: 0.0,
            length: 0.0,
            blur: 0.0,
        }
    }
}

impl BucketQuery {
    /// Estimates the ranks of a bucket's rows into `out`, one a row in order, whatever it held.
    ///
    /// With a `confidence` of one, [`Estimate::lower`] is never above
    /// [`Metric::rank`](crate::metric::Metric::rank) of query and row, in the precision in which
    /// that is computed. Below one it scales the errors of quantisation, though not those of
    /// rounding: errors of random direction in n dimensions shift a distance by about
    /// `1 / sqrt(n)` of their length, so `z / sqrt(n)` is a bound at z standard deviations. Under
    /// L1 it has no effect: where query and row have equal components all errors add up, whatever
    /// their direction, and the certain bound is as tight as the others are at z = 4.
    ///
    /// With c the centroid, x = c + r the row, r̂ and q̂ what the codes say, `e` and `e_q` the
    /// lengths of what they miss:
    ///
    /// | metric | bound |
    /// |---|---|
    /// | L2 | q' = q - c; D² = \|q'\|² + \|r̂\|² - 2⟨q̂', r̂⟩ within 2 e_q \|r̂\|; the distance within e of D |
    /// | inner product | -⟨q, c⟩ - ⟨q̂, r̂⟩ within \|q\| e + e_q \|r̂\| |
    /// | cosine | the same on vectors of length one, plus one |
    /// | L1 | sum of \|q' - r̂\| within e |
    ///
    /// Where a number is not finite, or the kernels of the rank could overflow to the low side,
    /// the estimate is [`Estimate::UNKNOWN`].
    ///
    /// # Panics
    /// When `stride` is not [`stride`] of the query's dimensions, or `codes` does not hold
    /// `stride` bytes for each of the factors.
    pub fn estimate(
        &self,
        factors: &[Factors],
        codes: &[i8],
        stride: usize,
        confidence: f32,
        out: &mut Vec<Estimate>,
    ) {
        out.clear();
        out.resize(factors.len(), Estimate::UNKNOWN);
        if !self.known || factors.is_empty() {
            return;
        }
        assert_eq!(stride, super::stride(self.dim), "stride");
        assert_eq!(Some(codes.len()), factors.len().checked_mul(stride), "codes of every row");
        // Not a number counts as one: certainty is what may not be given away by accident.
        let confidence = if (0.0..1.0).contains(&confidence) { f64::from(confidence) } else { 1.0 };
        match self.metric {
            Metric::L2 => self.blocks(factors, codes, stride, out, self.l2(confidence)),
            Metric::InnerProduct => {
                let rows = self.product(confidence, 1.0, f32::NEG_INFINITY);
                self.blocks(factors, codes, stride, out, rows);
            }
            Metric::Cosine => {
                // Both lengths are rounded sums as well, under a root each.
                let rows = self.product(confidence, 2.0, 0.0);
                self.blocks(factors, codes, stride, out, rows);
            }
            Metric::L1 => self.l1(factors, codes, stride, out),
        }
    }

    /// Takes inner products of codes block by block and hands each, with its row's factors, to
    /// `row`.
    fn blocks(
        &self,
        factors: &[Factors],
        codes: &[i8],
        stride: usize,
        out: &mut [Estimate],
        row: impl Fn(&Factors, f64) -> Estimate,
    ) {
        let mut dots = [0i32; BLOCK];
        let blocks = factors.chunks(BLOCK).zip(codes.chunks(BLOCK * stride));
        for ((factors, codes), out) in blocks.zip(out.chunks_mut(BLOCK)) {
            let (dots, _) = dots.split_at_mut(factors.len());
            (kernels().dot_i8_rows)(&self.codes, codes, stride, dots);
            for ((out, factors), &dot) in out.iter_mut().zip(factors).zip(dots.iter()) {
                *out = row(factors, f64::from(dot));
            }
        }
    }

    fn l2(&self, confidence: f64) -> impl Fn(&Factors, f64) -> Estimate {
        let (base, step) = (self.base, 2.0 * self.scale);
        let cross = 2.0 * confidence * self.error;
        let base_slack = base * ROUND_SUM + 2.0 * TINY;
        let kernel = 1.0 - (self.dim + 4) as f64 * ROUND;
        let tiny = self.dim as f64 * TINY;
        let blur = self.blur;
        move |f, dot| {
            let (norm, error) = (f64::from(f.norm), f64::from(f.error));
            let square = base + norm - step * f64::from(f.scale) * dot;
            let slack = base_slack + norm * 4.0 * ROUND + cross * upper_root(norm);
            let distance = (square - slack).max(0.0).sqrt() - confidence * error - blur;
            let distance = distance.max(0.0);
            // What the code misses is as good as orthogonal to the rest. An infinite factor makes
            // the value infinite or not a number, whatever the maxima have hidden.
            let value = square.max(0.0) + error * error + square * 0.0;
            finish(value, distance * distance * kernel - tiny, 0.0)
        }
    }

    fn product(
        &self,
        confidence: f64,
        sums: f64,
        floor: f32,
    ) -> impl Fn(&Factors, f64) -> Estimate {
        let (base, scale, reach, length) = (self.base, self.scale, self.reach, self.length);
        let missed = confidence * self.error;
        let blur = self.blur;
        let kernel = sums * (self.dim + 16) as f64 * ROUND;
        let tiny = self.dim as f64 * TINY;
        move |f, dot| {
            let error = f64::from(f.error);
            let root = upper_root(f64::from(f.norm));
            let value = base - scale * f64::from(f.scale) * dot;
            // No sum of absolute products exceeds the product of the lengths.
            let terms = length * (reach + root + error);
            let blurred = blur * (reach + root + error);
            let slack =
                confidence * length * error + missed * root + blurred + kernel * terms + tiny;
            // Beyond this a partial sum may overflow, and the kernel return either infinity.
            let lower = if terms <= SAFE { value - slack } else { f64::NAN };
            finish(value, lower, floor)
        }
    }

    fn l1(&self, factors: &[Factors], codes: &[i8], stride: usize, out: &mut [Estimate]) {
        let l1_i8 = kernels().l1_i8;
        let dim = self.dim as f64;
        let kernel = (self.dim + 4) as f64 * ROUND;
        let product = 2.0 * TOP * dim * ROUND;
        let slack = self.error + 2.0 * dim * TINY;
        for ((out, f), codes) in out.iter_mut().zip(factors).zip(codes.chunks_exact(stride)) {
            let (codes, _) = codes.split_at(self.dim);
            let value = f64::from(l1_i8(&self.shifted, codes, f.scale));
            // Once for the kernel over the codes, products of scale and code apart, once for the
            // rank's own.
            let slack = slack + value * kernel + f64::from(f.scale) * product;
            let lower = value - slack - f64::from(f.error);
            *out = finish(value, lower - lower.abs() * kernel, 0.0);
        }
    }
}

/// The length a rounded squared length came from, rounded up.
fn upper_root(norm: f64) -> f64 {
    (norm * (1.0 + 4.0 * ROUND) + TINY).sqrt()
}

/// Rounds an estimate to f32, its bound downwards; ranks are not below `floor`.
fn finish(value: f64, lower: f64, floor: f32) -> Estimate {
    let value = value as f32;
    let lower = (lower - lower.abs() * 4.0 * ROUND - 2.0 * TINY) as f32;
    if value.is_finite() && lower.is_finite() {
        Estimate { value, lower: if lower > floor { lower } else { floor } }
    } else {
        Estimate::UNKNOWN
    }
}
