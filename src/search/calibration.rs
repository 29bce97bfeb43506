//! How many buckets a recall costs on the data at hand, found by trial.
//!
//! Some rows are taken as queries. Their exact nearest neighbours say, for each, how many buckets
//! had to be probed, in probe order, until the neighbour's came up. The share of neighbours found
//! within a number of buckets is the recall of probing as many.

use crate::arena::RoutingArena;
use crate::cluster::{Router, Stopped, NO_BUCKET};
use crate::courtesy;
use crate::metric::Metric;
use crate::quant::{self, sign};
use crate::search::probe::ProbeOrder;
use crate::simd::kernels;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The recalls whose cost is known.
pub const RECALLS: [f64; 8] = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999];

/// Neighbours looked for, for each query.
const NEIGHBOURS: usize = 10;

/// Queries that a task compares with the same rows while these are in its core's cache, and the
/// bytes of these.
const TASK_QUERIES: usize = 8;
const BLOCK_BYTES: usize = 256 << 10;

/// Queries are rows of the table; those that users ask with fall less well into its buckets.
const MARGIN: f64 = 1.3;

/// For each of [`RECALLS`], the share of all buckets to probe. Ascending, within 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration([f32; RECALLS.len()]);

impl Calibration {
    /// Every bucket is probed.
    pub const EVERYTHING: Calibration = Calibration([1.0; RECALLS.len()]);

    /// Takes shares that were stored; none unless they are ascending and within 0 and 1.
    pub fn from_shares(shares: [f32; RECALLS.len()]) -> Option<Calibration> {
        let valid = shares.is_sorted() && shares.iter().all(|share| (0.0..=1.0).contains(share));
        valid.then_some(Calibration(shares))
    }

    /// The shares, to be stored.
    pub fn shares(&self) -> [f32; RECALLS.len()] {
        self.0
    }

    /// The share of all buckets to probe for `recall`; between known recalls it is interpolated.
    pub fn share(&self, recall: f64) -> f64 {
        let after = RECALLS.partition_point(|known| *known < recall);
        let share = |at: usize| self.0.get(at).map_or(1.0, |share| f64::from(*share));
        let known = |at: usize| RECALLS.get(at).copied().unwrap_or(1.0);
        if after == 0 {
            return share(0);
        }
        let (low, high) = (after - 1, after);
        let part = ((recall - known(low)) / (known(high) - known(low))).clamp(0.0, 1.0);
        share(low) + part * (share(high) - share(low))
    }
}

/// Queries whose nearest rows are being found among rows that pass by.
pub struct Trial {
    metric: Metric,
    dims: usize,
    queries: Vec<f32>,
    /// For each query its nearest rows so far, nearest first.
    nearest: Vec<Vec<Neighbour<Vec<f32>>>>,
}

/// A row near to a query.
struct Neighbour<V> {
    rank: f64,
    /// Its number.
    row: usize,
    vector: V,
}

impl Trial {
    /// A trial with these queries, row-major.
    pub fn new(metric: Metric, dims: usize, mut queries: Vec<f32>) -> Trial {
        if metric == Metric::Cosine {
            quant::normalize_rows(dims, &mut queries);
        }
        let nearest = (0..queries.len() / dims).map(|_| Vec::new()).collect();
        Trial { metric, dims, queries, nearest }
    }

    /// Takes note of the rows from number `first` on, under cosine of length one. A row equal to
    /// the query is passed over: usually it is the query.
    ///
    /// # Errors
    /// [`Stopped`] when `stop` was set.
    pub fn observe(
        &mut self,
        first: usize,
        vectors: &[f32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let (metric, dims) = (self.metric, self.dims);
        let block_rows = (BLOCK_BYTES / (dims * size_of::<f32>())).max(1);
        let queries = self.queries.par_chunks(TASK_QUERIES * dims);
        queries.zip(self.nearest.par_chunks_mut(TASK_QUERIES)).try_for_each(|(queries, nearest)| {
            for (nth, block) in vectors.chunks(block_rows * dims).enumerate() {
                if stop.load(Ordering::Relaxed) {
                    return Err(Stopped);
                }
                let first = first + nth * block_rows;
                for (query, nearest) in queries.chunks_exact(dims).zip(&mut *nearest) {
                    courtesy::give_way();
                    let mut reach = reach_of(metric, nearest);
                    for (vector, row) in block.chunks_exact(dims).zip(first..) {
                        if is_beyond(reach, query, vector) {
                            continue;
                        }
                        let rank = metric.rank(query, vector);
                        if offer(nearest, query, Neighbour { rank, row, vector }) {
                            reach = reach_of(metric, nearest);
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// What the trial says, once all rows have passed by. `buckets` has the bucket of each row,
    /// `routing` is the router's arena.
    ///
    /// # Errors
    /// [`Stopped`] when `stop` was set.
    pub fn finish(
        self,
        router: &Router,
        routing: &RoutingArena,
        buckets: &[u32],
        stop: &AtomicBool,
    ) -> Result<Calibration, Stopped> {
        let (metric, dims) = (self.metric, self.dims);
        let spills = sign::are_used(metric, dims);
        let looked_at: Result<Vec<Vec<u64>>, Stopped> = self
            .queries
            .par_chunks(dims)
            .zip(&self.nearest)
            .map(|(query, nearest)| {
                let first: Vec<u32> = nearest.iter().map(|near| buckets[near.row]).collect();
                let mut second = vec![NO_BUCKET; first.len()];
                if spills {
                    let rows: Vec<f32> =
                        nearest.iter().flat_map(|near| &near.vector).copied().collect();
                    router.spill(&rows, &first, &mut second, stop)?;
                }
                let wanted = first.into_iter().zip(second).collect();
                Ok(probes_until(routing, query, wanted))
            })
            .collect();
        let mut looked_at: Vec<u64> = looked_at?.into_iter().flatten().collect();
        looked_at.sort_unstable();
        let total = router.len().max(1) as f64;
        Ok(Calibration(RECALLS.map(|recall| {
            let rank = (looked_at.len() as f64 * recall).ceil() as usize;
            let probes = looked_at.get(rank.saturating_sub(1)).copied().unwrap_or(u64::MAX);
            (probes as f64 * MARGIN / total).min(1.0) as f32
        })))
    }
}

/// The squared distance beyond which no row is one of the nearest: what is farther in some of its
/// components already need not be compared in the others. Infinite where ranks are no distances.
fn reach_of(metric: Metric, nearest: &[Neighbour<Vec<f32>>]) -> f32 {
    let Some(worst) = nearest.get(NEIGHBOURS - 1) else { return f32::INFINITY };
    let square = match metric {
        Metric::L2 => worst.rank,
        // Of vectors of length one: |a - b|^2 = 2 - 2 <a, b>. Two that are near to each other
        // have ranks of what rounding left.
        Metric::Cosine => 2.0 * worst.rank + f64::from(f32::EPSILON) * 8.0,
        Metric::InnerProduct | Metric::L1 => return f32::INFINITY,
    };
    (square * (1.0 + ROUNDING)) as f32
}

/// What rounding makes of a sum, at most.
const ROUNDING: f64 = 1e-4;

/// Whether the first half of the components, or the first quarter, says that a row is too far.
fn is_beyond(reach: f32, query: &[f32], vector: &[f32]) -> bool {
    if reach == f32::INFINITY {
        return false;
    }
    let (quarter, half) = (query.len() / 4, query.len() / 2);
    let squared = |part: Range<usize>| {
        let (query, vector) = (&query[part.clone()], &vector[part]);
        (kernels().l2_squared)(query, vector)
    };
    let first = squared(0..quarter);
    first > reach || first + squared(quarter..half) > reach
}

/// Puts a row in its place among those nearest to a query, unless enough are nearer; tells whether
/// it did.
fn offer(nearest: &mut Vec<Neighbour<Vec<f32>>>, query: &[f32], row: Neighbour<&[f32]>) -> bool {
    let is_full = nearest.len() == NEIGHBOURS;
    if is_full && nearest.last().is_some_and(|worst| row.rank >= worst.rank) {
        return false;
    }
    if row.rank.is_nan() || row.vector == query {
        return false;
    }
    let place = nearest.partition_point(|better| better.rank <= row.rank);
    nearest.insert(place, Neighbour { rank: row.rank, row: row.row, vector: row.vector.to_vec() });
    nearest.truncate(NEIGHBOURS);
    true
}

/// For each of the `wanted` pairs of buckets, how many have been probed when one of them has.
fn probes_until(routing: &RoutingArena, query: &[f32], mut wanted: Vec<(u32, u32)>) -> Vec<u64> {
    let mut unit = query.to_vec();
    if routing.identity().metric == Metric::Cosine {
        quant::normalize(query, &mut unit);
    }
    let point = routing.project(&unit);
    let mut looked_at = 0;
    let mut found = Vec::with_capacity(wanted.len());
    let mut order = ProbeOrder::routed(routing, &point, 1);
    while let Some(bucket) = order.next(Some((routing, &point))) {
        looked_at += 1;
        let before = wanted.len();
        wanted.retain(|(first, second)| *first != bucket && *second != bucket);
        found.extend(std::iter::repeat_n(looked_at, before - wanted.len()));
        if wanted.is_empty() {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    #[test]
    fn shares_are_interpolated_and_end_with_all_rows() {
        let shares = [0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.3];
        let calibration = Calibration::from_shares(shares).unwrap();
        assert_eq!(calibration.share(0.1), f64::from(0.01f32));
        assert!((calibration.share(0.95) - 0.05).abs() < 1e-6);
        assert!((calibration.share(0.925) - 0.04).abs() < 1e-6);
        assert!((calibration.share(1.0) - 1.0).abs() < 1e-6);
        assert!(calibration.share(0.9995) > 0.3);
    }

    #[test]
    fn shares_that_nobody_wrote_are_refused() {
        assert_eq!(Calibration::from_shares([0.5; 8].map(|s: f32| s * 3.0)), None);
        assert_eq!(Calibration::from_shares([0.5, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), None);
        assert_eq!(Calibration::from_shares([f32::NAN; 8]), None);
    }

    #[test]
    fn blobs_apart_are_found_in_their_own_bucket() {
        let mut rng = SmallRng::seed_from_u64(3);
        let centroids: Vec<f32> = (0..20).flat_map(|i| [i as f32 * 100.0, 0.0]).collect();
        let rows: Vec<f32> = (0..4000)
            .flat_map(|i| [(i % 20) as f32 * 100.0 + rng.random::<f32>(), rng.random::<f32>()])
            .collect();
        let buckets: Vec<u32> = (0..4000).map(|i| i % 20).collect();
        let router = Router::new(Metric::L2, 2, centroids, vec![0.5; 20]);
        let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP).unwrap()).unwrap();
        let mut trial = Trial::new(Metric::L2, 2, rows[..200].to_vec());
        trial.observe(0, &rows[..4000], &STOP).unwrap();
        trial.observe(2000, &rows[4000..], &STOP).unwrap();
        let shares = trial.finish(&router, &routing, &buckets, &STOP).unwrap().shares();
        assert!(shares.iter().all(|share| (f64::from(*share) - MARGIN / 20.0).abs() < 1e-6));
    }

    #[test]
    fn what_is_given_up_early_is_not_among_the_nearest() {
        let mut rng = SmallRng::seed_from_u64(4);
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1] {
            for dims in [1, 3, 20, 300] {
                let mut rows: Vec<f32> =
                    (0..500 * dims).map(|_| rng.random_range(-1.0..1.0)).collect();
                let queries = rows[..20 * dims].to_vec();
                if metric == Metric::Cosine {
                    quant::normalize_rows(dims, &mut rows);
                }
                let mut trial = Trial::new(metric, dims, queries);
                trial.observe(0, &rows, &STOP).unwrap();
                for (nth, nearest) in trial.nearest.iter().enumerate() {
                    let query = &trial.queries[nth * dims..][..dims];
                    let rank = |row: usize| metric.rank(query, &rows[row * dims..][..dims]);
                    let is_other = |row: &usize| rows[row * dims..][..dims] != *query;
                    let mut ranks: Vec<f64> = (0..500).filter(is_other).map(rank).collect();
                    ranks.sort_unstable_by(f64::total_cmp);
                    let found: Vec<f64> = nearest.iter().map(|near| near.rank).collect();
                    assert_eq!(found, ranks[..NEIGHBOURS], "{metric:?}, {dims}");
                }
            }
        }
    }

    #[test]
    fn without_queries_everything_is_looked_at() {
        let router = Router::new(Metric::L2, 2, vec![0.0; 2], vec![0.0]);
        let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP).unwrap()).unwrap();
        let trial = Trial::new(Metric::L2, 2, Vec::new());
        assert_eq!(trial.finish(&router, &routing, &[0; 100], &STOP), Ok(Calibration::EVERYTHING));
    }
}
