//! A second bucket for each row, so that a query that misses the first may meet the row there.
//!
//! The second bucket is chosen as in "SOAR: Improved Indexing for Approximate Nearest Neighbor
//! Search" (Sun, Simcha, Dopson, Guo and Kumar, NeurIPS 2023, equation 3): of two buckets equally
//! near, that whose residual r' points elsewhere than the residual r to the first one, because a
//! query that is misled by r is then not misled by r' as well. It minimises
//! `|r'|^2 + lambda * <r', r / |r|>^2`.

use super::best::Nearest;
use super::{check, Stopped};
use crate::simd::{kernels, select, vectorised, TILE_COLS};
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// Weight of the part of the residual along the first one.
const LAMBDA: f32 = 1.0;

/// The buckets among which a second one is sought: those nearest to the row, but for the first.
/// Those near to the first one would not do: where rows lie far from their centroids, they are not
/// the same.
const CANDIDATES: usize = 8;

/// Stands for no bucket.
pub const NO_BUCKET: u32 = u32::MAX;

/// A row's nearest centroid, and others that are near to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// The nearest.
    pub first: u32,
    /// Others, the nearer the earlier, as far as their scores tell: nearly always the nearest of
    /// those the row was compared with, if not all. [`NO_BUCKET`]
    /// behind the last.
    pub others: [u32; CANDIDATES],
}

impl Default for Near {
    fn default() -> Near {
        Near { first: 0, others: [NO_BUCKET; CANDIDATES] }
    }
}

impl Nearest for Near {
    fn of(place: u32, scores: &[f32], panels: &[u32], number: impl Fn(u32) -> u32) -> Near {
        let of = |place| if place == NO_BUCKET { NO_BUCKET } else { number(place) };
        Near { first: number(place), others: others(place, scores, panels).map(of) }
    }
}

vectorised! {
    /// The places near to a row beside the nearest, the nearer the earlier, and [`NO_BUCKET`] behind
    /// the last. Of two in one column the farther is passed over; there are four times as many
    /// columns as others are wanted.
    fn others(place: u32, scores: &[f32], panels: &[u32]) -> [u32; CANDIDATES] = others_body;
}

#[inline(always)]
fn others_body(place: u32, scores: &[f32], panels: &[u32]) -> [u32; CANDIDATES] {
    let place_of = |col: usize| panels[col] * TILE_COLS as u32 + col as u32;
    let mut keys = [i32::MAX; TILE_COLS];
    for (col, (key, score)) in keys.iter_mut().zip(scores).enumerate() {
        // What is not a number is not near.
        let is_other = (*score < f32::INFINITY) & (place_of(col) != place);
        *key = if is_other { select::ordered(*score) & !COLUMN | col as i32 } else { i32::MAX };
    }
    // Counted without branches: which of the keys are low is not to be foreseen.
    let mut ranks = [0i32; TILE_COLS];
    for other in keys {
        for (rank, key) in ranks.iter_mut().zip(&keys) {
            *rank += i32::from(other < *key);
        }
    }
    let mut sorted = [NO_BUCKET; TILE_COLS];
    for (col, (rank, key)) in ranks.iter().zip(keys).enumerate() {
        sorted[*rank as usize % TILE_COLS] =
            if key != i32::MAX { place_of(col) } else { NO_BUCKET };
    }
    std::array::from_fn(|nth| sorted[nth])
}

/// The bits of a score's key that tell its column, so that no two are equal.
const COLUMN: i32 = TILE_COLS as i32 - 1;

/// Writes the second bucket of each row to `out`; [`NO_BUCKET`] where there is only one. `near` has
/// what is near to the rows, `first` their buckets.
///
/// # Errors
/// [`Stopped`] when the flag went up.
pub fn spill(
    centroids: &[f32],
    rows: &[f32],
    dim: usize,
    near: &[Near],
    first: &[u32],
    out: &mut [u32],
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    let centroid = |bucket: u32| &centroids[bucket as usize * dim..][..dim];
    let buckets = (centroids.len() / dim) as u32;
    rows.par_chunks(dim)
        .zip(near)
        .zip(first.par_iter().zip(out))
        .with_min_len(256)
        .try_for_each_init(
            || vec![0.0; dim],
            |residual, ((row, near), (&first, out))| {
                check(stop)?;
                for ((r, x), c) in residual.iter_mut().zip(row).zip(centroid(first)) {
                    *r = x - c;
                }
                *out = second_of(row, residual, near, first, centroid);
                if *out == NO_BUCKET && buckets > 1 {
                    // Of a row that is not of numbers, or far from all but one.
                    *out = u32::from(first == 0);
                }
                Ok(())
            },
        )
}

/// The best of the candidates.
fn second_of<'c>(
    row: &[f32],
    residual: &[f32],
    near: &Near,
    first: u32,
    centroid: impl Fn(u32) -> &'c [f32],
) -> u32 {
    let k = kernels();
    let length = (k.inner_product)(residual, residual).sqrt();
    let along = (k.inner_product)(residual, row);
    let mut best = (f32::INFINITY, NO_BUCKET);
    for other in std::iter::once(near.first).chain(near.others) {
        if other == first || other == NO_BUCKET {
            continue;
        }
        let centroid = centroid(other);
        let distance = (k.l2_squared)(row, centroid);
        if distance >= best.0 {
            continue;
        }
        let parallel = match length > 0.0 {
            true => (along - (k.inner_product)(residual, centroid)) / length,
            false => 0.0,
        };
        let loss = distance + LAMBDA * parallel * parallel;
        if loss < best.0 {
            best = (loss, other);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::super::assign::PackedCentroids;
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    fn second(centroids: &[f32], dim: usize, rows: &[f32], first: &[u32]) -> Vec<u32> {
        let packed = PackedCentroids::new(centroids, dim, &STOP).unwrap();
        let (mut near, mut out) = (vec![Near::default(); first.len()], vec![9; first.len()]);
        packed.nearest(rows, &mut near, &STOP).unwrap();
        spill(centroids, rows, dim, &near, first, &mut out, &STOP).unwrap();
        out
    }

    #[test]
    fn others_are_near() {
        let mut rng = SmallRng::seed_from_u64(1);
        // Few rows are compared as they are, many by their codes.
        for (count, rows) in [(1, 50), (2, 50), (20, 50), (700, 500), (700, 2000)] {
            let dim = 20;
            let centroids: Vec<f32> = (0..count * dim).map(|_| rng.random()).collect();
            let rows: Vec<f32> = (0..rows * dim).map(|_| rng.random()).collect();
            let packed = PackedCentroids::new(&centroids, dim, &STOP).unwrap();
            let (mut near, mut first) = (vec![Near::default(); rows.len() / dim], Vec::new());
            first.resize(near.len(), 0u32);
            packed.nearest(&rows, &mut near, &STOP).unwrap();
            packed.nearest(&rows, &mut first, &STOP).unwrap();
            let mut missed = 0;
            for ((row, near), first) in rows.chunks(dim).zip(&near).zip(first) {
                assert_eq!(near.first, first);
                let mut others: Vec<u32> = (0..count as u32).filter(|i| *i != first).collect();
                others.sort_by(|a, b| {
                    let distance = |i: &u32| {
                        (kernels().l2_squared)(row, &centroids[*i as usize * dim..][..dim])
                    };
                    distance(a).total_cmp(&distance(b))
                });
                others.truncate(CANDIDATES);
                let known = near.others.iter().take_while(|other| **other != NO_BUCKET).count();
                assert_eq!(known, others.len(), "{count}");
                missed += others.iter().filter(|other| !near.others.contains(other)).count();
            }
            let all = near.len() * CANDIDATES;
            assert!(missed * 4 < all, "{count} centroids: {missed} of {all}");
        }
    }

    #[test]
    fn the_second_bucket_lies_across_the_first_residual() {
        // The row is east of its centroid; of two others as near, the northern one is across.
        let centroids = [0.0, 0.0, 2.0, 0.0, 1.0, 1.0];
        assert_eq!(second(&centroids, 2, &[1.0, 0.0], &[0]), [2]);
        assert_eq!(second(&centroids, 2, &[0.0, 0.0], &[0]), [2], "at the centroid: the nearest");
    }

    #[test]
    fn a_row_in_another_bucket_than_the_nearest_has_its_second_there() {
        assert_eq!(second(&[0.0, 1.0, 5.0], 1, &[0.1], &[2]), [0]);
    }

    #[test]
    fn one_bucket_has_no_second() {
        assert_eq!(second(&[1.0, 2.0], 2, &[0.0, 0.0], &[0]), [NO_BUCKET]);
    }

    #[test]
    fn rows_that_are_no_numbers_get_some_other_bucket() {
        let centroids = [0.0, 1.0, 2.0];
        let second = second(&centroids, 1, &[f32::NAN, f32::INFINITY], &[0, 2]);
        assert!(second[0] == 1 || second[0] == 2);
        assert!(second[1] < 2);
    }
}
