use super::*;
use crate::quant::{self, Rotation};
use rand::{rngs::SmallRng, Rng, SeedableRng};

/// Ranks and bounds of 320 random rows about a centroid far from the origin.
fn trial(metric: Metric, dim: usize, bits: usize, deviations: f32, length: f32) -> Vec<(f64, f32)> {
    trial_about(metric, dim, bits, deviations, length, 0.5)
}

/// The same; the middle is so much of the centroid.
fn trial_about(
    metric: Metric,
    dim: usize,
    bits: usize,
    deviations: f32,
    length: f32,
    middle: f32,
) -> Vec<(f64, f32)> {
    let mut rng = SmallRng::seed_from_u64(dim as u64);
    let rotation = Rotation::new(metric, dim);
    let centre: Vec<f32> = (0..dim).map(|_| rng.random_range(-2.0..2.0)).collect();
    let mut draw = |spread: f32| -> Vec<f32> {
        // Few components carry most of the residual, as in real data before it is rotated.
        let heavy = |i: usize| if i.is_multiple_of(16) { spread } else { spread / 8.0 };
        (0..dim).map(|i| centre[i] + rng.random_range(-1.0..1.0) * heavy(i)).collect()
    };
    let rows: Vec<Vec<f32>> = (0..10 * SIGN_BLOCK).map(|_| draw(1.0)).collect();
    let query: Vec<f32> = draw(1.0).iter().map(|x| x * length).collect();
    let mut routed = query.clone();
    let mut unit_centre = centre.clone();
    if metric == Metric::Cosine {
        quant::normalize(&query, &mut routed);
        quant::normalize(&centre, &mut unit_centre);
    }
    let turn = |vector: &[f32]| {
        let mut out = vec![0.0; rotation.padded()];
        rotation.rotate(vector, &mut out);
        out
    };
    let centroid = turn(&unit_centre);
    let typical = (kernels().inner_product)(&centroid, &centroid).sqrt();
    let middle: Vec<f32> = centroid.iter().map(|c| c * middle).collect();
    let coding = Coding { bits, ..Coding::signs(rotation.padded()) };
    let bytes = block_bytes(coding.code_bits());
    let mut codes = vec![0; rows.len() / SIGN_BLOCK * bytes];
    let (mut scratch, mut int8) = (Vec::new(), vec![0; rotation.padded()]);
    let factors: Vec<SignFactors> = rows
        .iter()
        .enumerate()
        .map(|(nth, row)| {
            quant::encode(metric, &turn(row), &centroid, 0.0, &mut scratch, &mut int8);
            let block = &mut codes[nth / SIGN_BLOCK * bytes..][..bytes];
            let residual: Vec<f32> = scratch.iter().map(|r| *r as f32).collect();
            let (residual, centroid, middle) = (&residual[..], &centroid[..], &middle[..]);
            let row = Row { residual, centroid, middle, beyond: 0.0 };
            encode(metric, &coding, &row, block, nth % SIGN_BLOCK)
        })
        .collect();
    let column = |part: fn(&SignFactors) -> f32| factors.iter().map(part).collect::<Vec<_>>();
    let (add, scale, error) = (column(|f| f.add), column(|f| f.scale), column(|f| f.error));
    let prepared = Query::new(metric, &coding, &turn(&routed), 0.0, typical, &middle);
    let terms = prepared.for_bucket(&centroid, deviations).unwrap();
    let mut out = vec![f32::NAN; rows.len()];
    let columns = SignRows { add: &add, scale: &scale, error: &error };
    prepared.bounds(&terms, &columns, &codes, &[], &mut out);
    rows.iter().zip(out).map(|(row, bound)| (metric.rank(&query, row), bound)).collect()
}

#[test]
fn bounds_lie_as_far_below_ranks_as_asked_for() {
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        for (dim, bits) in [(64, 1), (100, 1), (128, 1), (384, 1), (1100, 1), (128, 2), (384, 4)] {
            for length in [1.0, 0.01, 40.0] {
                let estimates = trial(metric, dim, bits, 0.0, length);
                let bounds = trial(metric, dim, bits, 3.0, length);
                let above = bounds.iter().filter(|(rank, bound)| f64::from(*bound) > *rank).count();
                assert!(above * 50 <= bounds.len(), "{metric:?} {dim}: {above} bounds too high");
                // Without bias, about as many estimates are above as are below.
                let above = estimates.iter().filter(|(rank, got)| f64::from(*got) > *rank).count();
                let share = above as f64 / estimates.len() as f64;
                assert!((0.25..0.75).contains(&share), "{metric:?} {dim} {length}: {share} above");
                let gap = |pairs: &[(f64, f32)]| {
                    pairs
                        .iter()
                        .map(|(rank, got)| (rank - f64::from(*got)).powi(2))
                        .sum::<f64>()
                        .sqrt()
                };
                let ratio = gap(&bounds) / gap(&estimates);
                assert!((1.8..6.0).contains(&ratio), "{metric:?} {dim}: {ratio}");
            }
        }
    }
}

#[test]
fn estimates_scatter_about_ranks_by_the_deviation_named() {
    for (dim, bits) in [64, 100, 128, 384, 1024, 1100, 1536]
        .into_iter()
        .flat_map(|dim| [1, 2, 4].map(|bits| (dim, bits)))
    {
        let estimates = trial(Metric::L2, dim, bits, 0.0, 1.0);
        let bounds = trial(Metric::L2, dim, bits, 1.0, 1.0);
        let scores: Vec<f64> = estimates
            .iter()
            .zip(&bounds)
            .map(|((rank, got), (_, bound))| (f64::from(*got) - rank) / f64::from(got - bound))
            .collect();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let square = scores.iter().map(|x| x * x).sum::<f64>() / scores.len() as f64;
        // One query's tables are off alike for all rows, which tells where codes are exact.
        let allowed = if bits == 4 { 0.5 } else { 0.2 };
        assert!(mean.abs() < allowed, "{dim} {bits}: {mean}");
        assert!((0.7..1.3).contains(&square.sqrt()), "{dim} {bits}: {}", square.sqrt());
    }
}

#[test]
fn more_bits_miss_as_little_as_their_grid_does() {
    let spread = |bits| {
        let estimates = trial(Metric::L2, 256, bits, 0.0, 1.0);
        let bounds = trial(Metric::L2, 256, bits, 1.0, 1.0);
        let gaps = estimates.iter().zip(&bounds);
        gaps.map(|((_, got), (_, bound))| f64::from(got - bound)).sum::<f64>()
    };
    let one = spread(1);
    for (bits, expected) in [(2, 0.486), (4, 0.143)] {
        let ratio = spread(bits) / one;
        assert!((ratio / expected - 1.0).abs() < 0.15, "{bits} bits: {ratio}");
    }
}

#[test]
fn what_is_beyond_the_code_is_in_the_bound() {
    let mut rng = SmallRng::seed_from_u64(5);
    let (lead, rest) = (64, 40);
    let coding = Coding { components: lead, bits: 2, beyond: rest as f32, usual: 1e9 };
    let mut draw = |count: usize, spread: f32| -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-spread..spread)).collect()
    };
    for metric in [Metric::L2, Metric::InnerProduct] {
        // Shorter than, as long as, and longer than what has a code.
        for beyond in [0.1, 1.0, 5.0] {
            let centroid = draw(lead, 3.0);
            let about =
                |x: Vec<f32>| -> Vec<f32> { x.iter().zip(&centroid).map(|(x, c)| x + c).collect() };
            let query = [about(draw(lead, 1.0)), draw(rest, beyond)].concat();
            let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
            let typical = square(&centroid).sqrt();
            let middle = vec![0.0; lead];
            let beyond_query = square(&query[lead..]);
            let prepared =
                Query::new(metric, &coding, &query[..lead], beyond_query, typical, &middle);
            let terms = prepared.for_bucket(&centroid, 3.0).unwrap();
            let (mut above, mut gaps, mut scatter) = (0, 0.0, 0.0);
            for _ in 0..20 {
                let mut block = vec![0; block_bytes(coding.code_bits())];
                let mut columns = [[0.0; SIGN_BLOCK]; 3];
                let mut ranks = Vec::new();
                let rows: Vec<Vec<f32>> = (0..SIGN_BLOCK)
                    .map(|_| [about(draw(lead, 1.0)), draw(rest, beyond)].concat())
                    .collect();
                for (place, row) in rows.iter().enumerate() {
                    let parts = row.iter().zip(&centroid);
                    let residual: Vec<f32> = parts.map(|(x, c)| x - c).collect();
                    let coded = Row {
                        residual: &residual,
                        centroid: &centroid,
                        middle: &middle,
                        beyond: f64::from(square(&row[lead..])),
                    };
                    let factors = encode(metric, &coding, &coded, &mut block, place);
                    columns[0][place] = factors.add;
                    columns[1][place] = factors.scale;
                    columns[2][place] = factors.error;
                    ranks.push(metric.rank(&query, row));
                }
                let [add, scale, error] = &columns;
                let mut out = [0.0; SIGN_BLOCK];
                prepared.bounds(&terms, &SignRows { add, scale, error }, &block, &[], &mut out);
                for (rank, bound) in ranks.into_iter().zip(out) {
                    let gap = rank - f64::from(bound);
                    above += u32::from(gap < 0.0);
                    gaps += gap;
                    scatter += gap * gap;
                }
            }
            let count = f64::from(20 * SIGN_BLOCK as u32);
            let deviation = (scatter / count - (gaps / count).powi(2)).sqrt();
            assert!(above < 7, "{metric:?} {beyond}: {above} bounds too high");
            let reach = gaps / count / deviation;
            assert!((2.5..5.0).contains(&reach), "{metric:?} {beyond}: {reach}");
        }
    }
}

#[test]
fn bounds_hold_however_far_the_middle_is() {
    for (metric, dim) in [(Metric::L2, 128), (Metric::Cosine, 384), (Metric::L2, 1100)] {
        for middle in [1.0, 0.0, -20.0, -400.0] {
            let bounds = trial_about(metric, dim, 1, 3.0, 1.0, middle);
            let above = bounds.iter().filter(|(rank, got)| f64::from(*got) > *rank).count();
            assert!(above * 50 <= bounds.len(), "{metric:?} {dim} {middle}: {above} too high");
            let infinite = bounds.iter().any(|(_, bound)| !bound.is_finite());
            assert!(!infinite, "{metric:?} {dim} {middle}");
        }
    }
}

#[test]
fn what_cannot_be_known_is_below_every_rank() {
    let mut block = vec![0; block_bytes(64)];
    let residual = vec![f32::INFINITY; 64];
    let (residual, zeroes) = (&residual[..], &[0.0; 64][..]);
    let row = Row { residual, centroid: zeroes, middle: zeroes, beyond: 0.0 };
    let signs = Coding::signs(64);
    assert_eq!(encode(Metric::L2, &signs, &row, &mut block, 3), SignFactors::UNKNOWN);
    let query = Query::new(Metric::L2, &signs, &[f32::NAN; 64], 0.0, 1.0, zeroes);
    assert_eq!(query.for_bucket(zeroes, 1.0), None);
    let query = Query::new(Metric::InnerProduct, &signs, zeroes, 0.0, 1.0, zeroes);
    assert!(query.for_bucket(&[1.0; 64], 1.0).is_some());
}

#[test]
fn a_row_at_its_centroid_has_an_exact_bound() {
    let mut block = vec![0; block_bytes(64)];
    let (residual, zeroes) = (&[0.0; 64][..], &[0.0; 64][..]);
    let row = Row { residual, centroid: zeroes, middle: &[1.0; 64], beyond: 0.0 };
    let factors = encode(Metric::L2, &Coding::signs(64), &row, &mut block, 31);
    assert_eq!(factors, SignFactors { add: 0.0, scale: 0.0, error: 0.0 });
}

#[test]
fn a_coding_that_is_none_is_told() {
    let coding =
        |components, bits, beyond| Coding { components, bits, beyond, usual: 0.0 }.is_sound();
    assert!(coding(64, 1, 0.0) && coding(32, 2, 7.0) && coding(48, 4, 1.0));
    assert!(!coding(0, 1, 0.0) && !coding(64, 3, 0.0) && !coding(65, 1, 0.0));
    assert!(!coding(64, 1, -1.0) && !coding(64, 1, f32::NAN) && !coding(16, 2, 0.0));
}
