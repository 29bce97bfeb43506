//! How far from the nearest bucket a search goes, by how unlike the rows its query is.

use super::calibration::{tenfolds, RECALLS};

/// Strangenesses at which margins are known, the first of which is the greatest of usual queries.
pub const KNOTS: usize = 5;

/// For each of [`RECALLS`], how margins grow with the strangeness of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strangers {
    /// The strangenesses. Up to the first a query is as usual.
    pub at: [[f32; RECALLS.len()]; KNOTS],
    /// The margins at all but the first, for few and for many rows.
    pub margins: [[[f32; RECALLS.len()]; 2]; KNOTS - 1],
}

/// The margins for one recall.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    at: [f32; KNOTS],
    few: [f32; KNOTS],
    many: [f32; KNOTS],
}

impl Reach {
    /// The same margins, for ten rows and for a hundred, whatever the query.
    pub fn always(few: f32, many: f32) -> Reach {
        Reach { at: [f32::INFINITY; KNOTS], few: [few; KNOTS], many: [many; KNOTS] }
    }

    /// Margins at these strangenesses, all of which ascend.
    pub fn new(at: [f32; KNOTS], few: [f32; KNOTS], many: [f32; KNOTS]) -> Reach {
        Reach { at, few, many }
    }

    /// Whether some queries are searched farther than others.
    pub fn varies(&self) -> bool {
        self.at[0] < f32::INFINITY
    }

    /// The margin for the `rows` nearest rows of a query that is so strange. Between strangenesses
    /// that are known it is on a line, and on one in the logarithm of the rows.
    pub fn margin(&self, strangeness: f32, rows: u64) -> f32 {
        let after = self.at.partition_point(|at| *at < strangeness);
        let (few, many) = match (after.checked_sub(1), self.at.get(after)) {
            (None, _) => (self.few[0], self.many[0]),
            (Some(last), None) => (self.few[last], self.many[last]),
            (Some(low), Some(high)) => {
                let part = (strangeness - self.at[low]) / (high - self.at[low]);
                let between =
                    |margins: &[f32; KNOTS]| margins[low] + part * (margins[after] - margins[low]);
                (between(&self.few), between(&self.many))
            }
        };
        few + (many - few) * tenfolds(rows) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_grow_with_strangeness_and_with_rows() {
        let few = [1.0, 2.0, 2.0, 3.0, 5.0];
        let reach = Reach::new([-1.0, 0.0, 0.0, 1.0, 2.0], few, few.map(|margin| margin + 1.0));
        assert!(reach.varies());
        let margins = [f32::NEG_INFINITY, -1.0, -0.5, 0.0, 0.5, 2.0, 9.0, f32::INFINITY];
        let margins = margins.map(|strangeness| reach.margin(strangeness, 10));
        assert_eq!(margins, [1.0, 1.0, 1.5, 2.0, 2.5, 5.0, 5.0, 5.0]);
        assert_eq!([0, 10, 100, 1000].map(|rows| reach.margin(0.5, rows)), [2.5, 2.5, 3.5, 4.5]);
    }

    #[test]
    fn a_margin_for_all_queries_does_not_vary() {
        let reach = Reach::always(0.5, 0.75);
        assert!(!reach.varies());
        for strangeness in [f32::NEG_INFINITY, 0.0, f32::MAX, f32::INFINITY, f32::NAN] {
            assert_eq!(reach.margin(strangeness, 1), 0.5);
            assert_eq!(reach.margin(strangeness, 100), 0.75);
        }
    }
}
