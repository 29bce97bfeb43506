//! How much of the buckets a recall costs on the data at hand.
//!
//! That is known for the few nearest rows and for many, by [`Trial`]: what more rows cost lies on a
//! line through both, for neighbours lie the farther apart the more they are, by the same factor
//! for each factor of their number.
//!
//! [`Trial`]: super::Trial

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
/// Where margins are known, these say which buckets to probe, and the shares how many that are of a
/// usual query. They ascend as shares do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    few: Shares,
    many: Shares,
    margins: Option<[Margins; 2]>,
}

impl Calibration {
    /// Every bucket is probed.
    pub const EVERYTHING: Calibration =
        Calibration { few: [1.0; RECALLS.len()], many: [1.0; RECALLS.len()], margins: None };

    /// Takes shares that were stored; none unless they are as they should be.
    pub fn from_shares([few, many]: [Shares; 2]) -> Option<Calibration> {
        let is_valid = |shares: &Shares| shares.iter().all(|share| (0.0..=1.0).contains(share));
        let valid = [few, many].iter().all(is_valid) && ascend([&few, &many]);
        valid.then_some(Calibration { few, many, margins: None })
    }

    /// Takes shares for few rows; that of many is a guess.
    pub fn from_few(few: Shares) -> Option<Calibration> {
        Calibration::from_shares([few, few.map(|share| (share * GUESSED_GROWTH).min(1.0))])
    }

    /// The same with margins; none unless they are as they should be.
    pub fn with_margins(self, margins: [Margins; 2]) -> Option<Calibration> {
        let [few, many] = &margins;
        let is_valid = |margin: &f32| margin.is_finite() && *margin >= 0.0;
        let valid = margins.as_flattened().iter().all(is_valid) && ascend([few, many]);
        valid.then_some(Calibration { margins: Some(margins), ..self })
    }

    /// The shares, to be stored.
    pub fn shares(&self) -> [Shares; 2] {
        [self.few, self.many]
    }

    /// The margins, to be stored.
    pub fn margins(&self) -> Option<[Margins; 2]> {
        self.margins
    }

    /// The share of all buckets to probe for `recall` of the ten nearest rows, and how many times
    /// as much a hundred take, a thousand and so on.
    pub fn share(&self, recall: f64) -> (f64, f64) {
        let few = between(&self.few, 1.0, recall);
        (few, between(&self.many, 1.0, recall) / few.max(f64::MIN_POSITIVE))
    }

    /// The margins for `recall` of the ten nearest rows and of the hundred nearest. Above the
    /// highest known recall they are no more than for that: there, shares count as well.
    pub fn margins_for(&self, recall: f64) -> Option<(f32, f32)> {
        let [few, many] = self.margins.as_ref()?;
        let margin =
            |margins: &Margins| between(margins, margins[RECALLS.len() - 1], recall) as f32;
        Some((margin(few), margin(many)))
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
    let times = (rows.max(FEW as u64) as f64 / FEW as f64).ln() / (MANY as f64 / FEW as f64).ln();
    growth.powf(times)
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
        assert_eq!(shares.margins_for(0.9), None);
        let few = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6];
        let margins = [few, few.map(|margin| margin + 0.1)];
        let calibration = shares.with_margins(margins).unwrap();
        assert_eq!(calibration.margins(), Some(margins));
        for (recall, expected) in [(0.1, 0.2), (0.95, 0.8), (0.925, 0.7), (0.9995, 1.6)] {
            let (few, many) = calibration.margins_for(recall).unwrap();
            assert!((few - expected).abs() < 1e-6 && (many - few - 0.1).abs() < 1e-6, "{recall}");
        }
        assert!(!is_beyond_known(0.999) && is_beyond_known(0.9991));
        let unsorted = [few, few.map(|margin| margin - 0.1)];
        let refused = [unsorted, [[f32::NAN; 8]; 2], [[f32::INFINITY; 8]; 2], [[-1.0; 8]; 2]];
        assert!(refused.iter().all(|margins| shares.with_margins(*margins).is_none()));
    }
}
