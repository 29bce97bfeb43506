//! The mean of a sample, and directions along which it scatters most about that: principal
//! components.
//!
//! Found by orthogonal iteration (Golub and Van Loan, "Matrix Computations", section 8.2.4) on
//! the sample itself, never on its covariance: vectors may have thousands of dimensions.

use super::assign::mean;
use super::subspace::products;
use super::{check, Stopped};
use rand::{rngs::SmallRng, Rng, SeedableRng};
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// Rounds of the iteration. Directions whose squares are nearly alike are not told apart after so
/// few; it makes no difference which of them is kept.
const ROUNDS: usize = 6;

const SEED: u64 = 7;

/// Directions of length one and at right angles: that of the mean first, because all vectors have a
/// part along it, then those with most of the scatter.
pub(super) struct Principal {
    /// Row-major.
    pub directions: Vec<f32>,
    /// The share of all scatter along each.
    pub shares: Vec<f32>,
}

/// Finds `count` directions, not more than dimensions, for row-major vectors of `dim`.
pub(super) fn principal(
    mut rows: Vec<f32>,
    dim: usize,
    count: usize,
    stop: &AtomicBool,
) -> Result<Principal, Stopped> {
    let sampled = rows.len() / dim;
    let mean = mean(&rows, dim, stop)?;
    rows.par_chunks_mut(dim).try_for_each(|row| {
        check(stop)?;
        row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
        Ok(())
    })?;
    let rows = &rows[..];
    let mut rng = SmallRng::seed_from_u64(SEED);
    let mut directions: Vec<f32> =
        (0..count * dim).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    directions[..dim].copy_from_slice(&mean);
    make_orthonormal(&mut directions, dim, stop)?;
    let transposed = transpose(rows, dim, stop)?;
    let mut along = vec![0.0; sampled * count];
    for _ in 0..ROUNDS {
        products(rows, dim, &directions, count, &mut along, stop)?;
        let of_directions = transpose(&along, count, stop)?;
        let mut next = vec![0.0; directions.len()];
        products(&of_directions, sampled, &transposed, dim, &mut next, stop)?;
        next[..dim].copy_from_slice(&mean);
        directions = next;
        make_orthonormal(&mut directions, dim, stop)?;
    }
    products(rows, dim, &directions, count, &mut along, stop)?;
    let all: f64 = rows.iter().map(|x| f64::from(*x).powi(2)).sum();
    let mut squares = vec![0.0f64; count];
    for row in along.chunks_exact(count) {
        squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
    }
    let shares: Vec<f32> = squares.into_iter().map(|square| (square / all) as f32).collect();
    let mut order: Vec<usize> = (0..count).collect();
    order[1..].sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
    Ok(Principal {
        directions: order
            .iter()
            .flat_map(|nth| &directions[nth * dim..(nth + 1) * dim])
            .copied()
            .collect(),
        shares: order.iter().map(|nth| shares[*nth]).collect(),
    })
}

/// Columns for rows.
fn transpose(rows: &[f32], dim: usize, stop: &AtomicBool) -> Result<Vec<f32>, Stopped> {
    /// Columns made at once: a cache line of each row.
    const COLUMNS: usize = 16;
    let count = rows.len() / dim;
    let mut columns = vec![0.0; rows.len()];
    columns.par_chunks_mut(COLUMNS * count).enumerate().try_for_each(|(block, columns)| {
        check(stop)?;
        for (nth, row) in rows.chunks_exact(dim).enumerate() {
            let part = row[block * COLUMNS..].iter();
            part.zip(columns.chunks_exact_mut(count)).for_each(|(x, column)| column[nth] = *x);
        }
        Ok(())
    })?;
    Ok(columns)
}

/// Takes from each row what is along earlier ones, twice for the sake of rounding (Gram-Schmidt),
/// and brings it to length one. A row of which nothing is left becomes zero.
fn make_orthonormal(rows: &mut [f32], dim: usize, stop: &AtomicBool) -> Result<(), Stopped> {
    let k = crate::simd::kernels();
    for nth in 0..rows.len() / dim {
        check(stop)?;
        let (earlier, rest) = rows.split_at_mut(nth * dim);
        let (row, _) = rest.split_at_mut(dim);
        let before = (k.inner_product)(row, row).sqrt();
        for _ in 0..2 {
            for other in earlier.chunks_exact(dim) {
                let along = (k.inner_product)(row, other);
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let length = (k.inner_product)(row, row).sqrt();
        let is_left = length > before * 1e-5 && (1.0 / length).is_normal();
        let scale = if is_left { 1.0 / length } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    static STOP: AtomicBool = AtomicBool::new(false);

    /// Rows about the origin that lie along `dim` axes of falling weight, turned at random.
    fn rows(dim: usize, count: usize, weight: impl Fn(usize) -> f32) -> Vec<f32> {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut turned: Vec<f32> = (0..dim * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        make_orthonormal(&mut turned, dim, &STOP).unwrap();
        let mut rows = vec![0.0; count * dim];
        for row in rows.chunks_exact_mut(dim) {
            for (axis, direction) in turned.chunks_exact(dim).enumerate() {
                let x = rng.random_range(-1.0..1.0) * weight(axis);
                row.iter_mut().zip(direction).for_each(|(sum, d)| *sum += x * d);
            }
        }
        rows
    }

    #[test]
    fn few_directions_have_all_that_lies_along_them() {
        let rows = rows(96, 2000, |axis| if axis < 20 { 1.0 } else { 0.01 });
        let found = principal(rows, 96, 32, &STOP).unwrap();
        assert!(found.shares[1..].is_sorted_by(|a, b| a >= b));
        let most: f32 = found.shares[..21].iter().sum();
        assert!(most > 0.999, "{most}");
        for (nth, a) in found.directions.chunks_exact(96).enumerate() {
            for (other, b) in found.directions.chunks_exact(96).enumerate() {
                let product: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                let expected = if nth == other { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-3, "{nth} {other}: {product}");
            }
        }
    }

    #[test]
    fn what_is_not_there_has_no_direction() {
        let rows = rows(64, 500, |axis| if axis < 3 { 1.0 } else { 0.0 });
        let found = principal(rows.clone(), 64, 16, &STOP).unwrap();
        assert!(found.shares[..4].iter().sum::<f32>() > 0.999);
        assert!(found.directions.iter().all(|x| x.is_finite()));
        let stopped = principal(rows, 64, 16, &AtomicBool::new(true));
        assert!(stopped.is_err());
    }
}
