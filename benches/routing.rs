//! What finding the nearest centroids costs as they grow in number, on one thread.
//!
//! `cargo bench --no-default-features --bench routing -- BASE QUERY [l2|ip|cosine|l1]`
//!
//! BASE and QUERY are .fvecs or .bvecs files. The rows of BASE stand for the centroids of a router:
//! they lie as those of an index of many more rows do. Each line has all of a router's centroids in
//! one group, or in as many as searches use, and what part of the nearest 64 centroids is among the
//! first 64 that come.

mod common;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::{Result, Rows};
use drift_pg::arena::RoutingArena;
use drift_pg::cluster::{Groups, Routed, Router};
use drift_pg::metric::Metric;
use drift_pg::search::ProbeOrder;

const CENTROIDS: [usize; 6] = [8_000, 16_000, 32_000, 64_000, 256_000, 1_000_000];
const WANTED: usize = 64;
const QUERIES: usize = 400;
const ROUNDS: usize = 5;
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [base, query, metric @ ..] = &arguments[..] else {
        eprintln!("usage: routing BASE QUERY [l2|ip|cosine|l1]");
        return Ok(());
    };
    let metric = common::metric(metric.first().map_or("l2", String::as_str))?;
    let (mut base, mut queries) = (common::read_vectors(base)?, common::read_vectors(query)?);
    if metric == Metric::Cosine {
        base.normalize();
        queries.normalize();
    }
    println!("centroids   groups   found   median µs   p99 µs   grouping s");
    for count in CENTROIDS.into_iter().filter(|count| *count <= base.len()) {
        let row = |nth: usize| base.row(nth * base.len() / count);
        let centroids: Vec<f32> = (0..count).flat_map(row).copied().collect();
        let router = Router::new(metric, base.dim, centroids, vec![1.0; count]);
        let nearest = nearest(&router, &queries);
        let (points, dim) = router.points(&STOP)?;
        let one = Groups::one(points, dim);
        measure(&router, &one, &queries, &nearest, Duration::ZERO)?;
        let start = Instant::now();
        let many = Groups::new(points, dim, &STOP)?;
        measure(&router, &many, &queries, &nearest, start.elapsed())?;
    }
    Ok(())
}

/// For each query the nearest centroids.
fn nearest(router: &Router, queries: &Rows) -> Vec<Vec<u32>> {
    let mut scores = Vec::new();
    let mut nearest = |nth: usize| {
        router.scores(queries.row(nth), &mut scores);
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let by_score = |a: &u32, b: &u32| scores[*a as usize].total_cmp(&scores[*b as usize]);
        order.select_nth_unstable_by(WANTED, by_score);
        order.truncate(WANTED);
        order
    };
    (0..queries.len().min(QUERIES)).map(&mut nearest).collect()
}

fn measure(
    router: &Router,
    groups: &Groups,
    queries: &Rows,
    nearest: &[Vec<u32>],
    grouping: Duration,
) -> Result<()> {
    let (points, _) = router.points(&STOP)?;
    let routed = Routed { points, groups };
    let routing = RoutingArena::in_memory(1, router, &routed)?;
    assert!(routing.is_sound());
    let mut times = Vec::new();
    let mut found = 0;
    let mut rotated = vec![0.0; routing.rotation().padded()];
    for round in 0..ROUNDS {
        for (nth, nearest) in nearest.iter().enumerate() {
            let start = Instant::now();
            routing.rotation().rotate(queries.row(nth), &mut rotated);
            let mut order = ProbeOrder::routed(&routing, &rotated, WANTED as u64);
            let next = || order.next(Some((&routing, &rotated)));
            let first: Vec<u32> =
                std::iter::repeat_with(next).map_while(|x| x).take(WANTED).collect();
            times.push(start.elapsed());
            if round == 0 {
                found += first.iter().filter(|bucket| nearest.contains(bucket)).count();
            }
        }
    }
    times.sort_unstable();
    let micros = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    println!(
        "{:9}   {:6}   {:.3}   {:9.1}   {:6.1}   {:10.2}",
        router.len(),
        groups.len(),
        found as f64 / (nearest.len() * WANTED) as f64,
        micros(0.5),
        micros(0.99),
        grouping.as_secs_f64(),
    );
    Ok(())
}
