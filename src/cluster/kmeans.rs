//! k-means: seeding by k-means++, Lloyd's iterations, a hierarchy when there are many clusters.

use super::assign::{power_of_two_below_inverse, Targets};
use super::groups::Assigner;
use super::{check, Stopped};
use crate::simd::kernels;
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::atomic::AtomicBool;

/// How to cluster.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Centroids wanted; there are fewer if there are fewer distinct samples.
    pub clusters: usize,
    /// Most iterations of Lloyd's algorithm.
    pub iterations: usize,
    /// The same samples, parameters and seed give the same centroids.
    pub seed: u64,
    /// Whether centroids are brought to length one, for samples that have length one (spherical
    /// k-means: Dhillon and Modha, "Concept decompositions for large sparse text data using
    /// clustering", 2001).
    pub spherical: bool,
}

/// Above this many clusters they are found in two levels.
const FLAT_CLUSTERS: usize = 256;
/// Samples the upper level is trained on, for each of its clusters.
const UPPER_SAMPLES: usize = 256;
/// Iterations over all clusters after the two levels.
const REFINEMENTS: usize = 2;
/// Samples seeds are chosen from, for each cluster.
const SEED_SAMPLES: usize = 16;
/// Samples seeds are chosen from at least.
const FEWEST_SEED_SAMPLES: usize = 1024;
/// Samples that may still change their cluster when iterations end, one in so many.
const SETTLED: usize = 1000;
/// Largest magnitudes outside these bounds are scaled to one, for squares to have their place.
const MAGNITUDES: std::ops::Range<f32> = 1e-12..1e15;
/// Components read between looks at the stop flag.
const COMPONENTS: usize = 1 << 20;

/// Finds 1 to `params.clusters` centroids of `samples`; both are row-major with `dim` components.
///
/// Samples that are not finite, and in the spherical case those of length zero, have no say. If
/// none is left the one centroid is zero.
///
/// Seeds are chosen by k-means++ (Arthur and Vassilvitskii, "k-means++: the advantages of careful
/// seeding", 2007) from a uniform part of the samples if they are many. Many clusters are found in
/// two levels, each upper cluster being divided into a share by its population, and then refined
/// together.
///
/// # Errors
/// [`Stopped`] once `stop` is true.
///
/// # Panics
/// If `dim` is zero or does not divide the length of `samples`.
pub fn train(
    samples: &[f32],
    dim: usize,
    params: &Params,
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    assert!(dim > 0 && samples.len().is_multiple_of(dim), "dimensions");
    let (mut samples, largest) = usable(samples, dim, params.spherical, stop)?;
    if samples.is_empty() {
        return Ok(vec![0.0; dim]);
    }
    let mut scale = 1.0;
    if largest > 0.0 && !MAGNITUDES.contains(&largest) && !params.spherical {
        scale = power_of_two_below_inverse(largest);
        samples.to_mut().iter_mut().for_each(|x| *x *= scale);
    }
    let trainer = Trainer { dim, iterations: params.iterations, spherical: params.spherical, stop };
    let mut rng = StdRng::seed_from_u64(params.seed);
    let clusters = params.clusters.max(1);
    let mut centroids = trainer.divide(&samples, clusters, &mut rng)?;
    if centroids.len() / dim > FLAT_CLUSTERS {
        let refinements = REFINEMENTS.min(params.iterations);
        centroids = trainer.iterate(&samples, centroids, refinements, &mut rng)?;
    }
    if scale != 1.0 {
        centroids.iter_mut().for_each(|x| *x /= scale);
    }
    Ok(centroids)
}

/// The samples that have a say, and the largest magnitude of their components.
fn usable<'s>(
    samples: &'s [f32],
    dim: usize,
    spherical: bool,
    stop: &AtomicBool,
) -> Result<(Cow<'s, [f32]>, f32), Stopped> {
    let magnitudes: Vec<f32> = samples
        .par_chunks(dim)
        .map(|sample| {
            check(stop)?;
            // Neither maximum nor comparison would keep a NaN.
            Ok(sample.iter().fold(0f32, |largest, x| match x.abs() {
                x if x > largest || x.is_nan() => x,
                _ => largest,
            }))
        })
        .collect::<Result<_, Stopped>>()?;
    let has_a_say = |magnitude: f32| magnitude.is_finite() && !(spherical && magnitude == 0.0);
    let largest = magnitudes.iter().copied().filter(|m| has_a_say(*m)).fold(0.0, f32::max);
    if magnitudes.iter().all(|magnitude| has_a_say(*magnitude)) {
        return Ok((Cow::Borrowed(samples), largest));
    }
    let kept = samples
        .chunks_exact(dim)
        .zip(&magnitudes)
        .filter(|(_, magnitude)| has_a_say(**magnitude))
        .flat_map(|(sample, _)| sample)
        .copied()
        .collect();
    Ok((Cow::Owned(kept), largest))
}

/// Sorts numbers `0..cluster_of.len()` by cluster, stably: where each of `0..clusters` starts in
/// the second result, and at last where all end.
pub(super) fn by_cluster(cluster_of: &[u32], clusters: usize) -> (Vec<usize>, Vec<u32>) {
    let mut starts = vec![0usize; clusters + 1];
    for cluster in cluster_of {
        starts[*cluster as usize + 1] += 1;
    }
    for cluster in 0..clusters {
        starts[cluster + 1] += starts[cluster];
    }
    let mut next = starts.clone();
    let mut members = vec![0u32; cluster_of.len()];
    for (cluster, nth) in cluster_of.iter().zip(0..) {
        let place = &mut next[*cluster as usize];
        members[*place] = nth;
        *place += 1;
    }
    (starts, members)
}

struct Trainer<'s> {
    dim: usize,
    iterations: usize,
    spherical: bool,
    stop: &'s AtomicBool,
}

impl Trainer<'_> {
    fn row<'r>(&self, rows: &'r [f32], nth: usize) -> &'r [f32] {
        &rows[nth * self.dim..][..self.dim]
    }

    /// Finds at most `clusters` centroids, in two levels if they are many.
    fn divide(
        &self,
        samples: &[f32],
        clusters: usize,
        rng: &mut StdRng,
    ) -> Result<Vec<f32>, Stopped> {
        let count = samples.len() / self.dim;
        let clusters = clusters.min(count);
        let upper = (clusters as f64).sqrt().round() as usize;
        let centroids = if clusters > FLAT_CLUSTERS {
            self.flat(&self.some(samples, upper * UPPER_SAMPLES, rng), upper, rng)?
        } else {
            Vec::new()
        };
        let upper = centroids.len() / self.dim;
        if upper < 2 {
            return self.flat(samples, clusters, rng);
        }
        let mut cluster_of = vec![0; count];
        Targets::new(&centroids, self.dim).nearest(samples, &mut cluster_of, self.stop)?;
        let (starts, members) = by_cluster(&cluster_of, upper);
        let populations: Vec<usize> = starts.windows(2).map(|ends| ends[1] - ends[0]).collect();
        if populations.contains(&count) {
            return self.flat(samples, clusters, rng);
        }
        let parts: Vec<(usize, u64)> = apportion(clusters, &populations)
            .into_iter()
            .map(|share| (share, rng.random()))
            .collect();
        let centroids: Vec<Vec<f32>> = parts
            .into_par_iter()
            .zip(starts.par_windows(2))
            .filter(|((share, _), _)| *share > 0)
            .map(|((share, seed), ends)| {
                let mut part = Vec::with_capacity((ends[1] - ends[0]) * self.dim);
                for nth in &members[ends[0]..ends[1]] {
                    part.extend_from_slice(self.row(samples, *nth as usize));
                }
                self.divide(&part, share, &mut StdRng::seed_from_u64(seed))
            })
            .collect::<Result<_, Stopped>>()?;
        Ok(centroids.concat())
    }

    /// At most `most` of the samples, uniformly.
    fn some<'r>(&self, samples: &'r [f32], most: usize, rng: &mut StdRng) -> Cow<'r, [f32]> {
        let count = samples.len() / self.dim;
        if count <= most {
            return Cow::Borrowed(samples);
        }
        let mut chosen = index::sample(rng, count, most).into_vec();
        chosen.sort_unstable();
        Cow::Owned(chosen.into_iter().flat_map(|nth| self.row(samples, nth)).copied().collect())
    }

    fn flat(
        &self,
        samples: &[f32],
        clusters: usize,
        rng: &mut StdRng,
    ) -> Result<Vec<f32>, Stopped> {
        let most = (clusters * SEED_SAMPLES).max(FEWEST_SEED_SAMPLES);
        let seeds = self.seed(&self.some(samples, most, rng), clusters, rng)?;
        self.iterate(samples, seeds, self.iterations, rng)
    }

    /// k-means++: each next seed is a sample, with a probability in proportion to its squared
    /// distance from the nearest of the earlier ones.
    fn seed(
        &self,
        samples: &[f32],
        clusters: usize,
        rng: &mut StdRng,
    ) -> Result<Vec<f32>, Stopped> {
        let count = samples.len() / self.dim;
        let mut seeds = Vec::with_capacity(clusters * self.dim);
        let mut distances = vec![f32::INFINITY; count];
        let mut chosen = rng.random_range(0..count);
        let at_once = (COMPONENTS / self.dim).clamp(1, 4096);
        loop {
            let seed = self.row(samples, chosen);
            seeds.extend_from_slice(seed);
            if seeds.len() >= clusters * self.dim {
                return Ok(seeds);
            }
            distances
                .par_chunks_mut(at_once)
                .zip(samples.par_chunks(at_once * self.dim))
                .try_for_each(|(distances, samples)| {
                    check(self.stop)?;
                    for (distance, sample) in
                        distances.iter_mut().zip(samples.chunks_exact(self.dim))
                    {
                        *distance = distance.min((kernels().l2_squared)(sample, seed));
                    }
                    Ok(())
                })?;
            match weighted(&distances, rng) {
                Some(next) => chosen = next,
                None => return Ok(seeds),
            }
        }
    }

    /// Lloyd's iterations, until hardly a sample changes its cluster.
    fn iterate(
        &self,
        samples: &[f32],
        mut centroids: Vec<f32>,
        iterations: usize,
        rng: &mut StdRng,
    ) -> Result<Vec<f32>, Stopped> {
        let count = samples.len() / self.dim;
        let mut cluster_of = vec![u32::MAX; count];
        let mut found = vec![0; count];
        for iteration in 1..=iterations {
            let assigner = Assigner::new(&centroids, self.dim, self.stop)?;
            assigner.nearest(samples, &mut found, self.stop)?;
            let moved = cluster_of.iter().zip(&found).filter(|(was, is)| was != is).count();
            std::mem::swap(&mut cluster_of, &mut found);
            let (starts, members) = by_cluster(&cluster_of, centroids.len() / self.dim);
            let clusters = Clusters { starts, members };
            self.move_to_means(samples, &clusters, &mut centroids)?;
            let mut rescued = false;
            if clusters.any_empty() {
                if iteration < iterations {
                    rescued = self.rescue(samples, &clusters, &mut centroids, rng)?;
                } else {
                    self.drop_empty(&clusters, &mut centroids);
                }
            }
            if moved <= count / SETTLED && !rescued {
                if iteration < iterations && clusters.any_empty() {
                    self.drop_empty(&clusters, &mut centroids);
                }
                break;
            }
        }
        Ok(centroids)
    }

    /// Moves the centroid of each cluster that has members to their mean.
    fn move_to_means(
        &self,
        samples: &[f32],
        clusters: &Clusters,
        centroids: &mut [f32],
    ) -> Result<(), Stopped> {
        centroids.par_chunks_mut(self.dim).enumerate().try_for_each_init(
            || vec![0f64; self.dim],
            |sums, (cluster, centroid)| {
                let members = clusters.members(cluster);
                if members.is_empty() {
                    return Ok(());
                }
                sums.fill(0.0);
                for members in members.chunks((COMPONENTS / self.dim).max(1)) {
                    check(self.stop)?;
                    for nth in members {
                        let row = self.row(samples, *nth as usize);
                        for (sum, &x) in sums.iter_mut().zip(row) {
                            *sum += f64::from(x);
                        }
                    }
                }
                let divisor = if self.spherical {
                    sums.iter().map(|x| x * x).sum::<f64>().sqrt()
                } else {
                    members.len() as f64
                };
                // Samples that cancel out have no direction: the centroid stays.
                if divisor > 0.0 {
                    for (x, sum) in centroid.iter_mut().zip(&*sums) {
                        *x = (sum / divisor) as f32;
                    }
                }
                Ok(())
            },
        )
    }

    /// Gives each empty cluster a member of the cluster with the greatest sum of squared
    /// distances, chosen as a seed is. Whether any was given one.
    fn rescue(
        &self,
        samples: &[f32],
        clusters: &Clusters,
        centroids: &mut [f32],
        rng: &mut StdRng,
    ) -> Result<bool, Stopped> {
        let distances_of =
            |cluster: usize, centroids: &[f32]| -> Result<Vec<f32>, Stopped> {
                let centroid = self.row(centroids, cluster);
                let at_once = (COMPONENTS / self.dim).max(1);
                let mut distances = Vec::new();
                for members in clusters.members(cluster).chunks(at_once) {
                    check(self.stop)?;
                    distances.extend(members.iter().map(|nth| {
                        (kernels().l2_squared)(self.row(samples, *nth as usize), centroid)
                    }));
                }
                Ok(distances)
            };
        let spreads: Vec<Spread> = (0..clusters.len())
            .into_par_iter()
            .map(|cluster| {
                let distances = distances_of(cluster, centroids)?;
                let sum = distances.into_iter().map(f64::from).sum();
                Ok(Spread { sum, cluster })
            })
            .collect::<Result<_, Stopped>>()?;
        let mut worst = BinaryHeap::from(spreads);
        let mut rescued = false;
        for empty in (0..clusters.len()).filter(|cluster| clusters.members(*cluster).is_empty()) {
            let Some(mut spread) = worst.peek_mut() else { break };
            let distances = distances_of(spread.cluster, centroids)?;
            let Some(chosen) = weighted(&distances, rng) else { break };
            let chosen = clusters.members(spread.cluster)[chosen] as usize;
            centroids[empty * self.dim..][..self.dim].copy_from_slice(self.row(samples, chosen));
            // About what a division leaves to either half.
            spread.sum /= 2.0;
            rescued = true;
        }
        Ok(rescued)
    }

    fn drop_empty(&self, clusters: &Clusters, centroids: &mut Vec<f32>) {
        let kept: Vec<f32> = centroids
            .chunks_exact(self.dim)
            .enumerate()
            .filter(|(cluster, _)| !clusters.members(*cluster).is_empty())
            .flat_map(|(_, centroid)| centroid)
            .copied()
            .collect();
        *centroids = kept;
    }
}

/// The samples of each cluster.
struct Clusters {
    starts: Vec<usize>,
    members: Vec<u32>,
}

impl Clusters {
    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn members(&self, cluster: usize) -> &[u32] {
        &self.members[self.starts[cluster]..self.starts[cluster + 1]]
    }

    fn any_empty(&self) -> bool {
        self.starts.windows(2).any(|ends| ends[0] == ends[1])
    }
}

/// A cluster, ordered by the sum of its squared distances.
struct Spread {
    sum: f64,
    cluster: usize,
}

impl Ord for Spread {
    fn cmp(&self, other: &Spread) -> Ordering {
        self.sum.total_cmp(&other.sum).then(other.cluster.cmp(&self.cluster))
    }
}

impl PartialOrd for Spread {
    fn partial_cmp(&self, other: &Spread) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Spread {
    fn eq(&self, other: &Spread) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Spread {}

/// A number with a probability in proportion to its weight, none if there is no weight.
fn weighted(weights: &[f32], rng: &mut StdRng) -> Option<usize> {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    if !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let mut left = rng.random::<f64>() * total;
    let mut chosen = None;
    for (nth, weight) in weights.iter().enumerate() {
        if *weight > 0.0 {
            chosen = Some(nth);
            left -= f64::from(*weight);
            if left < 0.0 {
                break;
            }
        }
    }
    chosen
}

/// Divides `seats` in proportion to populations (Sainte-Lague), after one each for those that have
/// any. None gets more than its population.
fn apportion(seats: usize, populations: &[usize]) -> Vec<usize> {
    let mut shares: Vec<usize> = populations.iter().map(|p| usize::from(*p > 0)).collect();
    let taken: usize = shares.iter().sum();
    let claim = |cluster: usize, share: usize| Spread {
        sum: populations[cluster] as f64 / (2 * share + 1) as f64,
        cluster,
    };
    let mut claims: BinaryHeap<Spread> =
        (0..shares.len()).map(|nth| claim(nth, shares[nth])).collect();
    let mut left = seats.saturating_sub(taken);
    while left > 0 {
        let Some(Spread { cluster, .. }) = claims.pop() else { break };
        if shares[cluster] < populations[cluster] {
            shares[cluster] += 1;
            left -= 1;
            claims.push(claim(cluster, shares[cluster]));
        }
    }
    shares
}

#[cfg(test)]
mod tests;
