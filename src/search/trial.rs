//! What a recall costs on the data at hand, found by trial.
//!
//! Some rows are taken as queries. Their exact nearest neighbours say, for each, how many buckets
//! had to be probed, in probe order, until the neighbour's came up, and up to what margin
//! ([`super::margin`]). The share of neighbours found within a number of buckets, or within a
//! margin, is the recall of probing as far. Of the two it is the margin, unless that takes more
//! buckets.

use super::calibration::{Calibration, Margins, Shares, FEW, MANY, RECALLS};
use super::probe::ProbeOrder;
use crate::arena::RoutingArena;
use crate::cluster::{Stopped, NO_BUCKET};
use crate::courtesy;
use crate::metric::Metric;
use crate::quant;
use crate::simd::kernels;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Queries that a task compares with the same rows while these are in its core's cache, and the
/// bytes of these.
const TASK_QUERIES: usize = 8;
const BLOCK_BYTES: usize = 256 << 10;

/// What a trial errs by is made up for, but not so far that less than this part of what may be
/// missed would be.
const LEAST_MISSED: f64 = 0.5;

/// By how many times as many buckets are probed: queries are rows of the table; those that users
/// ask with fall less well into its buckets.
const SAFETY: f64 = 1.3;

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
        let paths: Result<Vec<Path>, Stopped> = self
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
                Ok(Path::until_found(routing, query, wanted))
            })
            .collect();
        let paths = paths?;
        let counted = by_number(&paths, routing.len());
        if paths.is_empty() {
            return Ok(counted);
        }
        let margins = by_margin(&paths);
        let tally =
            Tally::of(&self.queries, self.dims, routing, margins[1][RECALLS.len() - 1], stop)?;
        Ok(tally.calibration(margins, &counted).unwrap_or(counted))
    }
}

/// How far it was to the neighbours of a query.
struct Path {
    /// Buckets probed until each was found, nearest first.
    probes: Vec<f64>,
    /// The greatest margin of these.
    margins: Vec<f64>,
}

impl Path {
    /// Probes until one of each pair of buckets has been.
    fn until_found(
        routing: &RoutingArena,
        query: &[f32],
        wanted: impl Iterator<Item = (u32, u32)>,
    ) -> Path {
        let (mut probes, mut margins) = (Vec::new(), Vec::new());
        let mut waiting: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
        for (nth, (first, second)) in wanted.enumerate() {
            probes.push(f64::INFINITY);
            margins.push(f64::INFINITY);
            waiting.entry(first).or_default().push(nth);
            waiting.entry(second).or_default().push(nth);
        }
        let mut left = probes.len();
        walk(routing, query, |probed, margin, bucket| {
            for nth in waiting.remove(&bucket).unwrap_or_default() {
                if probes[nth] == f64::INFINITY {
                    (probes[nth], margins[nth]) = (probed as f64, f64::from(margin));
                    left -= 1;
                }
            }
            left > 0
        });
        Path { probes, margins }
    }
}

/// Hands `probe` one bucket after the other, with how many that makes and the greatest margin of
/// these, as long as it wants more.
fn walk(routing: &RoutingArena, query: &[f32], mut probe: impl FnMut(u64, f32, u32) -> bool) {
    let mut unit = query.to_vec();
    if routing.identity().metric == Metric::Cosine {
        quant::normalize(query, &mut unit);
    }
    let point = routing.project(&unit);
    let about = Some((routing, &point[..]));
    let mut order = ProbeOrder::routed(routing, &point, 1);
    let (mut probed, mut greatest) = (0, 0.0f32);
    while let Some(margin) = order.margin((routing, &point)) {
        let Some(bucket) = order.next(about) else { return };
        probed += 1;
        // What is not a number is within no margin.
        greatest = if margin.is_nan() { f32::INFINITY } else { greatest.max(margin) };
        if !probe(probed, greatest, bucket) {
            return;
        }
    }
}

/// The calibration by numbers of buckets alone.
fn by_number(paths: &[Path], buckets: usize) -> Calibration {
    let probes: Vec<&[f64]> = paths.iter().map(|path| &path.probes[..]).collect();
    let share = |probes: f64| (probes * SAFETY / buckets.max(1) as f64).min(1.0) as f32;
    let few: Shares = needed(&probes, FEW).map(share);
    let mut many: Shares = needed(&probes, MANY).map(share);
    many.iter_mut().zip(few).for_each(|(many, few)| *many = many.max(few));
    Calibration::from_shares([few, many]).unwrap_or(Calibration::EVERYTHING)
}

/// The margins for few and for many rows.
fn by_margin(paths: &[Path]) -> [[f64; RECALLS.len()]; 2] {
    let margins: Vec<&[f64]> = paths.iter().map(|path| &path.margins[..]).collect();
    let needed =
        |neighbours| needed(&margins, neighbours).map(|margin| margin.min(GREATEST_MARGIN));
    let (few, mut many) = (needed(FEW), needed(MANY));
    many.iter_mut().zip(few).for_each(|(many, few)| *many = many.max(few));
    [few, many]
}

/// Within this margin is nearly everything: a greater one says that queries are centroids, or that
/// equal rows fill buckets.
const GREATEST_MARGIN: f64 = 16.0;

/// What was needed for each recall of the first `neighbours` of each query, if each was found at
/// what `found` says.
fn needed(found: &[&[f64]], neighbours: usize) -> [f64; RECALLS.len()] {
    let queries = || found.iter().map(|found| &found[..neighbours.min(found.len())]);
    let mut all: Vec<f64> = queries().flatten().copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    let needed_for = |recall: f64| {
        let rank = (all.len() as f64 * recall).ceil() as usize;
        all.get(rank.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
    };
    let mut before = 0.0f64;
    RECALLS.map(|recall| {
        let error = standard_error(queries(), needed_for(recall));
        let sure = (recall + error).min(1.0 - (1.0 - recall) * LEAST_MISSED);
        before = before.max(needed_for(sure));
        before
    })
}

/// How far the mean recall within `limit` may lie from that of all queries there could be: the
/// neighbours of one are found together, or not, so that the queries count.
fn standard_error<'f>(queries: impl Iterator<Item = &'f [f64]>, limit: f64) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for found in queries.filter(|found| !found.is_empty()) {
        let within = found.iter().filter(|needed| **needed <= limit).count();
        let recall = within as f64 / found.len() as f64;
        (count, sum, squares) = (count + 1.0, sum + recall, squares + recall * recall);
    }
    if count < 2.0 {
        return 0.0;
    }
    let variance = (squares - sum * sum / count) / (count - 1.0);
    (variance.max(0.0) / count).sqrt()
}

/// How many buckets are within a margin, on average.
struct Tally {
    /// The margin from one number to the next.
    step: f64,
    /// For each multiple of it.
    probes: Vec<f64>,
    buckets: usize,
}

/// Numbers in a tally, how far it goes beyond the greatest margin that is asked about, and the
/// least that this is taken to be.
const TALLIED: usize = 256;
const TALLIED_BEYOND: f64 = 1.25;
const LEAST_TALLIED: f64 = 1.0;

impl Tally {
    fn of(
        queries: &[f32],
        dims: usize,
        routing: &RoutingArena,
        greatest: f64,
        stop: &AtomicBool,
    ) -> Result<Tally, Stopped> {
        let step = greatest.max(LEAST_TALLIED) * TALLIED_BEYOND / TALLIED as f64;
        let count = |query: &[f32]| {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let mut probes = vec![0.0; TALLIED];
            // The nearest is probed whatever its margin.
            probes[0] = 1.0;
            walk(routing, query, |probed, margin, _| {
                let at = (f64::from(margin) / step).ceil() as usize;
                if let Some(probes) = probes.get_mut(at) {
                    *probes = probed as f64;
                }
                at < TALLIED
            });
            for at in 1..TALLIED {
                probes[at] = probes[at].max(probes[at - 1]);
            }
            Ok(probes)
        };
        let add = |mut sum: Vec<f64>, other: Vec<f64>| {
            sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
            Ok(sum)
        };
        let sums: Result<Vec<f64>, Stopped> =
            queries.par_chunks(dims).map(count).try_reduce(|| vec![0.0; TALLIED], add);
        let count = (queries.len() / dims).max(1) as f64;
        let probes = sums?.into_iter().map(|sum| sum / count).collect();
        Ok(Tally { step, probes, buckets: routing.len() })
    }

    /// Buckets within a margin.
    fn within(&self, margin: f64) -> f64 {
        let at = (margin / self.step).ceil() as usize;
        self.probes[at.min(TALLIED - 1)]
    }

    /// The margin of so many buckets, as far as the tally goes.
    fn margin_of(&self, probes: f64) -> f64 {
        let at = self.probes.partition_point(|within| *within < probes);
        at.min(TALLIED - 1) as f64 * self.step
    }

    /// The calibration by these margins, unless `counted` takes fewer buckets.
    fn calibration(
        &self,
        margins: [[f64; RECALLS.len()]; 2],
        counted: &Calibration,
    ) -> Option<Calibration> {
        let safe = margins.map(|margins| {
            margins.map(|margin| self.margin_of(self.within(margin) * SAFETY).max(margin))
        });
        let shares = safe.map(|margins| {
            margins.map(|margin| (self.within(margin) / self.buckets.max(1) as f64).min(1.0) as f32)
        });
        let calibration = Calibration::from_shares(shares)?;
        let [by_margin, by_number] = [&calibration, counted].map(|calibration| {
            let shares = calibration.shares();
            shares.as_flattened().iter().map(|share| f64::from(*share).ln()).sum::<f64>()
        });
        let margins: [Margins; 2] = safe.map(|margins| margins.map(|margin| margin as f32));
        calibration.with_margins(margins).filter(|_| by_margin < by_number)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Router;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

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
        let is_one_bucket = |share: &f32| (*share - 1.0 / 20.0).abs() < 1e-6;
        assert!(shares.as_flattened().iter().all(is_one_bucket), "{shares:?}");
    }

    #[test]
    fn queries_in_dense_regions_are_spared_what_those_in_sparse_ones_need() {
        let (dim, blobs, sparse) = (8, 10, 100);
        let mut rng = SmallRng::seed_from_u64(5);
        let mut random =
            |scale: f32| -> Vec<f32> { (0..dim).map(|_| rng.random::<f32>() * scale).collect() };
        let corners: Vec<Vec<f32>> = (0..blobs).map(|_| random(1e6)).collect();
        let mut rows: Vec<Vec<f32>> = (0..2000)
            .map(|nth| corners[nth % blobs].iter().zip(random(1e-2)).map(|(a, b)| a + b).collect())
            .collect();
        rows.extend((0..2000).map(|_| random(1.0)));
        let centroids: Vec<f32> =
            corners.iter().chain(&rows[2000..2000 + sparse]).flatten().copied().collect();
        let radii = [vec![1e-2; blobs], vec![0.7; sparse]].concat();
        let router = Router::new(Metric::L2, dim, centroids, radii);
        let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP).unwrap()).unwrap();
        let all: Vec<f32> = rows.iter().flatten().copied().collect();
        let mut buckets = vec![0u32; rows.len()];
        router.assign(&all, &mut buckets, &STOP).unwrap();
        let queries: Vec<&Vec<f32>> = rows.iter().step_by(20).collect();
        let mut trial =
            Trial::new(Metric::L2, dim, queries.iter().copied().flatten().copied().collect());
        trial.observe(0, &all, &STOP).unwrap();
        let nearest: Vec<Vec<usize>> = trial
            .nearest
            .iter()
            .map(|near| near.iter().take(FEW).map(|near| near.row).collect())
            .collect();
        let calibration = trial.finish(&routing, &buckets, &[], &STOP).unwrap();
        for recall in [0.9, 0.95, 0.99] {
            let (margin, _) = calibration.margins_for(recall).expect("margins take fewer buckets");
            let (mut found, mut probes) = (0, [0, 0]);
            for (nth, (query, nearest)) in queries.iter().zip(&nearest).enumerate() {
                walk(&routing, query, |probed, greatest, bucket| {
                    let is_within = greatest <= margin;
                    if is_within {
                        probes[nth * 2 / queries.len()] =
                            probed.max(probes[nth * 2 / queries.len()]);
                        found += nearest.iter().filter(|row| buckets[**row] == bucket).count();
                    }
                    is_within
                });
            }
            assert!(found as f64 >= recall * (queries.len() * FEW) as f64, "{recall}: {found}");
            assert!(probes[0] <= 2 && probes[1] > 10, "{recall}: {probes:?}");
        }
    }

    #[test]
    fn what_a_trial_of_few_queries_errs_by_is_made_up_for() {
        // Of each query all neighbours are found at once, by one to a hundred probes.
        let queries = |count: u64| -> Vec<Vec<f64>> {
            (0..count).map(|nth| vec![(1 + nth * 100 / count) as f64; 10]).collect()
        };
        let needed = |queries: &[Vec<f64>]| {
            let queries: Vec<&[f64]> = queries.iter().map(|found| &found[..]).collect();
            super::needed(&queries, 10)
        };
        let (many, few) = (needed(&queries(10_000)), needed(&queries(100)));
        for (nth, recall) in RECALLS.iter().enumerate() {
            let (many, few) = (many[nth], few[nth]);
            assert!(many >= recall * 100.0 - 1.0 && many <= recall * 100.0 + 2.0, "{many}");
            assert!(few >= many, "{few}");
        }
        assert!(few[0] > 53.0 && few[2] > 92.0);
        assert!(few[3] <= 98.0);
        assert!(few.is_sorted());
        assert_eq!(needed(&[]), [f64::INFINITY; 8]);
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
