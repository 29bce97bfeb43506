//! Which buckets, in which order, and how many.

use super::calibration::Calibration;

/// The buckets in the order of their scores, sorted only as far as they are probed.
pub struct ProbeOrder {
    buckets: Vec<(f32, u32)>,
    sorted: usize,
    taken: usize,
}

/// Buckets sorted at first; each further time twice as many.
const FIRST: usize = 64;

impl ProbeOrder {
    /// Orders buckets `0..scores.len()` by ascending score.
    pub fn new(scores: &[f32]) -> ProbeOrder {
        let buckets = scores.iter().copied().zip(0..).collect();
        ProbeOrder { buckets, sorted: 0, taken: 0 }
    }

    fn sort_some(&mut self) {
        let by_score = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0);
        let rest = &mut self.buckets[self.sorted..];
        let count = self.sorted.max(FIRST).min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, by_score);
        }
        rest[..count].sort_unstable_by(by_score);
        self.sorted += count;
    }
}

impl Iterator for ProbeOrder {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.taken == self.sorted {
            self.sort_some();
        }
        let (_, bucket) = self.buckets[..self.sorted].get(self.taken)?;
        self.taken += 1;
        Some(*bucket)
    }
}

/// How many buckets are probed for a wanted recall.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    first: u64,
    exact: bool,
}

impl Effort {
    /// The effort to find `recall` of the nearest rows in `buckets` buckets.
    ///
    /// Counted in buckets, not in rows, it holds when rows crowd into some buckets after the
    /// calibration. From 1 on, all are probed and every bound is rigorous.
    pub fn new(recall: f64, buckets: usize, calibration: &Calibration) -> Effort {
        if recall >= 1.0 {
            return Effort { first: u64::MAX, exact: true };
        }
        let first = (buckets as f64 * calibration.share(recall)).ceil() as u64;
        Effort { first: first.max(1), exact: false }
    }

    /// Buckets to have probed before row number `delivered` (from 0) is handed out.
    ///
    /// It grows as the square: many more rows are asked for only behind a filter, and then few
    /// that are near may still be unseen by the time farther ones go out.
    pub fn buckets(&self, delivered: u64) -> u64 {
        let growth = delivered.saturating_mul(delivered) / DELIVERED_PER_FIRST.pow(2);
        self.first.saturating_mul(1 + growth)
    }

    /// Whether nothing may be missed.
    pub fn is_exact(&self) -> bool {
        self.exact
    }
}

/// Below this many rows, looking at all of them costs less than choosing.
pub const FEWEST_ROWS: u64 = 1_000;
/// Rows delivered before the probed set is twice as wide.
const DELIVERED_PER_FIRST: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_come_in_the_order_of_their_scores() {
        let scores: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        let order: Vec<u32> = ProbeOrder::new(&scores).collect();
        assert_eq!(order.len(), scores.len());
        assert!(order.windows(2).all(|w| scores[w[0] as usize] < scores[w[1] as usize]));
    }

    #[test]
    fn no_bucket_is_no_probe() {
        assert_eq!(ProbeOrder::new(&[]).next(), None);
    }

    #[test]
    fn more_recall_is_never_less_effort() {
        let shares = [0.001, 0.002, 0.003, 0.005, 0.008, 0.01, 0.02, 0.03];
        let calibration = Calibration::from_shares(shares).unwrap();
        for buckets in [0, 1, 10, 10_000, 1_000_000] {
            let efforts: Vec<u64> = [0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]
                .iter()
                .map(|recall| Effort::new(*recall, buckets, &calibration).buckets(0))
                .collect();
            assert!(efforts.is_sorted(), "{buckets}: {efforts:?}");
        }
    }

    #[test]
    fn the_probed_set_widens_ahead_of_what_is_delivered() {
        let calibration = Calibration::from_shares([0.01; 8]).unwrap();
        let effort = Effort::new(0.95, 8_000, &calibration);
        assert_eq!(effort.buckets(0), effort.buckets(50));
        assert!(effort.buckets(1000) >= 5 * effort.buckets(0));
    }
}
