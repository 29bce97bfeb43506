//! What a recall costs on the data at hand, found by trial.
//!
//! Some rows are taken as queries. Their exact nearest neighbours say, for each, how many buckets
//! had to be probed, in probe order, until the neighbour's came up, and up to what margin
//! ([`super::margin`]). The share of neighbours found within a number of buckets, or within a
//! margin, is the recall of probing as far. A search does both, so as to probe the fewest ([`ways`]).
//!
//! Other queries are made up, unlike the rows ([`unlike`]): they say how much greater margins have
//! to be the stranger a query is ([`super::strangeness`]).

mod nearest;
mod needed;
mod path;
mod tally;
mod unlike;
mod ways;

use self::nearest::Nearest;
use self::path::Path;
use self::tally::Tally;
use super::calibration::{Calibration, MANY};
use crate::arena::RoutingArena;
use crate::cluster::{Stopped, NO_BUCKET};
use crate::metric::Metric;
use crate::quant;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Queries that are rows, for each one that is unlike them.
const FOR_ONE_UNLIKE: usize = 2;

/// By how many times as many buckets are probed: queries are rows of the table; those that users
/// ask with fall less well into its buckets.
const SAFETY: f64 = 1.3;

/// Within this margin is nearly everything: a greater one says that queries are centroids, or that
/// equal rows fill buckets.
const GREATEST_MARGIN: f64 = 16.0;

/// Queries whose nearest rows are being found among rows that pass by.
pub struct Trial {
    nearest: Nearest,
    dims: usize,
    /// Queries after so many are unlike the rows.
    usual: usize,
}

impl Trial {
    /// A trial with these queries, row-major, which are rows, and others unlike them.
    pub fn new(metric: Metric, dims: usize, mut queries: Vec<f32>) -> Trial {
        let usual = queries.len() / dims;
        queries.extend(unlike::queries(&queries, dims, usual / FOR_ONE_UNLIKE));
        if metric == Metric::Cosine {
            quant::normalize_rows(dims, &mut queries);
        }
        Trial { nearest: Nearest::new(metric, dims, queries), dims, usual }
    }

    /// Takes note of the rows from number `first` on, under cosine of length one. A row equal to
    /// a query is passed over: usually it is the query.
    ///
    /// # Errors
    /// [`Stopped`] when `stop` was set.
    pub fn observe(
        &mut self,
        first: usize,
        vectors: &[f32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        self.nearest.observe(first, vectors, stop)
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
            .nearest
            .queries()
            .par_chunks(self.dims)
            .zip(self.nearest.lists())
            .map(|(query, nearest)| {
                if stop.load(Ordering::Relaxed) {
                    return Err(Stopped);
                }
                let wanted = nearest.iter().map(|near| {
                    let second = second.get(near.row).copied().unwrap_or(NO_BUCKET);
                    (near.rank, (buckets[near.row], second))
                });
                Ok(Path::until_found(routing, query, wanted))
            })
            .collect();
        let paths = paths?;
        let (usual, strange) = paths.split_at(self.usual);
        if usual.is_empty() {
            return Ok(Calibration::EVERYTHING);
        }
        let queries = &self.nearest.queries()[..self.usual * self.dims];
        let tally = Tally::of(queries, self.dims, routing, greatest(usual), stop)?;
        let Some(calibration) = ways::cheapest(usual, &tally, routing.len()) else {
            return Ok(Calibration::EVERYTHING);
        };
        let strangers = unlike::margins(&calibration, usual, strange, routing.len());
        let with_strangers = strangers.and_then(|known| calibration.with_strangers(known));
        Ok(with_strangers.unwrap_or(calibration))
    }
}

/// The greatest margin at which a neighbour was found that is to be told apart from others.
fn greatest(paths: &[Path]) -> f64 {
    let margins = paths.iter().flat_map(|path| path.margins(MANY, 0.0));
    margins.filter(|margin| margin.is_finite()).fold(0.0, f64::max).min(GREATEST_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::path::walk;
    use super::*;
    use crate::cluster::Router;
    use crate::search::calibration::FEW;
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
            .lists()
            .iter()
            .map(|near| near.iter().take(FEW).map(|near| near.row).collect())
            .collect();
        let calibration = trial.finish(&routing, &buckets, &[], &STOP).unwrap();
        for recall in [0.9, 0.95, 0.99] {
            let reach = calibration.reach(recall).expect("margins take fewer buckets");
            let margin = reach.margin(f32::NEG_INFINITY, 10);
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
    fn queries_unlike_the_rows_are_searched_farther() {
        let (dim, count) = (16, 100);
        let mut rng = SmallRng::seed_from_u64(6);
        let mut random = |scale: f32| -> Vec<f32> {
            (0..dim).map(|_| rng.random_range(-scale..scale)).collect()
        };
        let centroids: Vec<f32> = (0..count).flat_map(|_| random(1.0)).collect();
        let about = |nth: usize| &centroids[nth % count * dim..][..dim];
        let rows: Vec<f32> = (0..4000)
            .flat_map(|nth| {
                let from = random(0.5).into_iter();
                from.zip(about(nth)).map(|(from, about)| about + from)
            })
            .collect();
        let router = Router::new(Metric::L2, dim, centroids, vec![0.5; count]);
        let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP).unwrap()).unwrap();
        let mut buckets = vec![0u32; 4000];
        router.assign(&rows, &mut buckets, &STOP).unwrap();
        let queries = rows.chunks_exact(dim).step_by(23).flatten().copied().collect();
        let mut trial = Trial::new(Metric::L2, dim, queries);
        assert_eq!((trial.usual, trial.nearest.lists().len()), (174, 258));
        trial.observe(0, &rows, &STOP).unwrap();
        let calibration = trial.finish(&routing, &buckets, &[], &STOP).unwrap();
        let reach = calibration.reach(0.95).expect("margins");
        let usual = reach.margin(f32::NEG_INFINITY, 10);
        assert!(reach.varies() && reach.margin(1.0, 10) > 1.5 * usual, "{reach:?}");
    }

    #[test]
    fn without_queries_everything_is_looked_at() {
        let router = Router::new(Metric::L2, 2, vec![0.0; 2], vec![0.0]);
        let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP).unwrap()).unwrap();
        let trial = Trial::new(Metric::L2, 2, Vec::new());
        assert_eq!(trial.finish(&routing, &[0; 100], &[], &STOP), Ok(Calibration::EVERYTHING));
    }
}
