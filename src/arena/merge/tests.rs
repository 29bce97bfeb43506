use super::*;
use crate::arena::{encode_run, ArenaName, Identity, Layout, RoutingArena, Writer};
use crate::cluster::kmeans::Params as KmeansParams;
use crate::cluster::{self, Router};
use crate::metric::Metric;
use crate::quant;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

static STOP: AtomicBool = AtomicBool::new(false);

/// Rows, sorted by bucket.
#[derive(Default)]
struct Rows {
    vectors: Vec<f32>,
    first: Vec<u32>,
    second: Vec<u32>,
}

impl Rows {
    fn own(&self) -> Vec<(u32, u32)> {
        self.first.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
    }
}

/// A router and its codes.
struct Setting {
    metric: Metric,
    dim: usize,
    router: Router,
    routing: RoutingArena,
}

impl Setting {
    /// A router of rows that lie in so many of `dim` dimensions, all but a little.
    fn new(metric: Metric, dim: usize, inner: usize, rng: &mut SmallRng) -> (Setting, Vec<f32>) {
        let axes: Vec<f32> = (0..inner * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut rows = Vec::new();
        for _ in 0..600 {
            let at: Vec<f32> = (0..inner).map(|_| rng.random_range(-1.0..1.0)).collect();
            for component in 0..dim {
                let along = at.iter().enumerate().map(|(nth, x)| x * axes[nth * dim + component]);
                rows.push(along.sum::<f32>() + rng.random_range(-0.01..0.01));
            }
        }
        let spherical = metric == Metric::Cosine;
        let params = KmeansParams { clusters: 24, iterations: 4, seed: 3, spherical };
        let unit = as_compared(metric, dim, &rows);
        let trained = cluster::train(&unit, metric, dim, &params, &STOP).unwrap();
        let radii = vec![0.5; trained.centroids.len() / dim];
        let router = Router::within(trained.space, metric, trained.centroids, radii);
        let routed = router.routed(&STOP).unwrap();
        let routing = RoutingArena::in_memory(1, &router, &routed).unwrap();
        (Setting { metric, dim, router, routing }, rows)
    }

    fn sort(&self, vectors: &[f32]) -> Rows {
        let dim = self.dim;
        let unit = as_compared(self.metric, dim, vectors);
        let mut first = vec![0; vectors.len() / dim];
        self.router.assign(&unit, &mut first, &STOP).unwrap();
        let mut second = Vec::new();
        if sign::are_used(self.metric, dim) {
            second.resize(first.len(), 0);
            self.router.spill(&unit, &first, &mut second, &STOP).unwrap();
        }
        let mut order: Vec<usize> = (0..first.len()).collect();
        order.sort_by_key(|row| first[*row]);
        let vector = |row: &usize| vectors[row * dim..(row + 1) * dim].to_vec();
        Rows {
            vectors: order.iter().flat_map(vector).collect(),
            second: order.iter().filter_map(|row| second.get(*row).copied()).collect(),
            first: order.iter().map(|row| first[*row]).collect(),
        }
    }

    fn encode(&self, rows: &Rows) -> (Plan, Vec<EncodedBucket>) {
        let plan = Plan::new(&rows.own(), &rows.second);
        let entries = 0..plan.shapes().len();
        let mut vectors = rows.vectors.clone();
        for spilled in entries.clone().flat_map(|entry| plan.spilled(entry)) {
            let at = plan.row(*spilled) as usize * self.dim;
            vectors.extend_from_slice(&rows.vectors[at..at + self.dim]);
        }
        let encoded = encode_run(self.metric, &self.routing, &plan, entries, &vectors, None);
        (plan, encoded)
    }

    fn identity(&self, rows: &Rows) -> Identity {
        Identity {
            segment: 1,
            dim: self.dim as u32,
            metric: self.metric,
            rows: rows.first.len() as u64,
            buckets: rows.own().len() as u32,
            code_bits: self.routing.code_bits(),
        }
    }

    fn arena(&self, rows: &Rows) -> Arena {
        let (plan, encoded) = self.encode(rows);
        let layout = Layout::new(self.identity(rows), plan.shapes()).unwrap();
        let mut writer = Writer::in_memory(layout).unwrap();
        encoded.iter().for_each(|bucket| writer.push_bucket(bucket).unwrap());
        writer.finish().unwrap()
    }
}

fn as_compared(metric: Metric, dim: usize, rows: &[f32]) -> Vec<f32> {
    let mut rows = rows.to_vec();
    if metric == Metric::Cosine {
        rows.chunks_mut(dim).for_each(|row| quant::normalize_rows(dim, row));
    }
    rows
}

#[test]
fn merged_codes_are_those_that_would_be_made_of_the_rows() {
    let cases = [
        (Metric::L2, 64, 64),
        (Metric::L2, 200, 12),
        (Metric::Cosine, 100, 100),
        (Metric::InnerProduct, 130, 8),
        (Metric::L2, 7, 7),
        (Metric::L1, 80, 80),
    ];
    for (metric, dim, inner) in cases {
        let mut rng = SmallRng::seed_from_u64(dim as u64);
        let (setting, vectors) = Setting::new(metric, dim, inner, &mut rng);
        // One segment of many rows, one of some, two of hardly any.
        let mut start = 0;
        let segments = [480, 100, 19, 1].map(|rows| {
            let run = start * dim..(start + rows) * dim;
            start += rows;
            setting.sort(&vectors[run])
        });
        let parts = segments.each_ref().map(|rows| setting.arena(rows));

        // Some rows have gone, and those of a bucket come in any order.
        let rows = |(part, rows): (u32, &Rows)| {
            let row = move |row| Origin { part, row };
            (0..rows.first.len() as u32).map(row).collect::<Vec<_>>()
        };
        let mut origins: Vec<Origin> = (0..).zip(&segments).flat_map(rows).collect();
        origins.retain(|origin| origin.part == 3 || rng.random_bool(0.8));
        origins.shuffle(&mut rng);
        let bucket = |of: &Origin| segments[of.part as usize].first[of.row as usize];
        origins.sort_by_key(bucket);

        let mut merged = Rows::default();
        for origin in &origins {
            let (rows, row) = (&segments[origin.part as usize], origin.row as usize);
            merged.vectors.extend_from_slice(&rows.vectors[row * dim..(row + 1) * dim]);
            merged.first.push(rows.first[row]);
            merged.second.extend(rows.second.get(row));
        }
        let (plan, expected) = setting.encode(&merged);
        let own = merged.own();
        let merge = Merge::new(&parts, &own, &origins, &STOP).unwrap();
        assert_eq!(merge.plan().shapes(), plan.shapes(), "{metric:?} {dim}");
        let mut copied = Vec::new();
        for run in [0..5, 5..plan.shapes().len()] {
            copied.extend(merge.copy_run(run).unwrap());
        }
        copied.iter().zip(&expected).for_each(|(copied, expected)| copied.assert_alike(expected));
        assert_eq!(copied.len(), expected.len());
        assert!(!sign::are_used(metric, dim) || expected.iter().any(|b| b.spilled().len() > 2));
    }
}

#[test]
fn rows_that_are_not_there_are_noticed() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (setting, vectors) = Setting::new(Metric::L2, 64, 64, &mut rng);
    let rows = setting.sort(&vectors[..100 * 64]);
    let parts = [setting.arena(&rows)];
    let origins: Vec<Origin> = (0..100).map(|row| Origin { part: 0, row }).collect();
    let copy = |own: &[(u32, u32)], origins: &[Origin]| {
        let merge = Merge::new(&parts, own, origins, &STOP)?;
        merge.copy_run(0..merge.plan().shapes().len())
    };
    let own = rows.own();
    assert!(copy(&own, &origins).is_ok());
    for wrong in [Origin { part: 1, row: 0 }, Origin { part: 0, row: 100 }] {
        let mut origins = origins.clone();
        origins[40] = wrong;
        assert!(matches!(copy(&own, &origins), Err(ArenaError::Damaged(_))));
    }
    // In another bucket.
    let mut swapped = origins.clone();
    swapped.swap(0, 99);
    assert!(matches!(copy(&own, &swapped), Err(ArenaError::Damaged(_))));
    assert!(Merge::new(&[], &[], &[], &STOP).unwrap().copy_run(0..0).unwrap().is_empty());
}

/// What others have found of a file counts as long as nobody writes to it; its medium may fail.
#[test]
fn what_was_sound_once_is_checked_again() {
    let dir = tempfile::tempdir().unwrap();
    let name = ArenaName::new("16384", 1).unwrap();
    let mut rng = SmallRng::seed_from_u64(2);
    let (setting, vectors) = Setting::new(Metric::L2, 64, 64, &mut rng);
    let rows = setting.sort(&vectors[..100 * 64]);
    let (plan, encoded) = setting.encode(&rows);
    let layout = Layout::new(setting.identity(&rows), plan.shapes()).unwrap();
    let mut writer = Writer::create(dir.path(), &name, layout).unwrap();
    encoded.iter().for_each(|bucket| writer.push_bucket(bucket).unwrap());
    let parts = [writer.finish().unwrap()];
    let (own, origins): (_, Vec<Origin>) =
        (rows.own(), (0..100).map(|row| Origin { part: 0, row }).collect());
    let stop = AtomicBool::new(true);
    assert!(matches!(Merge::new(&parts, &own, &origins, &stop), Err(ArenaError::Layout(_))));
    assert!(Merge::new(&parts, &own, &origins, &STOP).is_ok());
    let file = fs::OpenOptions::new().write(true).open(name.path(dir.path())).unwrap();
    let length = file.metadata().unwrap().len();
    for at in [length - 100, 128 + 24] {
        let was = parts[0].bytes()[at as usize];
        file.write_all_at(&[was ^ 1], at).unwrap();
        assert!((0..parts[0].buckets().len()).all(|entry| parts[0].bucket(entry).is_ok()));
        assert!(matches!(Merge::new(&parts, &own, &origins, &STOP), Err(ArenaError::Damaged(_))));
        file.write_all_at(&[was], at).unwrap();
    }
    assert!(Merge::new(&parts, &own, &origins, &STOP).is_ok());
}
