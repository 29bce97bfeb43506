//! What a flush computes of each row: its buckets, and its codes.
//!
//! `cargo bench --no-default-features --bench flush -- BASE METRIC [BUCKETS]`
//!
//! BASE is an .fvecs or .bvecs file, METRIC l2, ip, cosine or l1. Buckets are trained from the first
//! half of its rows; the second half comes in logs of so many rows, each of which becomes a segment,
//! on one thread. Each line has the best of all logs, in microseconds a row.

mod common;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::{Result, Rows};
use drift_pg::arena::{encode_run, Identity, Layout, Leads, Plan, RoutingArena, Writer};
use drift_pg::cluster::kmeans::Params;
use drift_pg::cluster::{self, Router, Trained};
use drift_pg::metric::Metric;
use drift_pg::quant::sign;

/// Rows of a log.
const LOGS: [usize; 5] = [1_000, 2_000, 4_000, 16_000, 64_000];
/// Rows that the router is made for, at most.
const MOST_TRAINED: usize = 200_000;
/// Logs of each size, at most.
const ROUNDS: usize = 12;
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [base, metric, buckets @ ..] = &arguments[..] else {
        eprintln!("usage: flush BASE l2|ip|cosine|l1 [BUCKETS]");
        return Ok(());
    };
    let metric = common::metric(metric)?;
    let mut base = common::read_vectors(base)?;
    if metric == Metric::Cosine {
        base.normalize();
    }
    let dim = base.dim;
    let trained = (base.len() / 2).min(MOST_TRAINED);
    let (sample, rows) = base.values.split_at(trained * dim);
    let clusters = match buckets.first() {
        Some(buckets) => buckets.parse()?,
        None => ((trained as f64).sqrt() * 8.0) as usize,
    };
    let spherical = metric == Metric::Cosine;
    let params = Params { clusters, iterations: 6, seed: 1, spherical };
    let Trained { centroids, space } = cluster::train(sample, metric, dim, &params, &STOP)?;
    let buckets = centroids.len() / dim;
    let router = Router::within(space, metric, centroids, vec![1.0; buckets]);
    let routing = RoutingArena::in_memory(1, &router, &router.routed(&STOP)?)?;
    println!("{trained} rows of {dim} components, {buckets} buckets");
    println!("{:?}", routing.projection().subspace());
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "worker".into()).build()?;
    println!("rows of a log   assigning   encoding   writing   all");
    for log in LOGS.into_iter().filter(|log| log * dim <= rows.len()) {
        let mut best = [Duration::MAX; 4];
        for values in rows.chunks_exact(log * dim).cycle().take(ROUNDS) {
            let rows = Rows { dim, values: values.to_vec() };
            let each =
                || flush(&rows, metric, &router, &routing).map_err(|error| error.to_string());
            let each = pool.install(each)?;
            best.iter_mut().zip(each).for_each(|(best, each)| *best = each.min(*best));
        }
        let [assigned, encoded, written, all] =
            best.map(|time| time.as_secs_f64() * 1e6 / log as f64);
        println!("{log:13}   {assigned:9.2}   {encoded:8.2}   {written:7.2}   {all:3.2}");
    }
    Ok(())
}

/// Makes a segment's arena of rows: what it takes to find their buckets, to make their
/// codes, to write them, and in all.
fn flush(
    rows: &Rows,
    metric: Metric,
    router: &Router,
    routing: &RoutingArena,
) -> Result<[Duration; 4]> {
    let begun = Instant::now();
    let (dim, count) = (rows.dim, rows.len());
    let (mut first, mut second) = (vec![0; count], Vec::new());
    let (mut components, mut squares) = (Vec::new(), Vec::new());
    if sign::are_used(metric, dim) {
        second.resize(count, 0);
        let points = router.assign_and_spill(&rows.values, &mut first, &mut second, &STOP)?;
        let projection = &router.space().projection;
        for point in points.chunks_exact(projection.components()) {
            components.extend_from_slice(&point[..projection.lead()]);
        }
        let row = |nth| rows.row(nth);
        squares.extend((0..count).map(row).map(|row| Leads::square(metric, row, row)));
    } else {
        router.assign(&rows.values, &mut first, &STOP)?;
    }
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by_key(|row| first[*row as usize]);
    let assigned = begun.elapsed();

    let encoding = Instant::now();
    let sorted: Vec<u32> = order.iter().map(|row| first[*row as usize]).collect();
    let second: Vec<u32> = match second.len() {
        0 => Vec::new(),
        _ => order.iter().map(|row| second[*row as usize]).collect(),
    };
    let own: Vec<(u32, u32)> =
        sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect();
    let plan = Plan::new(&own, &second);
    let known =
        Leads { vectors: &rows.values, components: &components, squares: &squares, order: &order };
    let mut vectors = Vec::new();
    if second.is_empty() {
        vectors.extend(order.iter().flat_map(|row| rows.row(*row as usize)));
    }
    let leads = (!second.is_empty()).then_some(known);
    let encoded = encode_run(metric, routing, &plan, 0..plan.shapes().len(), &vectors, leads);
    let encoding = encoding.elapsed();

    let writing = Instant::now();
    let identity = Identity {
        segment: 1,
        dim: dim as u32,
        metric,
        rows: count as u64,
        buckets: own.len() as u32,
        code_bits: routing.code_bits(),
    };
    let mut writer = Writer::in_memory(Layout::new(identity, plan.shapes())?)?;
    encoded.iter().try_for_each(|bucket| writer.push_bucket(bucket))?;
    writer.finish()?;
    Ok([assigned, encoding, writing.elapsed(), begun.elapsed()])
}
