//! How unlike the rows a query is.
//!
//! A query that is like the rows has neighbours far nearer than the rows of the buckets about it
//! are on average. The neighbours of one that is unlike them are merely the nearest of very many
//! rows at about the same distance, and may be in any of many buckets.
//!
//! Of a bucket whose centroid is at the squared distance `D`, and whose rows are at `R²` from the
//! centroid on average, a row is at `D + R²` from the query, and scatters about that by a share of
//! `2 √D R`. The strangeness of a query whose tenth nearest row is at `t` is, on average over the
//! buckets about it,
//!
//! ```text
//! (t - D - R²) / (2 √D R) + 0.1 |ln(d / s)|
//! ```
//!
//! The first part is below zero, usually, and the nearer to it the less the nearest rows stand out.
//! The second is there for queries away from all rows, or amid them all: the squared distance `d` of
//! the nearest centroid is not what rows near it have to theirs, `s`.

/// Weight of how far the nearest centroid is.
const APART: f32 = 0.1;

/// The buckets about a query.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    slope: f32,
    shift: f32,
    apart: f32,
}

impl Surroundings {
    /// Nothing is known of them, and no query is strange.
    pub const UNKNOWN: Surroundings = Surroundings { slope: 0.0, shift: f32::INFINITY, apart: 0.0 };

    /// Buckets at these squared distances, each with the mean squared distance of its rows to its
    /// centroid. `nearest` is the same of the nearest bucket, and of rows near it.
    pub fn of(nearest: (f32, f32), buckets: impl Iterator<Item = (f32, f32)>) -> Surroundings {
        let (mut slope, mut shift, mut count) = (0.0f32, 0.0f32, 0.0f32);
        for (square, spread) in buckets {
            let scatter = 2.0 * square.sqrt() * spread.sqrt();
            // What does not scatter, or is not a number, says nothing.
            if scatter.is_normal() {
                slope += 1.0 / scatter;
                shift += (square + spread) / scatter;
                count += 1.0;
            }
        }
        if count == 0.0 {
            return Surroundings::UNKNOWN;
        }
        let apart = (nearest.0 / nearest.1).ln().abs();
        // A query that is a centroid is unlike no row for that.
        let apart = if apart.is_finite() { APART * apart } else { 0.0 };
        Surroundings { slope: slope / count, shift: shift / count, apart }
    }

    /// The strangeness of a query whose tenth nearest row is at this squared distance.
    pub fn strangeness(&self, tenth: f32) -> f32 {
        let strangeness = tenth * self.slope - self.shift + self.apart;
        match strangeness.is_nan() {
            true => f32::NEG_INFINITY,
            false => strangeness,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_where_rows_are_on_average_makes_a_query_strange() {
        let about = Surroundings::of((3.0, 3.0), [(4.0, 9.0), (16.0, 9.0)].into_iter());
        let of = |tenth: f32| ((tenth - 13.0) / 12.0 + (tenth - 25.0) / 24.0) / 2.0;
        for tenth in [0.0, 1.0, 13.0, 19.0] {
            assert!((about.strangeness(tenth) - of(tenth)).abs() < 1e-6);
        }
        assert!(about.strangeness(1.0) < about.strangeness(12.0));
        for nearest in [(1.0, 3.0), (3.0, 1.0)] {
            let apart = Surroundings::of(nearest, [(4.0, 9.0), (16.0, 9.0)].into_iter());
            let more = apart.strangeness(1.0) - about.strangeness(1.0);
            assert!((more - 0.1 * 3f32.ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn strangeness_knows_no_scale() {
        let at = |scale: f32| {
            let buckets = [(4.0, 9.0), (5.0, 7.0)].map(|(d, r)| (d * scale, r * scale));
            Surroundings::of((scale, 2.0 * scale), buckets.into_iter()).strangeness(3.0 * scale)
        };
        for scale in [1e-30, 1e30] {
            assert!((at(scale) - at(1.0)).abs() < 1e-5);
        }
    }

    #[test]
    fn where_nothing_scatters_no_query_is_strange() {
        let none = Surroundings::of((1.0, 1.0), std::iter::empty());
        let equal =
            Surroundings::of((0.0, 0.0), [(0.0, 1.0), (1.0, 0.0), (f32::NAN, 1.0)].into_iter());
        for about in [none, equal] {
            assert_eq!(about.strangeness(1.0), f32::NEG_INFINITY);
            assert_eq!(about.strangeness(f32::INFINITY), f32::NEG_INFINITY);
        }
        let centroid = Surroundings::of((0.0, 1.0), [(1.0, 1.0)].into_iter());
        assert!(centroid.strangeness(1.0).is_finite());
    }
}
