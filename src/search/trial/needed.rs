//! What a recall needs, if it is known what finding each neighbour of some queries needs.

/// What a trial errs by is made up for, but not so far that less than this part of what may be
/// missed would be.
const LEAST_MISSED: f64 = 0.5;

/// What a recall needs, if each neighbour of some queries was found at what `found` says.
pub fn needed(found: &[Vec<f64>], recall: f64) -> f64 {
    let mut all: Vec<f64> = found.iter().flatten().copied().collect();
    let mut needed_for = |recall: f64| {
        let rank = (all.len() as f64 * recall).ceil() as usize;
        let at = rank.saturating_sub(1);
        match at < all.len() {
            true => *all.select_nth_unstable_by(at, f64::total_cmp).1,
            false => f64::INFINITY,
        }
    };
    let error = standard_error(found, needed_for(recall));
    needed_for((recall + error).min(1.0 - (1.0 - recall) * LEAST_MISSED))
}

/// How far the mean recall within `limit` may lie from that of all queries there could be: the
/// neighbours of one are found together, or not, so that the queries count.
fn standard_error(found: &[Vec<f64>], limit: f64) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for found in found.iter().filter(|found| !found.is_empty()) {
        let within = found.iter().filter(|needed| **needed <= limit).count();
        let recall = within as f64 / found.len() as f64;
        (count, sum, squares) = (count + 1.0, sum + recall, squares + recall * recall);
    }
    if count < 2.0 {
        return 0.0;
    }
    let variance = (squares - sum * sum / count) / (count - 1.0);
    (variance.max(0.0) / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::calibration::RECALLS;

    #[test]
    fn what_a_trial_of_few_queries_errs_by_is_made_up_for() {
        // Of each query all neighbours are found at once, by one to a hundred probes.
        let queries = |count: u64| -> Vec<Vec<f64>> {
            (0..count).map(|nth| vec![(1 + nth * 100 / count) as f64; 10]).collect()
        };
        let needed = |count: u64| RECALLS.map(|recall| needed(&queries(count), recall));
        let (many, few) = (needed(10_000), needed(100));
        for (nth, recall) in RECALLS.iter().enumerate() {
            let (many, few) = (many[nth], few[nth]);
            assert!(many >= recall * 100.0 - 1.0 && many <= recall * 100.0 + 2.0, "{many}");
            assert!(few >= many, "{few}");
        }
        assert!(few[0] > 53.0 && few[2] > 92.0);
        assert!(few[3] <= 98.0);
        assert!(few.is_sorted());
        assert_eq!(super::needed(&[], 0.9), f64::INFINITY);
    }
}
