use super::*;
use crate::metric::Metric;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const METRICS: [Metric; 4] = [Metric::L2, Metric::InnerProduct, Metric::Cosine, Metric::L1];

struct Bucket {
    centroid: Vec<f32>,
    factors: Vec<Factors>,
    codes: Vec<i8>,
}

/// The mean of the rows, of length one each under cosine.
fn mean(metric: Metric, rows: &[Vec<f32>]) -> Vec<f32> {
    let dim = rows[0].len();
    let mut unit = vec![0.0; dim];
    let mut mean = vec![0.0f64; dim];
    for row in rows {
        if metric == Metric::Cosine {
            normalize(row, &mut unit);
        } else {
            unit.copy_from_slice(row);
        }
        for (m, &x) in mean.iter_mut().zip(&unit) {
            *m += f64::from(x) / rows.len() as f64;
        }
    }
    mean.into_iter().map(|m| m as f32).collect()
}

fn encode_all(metric: Metric, rows: &[Vec<f32>], centroid: Vec<f32>) -> Bucket {
    let stride = stride(centroid.len());
    let mut codes = vec![99; rows.len() * stride];
    let mut scratch = Vec::new();
    let factors = rows
        .iter()
        .zip(codes.chunks_mut(stride))
        .map(|(row, codes)| encode(metric, row, &centroid, 0.0, &mut scratch, codes))
        .collect();
    Bucket { centroid, factors, codes }
}

fn estimates(metric: Metric, query: &[f32], bucket: &Bucket, confidence: f32) -> Vec<Estimate> {
    let mut prepared = BucketQuery::default();
    Query::new(metric, query, 0.0).for_bucket(&bucket.centroid, &mut prepared);
    let mut out = vec![Estimate { value: 7.0, lower: 7.0 }];
    let stride = stride(query.len());
    prepared.estimate(&bucket.factors, &bucket.codes, stride, confidence, &mut out);
    assert_eq!(out.len(), bucket.factors.len());
    out
}

/// Asserts every bound, and returns how many of the estimates say something.
fn check(metric: Metric, query: &[f32], rows: &[Vec<f32>], bucket: &Bucket, what: &str) -> usize {
    let mut known = 0;
    for (i, (row, e)) in rows.iter().zip(estimates(metric, query, bucket, 1.0)).enumerate() {
        let rank = metric.rank(query, row);
        if e == Estimate::UNKNOWN {
            continue;
        }
        assert!(
            f64::from(e.lower) <= rank,
            "{metric:?} {what} row {i}: lower {:e} above rank {rank:e}, value {:e}",
            e.lower,
            e.value
        );
        assert!(e.value.is_finite() && e.lower.is_finite());
        known += 1;
    }
    known
}

/// Rows about a common mean, and queries: at random, a row, the centroid, a row's other side.
fn scene(
    rng: &mut SmallRng,
    dim: usize,
    scale: f32,
    offset: f32,
) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mean: Vec<f32> = (0..dim).map(|_| offset * scale * rng.random_range(-1.0..1.0)).collect();
    let spread = [1.0, 1.0, 1e-3][rng.random_range(0..3)] * scale;
    let mut rows: Vec<Vec<f32>> = (0..6)
        .map(|_| mean.iter().map(|m| m + spread * rng.random_range(-1.0f32..1.0)).collect())
        .collect();
    rows.push(rows[0].clone());
    rows.push(mean.clone());
    // One component that leaves all others near code zero.
    let mut spike = mean.clone();
    spike[rng.random_range(0..dim)] += 30.0 * scale;
    rows.push(spike);
    let mut queries = vec![rows[1].clone(), mean.clone(), rows[2].iter().map(|x| -x).collect()];
    queries.extend((0..2).map(|_| -> Vec<f32> {
        mean.iter().map(|m| m + scale * rng.random_range(-1.0f32..1.0)).collect()
    }));
    queries.push(rows[3].iter().map(|x| x * 1.001).collect());
    (rows, queries)
}

fn check_scene(rng: &mut SmallRng, dim: usize, scale: f32, offset: f32) -> (usize, usize) {
    let (rows, queries) = scene(rng, dim, scale, offset);
    let (mut known, mut total) = (0, 0);
    for metric in METRICS {
        let own = mean(metric, &rows);
        let far: Vec<f32> =
            own.iter().map(|c| c + scale * rng.random_range(-1.0f32..1.0)).collect();
        // A bucket of copies of its centroid has residuals of zero.
        for centroid in [own, far, vec![0.0; dim], rows[4].clone()] {
            let bucket = encode_all(metric, &rows, centroid);
            for query in &queries {
                let what = format!("dim {dim} scale {scale:e} offset {offset:e}");
                known += check(metric, query, &rows, &bucket, &what);
                // The cosine of a zero vector is not a number.
                let defined = |v: &[f32]| metric != Metric::Cosine || v.iter().any(|&x| x != 0.0);
                if defined(query) {
                    total += rows.iter().filter(|row| defined(row)).count();
                }
            }
        }
    }
    (known, total)
}

#[test]
fn lower_is_never_above_the_rank() {
    let dims = (1..=130).chain([768, 2000]);
    let mut known = 0;
    for dim in dims {
        for seed in 0..4 {
            let mut rng = SmallRng::seed_from_u64(seed * 10_000 + dim as u64);
            for offset in [0.0, 1.0, 1e3, 1e6] {
                let scale = 10f32.powf(rng.random_range(-3.0..3.0));
                let (some, all) = check_scene(&mut rng, dim, scale, offset);
                // At ordinary scales nothing may be declared unknown.
                assert_eq!(some, all, "dim {dim} scale {scale:e} offset {offset:e}");
                known += some;
            }
        }
    }
    assert!(known > 1_000_000, "{known} bounds");
}

#[test]
fn lower_is_never_above_the_rank_at_extreme_scales() {
    let scales =
        [1e-45, 1e-40, 1e-30, 1e-24, 1e-22, 1e-20, 1e-19, 1e-16, 1e15, 1e17, 1e18, 1e19, 1e30];
    let mut known = 0;
    for dim in [1, 2, 3, 7, 16, 31, 64, 100, 768, 2000] {
        for (seed, scale) in scales.into_iter().enumerate() {
            let mut rng = SmallRng::seed_from_u64(seed as u64 * 7919 + dim as u64);
            for offset in [0.0, 1.0, 1e4] {
                known += check_scene(&mut rng, dim, scale, offset).0;
            }
        }
    }
    assert!(known > 100_000, "{known} bounds");
}

#[test]
fn mixed_magnitudes_within_a_vector_keep_the_bound() {
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..600 {
        let dim = rng.random_range(1..80);
        let span = rng.random_range(0.0f32..18.0);
        let mut vector = || -> Vec<f32> {
            let sign = |r: &mut SmallRng| if r.random() { 1.0 } else { -1.0 };
            (0..dim).map(|_| sign(&mut rng) * 10f32.powf(rng.random_range(-span..=span))).collect()
        };
        let rows: Vec<Vec<f32>> = (0..5).map(|_| vector()).collect();
        let query = vector();
        for metric in METRICS {
            let bucket = encode_all(metric, &rows, mean(metric, &rows));
            check(metric, &query, &rows, &bucket, "mixed");
        }
    }
}

/// Residuals the codes miss by a rounding only: nothing hides the rounding of the kernels then.
#[test]
fn rounding_alone_keeps_the_bound() {
    let mut rng = SmallRng::seed_from_u64(8);
    for _ in 0..4000 {
        let dim = rng.random_range(1..6);
        let size = 10f32.powf(rng.random_range(-2.0..2.0));
        let centroid: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        let row: Vec<f32> =
            centroid.iter().map(|c| if rng.random() { c + size } else { c - size }).collect();
        let near = row.iter().map(|x| x.next_up()).collect();
        for metric in METRICS {
            let bucket = encode_all(metric, std::slice::from_ref(&row), centroid.clone());
            for query in [&row, &near, &centroid] {
                check(metric, query, std::slice::from_ref(&row), &bucket, "rounding");
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_unknown() {
    let good = vec![1.0f32, -2.0, 3.0, 0.5];
    for metric in METRICS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut broken = good.clone();
            broken[2] = bad;
            let rows = [good.clone(), broken.clone()];
            let bucket = encode_all(metric, &rows, vec![0.25; 4]);
            assert_eq!(bucket.factors[1], Factors::UNKNOWN);
            let e = estimates(metric, &good, &bucket, 1.0);
            assert!(e[0].lower.is_finite(), "{metric:?}");
            assert_eq!(e[1], Estimate::UNKNOWN, "{metric:?}");
            for e in estimates(metric, &broken, &bucket, 0.5) {
                assert_eq!(e, Estimate::UNKNOWN, "{metric:?}, query");
            }
            let bucket = encode_all(metric, &rows, broken.clone());
            for e in estimates(metric, &good, &bucket, 1.0) {
                assert_eq!(e, Estimate::UNKNOWN, "{metric:?}, centroid");
            }
            // Factors nobody wrote.
            for part in 0..if metric == Metric::L1 { 1 } else { 2 } {
                let mut bucket = encode_all(metric, &rows, vec![0.25; 4]);
                match part {
                    0 => bucket.factors[0].scale = bad,
                    _ => bucket.factors[0].norm = bad,
                }
                assert_eq!(estimates(metric, &good, &bucket, 1.0)[0], Estimate::UNKNOWN);
            }
            let mut bucket = encode_all(metric, &rows, vec![0.25; 4]);
            bucket.factors[0].error = bad.abs();
            assert_eq!(estimates(metric, &good, &bucket, 1.0)[0], Estimate::UNKNOWN);
            assert_eq!(estimates(metric, &good, &bucket, 0.0)[0], Estimate::UNKNOWN);
        }
    }
}

#[test]
fn sums_that_overflow_in_f32_are_unknown() {
    // The kernel returns minus infinity or not a number here; the true product is zero.
    let row = vec![3e19f32, 3e19];
    let query = vec![3e19f32, -3e19];
    let bucket = encode_all(Metric::InnerProduct, std::slice::from_ref(&row), vec![0.0; 2]);
    let e = estimates(Metric::InnerProduct, &query, &bucket, 1.0)[0];
    assert_eq!(e, Estimate::UNKNOWN);
    for scale in [1e-25f32, 1e-21, 3e19, 1e30] {
        let row = vec![scale, 2.0 * scale];
        let bucket = encode_all(Metric::Cosine, &[row.clone(), vec![1.0, 2.0]], vec![0.0; 2]);
        let e = estimates(Metric::Cosine, &[1.0, 2.0], &bucket, 1.0);
        assert_eq!(e[0], Estimate::UNKNOWN, "row of {scale:e}");
        assert_ne!(e[1], Estimate::UNKNOWN);
        let e = estimates(Metric::Cosine, &row, &bucket, 1.0);
        assert_eq!(e[1], Estimate::UNKNOWN, "query of {scale:e}");
    }
}

#[test]
fn a_residual_of_zero_is_exact() {
    let row = vec![1.5f32, -2.0, 1024.0];
    for metric in [Metric::L2, Metric::InnerProduct, Metric::L1] {
        let bucket = encode_all(metric, std::slice::from_ref(&row), row.clone());
        assert_eq!(bucket.factors[0], Factors { scale: 0.0, norm: 0.0, error: 0.0 });
        assert!(bucket.codes.iter().all(|&c| c == 0));
        let query = [0.0f32, 1.0, 1000.0];
        let (e, rank) = (estimates(metric, &query, &bucket, 1.0)[0], metric.rank(&query, &row));
        let gap = rank - f64::from(e.lower);
        assert!((0.0..=1e-5 * rank.abs()).contains(&gap), "{metric:?}: {gap} of {rank}");
    }
}

#[test]
fn codes_are_the_nearest_and_factors_describe_them() {
    let mut rng = SmallRng::seed_from_u64(2);
    for dim in [1, 15, 64, 100, 768] {
        let row: Vec<f32> = (0..dim).map(|_| rng.random_range(-9.0..9.0)).collect();
        let centroid: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        for metric in [Metric::L2, Metric::L1] {
            let mut codes = vec![5; stride(dim)];
            let f = encode(metric, &row, &centroid, 0.0, &mut Vec::new(), &mut codes);
            let (mut norm, mut square, mut absolute) = (0.0, 0.0, 0.0);
            for i in 0..dim {
                let residual = f64::from(row[i]) - f64::from(centroid[i]);
                let miss = residual - f64::from(f.scale) * f64::from(codes[i]);
                assert!(miss.abs() <= f64::from(f.scale) * 0.500_001);
                norm += (f64::from(f.scale) * f64::from(codes[i])).powi(2);
                square += miss * miss;
                absolute += miss.abs();
            }
            assert!(codes[dim..].iter().all(|&c| c == 0), "padding");
            assert_eq!(codes.iter().map(|c| c.unsigned_abs()).max(), Some(127));
            let (error, expected_norm) =
                if metric == Metric::L1 { (absolute, 0.0) } else { (square.sqrt(), norm) };
            assert!((f64::from(f.norm) - expected_norm).abs() <= 1e-6 * norm);
            let error = f64::from(f.error) - error;
            assert!((0.0..=1e-6 * absolute).contains(&error), "{error}");
        }
    }
}

#[test]
fn normalize_has_the_range_of_f64() {
    let mut unit = [9.0f32; 2];
    for scale in [1e-44f32, 1e-20, 1.0, 1e20, 1e38] {
        assert!(normalize(&[3.0 * scale, 0.0], &mut unit));
        assert_eq!(unit, [1.0, 0.0]);
    }
    assert!(normalize(&[3.0, -4.0], &mut unit));
    assert_eq!(unit, [0.6, -0.8]);
    for bad in [0.0, f32::NAN, f32::INFINITY] {
        assert!(!normalize(&[bad, 0.0], &mut unit));
        assert_eq!(unit, [0.0, 0.0]);
    }
}

#[test]
fn strides_hold_the_row_and_whole_registers() {
    let expected =
        [(1, 16), (16, 16), (17, 32), (63, 64), (64, 64), (65, 128), (768, 768), (2000, 2048)];
    for (dim, bytes) in expected {
        assert_eq!(stride(dim), bytes, "dim {dim}");
    }
}

/// Rows as image descriptors are: small whole numbers, many zero, in groups; the first group's
/// rows are the bucket, the queries are others of the group and of the next one.
fn descriptors(rng: &mut SmallRng, rows: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let exponential = |rng: &mut SmallRng, mean: f32| -mean * (1.0 - rng.random::<f32>()).ln();
    let mut group = |n: usize| -> Vec<Vec<f32>> {
        let base: Vec<f32> = (0..128).map(|_| exponential(rng, 28.0)).collect();
        let mut one = || -> Vec<f32> {
            let noise = |rng: &mut SmallRng| exponential(rng, 14.0) - exponential(rng, 14.0);
            base.iter().map(|b| (b + noise(rng)).clamp(0.0, 218.0).round()).collect()
        };
        (0..n).map(|_| one()).collect()
    };
    let mut first = group(rows + 20);
    let mut queries = first.split_off(rows);
    queries.extend(group(20));
    (first, queries)
}

#[test]
fn bounds_are_tight_on_descriptors() {
    let mut rng = SmallRng::seed_from_u64(11);
    let (rows, queries) = descriptors(&mut rng, 1000);
    for (metric, most, most_likely) in [
        (Metric::L2, 0.03, 0.012),
        (Metric::InnerProduct, 0.02, 0.008),
        (Metric::Cosine, 0.06, 0.025),
        (Metric::L1, 0.015, 0.015),
    ] {
        let bucket = encode_all(metric, &rows, mean(metric, &rows));
        let likely = (4.0 / 128f32.sqrt()).min(1.0);
        let (mut gap, mut likely_gap, mut off, mut above) = (0.0, 0.0, 0.0f64, 0);
        for query in &queries {
            let sure = estimates(metric, query, &bucket, 1.0);
            let likely = estimates(metric, query, &bucket, likely);
            for ((row, sure), likely) in rows.iter().zip(sure).zip(likely) {
                let rank = metric.rank(query, row);
                gap += (rank - f64::from(sure.lower)) / rank.abs();
                likely_gap += (rank - f64::from(likely.lower)) / rank.abs();
                off = off.max((rank - f64::from(sure.value)).abs() / rank.abs());
                above += usize::from(f64::from(likely.lower) > rank);
                assert!(sure.lower <= likely.lower && likely.lower <= likely.value);
            }
        }
        let n = (rows.len() * queries.len()) as f64;
        println!(
            "{metric:?}: gap {:.5} at certainty, {:.5} at four deviations; worst estimate off by \
             {off:.5}; {above} of {n} above",
            gap / n,
            likely_gap / n
        );
        assert!(gap / n < most, "{metric:?}: {}", gap / n);
        assert!(likely_gap / n < most_likely, "{metric:?}: {}", likely_gap / n);
        assert!(off < most / 2.0, "{metric:?}: {off}");
        assert!(above as f64 / n < 1e-3, "{metric:?}: {above}");
    }
}

#[test]
fn blocks_agree_with_rows_taken_alone() {
    let mut rng = SmallRng::seed_from_u64(3);
    let (rows, queries) = descriptors(&mut rng, 600);
    for metric in METRICS {
        let bucket = encode_all(metric, &rows, mean(metric, &rows));
        let mut prepared = BucketQuery::default();
        let query = Query::new(metric, &queries[0], 0.0);
        // A buffer that served another bucket serves the next.
        query.for_bucket(&rows[0], &mut prepared);
        query.for_bucket(&bucket.centroid, &mut prepared);
        let (mut all, mut one) = (Vec::new(), Vec::new());
        prepared.estimate(&bucket.factors, &bucket.codes, 128, 1.0, &mut all);
        for (i, e) in all.iter().enumerate() {
            let codes = &bucket.codes[i * 128..][..128];
            prepared.estimate(&bucket.factors[i..=i], codes, 128, 1.0, &mut one);
            assert_eq!(one, [*e], "{metric:?} row {i}");
        }
        prepared.estimate(&[], &[], 128, 1.0, &mut all);
        assert!(all.is_empty());
    }
}
