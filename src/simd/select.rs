//! The lowest of many numbers, without sorting them.

use super::{kernels, LEAST_OF};

/// Parts of the values whose minima are taken place by place.
const SPREAD: usize = 4;

/// A number not below the `count` lowest of `values`, and below most others: usually not many more
/// than `count` values are up to it. Infinity when there are no more than `count`.
///
/// It is about the `count`-th lowest of the minima of small sets of them. So many sets have a value up to
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
    among_lowest(scratch, count.clamp(1, scratch.len()))
}

/// A number that at least `count` of the values are up to, and hardly more; infinity when they are
/// not.
///
/// Numbers are tried, halving those that it still may be: a processor compares many values with one
/// number in the time that one step of a selection takes.
fn among_lowest(values: &[f32], count: usize) -> f32 {
    let enough = count..=count + count / 8;
    let (mut low, mut high) = (ordered(f32::NEG_INFINITY), ordered(f32::INFINITY));
    while low < high {
        // Never the upper one of two.
        let middle = low.wrapping_add_unsigned(low.abs_diff(high) / 2);
        let found = (kernels().count_up_to)(values, unordered(middle));
        if found < count {
            low = middle + 1;
        } else {
            high = middle;
            if enough.contains(&found) {
                break;
            }
        }
    }
    unordered(high)
}

/// An integer for each float that is no NaN, in the same order.
pub fn ordered(x: f32) -> i32 {
    flip(x.to_bits().cast_signed())
}

fn unordered(x: i32) -> f32 {
    f32::from_bits(flip(x).cast_unsigned())
}

/// Turns the order of bits below the sign about where that is set.
fn flip(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
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
    fn numbers_have_their_order_as_integers() {
        let numbers = [f32::NEG_INFINITY, f32::MIN, -1.5, -1e-45, 0.0, 1e-45, 2.0, f32::INFINITY];
        assert!(numbers.is_sorted_by_key(|x| ordered(*x)));
        assert!(numbers.iter().all(|x| unordered(ordered(*x)) == *x));
    }

    #[test]
    fn enough_values_are_up_to_what_is_found() {
        for value in [1.0, f32::INFINITY, -0.0, -2e-45, f32::MIN, f32::NEG_INFINITY] {
            for count in [1, 40] {
                assert!(among_lowest(&[value; 40], count) >= value, "{count} of {value}");
            }
        }
        let mut values = vec![f32::NAN; 10];
        assert_eq!(among_lowest(&values, 1), f32::INFINITY);
        values[4] = -7.0;
        assert!((-7.0..f32::INFINITY).contains(&among_lowest(&values, 1)));
        let values: Vec<f32> = (0..100).map(|nth| 1e30_f32.powf(nth as f32 / 50.0 - 1.0)).collect();
        for count in 1..=100 {
            let high = among_lowest(&values, count);
            let found = values.iter().filter(|value| **value <= high).count();
            assert!(found >= count && found <= count + count / 8, "{found} for {count}");
        }
    }

    #[test]
    fn unknown_values_are_the_lowest() {
        let mut values = vec![1.0; 500];
        values[300] = f32::NEG_INFINITY;
        let mut found = Vec::new();
        let high = threshold(&values, 1, &mut Vec::new());
        (kernels().up_to)(&values, high, &mut found);
        assert_eq!(found, [300]);
    }
}
