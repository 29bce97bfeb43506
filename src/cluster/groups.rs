//! Centroids in groups, so that not all of them need be looked at.

use super::assign::PackedCentroids;
use super::kmeans::{self, Params};
use super::{check, Stopped};
use std::sync::atomic::AtomicBool;

const SEED: u64 = 1;
const ITERATIONS: usize = 10;

/// Centroids trained on, for each group.
const SAMPLES_PER_GROUP: usize = 64;

/// From so many centroids on they are in groups: to look at all of fewer takes hardly longer.
pub(super) const FEWEST_GROUPED: usize = 3_000;

/// Groups of row-major centroids, about as many as each has members.
pub struct Groups {
    /// Row-major.
    centres: Vec<f32>,
    dim: usize,
    /// The centroids' numbers, ascending, of each group.
    members: Vec<Vec<u32>>,
}

impl Groups {
    /// As many groups as searching the centroids takes.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn of(centroids: &[f32], dim: usize, stop: &AtomicBool) -> Result<Groups, Stopped> {
        if centroids.len() / dim >= FEWEST_GROUPED {
            Groups::new(centroids, dim, stop)
        } else {
            Ok(Groups::one(centroids, dim))
        }
    }

    /// Clusters centroids of `dim` components into about a square root of groups.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn new(centroids: &[f32], dim: usize, stop: &AtomicBool) -> Result<Groups, Stopped> {
        let count = centroids.len() / dim;
        let clusters = (count as f64).sqrt().round() as usize;
        let wanted = (clusters * SAMPLES_PER_GROUP).min(count);
        let sampled: Vec<f32>;
        let sample = if wanted < count {
            let row = |nth| &centroids[nth * count / wanted * dim..][..dim];
            sampled = (0..wanted).flat_map(row).copied().collect();
            &sampled
        } else {
            centroids
        };
        let params = Params { clusters, iterations: ITERATIONS, seed: SEED, spherical: false };
        let centres = kmeans::train(sample, dim, &params, stop)?;
        let packed = PackedCentroids::new(&centres, dim, stop)?;
        let mut group_of = vec![0; count];
        packed.nearest(centroids, &mut group_of, stop)?;
        check(stop)?;
        let mut members = vec![Vec::new(); centres.len() / dim];
        for (group, number) in group_of.into_iter().zip(0..) {
            members[group as usize].push(number);
        }
        Ok(Groups { centres, dim, members })
    }

    /// Groups that were found before: their centres, of `dim` components, and for each the numbers
    /// of its members.
    ///
    /// # Panics
    /// When the numbers of centres and lists differ.
    pub fn known(centres: Vec<f32>, dim: usize, members: Vec<Vec<u32>>) -> Groups {
        assert_eq!(centres.len(), members.len() * dim, "a centre for each list");
        Groups { centres, dim, members }
    }

    /// All centroids in one group, about their mean.
    pub fn one(centroids: &[f32], dim: usize) -> Groups {
        let count = centroids.len() / dim;
        let mut mean = vec![0.0f64; dim];
        for centroid in centroids.chunks_exact(dim) {
            mean.iter_mut().zip(centroid).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let centres = mean.into_iter().map(|sum| (sum / count.max(1) as f64) as f32).collect();
        Groups { centres, dim, members: vec![(0..count as u32).collect()] }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The centres, row-major.
    pub fn centres(&self) -> &[f32] {
        &self.centres
    }

    /// The centre of each group, and the numbers of its centroids.
    pub fn iter(&self) -> impl Iterator<Item = (&[f32], &[u32])> {
        self.centres.chunks_exact(self.dim).zip(self.members.iter().map(Vec::as_slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    #[test]
    fn every_centroid_is_in_the_group_of_the_nearest_centre() {
        let mut rng = SmallRng::seed_from_u64(4);
        let centroids: Vec<f32> = (0..5000 * 8).map(|_| rng.random_range(-1.0..1.0)).collect();
        let groups = Groups::new(&centroids, 8, &STOP).unwrap();
        assert!((40..=100).contains(&groups.len()), "{}", groups.len());
        let far =
            |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum() };
        let mut seen = vec![0; 5000];
        for (centre, members) in groups.iter() {
            for member in members {
                seen[*member as usize] += 1;
                let own = &centroids[*member as usize * 8..][..8];
                let least = groups.iter().map(|(other, _)| far(own, other)).fold(9.0, f32::min);
                assert!(far(own, centre) <= least + 1e-4);
            }
        }
        assert!(seen.iter().all(|times| *times == 1));
    }

    #[test]
    fn one_group_has_all_about_the_mean() {
        let groups = Groups::one(&[1.0, 2.0, 3.0, 6.0], 2);
        let all: Vec<_> = groups.iter().collect();
        assert_eq!(all, [(&[2.0, 4.0][..], &[0, 1][..])]);
        assert_eq!(Groups::one(&[], 2).iter().map(|(_, members)| members.len()).sum::<usize>(), 0);
    }

    #[test]
    fn a_stopped_grouping_ends() {
        let stop = AtomicBool::new(true);
        assert!(Groups::new(&[0.5; 8000], 2, &stop).is_err());
    }
}
