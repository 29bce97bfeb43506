//! How many buckets, and rows, a query has to look into for a recall@10.
//!
//! `cargo bench --no-default-features --bench recall_curve -- BASE QUERY TRUTH METRIC [SIZE...]`
//!
//! BASE and QUERY are .fvecs or .bvecs files, TRUTH an .ivecs file with the nearest rows of each
//! query or `-` to compute them; METRIC is l2, ip, cosine or l1; a SIZE is the average number of
//! rows in a bucket. Buckets are scanned whole, so that the curve shows routing alone.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use drift_pg::cluster::assign;
use drift_pg::cluster::kmeans::{self, Params};
use drift_pg::cluster::Router;
use drift_pg::metric::Metric;
use drift_pg::simd::kernels;
use rayon::prelude::*;

const K: usize = 10;
const TARGETS: [f64; 5] = [0.90, 0.95, 0.98, 0.99, 0.995];
const SAMPLES_PER_CLUSTER: usize = 64;
static STOP: AtomicBool = AtomicBool::new(false);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Row-major vectors.
struct Rows {
    dim: usize,
    values: Vec<f32>,
}

impl Rows {
    fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dim..][..self.dim]
    }

    fn normalize(&mut self) {
        for row in self.values.chunks_exact_mut(self.dim) {
            let length = (kernels().inner_product)(row, row).sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [base, query, truth, metric, sizes @ ..] = &arguments[..] else {
        eprintln!("usage: recall_curve BASE QUERY TRUTH l2|ip|cosine|l1 [SIZE...]");
        return Ok(());
    };
    let metric = match metric.as_str() {
        "l2" => Metric::L2,
        "ip" => Metric::InnerProduct,
        "cosine" => Metric::Cosine,
        "l1" => Metric::L1,
        other => return Err(format!("unknown metric {other}").into()),
    };
    let (mut base, mut queries) = (read_vectors(base)?, read_vectors(query)?);
    if base.dim != queries.dim {
        return Err("base and queries differ in dimensions".into());
    }
    if metric == Metric::Cosine {
        base.normalize();
        queries.normalize();
    }
    let truth = match truth.as_str() {
        "-" => nearest_rows(&base, &queries, metric),
        path => read_records(path, 4)?
            .1
            .into_iter()
            .map(|row| row.chunks_exact(4).take(K).map(|x| little_endian(x) as usize).collect())
            .collect(),
    };
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

    // found[p], scanned[p]: true neighbours in the p-th bucket probed, and its rows, of all queries.
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

/// The true nearest rows of each query.
fn nearest_rows(base: &Rows, queries: &Rows, metric: Metric) -> Vec<Vec<usize>> {
    let nearest = |q| {
        let mut ranked: Vec<(f64, usize)> =
            (0..base.len()).map(|i| (metric.rank(queries.row(q), base.row(i)), i)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        ranked.into_iter().take(K).map(|(_, i)| i).collect()
    };
    (0..queries.len()).into_par_iter().map(nearest).collect()
}

fn read_vectors(path: &str) -> Result<Rows> {
    let bytes = Path::new(path).extension().is_some_and(|e| e == "bvecs");
    let (dim, records) = read_records(path, if bytes { 1 } else { 4 })?;
    let values = records.iter().flat_map(|record| -> Vec<f32> {
        if bytes {
            record.iter().map(|&x| f32::from(x)).collect()
        } else {
            record.chunks_exact(4).map(|x| f32::from_bits(little_endian(x))).collect()
        }
    });
    Ok(Rows { dim, values: values.collect() })
}

/// The records of a vecs file, each a count followed by that many elements.
fn read_records(path: &str, element: usize) -> Result<(usize, Vec<Vec<u8>>)> {
    let content = std::fs::read(path)?;
    let dim = little_endian(content.get(..4).ok_or("empty file")?) as usize;
    let record = 4 + dim * element;
    if dim == 0 || content.len() % record != 0 {
        return Err(format!("{path} does not consist of records of {dim} elements").into());
    }
    Ok((dim, content.chunks_exact(record).map(|r| r[4..].to_vec()).collect()))
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}
