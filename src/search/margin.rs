//! How much farther a bucket is than the nearest one.
//!
//! Where a query lies in a dense region, the buckets that have its neighbours are far nearer than
//! all others; elsewhere many are about as near, and a neighbour may be in any. So many buckets do
//! not mean as much for one query as for another, but so much of a margin does: on vectors as
//! different as image descriptors, word vectors and text embeddings the same margin finds about the
//! same share of the neighbours.
//!
//! The margin of the `i`-th bucket, at the squared distance `d(i)`, is
//!
//! ```text
//! (d(i) - d(1)) / (d(1) + s / 4) + 0.3 ln(i)
//! ```
//!
//! where `s` is the mean squared distance of rows to the centroids of the nearest buckets. It is
//! for queries that are centroids, whose `d(1)` says nothing. The second summand ends a search
//! among buckets that are all about as near: there each further one is less likely to have a
//! neighbour only because there are so many.

use super::strangeness::Surroundings;
use crate::metric::Metric;

/// Weight of a bucket's place in the order.
const PLACE: f32 = 0.3;

/// Weight of how far rows are spread about their centroids.
const SPREAD: f32 = 0.25;

/// Tells the margins of one query's buckets from their scores, and how strange it is.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    metric: Metric,
    /// Under inner product the squared length that vectors are taken to have, and what of it a
    /// score takes away.
    sphere: (f32, f32),
    nearest: f32,
    unit: f32,
    spread: f32,
    about: Surroundings,
}

impl Gauge {
    /// The gauge of a query whose nearest bucket has this score, and near which the mean squared
    /// distance of rows to their centroids is `spread`.
    ///
    /// Under inner product `lengths` are that of the query and the usual one of the rows in the
    /// nearest buckets: a row is the nearer the less it is away from the point of that length that
    /// the query shows to. Of no use elsewhere.
    pub fn new(metric: Metric, nearest: f32, spread: f32, lengths: (f32, f32)) -> Gauge {
        let (query, rows) = lengths;
        let sphere = (2.0 * rows * rows, 2.0 * rows / query.max(f32::MIN_POSITIVE));
        let about = Surroundings::UNKNOWN;
        let mut gauge = Gauge { metric, sphere, nearest: 0.0, unit: 0.0, spread, about };
        gauge.nearest = gauge.square(nearest);
        gauge.unit = (gauge.nearest + SPREAD * spread).max(f32::MIN_POSITIVE);
        gauge
    }

    /// The same gauge, told of buckets about the query: the score of each, and the mean squared
    /// distance of its rows to its centroid.
    pub fn with_surroundings(self, buckets: impl Iterator<Item = (f32, f32)>) -> Gauge {
        let squares = buckets.map(|(score, spread)| (self.square(score), spread));
        Gauge { about: Surroundings::of((self.nearest, self.spread), squares), ..self }
    }

    /// How strange the query is whose tenth nearest row has this rank ([`Metric::rank`]).
    pub fn strangeness(&self, tenth: f32) -> f32 {
        // Under cosine a score is a product, and a rank is one less it.
        let score = if self.metric == Metric::Cosine { tenth - 1.0 } else { tenth };
        self.about.strangeness(self.square(score))
    }

    /// The margin of a bucket with this score that comes after so many. Not a number where the
    /// score is not.
    pub fn margin(&self, score: f32, before: u64) -> f32 {
        let farther = (self.square(score) - self.nearest) / self.unit;
        // What is not a number stays none.
        let farther = if farther < 0.0 { 0.0 } else { farther };
        farther + PLACE * ((before + 1) as f32).ln()
    }

    /// The squared distance that a score stands for.
    fn square(&self, score: f32) -> f32 {
        match self.metric {
            Metric::L2 => score,
            Metric::L1 => score * score,
            // Of vectors of length one: |a - b|^2 = 2 - 2 <a, b>.
            Metric::Cosine => (2.0 + 2.0 * score).max(0.0),
            Metric::InnerProduct => (self.sphere.0 + self.sphere.1 * score).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge(metric: Metric, nearest: f32) -> Gauge {
        Gauge::new(metric, nearest, 0.4, (1.0, 1.0))
    }

    #[test]
    fn margins_ascend_from_nothing_and_know_no_scale() {
        let scores = [4.0, 6.0, 8.0, 12.0, 16.0, 100.0];
        let margins = |scale: f32| -> Vec<f32> {
            let scaled = scores.iter().map(|score| score * scale);
            let gauge = Gauge::new(Metric::L2, 4.0 * scale, 12.0 * scale, (0.0, 0.0));
            scaled.zip(0..).map(|(score, before)| gauge.margin(score, before)).collect()
        };
        let of_one = margins(1.0);
        assert_eq!(of_one[0], 0.0);
        assert!((of_one[1] - (2.0 / 7.0 + 0.3 * 2f32.ln())).abs() < 1e-6);
        assert!(of_one.is_sorted_by(|a, b| a < b));
        assert_eq!(of_one, margins(1024.0));
    }

    #[test]
    fn metrics_agree_on_vectors_of_length_one() {
        let product = |square: f32| square / 2.0 - 1.0;
        let (nearest, far) = (0.5f32, 0.9f32);
        let expected = gauge(Metric::L2, nearest).margin(far, 3);
        // The query's length does not matter.
        let long = Gauge::new(Metric::InnerProduct, 7.0 * product(nearest), 0.4, (7.0, 1.0));
        for margin in [
            gauge(Metric::Cosine, product(nearest)).margin(product(far), 3),
            gauge(Metric::InnerProduct, product(nearest)).margin(product(far), 3),
            long.margin(7.0 * product(far), 3),
            gauge(Metric::L1, nearest.sqrt()).margin(far.sqrt(), 3),
        ] {
            assert!((margin - expected).abs() < 1e-5, "{margin} {expected}");
        }
    }

    #[test]
    fn a_query_that_is_a_centroid_has_margins() {
        let margins = [0.0, 1.0, 2.0].map(|score| gauge(Metric::L2, 0.0).margin(score, 0));
        assert_eq!(margins, [0.0, 10.0, 20.0]);
        let of_equal_rows = Gauge::new(Metric::L2, 0.0, 0.0, (0.0, 0.0));
        assert_eq!(of_equal_rows.margin(0.0, 0), 0.0);
        assert!(of_equal_rows.margin(1.0, 0) > 1e9);
    }

    #[test]
    fn metrics_agree_on_how_strange_a_query_is() {
        let product = |square: f32| 1.0 - square / 2.0;
        let strangeness = |metric, score: fn(f32) -> f32, tenth: f32| {
            let about = [(0.8, 0.4), (0.9, 0.5)].map(|(square, spread)| (score(square), spread));
            gauge(metric, score(0.5)).with_surroundings(about.into_iter()).strangeness(tenth)
        };
        let expected = strangeness(Metric::L2, |square| square, 0.3);
        assert!(expected < 0.0);
        for other in [
            strangeness(Metric::Cosine, |square| square / 2.0 - 1.0, 1.0 - product(0.3)),
            strangeness(Metric::InnerProduct, |square| square / 2.0 - 1.0, -product(0.3)),
            strangeness(Metric::L1, f32::sqrt, 0.3f32.sqrt()),
        ] {
            assert!((other - expected).abs() < 1e-5, "{other} {expected}");
        }
        assert_eq!(gauge(Metric::L2, 0.5).strangeness(0.3), f32::NEG_INFINITY);
    }

    #[test]
    fn what_is_no_number_has_no_margin() {
        for metric in [Metric::L2, Metric::L1] {
            assert!(gauge(metric, 1.0).margin(f32::NAN, 0).is_nan());
        }
    }
}
