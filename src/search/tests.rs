//! Searches over segments in memory, against a look at every row.

use super::*;
use crate::arena::{encode_run, Arena, Identity, Layout, Leads, Plan, RoutingArena, Writer};
use crate::cluster::kmeans::Params as KmeansParams;
use crate::cluster::{self, Groups, Routed, Router};
use crate::metric::Metric;
use crate::quant::sign;
use rand::{rngs::SmallRng, Rng, SeedableRng};
use std::cell::Cell;
use std::convert::Infallible;
use std::sync::atomic::AtomicBool;

static STOP: AtomicBool = AtomicBool::new(false);

struct Segment {
    arena: Arena,
    rows: Vec<Vec<f32>>,
}

/// Segments of one router.
struct Index {
    metric: Metric,
    routing: RoutingArena,
    segments: Vec<Segment>,
    /// A bucket whose codes are not to be had.
    damaged: Option<u32>,
    /// Vectors that were read.
    read: Cell<usize>,
}

impl Index {
    /// `sizes` rows in segments, scattered about some centres.
    fn new(metric: Metric, dim: usize, sizes: &[usize], seed: u64) -> Index {
        let mut rng = SmallRng::seed_from_u64(seed);
        let centres: Vec<Vec<f32>> =
            (0..40).map(|_| (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect()).collect();
        let mut draw = || -> Vec<f32> {
            let centre = &centres[rng.random_range(0..centres.len())];
            centre.iter().map(|x| x + rng.random_range(-0.7f32..0.7)).collect()
        };
        let mut rows = |size: &usize| (0..*size).map(|_| draw()).collect();
        let segments: Vec<_> = sizes.iter().map(&mut rows).collect();
        let sample = segments.concat();
        Index::of(metric, dim, segments, &sample, seed)
    }

    /// An index of rows, segment by segment, whose router learns from a sample.
    fn of(
        metric: Metric,
        dim: usize,
        mut segments: Vec<Vec<Vec<f32>>>,
        sample: &[Vec<f32>],
        seed: u64,
    ) -> Index {
        let unit = |row: &[f32]| {
            let mut unit = row.to_vec();
            if metric == Metric::Cosine {
                crate::quant::normalize(row, &mut unit);
            }
            unit
        };
        let sample: Vec<f32> = sample.iter().flat_map(|row| unit(row)).collect();
        let spherical = metric == Metric::Cosine;
        let params = KmeansParams { clusters: 60, iterations: 5, seed, spherical };
        let trained = cluster::train(&sample, metric, dim, &params, &STOP).unwrap();
        let radii = vec![0.5; trained.centroids.len() / dim];
        let router = Router::within(trained.space, metric, trained.centroids, radii);
        // Fewer are not grouped as a rule, but may be.
        let (points, components) = router.points(&STOP).unwrap();
        let groups = &Groups::new(points, components, &STOP).unwrap();
        let routed = Routed { groups, ..router.routed(&STOP).unwrap() };
        let routing = RoutingArena::in_memory(1, &router, &routed).unwrap();
        let segments = segments
            .iter_mut()
            .map(|rows| {
                let flat =
                    |rows: &[Vec<f32>]| rows.iter().flat_map(|r| unit(r)).collect::<Vec<_>>();
                let mut first = vec![0; rows.len()];
                router.assign(&flat(rows), &mut first, &STOP).unwrap();
                let mut order: Vec<usize> = (0..rows.len()).collect();
                order.sort_by_key(|row| first[*row]);
                let rows: Vec<Vec<f32>> = order.iter().map(|row| rows[*row].clone()).collect();
                let first: Vec<u32> = order.iter().map(|row| first[*row]).collect();
                let mut second = Vec::new();
                if sign::are_used(metric, dim) {
                    second.resize(rows.len(), 0);
                    router.spill(&flat(&rows), &first, &mut second, &STOP).unwrap();
                }
                let own: Vec<(u32, u32)> =
                    first.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect();
                let plan = Plan::new(&own, &second);
                let mut vectors: Vec<f32> = rows.concat();
                for entry in 0..plan.shapes().len() {
                    for of in plan.spilled(entry) {
                        vectors.extend_from_slice(&rows[plan.row(*of) as usize]);
                    }
                }
                let identity = Identity {
                    segment: 1,
                    dim: dim as u32,
                    metric,
                    rows: rows.len() as u64,
                    buckets: own.len() as u32,
                    code_bits: routing.code_bits(),
                };
                let layout = Layout::new(identity, plan.shapes()).unwrap();
                let mut writer = Writer::in_memory(layout).unwrap();
                let encode = |vectors: &[f32], leads: Option<Leads<'_>>| {
                    encode_run(metric, &routing, &plan, 0..plan.shapes().len(), vectors, leads)
                };
                let mut encoded = encode(&vectors, None);
                if sign::are_used(metric, dim) {
                    // The same from what is known of rows that have been assigned, in another order.
                    let order: Vec<u32> = (0..rows.len() as u32).rev().collect();
                    let rows: Vec<Vec<f32>> = rows.iter().rev().cloned().collect();
                    let (stored, flat) = (rows.concat(), flat(&rows));
                    let points = router.space().project_rows(&flat, &STOP).unwrap();
                    let lead = routing.projection().lead();
                    let points = points.chunks_exact(components);
                    let squares = rows.iter().zip(flat.chunks_exact(dim));
                    let squares = squares.map(|(row, flat)| Leads::square(metric, row, flat));
                    let leads = Leads {
                        vectors: &stored,
                        components: &points.flat_map(|p| &p[..lead]).copied().collect::<Vec<_>>(),
                        squares: &squares.collect::<Vec<f32>>(),
                        order: &order,
                    };
                    let known = encode(&[], Some(leads));
                    if metric == Metric::Cosine {
                        encoded = known;
                    } else {
                        let pairs = encoded.iter().zip(&known);
                        pairs.for_each(|(one, other)| one.assert_alike(other));
                    }
                }
                encoded.iter().for_each(|bucket| writer.push_bucket(bucket).unwrap());
                Segment { arena: writer.finish().unwrap(), rows }
            })
            .collect();
        Index { metric, routing, segments, damaged: None, read: Cell::new(0) }
    }

    fn ranks(&self, query: &[f32]) -> Vec<f64> {
        let rows = self.segments.iter().flat_map(|segment| &segment.rows);
        let mut ranks: Vec<f64> = rows.map(|row| self.metric.rank(query, row)).collect();
        ranks.sort_by(f64::total_cmp);
        ranks
    }

    fn search(&self, query: &[f32], params: Params, most: usize) -> Vec<Hit> {
        let mut search = Search::new(self.metric, query, Some(&self.routing), params);
        let mut rows = self;
        let next =
            || search.next(Some(&self.routing), &mut rows).unwrap_or_else(|never| match never {});
        std::iter::from_fn(next).take(most).collect()
    }

    fn coded(&self, segment: u32, entry: usize) -> Bucket<'_> {
        let arena = &self.segments[segment as usize].arena;
        let of = &arena.buckets()[entry];
        if self.damaged == Some(of.bucket) {
            return Bucket::Uncoded { first_row: of.first_row, rows: u64::from(of.rows) };
        }
        let codes = arena.bucket(entry).unwrap();
        Bucket::Coded(Coded {
            bucket: of.bucket,
            entry: entry as u32,
            first_row: codes.first_row,
            factors: codes.factors,
            codes: codes.codes,
            stride: codes.stride,
            signs: codes.signs,
        })
    }
}

impl Rows for &Index {
    type Error = Infallible;

    fn segments(&self) -> u32 {
        self.segments.len() as u32
    }

    fn bucket(&self, segment: u32, bucket: u32) -> Bucket<'_> {
        let found = self.segments[segment as usize].arena.find(bucket);
        found.map_or(Bucket::Empty, |entry| self.coded(segment, entry))
    }

    fn entry(&self, segment: u32, entry: u32) -> Bucket<'_> {
        self.coded(segment, entry as usize)
    }

    fn vector<T>(
        &mut self,
        segment: u32,
        row: u64,
        with: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, Infallible> {
        self.read.set(self.read.get() + 1);
        Ok(with(&self.segments[segment as usize].rows[row as usize]))
    }
}

const SHAPES: [(Metric, usize); 7] = [
    (Metric::L2, 64),
    (Metric::L2, 16),
    (Metric::Cosine, 100),
    (Metric::Cosine, 20),
    (Metric::InnerProduct, 128),
    (Metric::InnerProduct, 5),
    (Metric::L1, 70),
];

fn params(effort: Effort, order: Order) -> Params {
    Params { effort, order, max_rows: u64::MAX, expected: 16, first: 10 }
}

fn exact() -> Params {
    params(Effort::new(1.0, 0, &Calibration::EVERYTHING), Order::Strict)
}

fn queries(dim: usize) -> impl Iterator<Item = Vec<f32>> {
    let mut rng = SmallRng::seed_from_u64(9);
    (0..8).map(move |_| (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect())
}

#[test]
fn an_exact_search_delivers_what_a_look_at_every_row_does() {
    for (metric, dim) in SHAPES {
        let index = Index::new(metric, dim, &[3000, 700, 40], 1);
        for query in queries(dim) {
            let hits = index.search(&query, exact(), usize::MAX);
            let ranks: Vec<f64> = hits.iter().map(|hit| hit.rank).collect();
            assert_eq!(ranks, index.ranks(&query), "{metric:?} {dim}");
        }
    }
}

#[test]
fn every_row_comes_once_however_far_a_search_goes_on() {
    for (metric, dim) in SHAPES {
        let mut index = Index::new(metric, dim, &[2000, 300], 2);
        for damaged in [None, Some(3)] {
            index.damaged = damaged;
            for order in [Order::Strict, Order::Relaxed] {
                for query in queries(dim).take(3) {
                    let hits = index.search(&query, params(Effort::of(2), order), usize::MAX);
                    let mut sources: Vec<(u32, u64)> = hits
                        .iter()
                        .map(|hit| match hit.source {
                            Source::Segment { segment, row } => (segment, row),
                            Source::Memory(place) => panic!("no row {place} in memory"),
                        })
                        .collect();
                    sources.sort_unstable();
                    sources.dedup();
                    assert_eq!(sources.len(), 2300, "{metric:?} {dim}");
                    assert!(hits.len() == 2300 || damaged.is_some(), "{metric:?} {dim}");
                }
            }
        }
    }
}

#[test]
fn probing_every_bucket_finds_nearly_all_and_reads_few() {
    for (metric, dim) in SHAPES {
        let index = Index::new(metric, dim, &[4000, 500], 3);
        let (mut found, mut wanted) = (0, 0);
        for query in queries(dim) {
            let hits = index.search(&query, params(Effort::of(1000), Order::Off), 10);
            assert!(hits.is_sorted_by(|a, b| a.rank <= b.rank));
            let worst = index.ranks(&query)[9];
            found += hits.iter().filter(|hit| hit.rank <= worst).count();
            wanted += 10;
        }
        assert!(found * 100 >= wanted * 97, "{metric:?} {dim}: {found} of {wanted}");
        let each = index.read.get() / 8;
        assert!(each <= 120, "{metric:?} {dim}: {each} vectors read for ten rows");
    }
}

#[test]
fn rows_in_memory_are_ranked_among_the_others() {
    let index = Index::new(Metric::L2, 64, &[1000], 4);
    let query = vec![0.1; 64];
    let mut search = Search::new(Metric::L2, &query, Some(&index.routing), exact());
    search.add(0, &query);
    search.add(1, &[50.0; 64]);
    let mut rows = &index;
    let mut next = || search.next(Some(&index.routing), &mut rows).unwrap();
    assert_eq!(next().map(|hit| hit.source), Some(Source::Memory(0)));
    let rest: Vec<Hit> = std::iter::from_fn(next).collect();
    assert_eq!(rest.len(), 1001);
    assert_eq!(rest[1000].source, Source::Memory(1));
}

#[test]
fn a_search_that_looks_ahead_delivers_the_same() {
    for (metric, dim) in SHAPES {
        let index = Index::new(metric, dim, &[3000, 40], 7);
        for query in queries(dim) {
            for params in [params(Effort::of(8), Order::Strict), exact()] {
                let expected = index.search(&query, params, 100);
                let mut search = Search::new(metric, &query, Some(&index.routing), params);
                let mut rows = &index;
                let horizon = search.foresee(Some(&index.routing), &rows);
                let next = || search.next(Some(&index.routing), &mut rows).unwrap();
                let found: Vec<Hit> = std::iter::from_fn(next).take(100).collect();
                let parts = |hits: &[Hit]| -> Vec<(f64, Source)> {
                    hits.iter().map(|hit| (hit.rank, hit.source)).collect()
                };
                assert_eq!(parts(&found), parts(&expected), "{metric:?} {dim}");
                // Where there is one, the rows that are expected to be wanted are not beyond it.
                assert!(found[9].rank <= horizon, "{metric:?} {dim}: {horizon}");
                let knows = sign::are_used(metric, dim) && !params.effort.is_exact();
                assert_eq!(horizon.is_finite(), knows, "{metric:?} {dim}");
            }
        }
        let mut search = Search::new(metric, &vec![1.0; dim], None, exact());
        assert_eq!(search.foresee(None, &&index), f64::INFINITY);
    }
}

#[test]
fn queries_that_are_no_numbers_still_get_every_row() {
    for (metric, dim) in [(Metric::L2, 64), (Metric::Cosine, 64), (Metric::InnerProduct, 64)] {
        let index = Index::new(metric, dim, &[500], 5);
        for value in [f32::NAN, f32::INFINITY, 0.0, 1e30] {
            let query = vec![value; dim];
            for params in [exact(), params(Effort::of(1), Order::Strict)] {
                assert_eq!(
                    index.search(&query, params, usize::MAX).len(),
                    500,
                    "{metric:?} {value}"
                );
            }
        }
    }
}

/// Rows near a plane of few dimensions among many, about some centres in it.
fn flat_rows(dim: usize, count: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut rng = SmallRng::seed_from_u64(77);
    let axes: Vec<Vec<f32>> =
        (0..12).map(|_| (0..dim).map(|_| rng.random_range(-1.0f32..1.0)).collect()).collect();
    let centres: Vec<Vec<f32>> =
        (0..30).map(|_| (0..12).map(|_| rng.random_range(-2.0f32..2.0)).collect()).collect();
    let mut rng = SmallRng::seed_from_u64(seed);
    let row = |_| {
        let mut row: Vec<f32> = (0..dim).map(|_| rng.random_range(-0.05f32..0.05)).collect();
        let centre = &centres[rng.random_range(0..centres.len())];
        for (axis, at) in axes.iter().zip(centre) {
            let at = at + rng.random_range(-1.0f32..1.0);
            row.iter_mut().zip(axis).for_each(|(x, a)| *x += at * a);
        }
        row
    };
    (0..count).map(row).collect()
}

#[test]
fn rows_unlike_those_learned_from_are_found_too() {
    let dim = 200;
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let like = flat_rows(dim, 5000, 1);
        let mut rng = SmallRng::seed_from_u64(8);
        let unlike: Vec<Vec<f32>> =
            (0..600).map(|_| (0..dim).map(|_| rng.random_range(-3.0f32..3.0)).collect()).collect();
        let index = Index::of(metric, dim, vec![like.clone(), unlike.clone()], &like, 1);
        assert!(index.routing.projection().is_learned(), "{metric:?}");
        assert!(index.routing.projection().components() < dim);
        let near = |row: &Vec<f32>| row.iter().map(|x| x * 1.01 + 0.01).collect();
        let queries = flat_rows(dim, 8, 2).into_iter().chain(unlike.iter().take(8).map(near));
        let (mut found, mut wanted) = (0, 0);
        for query in queries {
            let ranks = index.ranks(&query);
            let exact: Vec<f64> =
                index.search(&query, exact(), usize::MAX).iter().map(|hit| hit.rank).collect();
            assert_eq!(exact, ranks, "{metric:?}");
            let hits = index.search(&query, params(Effort::of(1000), Order::Off), 10);
            found += hits.iter().filter(|hit| hit.rank <= ranks[9]).count();
            wanted += 10;
        }
        assert!(found * 100 >= wanted * 96, "{metric:?}: {found} of {wanted}");
    }
}

#[test]
fn of_a_row_whose_length_f32_does_not_hold_nothing_is_known() {
    let unit = [0.1f32; 100];
    for scale in [1e-21, 1e-3, 1.0, 1e18, 1e20] {
        let stored = unit.map(|x| x * scale);
        let is_known = |metric| !Leads::square(metric, &stored, &unit).is_nan();
        let is_held = (1e-3..1e19).contains(&scale);
        assert_eq!([Metric::L2, Metric::Cosine].map(is_known), [true, is_held], "{scale}");
    }
}

#[test]
fn near_duplicates_far_off_the_plane_are_found() {
    // Families of rows that share what they have off the plane, which is most of how they differ
    // from others.
    let (dim, families) = (200, 12);
    let mut rng = SmallRng::seed_from_u64(21);
    let mut rows = flat_rows(dim, 3000, 1);
    let heads: Vec<Vec<f32>> = flat_rows(dim, families, 3)
        .into_iter()
        .map(|row| row.iter().map(|x| x + rng.random_range(-0.6f32..0.6)).collect())
        .collect();
    let member = |rng: &mut SmallRng, head: &[f32]| -> Vec<f32> {
        head.iter().map(|x| x + rng.random_range(-0.05f32..0.05)).collect()
    };
    for nth in 0..3000 {
        rows.push(member(&mut rng, &heads[nth % families]));
    }
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let index = Index::of(metric, dim, vec![rows.clone()], &rows, 1);
        let beyond = index.routing.projection().subspace().beyond;
        assert!((1.0..20.0).contains(&beyond), "{metric:?}: {beyond}");
        let (mut found, mut wanted) = (0, 0);
        for nth in 0..24 {
            let query = member(&mut rng, &heads[nth % families]);
            let ranks = index.ranks(&query);
            for most in [10, 100] {
                let hits = index.search(&query, params(Effort::of(1000), Order::Off), most);
                found += hits.iter().filter(|hit| hit.rank <= ranks[most - 1]).count();
                wanted += most;
            }
        }
        assert!(found * 100 >= wanted * 95, "{metric:?}: {found} of {wanted}");
    }
}
