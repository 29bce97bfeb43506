//! The kernels, at every level this processor has.
//!
//! `cargo bench --no-default-features --bench kernels`

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use drift_pg::simd::{
    kernels_at, sign_block_bytes, CodedBest, CodedCols, CodedRows, Kernels, Level, SignRows,
    SignTerms, SIGN_BLOCK, SIGN_GROUP, TILE_COLS, TILE_ROWS,
};
use std::hint::black_box;

const DIMS: [usize; 3] = [128, 768, 1536];
/// Rows that share a query: what one bucket has, about.
const ROWS: usize = 256;

fn levels() -> impl Iterator<Item = &'static Kernels> {
    Level::ALL.into_iter().filter_map(kernels_at)
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * 2_654_435_761) >> 7) as u8).collect()
}

fn single_vectors(c: &mut Criterion) {
    type Pair = fn(&Kernels, &[f32], &[f32]) -> f32;
    let kernels: [(&str, Pair); 4] = [
        ("l2_squared", |k, a, b| (k.l2_squared)(a, b)),
        ("inner_product", |k, a, b| (k.inner_product)(a, b)),
        ("l1", |k, a, b| (k.l1)(a, b)),
        ("cosine", |k, a, b| (k.cosine)(a, b).dot),
    ];
    for (name, kernel) in kernels {
        let mut group = c.benchmark_group(name);
        for dim in DIMS {
            let (a, b) = (numbers(dim), numbers(dim + 1));
            group.throughput(Throughput::Elements(dim as u64));
            for k in levels() {
                group.bench_function(BenchmarkId::new(k.level.name(), dim), |bench| {
                    bench.iter(|| kernel(k, black_box(&a), black_box(&b[1..])));
                });
            }
        }
    }
}

fn rows_of_codes(c: &mut Criterion) {
    let mut group = c.benchmark_group("dot_i8_rows");
    for dim in DIMS {
        let codes: Vec<i8> = bytes(ROWS * dim).into_iter().map(|x| x as i8).collect();
        let mut out = vec![0; ROWS];
        group.throughput(Throughput::Elements(ROWS as u64));
        for k in levels() {
            group.bench_function(BenchmarkId::new(k.level.name(), dim), |bench| {
                bench.iter(|| (k.dot_i8_rows)(&codes[..dim], black_box(&codes), dim, &mut out));
            });
        }
    }
}

fn signs(c: &mut Criterion) {
    let mut group = c.benchmark_group("sign_bounds");
    for dim in DIMS {
        let groups = dim / SIGN_GROUP;
        let codes = bytes(ROWS / SIGN_BLOCK * sign_block_bytes(groups));
        let column = numbers(ROWS);
        let rows = SignRows { add: &column, scale: &column, error: &column };
        let terms = SignTerms { base: 1.0, weight: 1.0, step: 0.01, shift: -1.0, reach: 1.6 };
        let (query, mut tables) = (numbers(dim), vec![0; groups * 16]);
        let mut out = vec![0.0; ROWS];
        group.throughput(Throughput::Elements(ROWS as u64));
        for k in levels() {
            group.bench_function(BenchmarkId::new(k.level.name(), dim), |bench| {
                bench.iter(|| {
                    (k.sign_tables)(black_box(&query), &mut tables);
                    (k.sign_bounds)(&tables, black_box(&codes), &rows, &terms, &[], &mut out);
                });
            });
        }
    }
}

fn rotations(c: &mut Criterion) {
    let mut group = c.benchmark_group("hadamard");
    for dim in [128, 512, 1024] {
        let (mut values, factors) = (numbers(dim), vec![1.0 / (dim as f32).sqrt(); dim]);
        for k in levels() {
            group.bench_function(BenchmarkId::new(k.level.name(), dim), |bench| {
                bench.iter(|| (k.hadamard)(black_box(&mut values), &factors));
            });
        }
    }
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("tile_product");
    for dim in DIMS {
        let (rows, cols) = (numbers(dim * TILE_ROWS), numbers(dim * TILE_COLS));
        let mut tile = [0.0; TILE_ROWS * TILE_COLS];
        group.throughput(Throughput::Elements((dim * TILE_ROWS * TILE_COLS) as u64));
        for k in levels() {
            group.bench_function(BenchmarkId::new(k.level.name(), dim), |bench| {
                bench.iter(|| (k.tile_product)(black_box(&rows), black_box(&cols), &mut tile));
            });
        }
    }
}

fn products_of_codes(c: &mut Criterion) {
    let mut group = c.benchmark_group("tile_nearest_coded");
    for dim in DIMS {
        let rows: Vec<u8> = bytes(dim * TILE_ROWS).into_iter().map(|x| x / 2).collect();
        let cols: Vec<i8> = bytes(dim * TILE_COLS).into_iter().map(|x| x as i8).collect();
        let tile = std::array::from_fn(|r| r as u32);
        let rows = CodedRows { codes: &rows, dim, scales: &[1.0; TILE_ROWS], tile: &tile };
        let (starts, norms) = (&[0; TILE_COLS], &[1.0; TILE_COLS]);
        let cols = CodedCols { codes: &cols, starts, norms, scale: 1.0 };
        let mut scores = [[f32::INFINITY; TILE_COLS]; TILE_ROWS];
        let mut panels = [[0; TILE_COLS]; TILE_ROWS];
        group.throughput(Throughput::Elements((dim * TILE_ROWS * TILE_COLS) as u64));
        for k in levels() {
            group.bench_function(BenchmarkId::new(k.level.name(), dim), |bench| {
                bench.iter(|| {
                    let best = CodedBest { scores: &mut scores, panels: &mut panels };
                    (k.tile_nearest_coded)(black_box(rows), cols, 1, best);
                });
            });
        }
    }
}

criterion_group!(
    benches,
    single_vectors,
    rows_of_codes,
    signs,
    rotations,
    products,
    products_of_codes
);
criterion_main!(benches);
