//! How many buckets, and rows, a query has to look into for a recall@10.
//!
//! `cargo bench --no-default-features --bench recall_curve -- BASE QUERY TRUTH METRIC [SIZE...]`
//!
//! BASE and QUERY are .fvecs or .bvecs files, TRUTH an .ivecs file with the nearest rows of each
//! query or `-` to compute them; METRIC is l2, ip, cosine or l1; a SIZE is the average number of
//! rows in a bucket. Buckets are scanned whole, so that the curve shows routing alone.

mod common;
#[path = "common/truth.rs"]
mod truth;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use drift_pg::cluster::assign;
use drift_pg::cluster::kmeans::{self, Params};
use drift_pg::cluster::Router;
use drift_pg::metric::Metric;
use drift_pg::simd::kernels;

use common::{Result, Rows};

const TARGETS: [f64; 5] = [0.90, 0.95, 0.98, 0.99, 0.995];
const SAMPLES_PER_CLUSTER: usize = 64;
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [base, query, truth, metric, sizes @ ..] = &arguments[..] else {
        eprintln!("usage: recall_curve BASE QUERY TRUTH l2|ip|cosine|l1 [SIZE...]");
        return Ok(());
    };
    let metric = common::metric(metric)?;
    let (base, queries, truth) = truth::read(base, query, truth, metric)?;
    let mut sizes =
        sizes.iter().map(|s| s.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
    if sizes.is_empty() {
        sizes = vec![50, 100, 200];
    }
    println!("{} rows of {} components, {} queries", base.len(), base.dim, queries.len());
    for size in sizes {
        measure(&base, &queries, &truth, metric, size)?;
    }
    Ok(())
}

fn measure(
    base: &Rows,
    queries: &Rows,
    truth: &[Vec<usize>],
    metric: Metric,
    size: usize,
) -> Result<()> {
    let clusters = (base.len() / size).max(1);
    let samples = (clusters * SAMPLES_PER_CLUSTER).min(base.len());
    let sample: Vec<f32> =
        (0..samples).flat_map(|i| base.row(i * base.len() / samples)).copied().collect();
    let params = Params { clusters, iterations: 10, seed: 1, spherical: metric == Metric::Cosine };

    let start = Instant::now();
    let centroids = kmeans::train(&sample, base.dim, &params, &STOP)?;
    let trained = start.elapsed();
    let buckets = centroids.len() / base.dim;
    let start = Instant::now();
    let (mut nearest, router) = (vec![0; base.len()], unweighted(metric, base.dim, &centroids));
    router.assign(&base.values, &mut nearest, &STOP)?;
    let assigned = start.elapsed();
    let start = Instant::now();
    let mut exact = vec![0; base.len()];
    assign::nearest(&base.values, base.dim, &centroids, &mut exact, &STOP)?;
    let exactly = start.elapsed();
    let same = nearest.iter().zip(&exact).filter(|(a, b)| a == b).count();

    let mut counts = vec![0u64; buckets];
    let mut spreads = vec![0.0f64; buckets];
    for (i, &bucket) in nearest.iter().enumerate() {
        let bucket = bucket as usize;
        counts[bucket] += 1;
        spreads[bucket] += f64::from((kernels().l2_squared)(base.row(i), router.centroid(bucket)));
    }
    let objective = spreads.iter().sum::<f64>() / base.len() as f64;
    let radii = spreads.iter().zip(&counts).map(|(s, &n)| (s / n.max(1) as f64).sqrt() as f32);
    let router = Router::new(metric, base.dim, centroids, radii.collect());

    println!(
        "\n{buckets} buckets of {size}: k-means on {samples} samples {:.2} s, assignment {:.2} s \
         ({:.2} % as by the exact one of {:.2} s), mean squared distance {objective:.6}, largest bucket {}, empty {}",
        trained.as_secs_f64(),
        assigned.as_secs_f64(),
        100.0 * same as f64 / base.len() as f64,
        exactly.as_secs_f64(),
        counts.iter().max().unwrap_or(&0),
        counts.iter().filter(|&&n| n == 0).count(),
    );

    // found[p], scanned[p]: true neighbours in the p-th bucket probed, and its rows, of all
    // queries.
    let mut found = vec![0u64; buckets];
    let mut scanned = vec![0u64; buckets];
    let mut scores = Vec::new();
    let mut scoring = std::time::Duration::ZERO;
    for (i, truth) in truth.iter().enumerate() {
        let start = Instant::now();
        router.scores(queries.row(i), &mut scores);
        scoring += start.elapsed();
        let mut order: Vec<usize> = (0..buckets).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut place = vec![0; buckets];
        for (p, &bucket) in order.iter().enumerate() {
            place[bucket] = p;
            scanned[p] += counts[bucket];
        }
        for &row in truth {
            found[place[nearest[row] as usize]] += 1;
        }
    }
    println!("scoring all buckets {:.1} µs", scoring.as_secs_f64() * 1e6 / truth.len() as f64);
    println!("  recall   probes   % of buckets   rows a query   % of rows");
    let wanted = truth.iter().map(Vec::len).sum::<usize>() as f64;
    let (mut hits, mut rows, mut probes) = (0, 0, 0);
    for target in TARGETS {
        while (hits as f64) < target * wanted && probes < buckets {
            hits += found[probes];
            rows += scanned[probes];
            probes += 1;
        }
        let rows = rows as f64 / truth.len() as f64;
        println!(
            "  {target:.3}   {probes:6}   {:12.2}   {rows:12.0}   {:9.2}",
            100.0 * probes as f64 / buckets as f64,
            100.0 * rows / base.len() as f64,
        );
    }
    Ok(())
}

/// A router that knows nothing yet of the rows.
fn unweighted(metric: Metric, dim: usize, centroids: &[f32]) -> Router {
    let buckets = centroids.len() / dim;
    Router::new(metric, dim, centroids.to_vec(), vec![0.0; buckets])
}
