//! What a router is made of: centroids, and the space they are looked for in.

use super::coding::{choose, Sample};
use super::kmeans::{self, Params};
use super::principal::principal;
use super::subspace::{products, VectorSpace};
use super::{check, evenly, two_level, Stopped};
use crate::metric::Metric;
use crate::quant::{self, sign, Projection};
use std::sync::atomic::AtomicBool;

/// Rows that directions are learned from, or fewer that take so many bytes; fewer rows than
/// [`FEWEST_ROWS`] teach none.
const ROWS: usize = 8192;
const BYTES: usize = 64 << 20;
const FEWEST_ROWS: usize = 2048;

/// Directions at most: all of so many dimensions, or a sixth of more, within these bounds. A query
/// is multiplied with each.
const FEWEST: usize = 128;
const MOST: usize = 256;

/// Directions are taken in such steps until they have this share of the scatter.
const STEP: usize = 16;
const ENOUGH: f32 = 0.96;

/// In spaces with less than this, buckets are worse by more than short codes are better.
const LEAST_SHARE: f32 = 0.9;

/// Centroids, and the space.
pub struct Trained {
    /// Row-major, of all dimensions.
    pub centroids: Vec<f32>,
    /// What rows and queries are compared in.
    pub space: VectorSpace,
}

/// Trains on row-major vectors of `dim` components, under [`Metric::Cosine`] of length one.
///
/// # Errors
/// [`Stopped`] when the flag went up.
pub fn train(
    samples: &[f32],
    metric: Metric,
    dim: usize,
    params: &Params,
    stop: &AtomicBool,
) -> Result<Trained, Stopped> {
    let plain = VectorSpace::plain(metric, dim);
    let rows = samples.len() / dim;
    let is_worth_it = params.clusters > 1 && rows >= FEWEST_ROWS && sign::are_used(metric, dim);
    let found = if is_worth_it { Directions::learn(samples, dim, stop)? } else { None };
    let Some(found) = found else {
        return Ok(Trained { centroids: kmeans::train(samples, dim, params, stop)?, space: plain });
    };
    let projected = found.project(samples, stop)?;
    let trained = kmeans::train(&projected, found.count, params, stop)?;
    let mut cluster_of = vec![0; rows];
    two_level::nearest(&projected, found.count, &trained, &mut cluster_of, stop)?;
    let clusters = trained.len() / found.count;
    let mut centroids = means(samples, dim, &cluster_of, clusters, stop)?;
    found.lift(&trained, &cluster_of, &mut centroids);
    if params.spherical {
        quant::normalize_rows(dim, &mut centroids);
    }
    let sample = Sample {
        dim,
        rows: samples,
        centroids: &centroids,
        cluster_of: &cluster_of,
        components: found.count,
        points: &projected,
        centres: &found.project(&centroids, stop)?,
    };
    let space = match Projection::stored(metric, dim, choose(&sample)) {
        Some(projection) if projection.is_learned() => {
            VectorSpace { projection, basis: found.basis }
        }
        Some(projection) => VectorSpace { projection, basis: Vec::new() },
        None => plain,
    };
    Ok(Trained { centroids, space })
}

/// Directions, before it is known which of them have codes.
struct Directions {
    dim: usize,
    count: usize,
    basis: Vec<f32>,
}

impl Directions {
    /// None where there are no few directions that say enough.
    fn learn(
        samples: &[f32],
        dim: usize,
        stop: &AtomicBool,
    ) -> Result<Option<Directions>, Stopped> {
        let rows = samples.len() / dim;
        let taken = rows.min(ROWS).min(BYTES / (dim * size_of::<f32>())).max(FEWEST_ROWS);
        let few = evenly(samples, dim, taken);
        let most = match dim {
            ..=MOST => dim,
            _ => (dim / 6).next_multiple_of(STEP).clamp(FEWEST, MOST),
        };
        let mut found = principal(few, dim, most, stop)?;
        let mut count = 0;
        let mut share = 0.0;
        while count < most && (share < ENOUGH || !count.is_multiple_of(STEP)) {
            share += found.shares[count];
            count += 1;
        }
        // Nothing is learned where squares are no numbers.
        if share.is_nan() || share < LEAST_SHARE {
            return Ok(None);
        }
        found.directions.truncate(count * dim);
        let basis = found.directions;
        Ok(Some(Directions { dim, count, basis }))
    }

    /// Gives clusters that none of the rows is in the centroid that the training left them, as far
    /// as it is along the directions. `trained` are the centroids' components.
    fn lift(&self, trained: &[f32], cluster_of: &[u32], centroids: &mut [f32]) {
        let mut is_empty = vec![true; centroids.len() / self.dim];
        cluster_of.iter().for_each(|cluster| is_empty[*cluster as usize] = false);
        let points = trained.chunks_exact(self.count);
        for ((centroid, point), _) in
            centroids.chunks_exact_mut(self.dim).zip(points).zip(&is_empty).filter(|(_, e)| **e)
        {
            for (along, direction) in point.iter().zip(self.basis.chunks_exact(self.dim)) {
                centroid.iter_mut().zip(direction).for_each(|(x, d)| *x += along * d);
            }
        }
    }

    /// The components of rows along the directions.
    fn project(&self, rows: &[f32], stop: &AtomicBool) -> Result<Vec<f32>, Stopped> {
        let mut out = vec![0.0; rows.len() / self.dim * self.count];
        products(rows, self.dim, &self.basis, self.count, &mut out, stop)?;
        Ok(out)
    }
}

/// The mean of the rows of each cluster; zeroes for one without rows.
fn means(
    rows: &[f32],
    dim: usize,
    cluster_of: &[u32],
    clusters: usize,
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let mut sums = vec![0.0f64; clusters * dim];
    let mut counts = vec![0u32; clusters];
    for (row, cluster) in rows.chunks_exact(dim).zip(cluster_of) {
        check(stop)?;
        let cluster = *cluster as usize;
        counts[cluster] += 1;
        let sums = &mut sums[cluster * dim..][..dim];
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let per_row = |cluster: usize| 1.0 / f64::from(counts[cluster].max(1));
    Ok(sums.iter().enumerate().map(|(at, sum)| (sum * per_row(at / dim)) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Subspace;
    use crate::simd::kernels;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    fn params(clusters: usize) -> Params {
        Params { clusters, iterations: 8, seed: 1, spherical: false }
    }

    /// Rows of which axis `nth` has this weight, about an offset.
    fn rows(dim: usize, count: usize, offset: f32, weight: impl Fn(usize) -> f32) -> Vec<f32> {
        let mut rng = SmallRng::seed_from_u64(2);
        (0..dim * count)
            .map(|at| offset + rng.random_range(-1.0f32..1.0) * weight(at % dim))
            .collect()
    }

    #[test]
    fn few_directions_take_a_short_code_of_more_bits() {
        let rows = rows(256, 4000, 3.0, |axis| if axis % 16 == 0 { 1.0 } else { 0.003 });
        let trained = train(&rows, Metric::L2, 256, &params(60), &STOP).unwrap();
        let projection = &trained.space.projection;
        assert!(projection.is_learned());
        assert_eq!(trained.space.basis.len(), projection.components() * 256);
        let coding = projection.coding().unwrap();
        assert!(coding.code_bits() <= 128, "{coding:?}");
        assert!(coding.bits > 1, "{coding:?}");
        // The centroids are as good as those of all dimensions.
        let loss = |centroids: &[f32]| -> f64 {
            let nearest = |row: &[f32]| {
                let each = centroids.chunks(256).map(|c| (kernels().l2_squared)(row, c));
                f64::from(each.fold(f32::INFINITY, f32::min))
            };
            rows.chunks(256).map(nearest).sum()
        };
        let plain = kmeans::train(&rows, 256, &params(60), &STOP).unwrap();
        assert_eq!(trained.centroids.len(), plain.len());
        assert!(loss(&trained.centroids) < loss(&plain) * 1.05);
    }

    #[test]
    fn directions_that_are_all_alike_are_not_chosen_from() {
        let rows = rows(1024, 2500, 0.0, |_| 1.0);
        let trained = train(&rows, Metric::L2, 1024, &params(40), &STOP).unwrap();
        assert!(!trained.space.projection.is_learned());
        assert!(trained.space.basis.is_empty());
    }

    #[test]
    fn little_teaches_nothing() {
        let few = rows(64, 500, 0.0, |_| 1.0);
        for (rows, metric, dim, clusters) in [
            (&few[..], Metric::L2, 64, 10),
            (&rows(64, 3000, 0.0, |_| 1.0), Metric::L1, 64, 10),
            (&rows(20, 3000, 0.0, |_| 1.0), Metric::L2, 20, 10),
            (&rows(64, 3000, 0.0, |_| 1.0), Metric::L2, 64, 1),
        ] {
            let trained = train(rows, metric, dim, &params(clusters), &STOP).unwrap();
            assert_eq!(trained.space.projection.subspace(), Subspace::PLAIN);
            assert!(!trained.centroids.is_empty());
        }
    }

    #[test]
    fn rows_that_are_no_numbers_do_no_harm() {
        for value in [0.0, f32::NAN, f32::INFINITY, 3e38] {
            let mut rows = rows(64, 3000, 0.0, |_| 1.0);
            rows[64 * 100..64 * 110].fill(value);
            let trained = train(&rows, Metric::L2, 64, &params(10), &STOP).unwrap();
            assert!(!trained.centroids.is_empty(), "{value}");
            let same = vec![value; 64 * 3000];
            let trained = train(&same, Metric::L2, 64, &params(10), &STOP).unwrap();
            assert!(!trained.centroids.is_empty(), "{value}");
        }
    }

    #[test]
    fn a_raised_flag_stops_the_training() {
        let rows = rows(64, 3000, 0.0, |_| 1.0);
        let stopped = train(&rows, Metric::L2, 64, &params(10), &AtomicBool::new(true));
        assert!(stopped.is_err());
    }
}
