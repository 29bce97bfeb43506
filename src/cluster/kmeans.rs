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
use super::{check, Stopped};
use crate::simd::kernels;

/// How many clusters are trained in one level.
const FLAT_CLUSTERS: usize = 256;

/// Samples a cluster of the upper level is trained on.
const UPPER_SAMPLES: usize = 256;

/// Samples a seed is drawn from; seeding costs as much as an iteration over those.
const SEED_SAMPLES: usize = 32;

/// Iterations over all clusters after a two-level training, and the multiply-adds they may take.
const REFINEMENTS: usize = 3;
const REFINEMENT_BUDGET: f64 = 3e12;

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
    let refinements = REFINEMENTS.min(params.iterations).min((REFINEMENT_BUDGET / cost) as usize);
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
pub(super) struct Members {
    rows: Vec<u32>,
    ends: Vec<usize>,
}

impl Members {
    pub(super) fn new(nearest: &[u32], clusters: usize) -> Members {
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

    pub(super) fn of(&self, cluster: usize) -> &[u32] {
        &self.rows[self.range(cluster)]
    }

    /// All rows, cluster by cluster.
    pub(super) fn into_rows(self) -> Vec<u32> {
        self.rows
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
        let packed = PackedCentroids::new(centroids, dim, stop)?;
        packed.nearest(samples, &mut nearest, stop)?;
        let members = Members::new(&nearest, packed.len());
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
mod tests {
    use super::*;

    static STOP: AtomicBool = AtomicBool::new(false);

    fn params(clusters: usize) -> Params {
        Params { clusters, iterations: 15, seed: 7, spherical: false }
    }

    /// `count` rows around each centre, row-major, the centres taking turns.
    fn blobs(centres: &[f32], dim: usize, count: usize, spread: f32) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut rows = Vec::new();
        for _ in 0..count {
            rows.extend(centres.iter().map(|x| x + rng.random_range(-spread..spread)));
        }
        assert_eq!(rows.len() % dim, 0);
        rows
    }

    fn random(rows: usize, dim: usize) -> Vec<f32> {
        blobs(&vec![0.0; dim], dim, rows, 1.0)
    }

    fn objective(samples: &[f32], dim: usize, centroids: &[f32]) -> f64 {
        let mut nearest = vec![0; samples.len() / dim];
        super::super::assign::nearest(samples, dim, centroids, &mut nearest, &STOP).unwrap();
        let distance = kernels().l2_squared;
        samples
            .chunks(dim)
            .zip(nearest)
            .map(|(row, c)| f64::from(distance(row, &centroids[c as usize * dim..][..dim])))
            .sum()
    }

    fn populations(samples: &[f32], dim: usize, centroids: &[f32]) -> Vec<usize> {
        let clusters = centroids.len() / dim;
        let mut nearest = vec![0; samples.len() / dim];
        super::super::assign::nearest(samples, dim, centroids, &mut nearest, &STOP).unwrap();
        let members = Members::new(&nearest, clusters);
        (0..clusters).map(|c| members.of(c).len()).collect()
    }

    #[test]
    fn separated_blobs_are_recovered() {
        for (blob_count, dim, rows) in [(2, 1, 50), (10, 3, 100), (400, 8, 40)] {
            let mut rng = StdRng::seed_from_u64(3);
            let centres: Vec<f32> = (0..blob_count * dim)
                .map(|i| (i / dim * 40) as f32 + rng.random::<f32>())
                .collect();
            let samples = blobs(&centres, dim, rows, 1.0);
            let found = train(&samples, dim, &params(blob_count), &STOP).unwrap();
            assert_eq!(found.len(), centres.len());
            let near = centres.chunks(dim).filter(|centre| {
                found.chunks(dim).any(|c| c.iter().zip(*centre).all(|(x, y)| (x - y).abs() < 1.0))
            });
            // Seeds may leave two blobs together where there are very many.
            let recovered = near.count();
            assert!(recovered * 100 >= blob_count * 95, "{recovered} of {blob_count}");
        }
    }

    #[test]
    fn two_levels_come_close_to_one() {
        let (dim, clusters) = (16, 300);
        let samples = random(20_000, dim);
        let one = train_flat(&samples, dim, &params(clusters), &STOP).unwrap();
        let two = train_two_levels(&samples, dim, &params(clusters), &STOP).unwrap();
        assert_eq!((one.len(), two.len()), (clusters * dim, clusters * dim));
        let (one, two) = (objective(&samples, dim, &one), objective(&samples, dim, &two));
        assert!(two < 1.03 * one, "{two} to {one}");
    }

    #[test]
    fn iterations_improve_on_the_seeds() {
        let samples = random(3000, 8);
        let after = |iterations| {
            let params = Params { iterations, ..params(50) };
            objective(&samples, 8, &train(&samples, 8, &params, &STOP).unwrap())
        };
        assert!(after(15) < 0.9 * after(0));
    }

    #[test]
    fn empty_clusters_are_filled() {
        let samples = blobs(&[0.0, 0.0, 50.0, 50.0], 2, 100, 1.0);
        // Two centroids that nothing is near to, and one that has everything.
        let mut centroids = vec![25.0, 25.0, 1e6, 1e6, -1e6, -1e6];
        let mut rng = StdRng::seed_from_u64(5);
        lloyd(&samples, 2, &params(3), 15, &mut centroids, &mut rng, &STOP).unwrap();
        assert_eq!(centroids.len(), 6);
        assert!(populations(&samples, 2, &centroids).iter().all(|&n| n > 0));
        assert!(objective(&samples, 2, &centroids) < 200.0 * 2.0);
    }

    #[test]
    fn empty_clusters_that_cannot_be_filled_go() {
        let samples = [4.0f32, 2.0].repeat(30);
        let mut centroids = vec![4.0, 2.0, 1e6, 1e6, 0.0, 0.0];
        let mut rng = StdRng::seed_from_u64(5);
        lloyd(&samples, 2, &params(3), 15, &mut centroids, &mut rng, &STOP).unwrap();
        assert_eq!(centroids, [4.0, 2.0]);
    }

    #[test]
    fn a_seed_gives_the_same_whatever_the_threads() {
        let samples = random(8000, 12);
        let with_threads = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let params = Params { seed, ..params(300) };
            pool.install(|| train(&samples, 12, &params, &STOP).unwrap())
        };
        let one = with_threads(1, 7);
        assert_eq!(one, with_threads(4, 7));
        assert_ne!(one, with_threads(1, 8));
    }

    #[test]
    fn a_raised_flag_stops_the_training() {
        let samples = random(3000, 4);
        for clusters in [5, 500] {
            let stop = AtomicBool::new(true);
            assert_eq!(train(&samples, 4, &params(clusters), &stop), Err(Stopped));
        }
    }

    #[test]
    fn fewer_distinct_samples_give_fewer_clusters() {
        assert_eq!(train(&[], 3, &params(5), &STOP).unwrap(), [0f32; 0]);
        assert_eq!(train(&[1.0, 2.0], 2, &params(5), &STOP).unwrap(), [1.0, 2.0]);
        assert_eq!(train(&[1.0, 2.0], 2, &params(0), &STOP).unwrap(), [0f32; 0]);
        for clusters in [5, 1000] {
            assert_eq!(train(&[3.0; 4000], 2, &params(clusters), &STOP).unwrap(), [3.0, 3.0]);
        }
        let mut three = train(&[1.0, 2.0, 9.0].repeat(500), 1, &params(600), &STOP).unwrap();
        three.sort_by(f32::total_cmp);
        assert_eq!(three, [1.0, 2.0, 9.0]);
    }

    #[test]
    fn many_components_can_be_clustered() {
        let dim = 16_000;
        let mut centres = vec![0.0; 2 * dim];
        centres[dim..].fill(1.0);
        let samples = blobs(&centres, dim, 10, 0.5);
        let found = train(&samples, dim, &params(2), &STOP).unwrap();
        assert_eq!(populations(&samples, dim, &found), [10, 10]);
    }

    #[test]
    fn values_without_a_square_do_no_harm() {
        let mut samples = random(2000, 2);
        for (i, x) in samples.iter_mut().enumerate().filter(|(i, _)| i % 97 == 0) {
            *x = [f32::INFINITY, f32::NEG_INFINITY, 3e38][i % 3];
        }
        for clusters in [1, 10, 400] {
            let found = train(&samples, 2, &params(clusters), &STOP).unwrap();
            assert!(found.len() <= 2 * clusters);
        }
    }

    #[test]
    fn spherical_centroids_have_unit_length() {
        let mut samples = random(4000, 6);
        samples.chunks_exact_mut(6).for_each(normalize);
        for clusters in [20, 400] {
            let params = Params { spherical: true, ..params(clusters) };
            let found = train(&samples, 6, &params, &STOP).unwrap();
            assert_eq!(found.len(), 6 * clusters);
            for centroid in found.chunks(6) {
                let length: f32 = centroid.iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-5, "{length}");
            }
        }
    }

    #[test]
    fn shares_add_up_and_follow_the_populations() {
        assert_eq!(share_out(10, &[50, 30, 20]), [5, 3, 2]);
        assert_eq!(share_out(4, &[1000, 1, 1, 0]), [2, 1, 1, 0]);
        assert_eq!(share_out(7, &[2, 100, 1]).iter().sum::<usize>(), 7);
        assert_eq!(share_out(103, &[2, 100, 1]), [2, 100, 1]);
        assert_eq!(share_out(3, &[5, 0, 0]), [3, 0, 0]);
    }
}
