//! How much of the buckets a recall costs on the data at hand.
//!
//! That is known for the few nearest rows and for many, by [`Trial`]: what more rows cost lies on a
//! line through both, for neighbours lie the farther apart the more they are, by the same factor
//! for each factor of their number.
//!
//! [`Trial`]: super::Trial

use super::reach::{Reach, Strangers, KNOTS};

/// The recalls whose cost is known.
pub const RECALLS: [f64; 8] = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999];

/// How many neighbours the few nearest are, and how many the many.
pub const FEW: usize = 10;
pub const MANY: usize = 100;

/// How many times as many buckets a hundred rows are guessed to need as ten do.
const GUESSED_GROWTH: f32 = 2.0;

/// For each of [`RECALLS`], a share of all buckets.
pub type Shares = [f32; RECALLS.len()];

/// For each of [`RECALLS`], a margin within which all buckets are probed.
pub type Margins = [f32; RECALLS.len()];

/// The shares of all buckets to probe for the ten nearest rows, and for the hundred nearest.
/// Ascending, within 0 and 1, and not less for more rows.
///
/// Where margins are known, these say which buckets to probe beyond a floor, and the shares how many
/// that are of a usual query. Floors and margins ascend as shares do; margins may be greater for
/// queries unlike the rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    few: Shares,
    many: Shares,
    margins: Option<([Shares; 2], [Margins; 2])>,
    strangers: Option<Strangers>,
}

impl Calibration {
    /// Every bucket is probed.
    pub const EVERYTHING: Calibration = Calibration {
        few: [1.0; RECALLS.len()],
        many: [1.0; RECALLS.len()],
        margins: None,
        strangers: None,
    };

    /// Takes shares that were stored; none unless they are as they should be.
    pub fn from_shares([few, many]: [Shares; 2]) -> Option<Calibration> {
        let is_valid = |shares: &Shares| shares.iter().all(|share| (0.0..=1.0).contains(share));
        let valid = [few, many].iter().all(is_valid) && ascend([&few, &many]);
        valid.then_some(Calibration { few, many, margins: None, strangers: None })
    }

    /// Takes shares for few rows; that of many is a guess.
    pub fn from_few(few: Shares) -> Option<Calibration> {
        Calibration::from_shares([few, few.map(|share| (share * GUESSED_GROWTH).min(1.0))])
    }

    /// The same with margins, and the shares of all buckets that are probed at least; none unless
    /// they are as they should be.
    pub fn with_margins(self, floors: [Shares; 2], margins: [Margins; 2]) -> Option<Calibration> {
        let is_share = |share: &f32| (0.0..=1.0).contains(share);
        let is_margin = |margin: &f32| margin.is_finite() && *margin >= 0.0;
        let valid = floors.as_flattened().iter().all(is_share)
            && margins.as_flattened().iter().all(is_margin)
            && [&floors, &margins].iter().all(|[few, many]| ascend([few, many]));
        valid.then_some(Calibration { margins: Some((floors, margins)), strangers: None, ..self })
    }

    /// The same with margins for queries unlike the rows; none unless they are as they should be,
    /// and not less than the usual ones.
    pub fn with_strangers(self, strangers: Strangers) -> Option<Calibration> {
        let (mut at, (_, mut margins)) = (strangers.at[0], self.margins?);
        let not_less =
            |low: &[f32], high: &[f32]| low.iter().zip(high).all(|(low, high)| low <= high);
        let mut valid = at.iter().all(|at| at.is_finite());
        for (next_at, next) in strangers.at[1..].iter().zip(strangers.margins) {
            let ordered = not_less(&at, next_at)
                && not_less(margins.as_flattened(), next.as_flattened())
                && ascend([&next[0], &next[1]]);
            let finite = next_at.iter().chain(next.as_flattened()).all(|x| x.is_finite());
            valid &= ordered && finite;
            (at, margins) = (*next_at, next);
        }
        valid.then_some(Calibration { strangers: Some(strangers), ..self })
    }

    /// The shares, to be stored.
    pub fn shares(&self) -> [Shares; 2] {
        [self.few, self.many]
    }

    /// The floors and the margins, to be stored.
    pub fn margins(&self) -> Option<([Shares; 2], [Margins; 2])> {
        self.margins
    }

    /// The margins for queries unlike the rows, to be stored.
    pub fn strangers(&self) -> Option<Strangers> {
        self.strangers
    }

    /// The share of all buckets to probe for `recall` of the ten nearest rows, and how many times
    /// as much a hundred take, a thousand and so on.
    pub fn share(&self, recall: f64) -> (f64, f64) {
        let few = between(&self.few, 1.0, recall);
        (few, between(&self.many, 1.0, recall) / few.max(f64::MIN_POSITIVE))
    }

    /// The shares of all buckets to probe at least for `recall` of the ten nearest rows and of the
    /// hundred nearest: where no margins are known, nothing.
    pub fn floors(&self, recall: f64) -> (f64, f64) {
        let floor = |floors: &Shares| between(floors, floors[RECALLS.len() - 1], recall);
        self.margins.as_ref().map_or((0.0, 0.0), |([few, many], _)| (floor(few), floor(many)))
    }

    /// The margins for `recall`. Above the highest known recall they are no more than for that:
    /// there, shares count as well.
    pub fn reach(&self, recall: f64) -> Option<Reach> {
        let (_, usual) = self.margins.as_ref()?;
        let at_recall =
            |known: &[f32; RECALLS.len()]| between(known, known[RECALLS.len() - 1], recall) as f32;
        let [few, many] = usual.each_ref().map(at_recall);
        let Some(strangers) = &self.strangers else { return Some(Reach::always(few, many)) };
        let (mut few, mut many) = ([few; KNOTS], [many; KNOTS]);
        for (knot, margins) in (1..).zip(&strangers.margins) {
            [few[knot], many[knot]] = margins.each_ref().map(at_recall);
        }
        Some(Reach::new(strangers.at.each_ref().map(at_recall), few, many))
    }
}

/// Whether a recall is above all that are known.
pub fn is_beyond_known(recall: f64) -> bool {
    RECALLS.last().is_some_and(|last| recall > *last)
}

/// Whether more recall takes no less, and more rows either.
fn ascend([few, many]: [&[f32; RECALLS.len()]; 2]) -> bool {
    few.is_sorted() && many.is_sorted() && few.iter().zip(many).all(|(few, many)| few <= many)
}

/// How many times as many buckets `rows` rows take as ten, if a hundred take `growth` times as many.
pub fn growth_to(rows: u64, growth: f64) -> f64 {
    growth.powf(tenfolds(rows))
}

/// How often so many rows are ten times as many as ten.
pub fn tenfolds(rows: u64) -> f64 {
    (rows.max(FEW as u64) as f64 / FEW as f64).ln() / (MANY as f64 / FEW as f64).ln()
}

/// What `recall` takes; between known ones it is interpolated, up to `whole` for all.
fn between(known: &[f32; RECALLS.len()], whole: f32, recall: f64) -> f64 {
    let after = RECALLS.partition_point(|known| *known < recall);
    let taken = |at: usize| f64::from(known.get(at).copied().unwrap_or(whole));
    let recall_at = |at: usize| RECALLS.get(at).copied().unwrap_or(1.0);
    if after == 0 {
        return taken(0);
    }
    let (low, high) = (after - 1, after);
    let part = ((recall - recall_at(low)) / (recall_at(high) - recall_at(low))).clamp(0.0, 1.0);
    taken(low) + part * (taken(high) - taken(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_interpolated_and_end_with_all_rows() {
        let shares = [0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.3];
        let calibration = Calibration::from_few(shares).unwrap();
        let share = |recall| calibration.share(recall).0;
        assert_eq!(share(0.1), f64::from(0.01f32));
        assert!((share(0.95) - 0.05).abs() < 1e-6);
        assert!((share(0.925) - 0.04).abs() < 1e-6);
        assert!((share(1.0) - 1.0).abs() < 1e-6);
        assert!(share(0.9995) > 0.3);
    }

    #[test]
    fn more_rows_cost_more_by_the_same_factor_for_each_factor_of_rows() {
        let calibration = Calibration::from_shares([[0.01; 8], [0.03; 8]]).unwrap();
        let (few, growth) = calibration.share(0.95);
        for (rows, expected) in [(0, 0.01), (10, 0.01), (100, 0.03), (1000, 0.09)] {
            let share = few * growth_to(rows, growth);
            assert!((share - expected).abs() < 1e-6, "{rows}: {share}");
        }
        assert!((0..2000).map(|rows| growth_to(rows, growth)).is_sorted());
        assert_eq!(growth_to(u64::MAX, 1.0), 1.0);
    }

    #[test]
    fn shares_that_nobody_wrote_are_refused() {
        let few = [0.5; 8].map(|share: f32| share * 3.0);
        assert_eq!(Calibration::from_few(few), None);
        let unsorted = [0.5, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(Calibration::from_few(unsorted), None);
        assert_eq!(Calibration::from_shares([[0.1; 8], unsorted]), None);
        assert_eq!(Calibration::from_shares([[0.2; 8], [0.1; 8]]), None);
        assert_eq!(Calibration::from_few([f32::NAN; 8]), None);
    }

    #[test]
    fn margins_are_interpolated_and_end_with_the_last() {
        let shares = Calibration::from_shares([[0.1; 8]; 2]).unwrap();
        assert_eq!(shares.reach(0.9), None);
        let few = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6];
        let margins = [few, few.map(|margin| margin + 0.1)];
        let floors = [[0.01; 8], [0.02; 8]];
        let calibration = shares.with_margins(floors, margins).unwrap();
        assert_eq!(calibration.margins(), Some((floors, margins)));
        let (low, high) = calibration.floors(0.93);
        assert!((low - 0.01).abs() < 1e-6 && (high - 0.02).abs() < 1e-6);
        assert_eq!(shares.floors(0.93), (0.0, 0.0));
        for (recall, expected) in [(0.1, 0.2), (0.95, 0.8), (0.925, 0.7), (0.9995, 1.6)] {
            let reach = calibration.reach(recall).unwrap();
            let [few, many] = [10, 100].map(|rows| reach.margin(0.0, rows));
            assert!((few - expected).abs() < 1e-6 && (many - few - 0.1).abs() < 1e-6, "{recall}");
        }
        assert!(!is_beyond_known(0.999) && is_beyond_known(0.9991));
        let unsorted = [few, few.map(|margin| margin - 0.1)];
        let refused = [unsorted, [[f32::NAN; 8]; 2], [[f32::INFINITY; 8]; 2], [[-1.0; 8]; 2]];
        assert!(refused.iter().all(|margins| shares.with_margins(floors, *margins).is_none()));
        let refused = [[[0.02; 8], [0.01; 8]], [[f32::NAN; 8]; 2], [[1.5; 8]; 2]];
        assert!(refused.iter().all(|floors| shares.with_margins(*floors, margins).is_none()));
    }

    #[test]
    fn strangers_are_searched_farther_and_never_less_far() {
        let usual = [[0.5; 8], [0.6; 8]];
        let calibration = Calibration::from_shares([[0.1; 8]; 2]).unwrap();
        let mut strangers = Strangers {
            at: [[-0.5; 8], [-0.4; 8], [-0.4; 8], [-0.3; 8], [0.0; 8]],
            margins: [[[0.5; 8], [0.7; 8]], [[1.0; 8]; 2], [[1.0; 8]; 2], [[2.0; 8], [3.0; 8]]],
        };
        assert!(calibration.with_strangers(strangers).is_none(), "there are no usual margins");
        let calibration = calibration.with_margins([[0.0; 8]; 2], usual).unwrap();
        let with = calibration.with_strangers(strangers).unwrap();
        assert_eq!(with.strangers(), Some(strangers));
        let reach = with.reach(0.93).unwrap();
        let margin = |strangeness| reach.margin(strangeness, 10);
        assert!((margin(-0.5) - 0.5).abs() < 1e-6 && (margin(-0.15) - 1.5).abs() < 1e-6);
        assert!((reach.margin(1.0, 100) - 3.0).abs() < 1e-6);
        strangers.margins[0][0][7] = 0.4;
        assert_eq!(calibration.with_strangers(strangers), None);
        strangers.margins[0][0][7] = f32::NAN;
        assert_eq!(calibration.with_strangers(strangers), None);
        strangers.margins[0][0][7] = 0.5;
        strangers.at[1][0] = -0.6;
        assert_eq!(calibration.with_strangers(strangers), None);
        strangers.at[0][0] = f32::NEG_INFINITY;
        assert_eq!(calibration.with_strangers(strangers), None);
    }
}
