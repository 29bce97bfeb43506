//! Recall@10 and queries a second of the search core on one thread, without PostgreSQL.
//!
//! `cargo bench --no-default-features --bench search_core -- BASE QUERY TRUTH METRIC [BUCKETS]`
//!
//! BASE and QUERY are .fvecs or .bvecs files, TRUTH an .ivecs file with the nearest rows of each
//! query or `-` to compute them; METRIC is l2, ip, cosine or l1. The index is one segment, as a
//! build makes it; vectors and codes are in memory. Each line is the best of several rounds, and
//! the median and 99th percentile of single queries.

mod common;
#[path = "common/truth.rs"]
mod truth;

use std::convert::Infallible;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::{Result, Rows};
use drift_pg::arena::{
    encode_run, Arena, ArenaError, BucketCodes, Identity, Layout, Plan, RoutingArena, Writer,
};
use drift_pg::cluster::kmeans::Params as KmeansParams;
use drift_pg::cluster::{self, Router, Trained};
use drift_pg::metric::Metric;
use drift_pg::quant::sign;
use drift_pg::search::{
    self, Bucket, Calibration, Coded, Effort, Order, Params, Search, Source, Trial,
};
use drift_pg::simd::{self, kernels};
use truth::K;

const PROBES: [u64; 14] = [4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
/// Recalls that are asked for, as a user does, of a calibration that a trial has made.
const TARGETS: [f64; 5] = [0.8, 0.9, 0.95, 0.98, 0.99];
const TRIAL_QUERIES: usize = 512;
/// How far from the nearest bucket others are probed, and how many that are, about.
const MARGINS: [(f32, u64); 10] = [
    (0.4, 3),
    (0.6, 5),
    (0.8, 7),
    (0.9, 9),
    (1.0, 12),
    (1.1, 15),
    (1.2, 20),
    (1.4, 30),
    (1.6, 50),
    (1.8, 80),
];
const ROUNDS: usize = 5;
static STOP: AtomicBool = AtomicBool::new(false);

/// One segment.
struct Index {
    metric: Metric,
    routing: RoutingArena,
    calibration: Calibration,
    arena: Arena,
    /// Rows in the order of their buckets, and their numbers in the file.
    rows: Rows,
    numbers: Vec<u32>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [base, query, truth, metric, buckets @ ..] = &arguments[..] else {
        eprintln!("usage: search_core BASE QUERY TRUTH l2|ip|cosine|l1 [BUCKETS]");
        return Ok(());
    };
    let metric = common::metric(metric)?;
    let (base, queries, truth) = truth::read(base, query, truth, metric)?;
    let buckets = match buckets.first() {
        Some(buckets) => buckets.parse()?,
        None => (base.len() / 50).min(((base.len() as f64).sqrt() * 8.0) as usize).max(1),
    };
    println!("{} rows of {} components, {} queries", base.len(), base.dim, queries.len());
    let index = build(&base, metric, buckets)?;
    drop(base);

    let columns = "recall@10    queries/s   median µs   p99 µs";
    println!("  target  {columns}");
    for target in TARGETS {
        let effort = Effort::new(target, index.routing.len(), &index.calibration);
        measure(&index, &queries, &truth, effort, &format!("{target:8.2}"));
    }
    println!("  margin  {columns}");
    for (margin, about) in MARGINS {
        let effort = Effort::within(margin, about);
        measure(&index, &queries, &truth, effort, &format!("{margin:8.1}"));
    }
    println!("  probes  {columns}");
    for probes in PROBES.into_iter().filter(|probes| *probes <= buckets as u64) {
        let effort = Effort::of(probes);
        measure(&index, &queries, &truth, effort, &format!("{probes:8}"));
    }
    Ok(())
}

fn measure(index: &Index, queries: &Rows, truth: &[Vec<usize>], effort: Effort, name: &str) {
    let mut best = Duration::MAX;
    let mut times = Vec::new();
    let mut hits = 0;
    for _ in 0..ROUNDS {
        hits = 0;
        let start = Instant::now();
        for (nth, truth) in truth.iter().enumerate() {
            let each = Instant::now();
            let found = index.nearest(queries.row(nth), effort);
            times.push(each.elapsed());
            hits += truth.iter().filter(|row| found.contains(&(**row as u32))).count();
        }
        best = best.min(start.elapsed());
    }
    times.sort_unstable();
    let micros = |at: usize| times[at.min(times.len() - 1)].as_secs_f64() * 1e6;
    let wanted: usize = truth.iter().map(Vec::len).sum();
    println!(
        "{name}     {:.4}    {:9.0}   {:9.1}   {:6.1}",
        hits as f64 / wanted as f64,
        truth.len() as f64 / best.as_secs_f64(),
        micros(times.len() / 2),
        micros(times.len() * 99 / 100),
    );
}

fn build(base: &Rows, metric: Metric, buckets: usize) -> Result<Index> {
    let dim = base.dim;
    let start = Instant::now();
    let samples = (buckets * 64).min(base.len());
    let sample: Vec<f32> =
        (0..samples).flat_map(|i| base.row(i * base.len() / samples)).copied().collect();
    let params = KmeansParams {
        clusters: buckets,
        iterations: 10,
        seed: 1,
        spherical: metric == Metric::Cosine,
    };
    let Trained { centroids, space } = cluster::train(&sample, metric, dim, &params, &STOP)?;
    let buckets = centroids.len() / dim;
    let trained = start.elapsed();

    let start = Instant::now();
    let untried = Router::within(space, metric, centroids, vec![0.0; buckets]);
    let mut first = vec![0; base.len()];
    untried.assign(&base.values, &mut first, &STOP)?;
    let mut squares = vec![(0.0f64, 0u32); buckets];
    for (nth, bucket) in first.iter().enumerate() {
        let of = &mut squares[*bucket as usize];
        of.0 +=
            f64::from((kernels().l2_squared)(base.row(nth), untried.centroid(*bucket as usize)));
        of.1 += 1;
    }
    let radii = squares.iter().map(|(sum, n)| (sum / f64::from(*n).max(1.0)).sqrt() as f32);
    let router = untried.with_radii(radii.collect());
    let assigned = start.elapsed();

    let start = Instant::now();
    let mut order: Vec<u32> = (0..base.len() as u32).collect();
    order.sort_by_key(|row| first[*row as usize]);
    let values = order.iter().flat_map(|row| base.row(*row as usize)).copied().collect();
    let rows = Rows { dim, values };
    let first: Vec<u32> = order.iter().map(|row| first[*row as usize]).collect();
    let mut second = Vec::new();
    if sign::are_used(metric, dim) {
        second.resize(rows.len(), 0);
        router.spill(&rows.values, &first, &mut second, &STOP)?;
    }
    let own: Vec<(u32, u32)> =
        first.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect();
    let plan = Plan::new(&own, &second);
    let spilled = start.elapsed();

    let start = Instant::now();
    let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP)?)?;
    let identity = Identity {
        segment: 1,
        dim: dim as u32,
        metric,
        rows: rows.len() as u64,
        buckets: own.len() as u32,
        code_bits: routing.code_bits(),
    };
    let mut writer = Writer::in_memory(Layout::new(identity, plan.shapes())?)?;
    let mut vectors = rows.values.clone();
    for entry in 0..plan.shapes().len() {
        for of in plan.spilled(entry) {
            vectors.extend_from_slice(rows.row(plan.row(*of) as usize));
        }
    }
    let encoded = encode_run(metric, &routing, &plan, 0..plan.shapes().len(), &vectors, None);
    drop(vectors);
    encoded.iter().try_for_each(|bucket| writer.push_bucket(bucket))?;
    let arena = writer.finish()?;
    let trial = Instant::now();
    let calibration = calibrate(&rows, metric, &routing, &first, &second)?;
    let tried = trial.elapsed();
    println!("{:?}", routing.projection().subspace());
    println!(
        "{buckets} buckets: training {:.2} s, assignment {:.2} s, spilling {:.2} s, encoding {:.2} s, \
         trial {:.2} s",
        trained.as_secs_f64(),
        assigned.as_secs_f64(),
        spilled.as_secs_f64(),
        start.elapsed().saturating_sub(tried).as_secs_f64(),
        tried.as_secs_f64(),
    );
    Ok(Index { metric, routing, calibration, arena, rows, numbers: order })
}

/// What a trial with some of the rows says.
fn calibrate(
    rows: &Rows,
    metric: Metric,
    routing: &RoutingArena,
    first: &[u32],
    second: &[u32],
) -> Result<Calibration> {
    let count = TRIAL_QUERIES.min(rows.len());
    let queries = (0..count).flat_map(|i| rows.row(i * rows.len() / count)).copied().collect();
    let mut trial = Trial::new(metric, rows.dim, queries);
    trial.observe(0, &rows.values, &STOP)?;
    Ok(trial.finish(routing, first, second, &STOP)?)
}

impl Index {
    fn nearest(&self, query: &[f32], effort: Effort) -> Vec<u32> {
        let params =
            Params { effort, order: Order::Off, max_rows: u64::MAX, expected: 12, first: 10 };
        let mut search = Search::new(self.metric, query, Some(&self.routing), params);
        let mut rows = self;
        let mut found = Vec::with_capacity(K);
        while found.len() < K {
            match search.next(Some(&self.routing), &mut rows) {
                Ok(Some(hit)) => {
                    if let Source::Segment { row, .. } = hit.source {
                        found.push(self.numbers[row as usize]);
                    }
                }
                Ok(None) => break,
                Err(never) => match never {},
            }
        }
        found
    }

    fn coded<'a>(
        &'a self,
        entry: usize,
        codes: std::result::Result<BucketCodes<'a>, ArenaError>,
    ) -> Bucket<'a> {
        let Ok(codes) = codes else { return Bucket::Empty };
        Bucket::Coded(Coded {
            bucket: self.arena.buckets()[entry].bucket,
            entry: entry as u32,
            first_row: codes.first_row,
            factors: codes.factors,
            codes: codes.codes,
            stride: codes.stride,
            signs: codes.signs,
        })
    }
}

impl search::Rows for &Index {
    type Error = Infallible;

    fn segments(&self) -> u32 {
        1
    }

    fn bucket(&self, _segment: u32, bucket: u32) -> Bucket<'_> {
        self.arena
            .find(bucket)
            .map_or(Bucket::Empty, |entry| self.coded(entry, self.arena.bucket(entry)))
    }

    fn prefetch_place(&self, _segment: u32, bucket: u32) {
        if let Some(entry) = self.arena.find(bucket) {
            self.arena.prefetch_entry(entry);
        }
    }

    fn codes_ahead(&self, _segment: u32, bucket: u32) -> &[u8] {
        self.arena.find(bucket).map_or(&[], |entry| self.arena.codes_ahead(entry))
    }

    fn prefetch_entry(&self, _segment: u32, entry: u32) {
        self.arena.prefetch_entry(entry as usize);
    }

    fn entry(&self, _segment: u32, entry: u32) -> Bucket<'_> {
        self.coded(entry as usize, self.arena.own_rows(entry as usize))
    }

    fn prefetch_vector(&self, _segment: u32, row: u64) {
        simd::prefetch(bytemuck::cast_slice(self.rows.row(row as usize)));
    }

    fn vector<T>(
        &mut self,
        _segment: u32,
        row: u64,
        with: impl FnOnce(&[f32]) -> T,
    ) -> std::result::Result<T, Infallible> {
        Ok(with(self.rows.row(row as usize)))
    }
}
