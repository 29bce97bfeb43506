//! k-means.
//!
//! Seeds are drawn by the square of their distance (k-means++: Arthur and Vassilvitskii, "The
//! Advantages of Careful Seeding", SODA 2007, section 2.2), refined by Lloyd's iteration. Many
//! clusters are trained in two levels: about a square root of them first, then each of these is
//! divided on its own, and a few iterations over all of them settle the borders.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::assign::PackedCentroids;
use super::{check, two_level, Stopped};
use crate::simd::kernels;

/// How many clusters are trained in one level.
const FLAT_CLUSTERS: usize = 256;

/// Samples a cluster of the upper level is trained on.
const UPPER_SAMPLES: usize = 256;

/// Samples a seed is drawn from; seeding costs as much as an iteration over those.
const SEED_SAMPLES: usize = 32;

/// Iterations over all clusters after a two-level training, and the distances they may take.
const REFINEMENTS: usize = 3;
const REFINEMENT_BUDGET: f64 = 3e12;

/// The same where clusters are searched in two levels: some rows find only nearly the nearest.
const ROUGH_REFINEMENTS: usize = 6;

/// The part of the objective an iteration has to gain to be followed by another.
const LEAST_GAIN: f64 = 1e-3;

/// What to train.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// How many clusters are wanted.
    pub clusters: usize,
    /// Lloyd iterations at most.
    pub iterations: usize,
    /// Seed of the random choices.
    pub seed: u64,
    /// Whether centroids are brought to unit length, for rows that have it (spherical k-means:
    /// Dhillon and Modha, Machine Learning 42, 2001).
    pub spherical: bool,
}

/// Trains centroids on row-major samples of `dim` components and returns them row-major: as many
/// as asked for, or fewer where there are fewer distinct samples.
///
/// # Errors
/// [`Stopped`] when the flag went up.
pub fn train(
    samples: &[f32],
    dim: usize,
    params: &Params,
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let rows = samples.len().checked_div(dim).unwrap_or(0);
    let clusters = params.clusters.min(rows);
    if clusters == 0 {
        return Ok(Vec::new());
    }
    let params = Params { clusters, ..*params };
    let samples = &samples[..rows * dim];
    if clusters <= FLAT_CLUSTERS {
        train_flat(samples, dim, &params, stop)
    } else {
        train_two_levels(samples, dim, &params, stop)
    }
}

fn train_flat(
    samples: &[f32],
    dim: usize,
    params: &Params,
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let mut rng = StdRng::seed_from_u64(params.seed);
    let seeding = subsample(samples, dim, params.clusters * SEED_SAMPLES, &mut rng, stop)?;
    let mut centroids =
        draw_seeds(seeding.as_deref().unwrap_or(samples), dim, params.clusters, &mut rng, stop)?;
    if params.spherical {
        centroids.chunks_exact_mut(dim).for_each(normalize);
    }
    lloyd(samples, dim, params, params.iterations, &mut centroids, &mut rng, stop)?;
    Ok(centroids)
}

fn train_two_levels(
    samples: &[f32],
    dim: usize,
    params: &Params,
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let rows = samples.len() / dim;
    let mut rng = StdRng::seed_from_u64(params.seed);
    let upper_clusters = (params.clusters as f64).sqrt().round() as usize;
    let upper_samples = subsample(samples, dim, upper_clusters * UPPER_SAMPLES, &mut rng, stop)?;
    let upper_params = Params { clusters: upper_clusters, seed: rng.random(), ..*params };
    let upper = train(upper_samples.as_deref().unwrap_or(samples), dim, &upper_params, stop)?;
    drop(upper_samples);

    let mut nearest = vec![0; rows];
    let packed = PackedCentroids::new(&upper, dim, stop)?;
    packed.nearest(samples, &mut nearest, stop)?;
    let members = Members::new(&nearest, packed.len());
    let populations: Vec<usize> = (0..packed.len()).map(|c| members.of(c).len()).collect();
    let shares = share_out(params.clusters, &populations);
    let seeds: Vec<u64> = shares.iter().map(|_| rng.random()).collect();
    let parts: Vec<Vec<f32>> = shares
        .par_iter()
        .zip(seeds)
        .enumerate()
        .map(|(c, (&clusters, seed))| {
            let part = gather(samples, dim, members.of(c), stop)?;
            // The whole sample is one cluster where the upper level could not divide it.
            if part.len() == samples.len() {
                train_flat(&part, dim, &Params { seed, ..*params }, stop)
            } else {
                train(&part, dim, &Params { clusters, seed, ..*params }, stop)
            }
        })
        .collect::<Result<_, _>>()?;
    let mut centroids = parts.concat();

    let cost = rows as f64 * centroids.len() as f64;
    let is_rough = centroids.len() / dim >= two_level::LEAST_CENTROIDS;
    let refinements = if is_rough { ROUGH_REFINEMENTS } else { REFINEMENTS };
    let refinements = refinements.min(params.iterations).min((REFINEMENT_BUDGET / cost) as usize);
    lloyd(samples, dim, params, refinements, &mut centroids, &mut rng, stop)?;
    Ok(centroids)
}

/// Divides `total` into whole shares in proportion to the populations: at least one for each that
/// is not empty, and never more than its population. The total is at most that of the populations.
fn share_out(total: usize, populations: &[usize]) -> Vec<usize> {
    let everyone: usize = populations.iter().sum();
    let mut shares: Vec<usize> = populations
        .iter()
        .map(|&population| {
            let share = total as f64 * population as f64 / everyone.max(1) as f64;
            (share as usize).clamp(population.min(1), population)
        })
        .collect();
    // The least of one may have taken too much.
    for _ in total..shares.iter().sum() {
        if let Some(most) = shares.iter_mut().max() {
            *most -= 1;
        }
    }
    // What rounding has left goes to those with the most members to a cluster, who need it most.
    let crowd = |share: usize, population: usize| population as f64 / (share + 1) as f64;
    for _ in shares.iter().sum::<usize>()..total {
        let neediest =
            (0..shares.len()).filter(|&i| shares[i] < populations[i]).max_by(|&i, &j| {
                crowd(shares[i], populations[i]).total_cmp(&crowd(shares[j], populations[j]))
            });
        match neediest {
            Some(i) => shares[i] += 1,
            None => break,
        }
    }
    shares
}

/// A random part of the rows, in their order; none when there are no more rows than wanted.
fn subsample(
    samples: &[f32],
    dim: usize,
    wanted: usize,
    rng: &mut StdRng,
    stop: &AtomicBool,
) -> Result<Option<Vec<f32>>, Stopped> {
    let rows = samples.len() / dim;
    if rows <= wanted {
        return Ok(None);
    }
    let mut chosen: Vec<u32> =
        rand::seq::index::sample(rng, rows, wanted).into_iter().map(|i| i as u32).collect();
    chosen.sort_unstable();
    gather(samples, dim, &chosen, stop).map(Some)
}

fn gather(
    samples: &[f32],
    dim: usize,
    rows: &[u32],
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let mut gathered = Vec::with_capacity(rows.len() * dim);
    for &row in rows {
        check(stop)?;
        gathered.extend_from_slice(&samples[row as usize * dim..][..dim]);
    }
    Ok(gathered)
}

/// k-means++: each further seed is drawn with a probability in proportion to its squared distance
/// to those there are. Ends early when every sample is a seed.
fn draw_seeds(
    samples: &[f32],
    dim: usize,
    clusters: usize,
    rng: &mut StdRng,
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let distance = kernels().l2_squared;
    let rows = samples.len() / dim;
    // A task takes about a hundred microseconds at least.
    let task_rows = (1usize << 18).div_ceil(dim);
    let mut distances = vec![f32::INFINITY; rows];
    let mut seeds = Vec::with_capacity(clusters * dim);
    let mut next = rng.random_range(0..rows);
    loop {
        let seed = &samples[next * dim..][..dim];
        seeds.extend_from_slice(seed);
        if seeds.len() == clusters * dim {
            return Ok(seeds);
        }
        distances.par_chunks_mut(task_rows).zip(samples.par_chunks(task_rows * dim)).try_for_each(
            |(distances, samples)| {
                check(stop)?;
                for (least, row) in distances.iter_mut().zip(samples.chunks_exact(dim)) {
                    let distance = distance(row, seed);
                    // A distance that is not finite cannot be weighed: such a row is no seed.
                    *least = if distance.is_finite() { distance.min(*least) } else { 0.0 };
                }
                Ok(())
            },
        )?;
        match draw(&distances, rng) {
            Some(row) => next = row,
            None => return Ok(seeds),
        }
    }
}

/// An index with a probability in proportion to its weight, or none if all are zero.
fn draw(weights: &[f32], rng: &mut StdRng) -> Option<usize> {
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let mut left = rng.random::<f64>() * total;
    let mut last = None;
    for (i, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            last = Some(i);
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// The rows of each cluster.
struct Members {
    rows: Vec<u32>,
    ends: Vec<usize>,
}

impl Members {
    fn new(nearest: &[u32], clusters: usize) -> Members {
        let mut ends = vec![0; clusters];
        for &cluster in nearest {
            ends[cluster as usize] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            let count = *end;
            *end = sum;
            sum += count;
        }
        let mut rows = vec![0; nearest.len()];
        for (row, &cluster) in nearest.iter().enumerate() {
            let end = &mut ends[cluster as usize];
            rows[*end] = row as u32;
            *end += 1;
        }
        Members { rows, ends }
    }

    fn range(&self, cluster: usize) -> Range<usize> {
        let start = if cluster == 0 { 0 } else { self.ends[cluster - 1] };
        start..self.ends[cluster]
    }

    fn of(&self, cluster: usize) -> &[u32] {
        &self.rows[self.range(cluster)]
    }
}

/// Lloyd's iteration, until the objective gains little or the iterations are used up. Clusters
/// that cannot be filled are removed.
fn lloyd(
    samples: &[f32],
    dim: usize,
    params: &Params,
    iterations: usize,
    centroids: &mut Vec<f32>,
    rng: &mut StdRng,
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    let mut nearest = vec![0; samples.len() / dim];
    let mut before = f64::INFINITY;
    for _ in 0..iterations {
        two_level::nearest(samples, dim, centroids, &mut nearest, stop)?;
        let members = Members::new(&nearest, centroids.len() / dim);
        let inertia: Vec<f64> = centroids
            .par_chunks_exact_mut(dim)
            .enumerate()
            .map(|(c, centroid)| {
                move_centroid(samples, members.of(c), centroid, params.spherical, stop)
            })
            .collect::<Result<_, _>>()?;
        let objective: f64 = inertia.iter().sum();
        let rescued = rescue_empty(samples, dim, &members, inertia, centroids, rng, stop)?;
        // False as well when the objective is infinite: nothing to hope for.
        let gains = before - objective > LEAST_GAIN * objective;
        if !rescued && !gains {
            break;
        }
        before = objective;
    }
    Ok(())
}

/// Puts a centroid where its rows are, and returns the sum of their squared distances to the place
/// where it was.
fn move_centroid(
    samples: &[f32],
    rows: &[u32],
    centroid: &mut [f32],
    spherical: bool,
    stop: &AtomicBool,
) -> Result<f64, Stopped> {
    if rows.is_empty() {
        return Ok(0.0);
    }
    let dim = centroid.len();
    let distance = kernels().l2_squared;
    let mut inertia = 0.0;
    let mut sums = vec![0.0f64; dim];
    for &row in rows {
        check(stop)?;
        let row = &samples[row as usize * dim..][..dim];
        inertia += f64::from(distance(row, centroid));
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let mut divisor = rows.len() as f64;
    if spherical {
        let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 0.0 && length.is_finite() {
            divisor = length;
        }
    }
    for (x, sum) in centroid.iter_mut().zip(&sums) {
        *x = (sum / divisor) as f32;
    }
    Ok(inertia)
}

/// Gives each empty cluster a row of the cluster that is worst off, drawn as a seed would be, and
/// removes those for which there is none. Returns whether there were any.
fn rescue_empty(
    samples: &[f32],
    dim: usize,
    members: &Members,
    mut inertia: Vec<f64>,
    centroids: &mut Vec<f32>,
    rng: &mut StdRng,
    stop: &AtomicBool,
) -> Result<bool, Stopped> {
    let clusters = centroids.len() / dim;
    let empty: Vec<usize> = (0..clusters).filter(|&c| members.of(c).is_empty()).collect();
    let mut lost = Vec::new();
    let distance = kernels().l2_squared;
    for &c in &empty {
        let row = loop {
            check(stop)?;
            let worst = (0..clusters).max_by(|&i, &j| inertia[i].total_cmp(&inertia[j]));
            let Some(worst) = worst.filter(|&worst| inertia[worst] > 0.0) else { break None };
            let centroid = &centroids[worst * dim..][..dim];
            let rows = members.of(worst);
            let weights: Vec<f32> = rows
                .iter()
                .map(|&row| distance(&samples[row as usize * dim..][..dim], centroid))
                .map(|weight| if weight.is_finite() { weight } else { 0.0 })
                .collect();
            match draw(&weights, rng) {
                Some(i) => {
                    // The next one in need should not take from the same as if nothing were gone.
                    inertia[worst] /= 2.0;
                    break Some(rows[i]);
                }
                // All its rows are where the centroid has moved to.
                None => inertia[worst] = 0.0,
            }
        };
        match row {
            Some(row) => {
                let row = &samples[row as usize * dim..][..dim];
                centroids[c * dim..][..dim].copy_from_slice(row);
            }
            None => lost.push(c),
        }
    }
    for &c in lost.iter().rev() {
        centroids.drain(c * dim..(c + 1) * dim);
    }
    Ok(!empty.is_empty())
}

/// Brings a vector to unit length, if it has a length.
fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests;
