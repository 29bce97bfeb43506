//! How many buckets a search probes before it delivers a row.

use super::calibration::{growth_to, is_beyond_known, tenfolds, Calibration, FEW};
use super::reach::Reach;

/// Below this many rows, looking at all of them costs less than choosing.
pub const FEWEST_ROWS: u64 = 1_000;

/// How many buckets are probed for a wanted recall.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Buckets for the ten nearest rows: the usual number, where margins tell it for each query.
    few: f64,
    /// How many times as many for a hundred.
    growth: f64,
    /// The margins, if these tell.
    reach: Option<Reach>,
    /// Buckets that are probed at least for ten rows and for a hundred, beside margins.
    floors: (f64, f64),
    /// The usual number of buckets is probed at least.
    counted: bool,
    exact: bool,
}

/// What a search has to have probed: so many buckets, and every one within a margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    probes: u64,
    margin: f32,
}

impl Goal {
    /// So many buckets.
    pub fn of(probes: u64) -> Goal {
        Goal { probes, margin: f32::NEG_INFINITY }
    }

    /// Whether a bucket of this margin is still to be probed after so many others.
    pub fn wants(&self, probed: u64, margin: f32) -> bool {
        probed < self.probes || margin <= self.margin
    }

    /// This and another goal.
    pub fn and(self, other: Goal) -> Goal {
        Goal { probes: self.probes.max(other.probes), margin: self.margin.max(other.margin) }
    }
}

impl Effort {
    /// The effort to find `recall` of the nearest rows in `buckets` buckets.
    ///
    /// Counted in buckets, not in rows, it holds when rows crowd into some buckets after the
    /// calibration. From 1 on, all are probed and every bound is rigorous.
    pub fn new(recall: f64, buckets: usize, calibration: &Calibration) -> Effort {
        if recall >= 1.0 {
            return Effort { exact: true, ..Effort::counted(f64::INFINITY) };
        }
        let (share, growth) = calibration.share(recall);
        let reach = calibration.reach(recall);
        let counted = reach.is_none() || is_beyond_known(recall);
        let (few, many) = calibration.floors(recall);
        let floors = (few * buckets as f64, many * buckets as f64);
        Effort { growth, reach, floors, counted, ..Effort::counted(buckets as f64 * share) }
    }

    fn counted(few: f64) -> Effort {
        Effort { few, growth: 1.0, reach: None, floors: (0.0, 0.0), counted: true, exact: false }
    }

    /// The effort of probing so many buckets for any number of rows, but not fewer than rows beyond
    /// ten.
    pub fn of(buckets: u64) -> Effort {
        Effort::counted(buckets as f64)
    }

    /// The effort of probing the buckets within a margin, about so many of them, for any number of
    /// rows, but not fewer than rows beyond ten.
    pub fn within(margin: f32, about: u64) -> Effort {
        Effort { reach: Some(Reach::always(margin, margin)), counted: false, ..Effort::of(about) }
    }

    /// Buckets that are probed for the `rows` nearest rows, usually at least: more than there are
    /// say that it takes all.
    ///
    /// They are as many as rows at least, beyond ten. To deliver a row takes longer than to probe a
    /// bucket; and where many are delivered, a filter keeps few, whose order is the better.
    pub fn buckets(&self, rows: u64) -> u64 {
        // What is not a number, nothing times more than anything, becomes one.
        let calibrated = (self.few * growth_to(rows, self.growth)).ceil().max(1.0) as u64;
        calibrated.max(least(rows))
    }

    /// What is probed for the `rows` nearest rows of a query that is so strange.
    pub fn goal(&self, rows: u64, strangeness: f32) -> Goal {
        let (few, many) = self.floors;
        let floor = few + (many - few) * tenfolds(rows);
        let probes = if self.counted { self.buckets(rows) } else { least(rows) };
        let margin = |reach: Reach| reach.margin(strangeness, rows);
        Goal {
            probes: probes.max(floor.ceil() as u64),
            margin: self.reach.map_or(f32::NEG_INFINITY, margin),
        }
    }

    /// Whether more is probed for a query that is strange than for others.
    pub fn heeds_strangeness(&self) -> bool {
        self.reach.is_some_and(|reach| reach.varies())
    }

    /// Whether nothing may be missed.
    pub fn is_exact(&self) -> bool {
        self.exact
    }
}

/// Buckets probed for so many rows, whatever the calibration.
fn least(rows: u64) -> u64 {
    if rows <= FEW as u64 {
        1
    } else {
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: f32 = f32::NEG_INFINITY;

    #[test]
    fn more_recall_is_never_less_effort() {
        let shares = [0.001, 0.002, 0.003, 0.005, 0.008, 0.01, 0.02, 0.03];
        let calibration = Calibration::from_few(shares).unwrap();
        for buckets in [0, 1, 10, 10_000, 1_000_000] {
            let efforts: Vec<u64> = [0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]
                .iter()
                .map(|recall| Effort::new(*recall, buckets, &calibration).buckets(10))
                .collect();
            assert!(efforts.is_sorted(), "{buckets}: {efforts:?}");
        }
    }

    #[test]
    fn more_rows_are_more_effort() {
        let calibration = Calibration::from_shares([[0.01; 8], [0.02; 8]]).unwrap();
        let effort = Effort::new(0.95, 8_000, &calibration);
        assert_eq!([1, 10, 100, 200].map(|rows| effort.buckets(rows)), [80, 80, 160, 200]);
        assert_eq!([0, 10, 1000].map(|rows| Effort::of(7).buckets(rows)), [7, 7, 1000]);
        assert_eq!(Effort::new(1.0, 10, &calibration).buckets(1), u64::MAX);
        let sure = Calibration::from_shares([[0.0; 8], [0.5; 8]]).unwrap();
        let efforts = [0, 10, 11, 500].map(|rows| Effort::new(0.9, 100, &sure).buckets(rows));
        assert!(efforts.iter().all(|buckets| *buckets >= 1));
    }

    #[test]
    fn without_margins_a_goal_is_a_number_of_buckets() {
        let goal = Effort::of(7).goal(10, USUAL);
        assert_eq!([0, 6, 7].map(|probed| goal.wants(probed, 0.0)), [true, true, false]);
        assert!(Effort::new(1.0, 10, &Calibration::EVERYTHING)
            .goal(1, USUAL)
            .wants(9, f32::INFINITY));
    }

    #[test]
    fn with_margins_what_is_within_is_probed_and_as_many_as_rows() {
        let margins = [[0.5; 8], [0.8; 8]];
        let calibration = Calibration::from_shares([[0.125; 8]; 2])
            .unwrap()
            .with_margins([[0.0; 8]; 2], margins)
            .unwrap();
        let effort = Effort::new(0.95, 40, &calibration);
        let goal = effort.goal(10, USUAL);
        assert!(goal.wants(0, 2.0), "one is probed, whatever the margin");
        assert!(goal.wants(40, 0.5) && !goal.wants(1, 0.51) && !goal.wants(1, f32::NAN));
        let goal = effort.goal(100, USUAL);
        assert!(goal.wants(99, 2.0) && goal.wants(5_000, 0.79) && !goal.wants(100, 0.81));
        let both = effort.goal(10, USUAL).and(Goal::of(20));
        assert!(both.wants(19, 1.0) && both.wants(20, 0.5) && !both.wants(20, 0.6));
        assert_eq!(effort.buckets(10), 5);
        let floors = [[0.25; 8], [0.5; 8]];
        let effort = Effort::new(0.95, 40, &calibration.with_margins(floors, margins).unwrap());
        let goal = effort.goal(10, USUAL);
        assert!(goal.wants(9, 2.0) && !goal.wants(10, 2.0) && goal.wants(10, 0.5));
        assert!(effort.goal(100, USUAL).wants(99, 2.0));
        assert!(Effort::within(0.5, 9).goal(1, USUAL).wants(7, 0.4));
    }
}
