//! A second bucket for each row, so that a query that misses the first may meet the row there.
//!
//! The second bucket is chosen as in "SOAR: Improved Indexing for Approximate Nearest Neighbor
//! Search" (Sun, Simcha, Dopson, Guo and Kumar, NeurIPS 2023, equation 3): of two buckets equally
//! near, that whose residual r' points elsewhere than the residual r to the first one, because a
//! query that is misled by r is then not misled by r' as well. It minimises
//! `|r'|^2 + lambda * <r', r / |r|>^2`.

use super::assign::{PackedCentroids, Workspace};
use super::{check, Stopped};
use crate::simd::{kernels, TILE_COLS};
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// Weight of the part of the residual along the first one.
const LAMBDA: f32 = 1.0;

/// The buckets among which a second one is sought: those nearest to the first.
const CANDIDATES: usize = 24;

/// Centroids whose neighbours one task looks for.
const TASK: usize = 192;

/// Stands for no bucket.
pub const NO_BUCKET: u32 = u32::MAX;

/// For each centroid those nearest to it.
pub struct Neighbours {
    each: usize,
    lists: Vec<u32>,
}

impl Neighbours {
    /// Finds the neighbours of row-major centroids.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn new(
        centroids: &[f32],
        dim: usize,
        packed: &PackedCentroids,
        stop: &AtomicBool,
    ) -> Result<Neighbours, Stopped> {
        let each = Neighbours::each(packed.len());
        let mut lists = vec![0; packed.len() * each];
        if each > 0 {
            lists.par_chunks_mut(TASK * each).enumerate().try_for_each_init(
                Workspace::default,
                |workspace, (task, lists)| {
                    let first = task * TASK;
                    let rows = &centroids[first * dim..][..lists.len() / each * dim];
                    nearest_of(workspace, packed, rows, first as u32, each, lists, stop)
                },
            )?;
        }
        Ok(Neighbours { each, lists })
    }

    /// Those that were found before; none if they are not of so many centroids.
    pub fn known(lists: Vec<u32>, centroids: usize) -> Option<Neighbours> {
        let each = Neighbours::each(centroids);
        let fits = lists.len() == centroids * each;
        let is_sound = fits && lists.iter().all(|other| (*other as usize) < centroids);
        is_sound.then_some(Neighbours { each, lists })
    }

    /// How many neighbours each of so many centroids has.
    pub fn each(centroids: usize) -> usize {
        CANDIDATES.min(centroids.saturating_sub(1))
    }

    /// The neighbours of all centroids, [`Neighbours::each`] of the first one first.
    pub fn lists(&self) -> &[u32] {
        &self.lists
    }

    fn of(&self, bucket: u32) -> &[u32] {
        &self.lists[bucket as usize * self.each..][..self.each]
    }

    /// Writes the second bucket of each row to `out`; [`NO_BUCKET`] where there is only one.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn spill(
        &self,
        centroids: &[f32],
        rows: &[f32],
        dim: usize,
        first: &[u32],
        out: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let k = kernels();
        rows.par_chunks(dim).zip(first).zip(out).with_min_len(256).try_for_each_init(
            || vec![0.0; dim],
            |residual, ((row, &bucket), out)| {
                check(stop)?;
                let centroid = |bucket: u32| &centroids[bucket as usize * dim..][..dim];
                for ((r, x), c) in residual.iter_mut().zip(row).zip(centroid(bucket)) {
                    *r = x - c;
                }
                let length = (k.inner_product)(residual, residual).sqrt();
                let along = (k.inner_product)(residual, row);
                let mut best = (f32::INFINITY, NO_BUCKET);
                for &other in self.of(bucket) {
                    let centroid = centroid(other);
                    let parallel = if length > 0.0 {
                        (along - (k.inner_product)(residual, centroid)) / length
                    } else {
                        0.0
                    };
                    let loss = (k.l2_squared)(row, centroid) + LAMBDA * parallel * parallel;
                    if best.1 == NO_BUCKET || loss < best.0 {
                        best = (loss, other);
                    }
                }
                *out = best.1;
                Ok(())
            },
        )
    }
}

/// Writes, for each of `rows`, which are the centroids from number `first` on, the numbers of the
/// `each` other centroids nearest to it, in no order.
fn nearest_of(
    workspace: &mut Workspace,
    packed: &PackedCentroids,
    rows: &[f32],
    first: u32,
    each: usize,
    lists: &mut [u32],
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    let dim = packed.shift().len();
    let count = rows.len() / dim;
    workspace.pack(rows.chunks_exact(dim), packed.shift());
    let mut nearest: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(2 * each + TILE_COLS); count];
    let mut bounds = vec![f32::INFINITY; count];
    for panel in 0..packed.panels() {
        check(stop)?;
        workspace.scores(packed, panel, count, |row, scores| {
            let bound = bounds[row];
            if !scores.iter().any(|score| *score < bound) {
                return;
            }
            let own = first + row as u32;
            let kept = &mut nearest[row];
            for (&score, other) in scores.iter().zip((panel * TILE_COLS) as u32..) {
                if score < bound && other != own && (other as usize) < packed.len() {
                    kept.push((score, other));
                }
            }
            if kept.len() >= 2 * each {
                kept.select_nth_unstable_by(each - 1, |a, b| a.0.total_cmp(&b.0));
                kept.truncate(each);
                bounds[row] =
                    kept.iter().fold(f32::NEG_INFINITY, |most, (score, _)| most.max(*score));
            }
        });
    }
    for ((row, list), kept) in (first..).zip(lists.chunks_exact_mut(each)).zip(&mut nearest) {
        kept.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        // Centroids that are not numbers are near to none; their lists are filled with any others.
        let any = (0..packed.len() as u32).filter(|other| *other != row);
        let found = kept.iter().map(|(_, other)| *other).chain(any);
        list.iter_mut().zip(found).for_each(|(place, other)| *place = other);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    fn spill(centroids: &[f32], dim: usize, rows: &[f32], first: &[u32]) -> Vec<u32> {
        let stop = AtomicBool::new(false);
        let packed = PackedCentroids::new(centroids, dim, &stop).unwrap();
        let neighbours = Neighbours::new(centroids, dim, &packed, &stop).unwrap();
        let mut out = vec![9; first.len()];
        neighbours.spill(centroids, rows, dim, first, &mut out, &stop).unwrap();
        out
    }

    #[test]
    fn neighbours_are_the_nearest_others() {
        let mut rng = SmallRng::seed_from_u64(1);
        let stop = AtomicBool::new(false);
        for count in [1usize, 2, 20, 25, 300, 700] {
            let centroids: Vec<f32> = (0..count * 5).map(|_| rng.random()).collect();
            let packed = PackedCentroids::new(&centroids, 5, &stop).unwrap();
            let neighbours = Neighbours::new(&centroids, 5, &packed, &stop).unwrap();
            for own in 0..count {
                let at = |i: usize| &centroids[i * 5..][..5];
                let mut others: Vec<u32> = (0..count as u32).filter(|i| *i != own as u32).collect();
                others.sort_by(|a, b| {
                    let distance = |i: &u32| (kernels().l2_squared)(at(own), at(*i as usize));
                    distance(a).total_cmp(&distance(b))
                });
                others.truncate(CANDIDATES);
                assert_eq!(neighbours.of(own as u32), others);
            }
            let again = Neighbours::known(neighbours.lists().to_vec(), count).unwrap();
            assert_eq!(again.lists(), neighbours.lists());
            assert!(Neighbours::known(neighbours.lists().to_vec(), count + 1).is_none());
            let wrong = vec![count as u32; count * Neighbours::each(count)];
            assert_eq!(Neighbours::known(wrong, count).is_none(), count > 1);
        }
    }

    #[test]
    fn the_second_bucket_lies_across_the_first_residual() {
        // The row is east of its centroid; of two others as near, the northern one is across.
        let centroids = [0.0, 0.0, 2.0, 0.0, 1.0, 1.0];
        assert_eq!(spill(&centroids, 2, &[1.0, 0.0], &[0]), [2]);
        assert_eq!(spill(&centroids, 2, &[0.0, 0.0], &[0]), [2], "at the centroid: the nearest");
    }

    #[test]
    fn one_bucket_has_no_second() {
        assert_eq!(spill(&[1.0, 2.0], 2, &[0.0, 0.0], &[0]), [NO_BUCKET]);
    }

    #[test]
    fn rows_that_are_no_numbers_get_some_other_bucket() {
        let centroids = [0.0, 1.0, 2.0];
        let second = spill(&centroids, 1, &[f32::NAN, f32::INFINITY], &[0, 2]);
        assert!(second[0] == 1 || second[0] == 2);
        assert!(second[1] < 2);
    }
}
