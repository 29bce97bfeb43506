//! Statistics: percentiles, medians, recall-speed curves and their ratios.

/// The value below which a share of the sorted `values` lies, by the nearest rank; NaN of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The median; the mean of the two in the middle of an even number; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// What an index does at one setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Share of the nearest rows found.
    pub recall: f64,
    /// Queries a second.
    pub qps: f64,
}

/// The points that no other beats in both recall and speed, the least recall first.
pub fn frontier(points: &[Point]) -> Vec<Point> {
    let mut sorted: Vec<Point> =
        points.iter().copied().filter(|it| it.recall.is_finite() && it.qps > 0.0).collect();
    sorted.sort_by(|a, b| b.recall.total_cmp(&a.recall).then(b.qps.total_cmp(&a.qps)));
    let mut frontier: Vec<Point> = Vec::new();
    for point in sorted {
        if frontier.last().is_none_or(|last| point.qps > last.qps) {
            frontier.push(point);
        }
    }
    frontier.reverse();
    frontier
}

/// The speed at a recall, on the line between the frontier's points beside it: the logarithm of
/// the speed is linear in recall. Below the least recall measured it is that point's speed, which
/// has the recall asked for and more; above the greatest there is none.
pub fn speed_at(points: &[Point], recall: f64) -> Option<f64> {
    let frontier = frontier(points);
    let above = frontier.iter().position(|it| it.recall >= recall)?;
    let to = frontier[above];
    let Some(from) = above.checked_sub(1).map(|it| frontier[it]) else { return Some(to.qps) };
    let share = (recall - from.recall) / (to.recall - from.recall);
    Some((from.qps.ln() + share * (to.qps.ln() - from.qps.ln())).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(pairs: &[(f64, f64)]) -> Vec<Point> {
        pairs.iter().map(|&(recall, qps)| Point { recall, qps }).collect()
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values, 1.0), 100.0);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn beaten_points_are_not_of_the_frontier() {
        let all = points(&[(0.9, 100.0), (0.95, 120.0), (0.8, 110.0), (0.99, 10.0), (0.7, 200.0)]);
        assert_eq!(frontier(&all), points(&[(0.7, 200.0), (0.95, 120.0), (0.99, 10.0)]));
        let twice = points(&[(0.9, 5.0), (0.9, 7.0)]);
        assert_eq!(frontier(&twice), points(&[(0.9, 7.0)]));
        assert!(frontier(&points(&[(f64::NAN, 1.0), (0.9, 0.0)])).is_empty());
    }

    #[test]
    fn speed_is_interpolated_in_its_logarithm() {
        let all = points(&[(0.9, 10_000.0), (1.0, 100.0)]);
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        assert!(close(speed_at(&all, 0.95).unwrap(), 1_000.0));
        assert!(close(speed_at(&all, 0.9).unwrap(), 10_000.0));
        assert!(close(speed_at(&all, 0.5).unwrap(), 10_000.0));
        assert!(close(speed_at(&all, 1.0).unwrap(), 100.0));
        assert_eq!(speed_at(&points(&[(0.9, 1.0)]), 0.95), None);
        assert_eq!(speed_at(&[], 0.5), None);
    }
}
