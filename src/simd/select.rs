//! The lowest of many numbers, without sorting them.

use super::{kernels, LEAST_OF};

/// Parts of the values whose minima are taken place by place.
const SPREAD: usize = 4;

/// A number not below the `count` lowest of `values`, and below most others: usually not many more
/// than `count` values are up to it. Infinity when there are no more than `count`.
///
/// It is the `count`-th lowest of the minima of small sets of them. So many sets have a value up to
/// it, and the lowest values rarely share one: runs, or, where these would be too few, what is
/// [`SPREAD`] parts of the values apart.
pub fn threshold(values: &[f32], count: usize, scratch: &mut Vec<f32>) -> f32 {
    scratch.clear();
    if values.len() <= count {
        return f32::INFINITY;
    }
    let runs = values.len().div_ceil(LEAST_OF);
    let part = values.len() / SPREAD;
    if runs >= 2 * count {
        scratch.resize(runs, 0.0);
        (kernels().least_of_runs)(values, scratch);
    } else if part >= 2 * count {
        let (first, others) = values.split_at(part);
        scratch.extend_from_slice(first);
        for other in others.chunks(part) {
            // The last one may be short. A minimum with what is no number is the number.
            scratch.iter_mut().zip(other).for_each(|(least, value)| *least = least.min(*value));
        }
    } else {
        scratch.extend_from_slice(values);
    }
    let at = count.saturating_sub(1).min(scratch.len() - 1);
    *scratch.select_nth_unstable_by(at, f32::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    #[test]
    fn the_lowest_are_up_to_the_threshold_and_not_many_others() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut scratch = Vec::new();
        for len in [0, 1, 5, 100, 1000, 1003, 9000] {
            for count in [1, 3, 64, 200] {
                let values: Vec<f32> = (0..len).map(|_| rng.random()).collect();
                let high = threshold(&values, count, &mut scratch);
                let mut found = Vec::new();
                (kernels().up_to)(&values, high, &mut found);
                assert!(found.len() >= count.min(len));
                assert!(
                    found.len() <= count.max(8) * 3 || len <= count,
                    "{} for {count}",
                    found.len()
                );
                let most = found.iter().map(|at| values[*at as usize]).fold(0.0, f32::max);
                assert!((0..len).all(|at| values[at] > most || found.contains(&(at as u32))));
            }
        }
    }

    #[test]
    fn unknown_values_are_the_lowest() {
        let mut values = vec![1.0; 500];
        values[300] = f32::NEG_INFINITY;
        let mut found = Vec::new();
        let high = threshold(&values, 1, &mut Vec::new());
        (kernels().up_to)(&values, high, &mut found);
        assert_eq!((high, found), (f32::NEG_INFINITY, vec![300]));
    }
}
