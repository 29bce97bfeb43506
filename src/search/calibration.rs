//! How many buckets a recall costs on the data at hand, found by trial.
//!
//! Some rows are taken as queries. Their exact nearest neighbours say, for each, how many buckets
//! had to be probed, in probe order, until the neighbour's came up. The share of neighbours found
//! within a number of buckets is the recall of probing as many. That is found out for the few
//! nearest and for many: what more rows cost lies on a line through both, for neighbours lie the
//! farther apart the more they are, by the same factor for each factor of their number.

use crate::arena::RoutingArena;
use crate::cluster::{Stopped, NO_BUCKET};
use crate::courtesy;
use crate::metric::Metric;
use crate::quant;
use crate::search::probe::ProbeOrder;
use crate::simd::kernels;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The recalls whose cost is known.
pub const RECALLS: [f64; 8] = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999];

/// Neighbours looked for, for each query: the few nearest, and all.
pub const FEW: usize = 10;
const MANY: usize = 100;

/// Queries that a task compares with the same rows while these are in its core's cache, and the
/// bytes of these.
const TASK_QUERIES: usize = 8;
const BLOCK_BYTES: usize = 256 << 10;

/// How many times as many buckets a hundred rows are guessed to need as ten do.
const GUESSED_GROWTH: f32 = 2.0;

/// What a trial errs by is made up for, but not so far that less than this part of what may be
/// missed would be.
const LEAST_MISSED: f64 = 0.5;

/// Queries are rows of the table; those that users ask with fall less well into its buckets.
const MARGIN: f64 = 1.3;

/// For each of [`RECALLS`], a share of all buckets.
pub type Shares = [f32; RECALLS.len()];

/// The shares of all buckets to probe for the ten nearest rows, and for the hundred nearest.
/// Ascending, within 0 and 1, and not less for more rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    few: Shares,
    many: Shares,
}

impl Calibration {
    /// Every bucket is probed.
    pub const EVERYTHING: Calibration =
        Calibration { few: [1.0; RECALLS.len()], many: [1.0; RECALLS.len()] };

    /// Takes shares that were stored; none unless they are as they should be.
    pub fn from_shares([few, many]: [Shares; 2]) -> Option<Calibration> {
        let is_valid = |shares: &Shares| {
            shares.is_sorted() && shares.iter().all(|share| (0.0..=1.0).contains(share))
        };
        let not_less = few.iter().zip(&many).all(|(few, many)| few <= many);
        (is_valid(&few) && is_valid(&many) && not_less).then_some(Calibration { few, many })
    }

    /// Takes shares for few rows; that of many is a guess.
    pub fn from_few(few: Shares) -> Option<Calibration> {
        Calibration::from_shares([few, few.map(|share| (share * GUESSED_GROWTH).min(1.0))])
    }

    /// The shares, to be stored.
    pub fn shares(&self) -> [Shares; 2] {
        [self.few, self.many]
    }

    /// The share of all buckets to probe for `recall` of the ten nearest rows, and how many times
    /// as much a hundred take, a thousand and so on.
    pub fn share(&self, recall: f64) -> (f64, f64) {
        let few = between(&self.few, recall);
        (few, between(&self.many, recall) / few.max(f64::MIN_POSITIVE))
    }
}

/// How many times as many buckets `rows` rows take as ten, if a hundred take `growth` times as many.
pub fn growth_to(rows: u64, growth: f64) -> f64 {
    let times = (rows.max(FEW as u64) as f64 / FEW as f64).ln() / (MANY as f64 / FEW as f64).ln();
    growth.powf(times)
}

/// The share for `recall`; between known ones it is interpolated.
fn between(shares: &Shares, recall: f64) -> f64 {
    let after = RECALLS.partition_point(|known| *known < recall);
    let share = |at: usize| shares.get(at).map_or(1.0, |share| f64::from(*share));
    let known = |at: usize| RECALLS.get(at).copied().unwrap_or(1.0);
    if after == 0 {
        return share(0);
    }
    let (low, high) = (after - 1, after);
    let part = ((recall - known(low)) / (known(high) - known(low))).clamp(0.0, 1.0);
    share(low) + part * (share(high) - share(low))
}

/// Queries whose nearest rows are being found among rows that pass by.
pub struct Trial {
    metric: Metric,
    dims: usize,
    queries: Vec<f32>,
    /// For each query its nearest rows so far, nearest first.
    nearest: Vec<Vec<Neighbour>>,
}

/// A row near to a query.
struct Neighbour {
    rank: f64,
    /// Its number.
    row: usize,
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
                        if vector != query && offer(nearest, Neighbour { rank, row }) {
                            reach = reach_of(metric, nearest);
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// What the trial says, once all rows have passed by. `buckets` has the bucket of each row,
    /// `second` the other one that its short code is in, or nothing where there are none; `routing`
    /// is the router's arena.
    ///
    /// # Errors
    /// [`Stopped`] when `stop` was set.
    pub fn finish(
        self,
        routing: &RoutingArena,
        buckets: &[u32],
        second: &[u32],
        stop: &AtomicBool,
    ) -> Result<Calibration, Stopped> {
        let looked_at: Result<Vec<Vec<u64>>, Stopped> = self
            .queries
            .par_chunks(self.dims)
            .zip(&self.nearest)
            .map(|(query, nearest)| {
                if stop.load(Ordering::Relaxed) {
                    return Err(Stopped);
                }
                let wanted = nearest.iter().map(|near| {
                    (buckets[near.row], second.get(near.row).copied().unwrap_or(NO_BUCKET))
                });
                Ok(probes_until(routing, query, wanted))
            })
            .collect();
        let looked_at = looked_at?;
        let few = shares(&looked_at, FEW, routing.len());
        let mut many = shares(&looked_at, MANY, routing.len());
        many.iter_mut().zip(few).for_each(|(many, few)| *many = many.max(few));
        Ok(Calibration { few, many })
    }
}

/// The shares of so many buckets that a trial tells, which has looked at `looked_at` buckets until
/// each query's neighbours were found, nearest first, of whom the first `neighbours` count.
fn shares(looked_at: &[Vec<u64>], neighbours: usize, buckets: usize) -> Shares {
    let queries = || looked_at.iter().map(|found| &found[..neighbours.min(found.len())]);
    let mut found: Vec<u64> = queries().flatten().copied().collect();
    found.sort_unstable();
    let probes_for = |recall: f64| {
        let rank = (found.len() as f64 * recall).ceil() as usize;
        found.get(rank.saturating_sub(1)).copied().unwrap_or(u64::MAX)
    };
    let mut before = 0.0f32;
    RECALLS.map(|recall| {
        let error = standard_error(queries(), probes_for(recall));
        let sure = (recall + error).min(1.0 - (1.0 - recall) * LEAST_MISSED);
        let share = probes_for(sure) as f64 * MARGIN / buckets.max(1) as f64;
        before = before.max(share.min(1.0) as f32);
        before
    })
}

/// How far the mean recall of so many probes may lie from that of all queries there could be: the
/// neighbours of one are found together, or not, so that the queries count.
fn standard_error<'f>(queries: impl Iterator<Item = &'f [u64]>, probes: u64) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for found in queries.filter(|found| !found.is_empty()) {
        let within = found.iter().filter(|looked_at| **looked_at <= probes).count();
        let recall = within as f64 / found.len() as f64;
        (count, sum, squares) = (count + 1.0, sum + recall, squares + recall * recall);
    }
    if count < 2.0 {
        return 0.0;
    }
    let variance = (squares - sum * sum / count) / (count - 1.0);
    (variance.max(0.0) / count).sqrt()
}

/// The squared distance beyond which no row is one of the nearest: what is farther in some of its
/// components already need not be compared in the others. Infinite where ranks are no distances.
fn reach_of(metric: Metric, nearest: &[Neighbour]) -> f32 {
    let Some(worst) = nearest.get(MANY - 1) else { return f32::INFINITY };
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
fn offer(nearest: &mut Vec<Neighbour>, row: Neighbour) -> bool {
    let is_full = nearest.len() == MANY;
    if is_full && nearest.last().is_some_and(|worst| row.rank >= worst.rank) {
        return false;
    }
    if row.rank.is_nan() {
        return false;
    }
    let place = nearest.partition_point(|better| better.rank <= row.rank);
    nearest.truncate(MANY - 1);
    nearest.insert(place, row);
    true
}

/// For each of the `wanted` pairs of buckets, how many have been probed when one of them has.
fn probes_until(
    routing: &RoutingArena,
    query: &[f32],
    wanted: impl Iterator<Item = (u32, u32)>,
) -> Vec<u64> {
    let mut found = Vec::new();
    let mut waiting: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
    for (nth, (first, second)) in wanted.enumerate() {
        found.push(None);
        waiting.entry(first).or_default().push(nth);
        waiting.entry(second).or_default().push(nth);
    }
    let mut unit = query.to_vec();
    if routing.identity().metric == Metric::Cosine {
        quant::normalize(query, &mut unit);
    }
    let point = routing.project(&unit);
    let mut order = ProbeOrder::routed(routing, &point, 1);
    let (mut looked_at, mut left) = (0, found.len());
    while left > 0 {
        let Some(bucket) = order.next(Some((routing, &point))) else { break };
        looked_at += 1;
        for nth in waiting.remove(&bucket).unwrap_or_default() {
            left -= usize::from(found[nth].is_none());
            found[nth].get_or_insert(looked_at);
        }
    }
    found.into_iter().map(|found| found.unwrap_or(u64::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Router;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    #[test]
    fn shares_are_interpolated_and_end_with_all_rows() {
        let shares = [0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.3];
        let calibration = Calibration::from_few(shares).unwrap();
        let share = |recall| calibration.share(recall).0;
        assert_eq!(share(0.1), f64::from(0.01f32));
        assert!((share(0.95) - 0.05).abs() < 1e-6);
        assert!((share(0.925) - 0.04).abs() < 1e-6);
        assert!((share(1.0) - 1.0).abs() < 1e-6);
        assert!(share(0.9995) > 0.3);
    }

    #[test]
    fn more_rows_cost_more_by_the_same_factor_for_each_factor_of_rows() {
        let calibration = Calibration::from_shares([[0.01; 8], [0.03; 8]]).unwrap();
        let (few, growth) = calibration.share(0.95);
        for (rows, expected) in [(0, 0.01), (10, 0.01), (100, 0.03), (1000, 0.09)] {
            let share = few * growth_to(rows, growth);
            assert!((share - expected).abs() < 1e-6, "{rows}: {share}");
        }
        assert!((0..2000).map(|rows| growth_to(rows, growth)).is_sorted());
        assert_eq!(growth_to(u64::MAX, 1.0), 1.0);
    }

    #[test]
    fn shares_that_nobody_wrote_are_refused() {
        let few = [0.5; 8].map(|share: f32| share * 3.0);
        assert_eq!(Calibration::from_few(few), None);
        let unsorted = [0.5, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(Calibration::from_few(unsorted), None);
        assert_eq!(Calibration::from_shares([[0.1; 8], unsorted]), None);
        assert_eq!(Calibration::from_shares([[0.2; 8], [0.1; 8]]), None);
        assert_eq!(Calibration::from_few([f32::NAN; 8]), None);
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
        let shares = trial.finish(&routing, &buckets, &[], &STOP).unwrap().shares();
        let is_one_bucket = |share: &f32| (f64::from(*share) - MARGIN / 20.0).abs() < 1e-6;
        assert!(shares.as_flattened().iter().all(is_one_bucket), "{shares:?}");
    }

    #[test]
    fn what_a_trial_of_few_queries_errs_by_is_made_up_for() {
        // Of each query all neighbours are found at once, by one to a hundred probes.
        let queries = |count: u64| -> Vec<Vec<u64>> {
            (0..count).map(|nth| vec![1 + nth * 100 / count; 10]).collect()
        };
        let probes = |queries: &[Vec<u64>], recall: usize| {
            f64::from(shares(queries, 10, 1000)[recall]) * 1000.0 / MARGIN
        };
        let (many, few) = (queries(10_000), queries(100));
        for (nth, recall) in RECALLS.iter().enumerate() {
            let (many, few) = (probes(&many, nth), probes(&few, nth));
            assert!(many >= recall * 100.0 - 1.0 && many <= recall * 100.0 + 2.0, "{many}");
            assert!(few >= many, "{few}");
        }
        assert!(probes(&few, 0) > 53.0 && probes(&few, 2) > 92.0);
        assert!(probes(&few, 3) <= 98.0);
        assert_eq!(shares(&[], 10, 1000), [1.0; 8]);
        assert!(shares(&few, 10, 1000).is_sorted());
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
                    assert_eq!(found, ranks[..MANY], "{metric:?}, {dims}");
                }
            }
        }
    }

    #[test]
    fn without_queries_everything_is_looked_at() {
        let router = Router::new(Metric::L2, 2, vec![0.0; 2], vec![0.0]);
        let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP).unwrap()).unwrap();
        let trial = Trial::new(Metric::L2, 2, Vec::new());
        assert_eq!(trial.finish(&routing, &[0; 100], &[], &STOP), Ok(Calibration::EVERYTHING));
    }
}
