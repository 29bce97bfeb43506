//! What a router is made of: centroids, and the space they are looked for in.

use super::assign::PackedCentroids;
use super::kmeans::{self, Params};
use super::principal::principal;
use super::subspace::{products, VectorSpace};
use super::Stopped;
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{self, Projection, Subspace};
use std::sync::atomic::AtomicBool;

/// Rows that directions are learned from; fewer rows than [`FEWEST_ROWS`] teach none.
const ROWS: usize = 8192;
const FEWEST_ROWS: usize = 2048;

/// Directions at most: all of so many dimensions, or a sixth of more, within these bounds. A query
/// is multiplied with each.
const FEWEST: usize = 128;
const MOST: usize = 256;

/// Directions are taken in such steps until they have this share of the squares.
const STEP: usize = 16;
const ENOUGH: f32 = 0.96;

/// In spaces with less than this, buckets are worse by more than short codes are better.
const LEAST_SHARE: f32 = 0.9;

/// Pairs of rows that tell what codes would miss.
const PAIRS: usize = 4096;

/// What it costs that codes of 128 dimensions miss as much as one bit for each does, to what they
/// cost themselves. Of more dimensions each bit misses less. Measured on image descriptors, word
/// vectors and made vectors of 768 dimensions, with codes of 8 to 192 bytes.
const COST_OF_MISSED: f64 = 2.0;
const MISSED_DIMENSIONS: f64 = 128.0;

/// A row has more than usual beyond the components with a code if it has so many times as much as
/// the mean row.
const UNUSUAL: f64 = 4.0;

/// The square of a query's distance from the centroids it looks at, to that of their rows.
const QUERY_SQUARE: f64 = 2.0;

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
    if params.clusters <= 1 || rows < FEWEST_ROWS || !sign::are_used(metric, dim) {
        return Ok(Trained { centroids: kmeans::train(samples, dim, params, stop)?, space: plain });
    }
    let Some(found) = Directions::learn(samples, dim, stop)? else {
        return Ok(Trained { centroids: kmeans::train(samples, dim, params, stop)?, space: plain });
    };
    let projected = found.project(samples, stop)?;
    let trained = kmeans::train(&projected, found.count, params, stop)?;
    let packed = PackedCentroids::new(&trained, found.count, stop)?;
    let mut cluster_of = vec![0; rows];
    packed.nearest(&projected, &mut cluster_of, stop)?;
    let mut centroids = means(samples, dim, &cluster_of, packed.len());
    if params.spherical {
        let copy = centroids.clone();
        for (mean, unit) in copy.chunks_exact(dim).zip(centroids.chunks_exact_mut(dim)) {
            quant::normalize(mean, unit);
        }
    }
    let points = found.project(&centroids, stop)?;
    let subspace = found.choose(samples, &projected, &centroids, &points, &cluster_of);
    let space = match Projection::stored(metric, dim, subspace) {
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
        let few: Vec<f32>;
        let few = if rows > ROWS {
            let row = |nth| &samples[nth * rows / ROWS * dim..][..dim];
            few = (0..ROWS).flat_map(row).copied().collect();
            &few[..]
        } else {
            samples
        };
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

    /// The components of rows along the directions.
    fn project(&self, rows: &[f32], stop: &AtomicBool) -> Result<Vec<f32>, Stopped> {
        let mut out = vec![0.0; rows.len() / self.dim * self.count];
        products(rows, self.dim, &self.basis, self.count, &mut out, stop)?;
        Ok(out)
    }

    /// How many components are to have a code, and of how many bits. Pairs of rows in a cluster,
    /// one of them in the place of a query, tell what each kind of code would miss.
    fn choose(
        &self,
        samples: &[f32],
        projected: &[f32],
        centroids: &[f32],
        points: &[f32],
        cluster_of: &[u32],
    ) -> Subspace {
        let (dim, count) = (self.dim, self.count);
        let mut last = vec![None; centroids.len() / dim];
        let mut sums = vec![Missed::default(); count + 1];
        let (mut whole, mut pairs) = (0.0, 0usize);
        let step = (cluster_of.len() / (2 * PAIRS)).max(1);
        for (row, cluster) in cluster_of.iter().enumerate() {
            let cluster = *cluster as usize;
            let Some(other) = last[cluster].replace(row) else { continue };
            if pairs >= PAIRS || row % step != 0 {
                continue;
            }
            pairs += 1;
            let vector = |nth: usize| &samples[nth * dim..][..dim];
            let components = |nth: usize| &projected[nth * count..][..count];
            let (a, b) = (vector(row), vector(other));
            let mut rest = Rest { product: dot(a, b), squares: [dot(a, a), dot(b, b)] };
            let centre = &centroids[cluster * dim..][..dim];
            whole += distance(a, centre) * distance(b, centre);
            let (mut near, mut far) = (0.0, 0.0);
            sums[0].add(near, far, &rest);
            let centre = &points[cluster * count..][..count];
            let parts = components(row).iter().zip(components(other)).zip(centre);
            for (((a, b), c), sum) in parts.zip(&mut sums[1..]) {
                let [a, b, c] = [*a, *b, *c].map(f64::from);
                near += (a - c) * (a - c);
                far += (b - c) * (b - c);
                rest.product -= a * b;
                rest.squares[0] = (rest.squares[0] - a * a).max(0.0);
                rest.squares[1] = (rest.squares[1] - b * b).max(0.0);
                sum.add(near, far, &rest);
            }
        }
        let padded = dim.next_multiple_of(sign::DIM_MULTIPLE);
        let allowed = whole * f64::from(Coding::signs(padded).variance());
        let is_whole = count == dim;
        let of_missed = COST_OF_MISSED * (MISSED_DIMENSIONS / padded as f64).sqrt();
        let mut choice = Choice { of_missed, cost: f64::INFINITY, subspace: Subspace::PLAIN };
        for bits in [1, 2] {
            let coding = Coding { bits, ..Coding::signs(padded) };
            let missed = whole * f64::from(coding.variance()) / allowed;
            choice.consider(&coding, missed, Subspace { bits: bits as u32, ..Subspace::PLAIN });
        }
        for bits in [1, 2, 4] {
            let is_coding = |lead: &usize| (lead * bits).is_multiple_of(sign::DIM_MULTIPLE);
            for lead in (1..=count).filter(is_coding) {
                let sums = &sums[lead];
                // Rows to come may be unlike these, so nothing is taken to be beyond only where
                // there is no direction left.
                let beyond = if is_whole && lead == count {
                    0.0
                } else if sums.products > 0.0 {
                    (sums.squares / sums.products).clamp(1.0, dim as f64) as f32
                } else {
                    1.0
                };
                let usual = (UNUSUAL * sums.beyond / pairs as f64) as f32;
                let coding = Coding { components: lead, bits, beyond, usual };
                let of_code = sums.codes * f64::from(coding.variance());
                let of_rest = if beyond > 0.0 { sums.products / QUERY_SQUARE } else { 0.0 };
                let missed = (of_code + of_rest) / allowed;
                let (components, lead, bits) = (count as u32, lead as u32, bits as u32);
                let subspace = Subspace { components, lead, bits, beyond, usual, reserved: 0 };
                choice.consider(&coding, missed, subspace);
            }
        }
        choice.subspace
    }
}

/// The cheapest kind of code so far.
struct Choice {
    of_missed: f64,
    cost: f64,
    subspace: Subspace,
}

impl Choice {
    /// `missed` is the square of what codes miss, to that of one bit for each dimension. The more
    /// is missed, the more rows are looked at in full; and each costs what its code is long.
    fn consider(&mut self, coding: &Coding, missed: f64, subspace: Subspace) {
        let bytes = (coding.code_bits() / 8 + 3 * size_of::<f32>()) as f64;
        let cost = bytes * (1.0 + self.of_missed * missed);
        if cost < self.cost {
            (self.cost, self.subspace) = (cost, subspace);
        }
    }
}

/// What two rows have beyond the first components.
struct Rest {
    product: f64,
    squares: [f64; 2],
}

/// Sums over pairs of a row and another one that stands for a query.
#[derive(Clone, Copy, Default)]
struct Missed {
    /// Products of the squared distances from the centroid, in the first components.
    codes: f64,
    /// Squared products of what is beyond, and products of its squares.
    products: f64,
    squares: f64,
    /// Squares of what is beyond.
    beyond: f64,
}

impl Missed {
    fn add(&mut self, near: f64, far: f64, rest: &Rest) {
        self.codes += near * far;
        self.products += rest.product * rest.product;
        self.squares += rest.squares[0] * rest.squares[1];
        self.beyond += rest.squares[0];
    }
}

/// The mean of the rows of each cluster; zeroes for one without rows.
fn means(rows: &[f32], dim: usize, cluster_of: &[u32], clusters: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; clusters * dim];
    let mut counts = vec![0u32; clusters];
    for (row, cluster) in rows.chunks_exact(dim).zip(cluster_of) {
        let cluster = *cluster as usize;
        counts[cluster] += 1;
        let sums = &mut sums[cluster * dim..][..dim];
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let per_row = |cluster: usize| 1.0 / f64::from(counts[cluster].max(1));
    sums.iter().enumerate().map(|(at, sum)| (sum * per_row(at / dim)) as f32).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
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
