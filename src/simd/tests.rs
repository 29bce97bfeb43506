use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Every table this processor can run, variants within a level included.
fn tables() -> Vec<&'static Kernels> {
    let tables = Level::ALL.into_iter().filter_map(kernels_at);
    #[cfg(target_arch = "x86_64")]
    let tables = tables.chain(avx512::without_vnni());
    tables.collect()
}

fn dims() -> impl Iterator<Item = usize> {
    (0..=130).chain([255, 256, 257, 768, 1000, 1536, 2000, 16_000])
}

fn random(rng: &mut SmallRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Checks a sum of `terms`: sixteen or more of them are added up side by side, each addition and
/// the making of each term being off by no more than a few half units in the last place.
fn assert_sum(got: f32, terms: impl Iterator<Item = f64>, magnitude: f64, what: &str) {
    let (mut sum, mut n) = (0.0, 0);
    for term in terms {
        sum += term;
        n += 1;
    }
    let unit = f64::from(f32::EPSILON) / 2.0;
    // The last summand is what a product that is too small for a float loses.
    let allowed = magnitude * unit * (f64::from(n) / 16.0 + 12.0) + f64::from(n) * 1.5e-45;
    assert!((f64::from(got) - sum).abs() <= allowed, "{what}: {got} for {sum} ± {allowed}");
}

fn check_pair(k: &Kernels, a: &[f32], b: &[f32]) {
    let what = format!("{} at {} dimensions", k.level.name(), a.len());
    let pairs = || a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
    let spread: f64 = pairs().map(|(x, y)| (x - y) * (x - y)).sum();
    assert_sum(
        (k.l2_squared)(a, b),
        pairs().map(|(x, y)| (x - y) * (x - y)),
        2.0 * spread,
        &format!("l2_squared, {what}"),
    );
    let magnitude = pairs().map(|(x, y)| (x * y).abs()).sum();
    let dot = (k.inner_product)(a, b);
    assert_sum(dot, pairs().map(|(x, y)| x * y), magnitude, &format!("inner_product, {what}"));
    let distance = pairs().map(|(x, y)| (x - y).abs()).sum();
    assert_sum((k.l1)(a, b), pairs().map(|(x, y)| (x - y).abs()), distance, &format!("l1, {what}"));
    let parts = (k.cosine)(a, b);
    assert_eq!(parts.dot.to_bits(), dot.to_bits(), "{what}");
    assert_eq!(parts.norm_a.to_bits(), (k.inner_product)(a, a).to_bits(), "{what}");
    assert_eq!(parts.norm_b.to_bits(), (k.inner_product)(b, b).to_bits(), "{what}");
    assert_eq!((k.l2_squared)(a, a), 0.0, "{what}");
    assert_eq!((k.l1)(a, a), 0.0, "{what}");
}

#[test]
fn float_kernels_agree_with_double_precision() {
    let mut rng = SmallRng::seed_from_u64(1);
    for k in tables() {
        for n in dims() {
            let (a, b) = (random(&mut rng, n), random(&mut rng, n));
            check_pair(k, &a, &b);
            for scale in [0.0, 1e-22, 1e15] {
                let scaled = |v: &[f32]| v.iter().map(|x| x * scale).collect::<Vec<f32>>();
                check_pair(k, &scaled(&a), &scaled(&b));
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_alignment() {
    let mut rng = SmallRng::seed_from_u64(2);
    for k in tables() {
        for n in dims() {
            let (a, b) = (random(&mut rng, n), random(&mut rng, n));
            let codes: Vec<i8> = (0..n).map(|_| rng.random()).collect();
            let expected = [(k.l2_squared)(&a, &b), (k.inner_product)(&a, &b), (k.l1)(&a, &b)];
            let expected_codes = (k.l1_i8)(&a, &codes, 0.01);
            for shift in [1, 3, 7, 13] {
                // What surrounds the slices must not be read into the sum.
                let mut a_moved = vec![f32::NAN; shift + n + 16];
                a_moved[shift..shift + n].copy_from_slice(&a);
                let mut b_moved = vec![f32::NAN; shift / 2 + n + 16];
                b_moved[shift / 2..shift / 2 + n].copy_from_slice(&b);
                let mut codes_moved = vec![99; shift + n + 16];
                codes_moved[shift..shift + n].copy_from_slice(&codes);
                let (a, b) = (&a_moved[shift..shift + n], &b_moved[shift / 2..shift / 2 + n]);
                let moved = [(k.l2_squared)(a, b), (k.inner_product)(a, b), (k.l1)(a, b)];
                assert_eq!(expected, moved, "{} at {n} dimensions", k.level.name());
                let moved_codes = (k.l1_i8)(a, &codes_moved[shift..shift + n], 0.01);
                assert_eq!(expected_codes, moved_codes, "{} at {n} dimensions", k.level.name());
            }
        }
    }
}

#[test]
fn a_component_that_is_no_number_shows_in_the_result() {
    for k in tables() {
        for n in (1..=70).chain([257]) {
            for at in 0..n {
                let mut a = vec![1.0; n];
                let b = vec![2.0; n];
                a[at] = f32::NAN;
                assert!((k.l2_squared)(&a, &b).is_nan());
                assert!((k.inner_product)(&a, &b).is_nan());
                assert!((k.l1)(&a, &b).is_nan());
                assert!((k.cosine)(&a, &b).dot.is_nan());
                assert!((k.cosine)(&b, &a).norm_b.is_nan());
                assert!((k.l1_i8)(&a, &vec![1; n], 1.0).is_nan());
                a[at] = f32::INFINITY;
                assert_eq!((k.l2_squared)(&a, &b), f32::INFINITY);
                assert_eq!((k.inner_product)(&a, &b), f32::INFINITY);
                assert_eq!((k.l1)(&a, &b), f32::INFINITY);
            }
            let huge = vec![3e38; n];
            assert_eq!((k.inner_product)(&huge, &huge), f32::INFINITY);
            assert_eq!((k.l1_i8)(&vec![0.0; n], &vec![1; n], f32::INFINITY), f32::INFINITY);
        }
    }
}

#[test]
fn the_shorter_slice_counts() {
    let mut rng = SmallRng::seed_from_u64(3);
    for k in tables() {
        for (n, m) in [(0, 5), (3, 17), (16, 64), (63, 65), (200, 130)] {
            let (a, b) = (random(&mut rng, n), random(&mut rng, m));
            let codes = vec![3; m];
            let least = n.min(m);
            let (a_cut, b_cut) = (&a[..least], &b[..least]);
            assert_eq!((k.l2_squared)(&a, &b), (k.l2_squared)(a_cut, b_cut));
            assert_eq!((k.inner_product)(&a, &b), (k.inner_product)(a_cut, b_cut));
            assert_eq!((k.l1)(&a, &b), (k.l1)(a_cut, b_cut));
            assert_eq!((k.cosine)(&a, &b), (k.cosine)(a_cut, b_cut));
            assert_eq!((k.l1_i8)(&a, &codes, 0.5), (k.l1_i8)(a_cut, &codes[..least], 0.5));
        }
    }
}

#[test]
fn products_of_codes_are_exact() {
    let mut rng = SmallRng::seed_from_u64(4);
    for k in tables() {
        for n in dims().chain([16_384]) {
            let most_rows = if n > 2000 { 9 } else { 19 };
            for rows in [0, 1, 3, 4, 7, 8, most_rows] {
                let stride = n + rng.random_range(0..3) * 7;
                for fill in [None, Some((-128, -128)), Some((127, -128)), Some((-127, 127))] {
                    let mut draw = |fixed: Option<i8>| fixed.unwrap_or_else(|| rng.random::<i8>());
                    let query: Vec<i8> = (0..n).map(|_| draw(fill.map(|f| f.0))).collect();
                    let codes: Vec<i8> =
                        (0..rows * stride).map(|_| draw(fill.map(|f| f.1))).collect();
                    let mut out = vec![i32::MIN; rows];
                    (k.dot_i8_rows)(&query, &codes, stride, &mut out);
                    for (i, &out) in out.iter().enumerate() {
                        let row = &codes[i * stride..][..n];
                        let expected: i64 =
                            query.iter().zip(row).map(|(&x, &y)| i64::from(x) * i64::from(y)).sum();
                        assert_eq!(i64::from(out), expected, "{} at {n}", k.level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_the_longest_codes_do_not_overflow() {
    let codes = vec![-128i8; MAX_I8_DIM - 1];
    for k in tables() {
        let mut out = [0];
        (k.dot_i8_rows)(&codes, &codes, codes.len(), &mut out);
        assert_eq!(out[0], (MAX_I8_DIM as i32 - 1) * 128 * 128, "{}", k.level.name());
    }
}

#[test]
fn too_few_rows_are_refused() {
    for k in tables() {
        let refused = |rows: usize, stride: usize, out: usize| {
            std::panic::catch_unwind(|| {
                (k.dot_i8_rows)(&[1; 8], &vec![1; rows], stride, &mut vec![0; out]);
            })
            .is_err()
        };
        assert!(refused(31, 8, 4));
        assert!(refused(32, 7, 4));
        assert!(refused(32, usize::MAX, 4));
        assert!(!refused(32, 8, 4));
    }
}

#[test]
fn l1_to_codes_agrees_with_double_precision() {
    let mut rng = SmallRng::seed_from_u64(5);
    for k in tables() {
        for n in dims() {
            for scale in [0.0, 0.011, -3.0, 1e20] {
                let query = random(&mut rng, n);
                let codes: Vec<i8> = (0..n).map(|_| rng.random()).collect();
                let pairs =
                    || query.iter().zip(&codes).map(|(&x, &c)| (f64::from(x), f64::from(c)));
                let scale64 = f64::from(scale);
                assert_sum(
                    (k.l1_i8)(&query, &codes, scale),
                    pairs().map(|(x, c)| (x - scale64 * c).abs()),
                    pairs().map(|(x, c)| x.abs() + 2.0 * (scale64 * c).abs()).sum(),
                    &format!("l1_i8, {} at {n} dimensions", k.level.name()),
                );
            }
        }
    }
}

#[test]
fn products_of_residuals_and_codes_agree_with_double_precision() {
    let mut rng = SmallRng::seed_from_u64(15);
    for k in tables() {
        for n in dims() {
            let (query, centroid) = (random(&mut rng, n), random(&mut rng, n));
            let codes: Vec<i8> = (0..n + 7).map(|_| rng.random()).collect();
            let terms = || {
                let pairs = query.iter().zip(&centroid).map(|(x, c)| f64::from(*x) - f64::from(*c));
                pairs.zip(&codes).map(|(residual, code)| residual * f64::from(*code))
            };
            assert_sum(
                (k.residual_i8)(&query, &centroid, &codes),
                terms(),
                2.0 * terms().map(f64::abs).sum::<f64>(),
                &format!("residual_i8, {} at {n} dimensions", k.level.name()),
            );
        }
        let nan = (k.residual_i8)(&[f32::NAN; 70], &[0.0; 70], &[1; 70]);
        assert!(nan.is_nan(), "{}", k.level.name());
    }
}

#[test]
fn tiles_agree_with_double_precision() {
    let mut rng = SmallRng::seed_from_u64(6);
    for k in tables() {
        for depth in [0, 1, 2, 5, 33, 256] {
            let rows = random(&mut rng, depth * TILE_ROWS);
            let cols = random(&mut rng, depth * TILE_COLS);
            let mut products = [1.0; TILE_ROWS * TILE_COLS];
            (k.tile_product)(&rows, &cols, &mut products);
            for r in 0..TILE_ROWS {
                for c in 0..TILE_COLS {
                    let terms = (0..depth).map(|j| {
                        f64::from(rows[j * TILE_ROWS + r]) * f64::from(cols[j * TILE_COLS + c])
                    });
                    // One running sum an element here, so every addition counts in full.
                    assert_sum(
                        products[r * TILE_COLS + c],
                        terms.chain([1.0]),
                        (depth as f64 + 1.0) * 16.0,
                        &format!("tile_product, {} at {depth}", k.level.name()),
                    );
                }
            }
        }
    }
}

#[test]
fn the_nearest_of_two_panels_is_kept() {
    for k in tables() {
        let mut best = [f32::INFINITY; TILE_ROWS * TILE_COLS];
        let mut panels = [7; TILE_ROWS * TILE_COLS];
        let norms: [f32; TILE_COLS] = std::array::from_fn(|c| c as f32);
        let mut products = [1.0; TILE_ROWS * TILE_COLS];
        products[5] = f32::NAN;
        (k.tile_nearest)(&products, &norms, 3, &mut best, &mut panels);
        assert_eq!((best[4], panels[4]), (2.0, 3));
        assert_eq!((best[5], panels[5]), (f32::INFINITY, 7));
        products[4] = 1.5;
        products[TILE_COLS] = 0.5;
        (k.tile_nearest)(&products, &norms, 4, &mut best, &mut panels);
        assert_eq!((best[4], panels[4]), (1.0, 4));
        assert_eq!((best[TILE_COLS], panels[TILE_COLS]), (-2.0, 3));
        assert_eq!((best[6], panels[6]), (4.0, 3), "the first of equals stays");
    }
}

#[test]
fn coded_tiles_are_exact_and_keep_the_nearest() {
    let mut rng = SmallRng::seed_from_u64(16);
    for k in tables() {
        for groups in [0, 1, 2, 7, 32, 4000] {
            let extreme = groups == 4000;
            let byte = |rng: &mut SmallRng| if extreme { 127 } else { rng.random_range(0..128) };
            // The rows of the tile stand among others, and one of them is there twice.
            const COUNT: usize = 2 * TILE_ROWS;
            let dim = groups * CODE_GROUP;
            let codes: Vec<u8> = (0..COUNT * dim).map(|_| byte(&mut rng)).collect();
            let scales: [f32; COUNT] = std::array::from_fn(|r| r as f32);
            let mut tile: [u32; TILE_ROWS] = std::array::from_fn(|r| (r * 7 % COUNT) as u32);
            tile[TILE_ROWS - 1] = tile[2];
            let rows = CodedRows { codes: &codes, dim, scales: &scales, tile: &tile };
            let mut best = [[1e9; TILE_COLS]; COUNT];
            let mut panels = [[7; TILE_COLS]; COUNT];
            let (mut want, mut want_panels) = (best, panels);
            for panel in 0..3u32 {
                let sign = if panel == 1 { -1 } else { 1 };
                let code = |rng: &mut SmallRng| match extreme {
                    true => -128 * i32::from(sign == 1) + 127 * i32::from(sign == -1),
                    false => rng.random_range(-128..128),
                };
                let codes: Vec<i8> =
                    (0..groups * TILE_COLS * CODE_GROUP).map(|_| code(&mut rng) as i8).collect();
                let starts: [i32; TILE_COLS] = std::array::from_fn(|c| c as i32 - 16);
                let mut norms: [f32; TILE_COLS] = std::array::from_fn(|c| c as f32);
                norms[3] = f32::INFINITY;
                norms[4] = f32::NAN;
                let cols = CodedCols { codes: &codes, starts: &starts, norms: &norms, scale: 0.5 };
                let found = CodedBest { scores: &mut best, panels: &mut panels };
                (k.tile_nearest_coded)(rows, cols, panel, found);
                for r in tile.map(|r| r as usize) {
                    for c in 0..TILE_COLS {
                        let terms = (0..groups * CODE_GROUP).map(|j| {
                            let (group, place) = (j / CODE_GROUP, j % CODE_GROUP);
                            let x = rows.codes[r * dim + j];
                            let y = codes[(group * TILE_COLS + c) * CODE_GROUP + place];
                            i32::from(x) * i32::from(y)
                        });
                        let sum = starts[c] + terms.sum::<i32>();
                        let score = norms[c] - scales[r] * 0.5 * sum as f32;
                        if score < want[r][c] {
                            (want[r][c], want_panels[r][c]) = (score, panel);
                        }
                        let off = (best[r][c] - want[r][c]).abs();
                        assert!(off <= want[r][c].abs() * 1e-6, "{} at {groups}", k.level.name());
                    }
                }
                assert_eq!(panels, want_panels, "{} at {groups}", k.level.name());
            }
        }
    }
}

#[test]
fn hadamard_is_its_own_inverse_but_for_the_length() {
    let mut rng = SmallRng::seed_from_u64(7);
    for k in tables() {
        for n in (0..12).map(|log| 1usize << log) {
            let (values, factors) = (random(&mut rng, n), random(&mut rng, n));
            let mut got = values.clone();
            (k.hadamard)(&mut got, &factors);
            let values: Vec<f32> = values.iter().zip(&factors).map(|(x, f)| x * f).collect();
            for (row, got) in got.iter().enumerate() {
                let sign = |col: usize| {
                    if (row & col).count_ones().is_multiple_of(2) {
                        1.0
                    } else {
                        -1.0
                    }
                };
                let terms = values.iter().enumerate().map(|(col, x)| sign(col) * f64::from(*x));
                assert_sum(*got, terms, 16.0 * n as f64, &format!("{} at {n}", k.level.name()));
            }
        }
    }
}

#[test]
fn places_on_a_grid_agree_with_plain_arithmetic() {
    let mut rng = SmallRng::seed_from_u64(18);
    for k in tables() {
        for dim in [0, 16, 64, 96, 1024] {
            for bits in [1, 2, 4] {
                let mut residual = random(&mut rng, dim);
                let (centroid, middle) = (random(&mut rng, dim), random(&mut rng, dim));
                let (half, top) = ((1 << (bits - 1)) as f32, (1 << bits) - 1);
                let grid = Grid { inverse: 3.7, half, top };
                if dim > 0 {
                    // Far off the grid, and no place at all.
                    (residual[0], residual[1], residual[2]) = (900.0, -1e3, 0.0);
                }
                let mut digits = vec![99; dim];
                let row = GridRow { residual: &residual, centroid: &centroid, middle: &middle };
                let sums = (k.grid)(row, &grid, &mut digits);
                let mut expected = [0.0f64; 4];
                for i in 0..dim {
                    let place = (residual[i] * grid.inverse + half).floor();
                    let place = place.clamp(0.0, top as f32);
                    // Rounding may put one that is between two points to either.
                    assert!((place - f32::from(digits[i])).abs() <= 1.0, "{}", k.level.name());
                    let point = f64::from(digits[i]) - f64::from(top) / 2.0;
                    let [r, c, m] = [residual[i], centroid[i], middle[i]].map(f64::from);
                    let each = [r * point, point * point, r * c, point * (c - m)];
                    expected.iter_mut().zip(each).for_each(|(sum, x)| *sum += x);
                }
                let got = [sums.along, sums.lengths, sums.product, sums.shifted];
                for (got, expected) in got.into_iter().zip(expected) {
                    assert!((f64::from(got) - expected).abs() <= 0.05, "{got} {expected}");
                }
            }
        }
        let row = GridRow { residual: &[0.0; 16], centroid: &[0.0; 16], middle: &[0.0; 32] };
        let unlike = || (k.grid)(row, &GRID, &mut [0; 16]);
        assert!(std::panic::catch_unwind(unlike).is_err());
    }
}

const GRID: Grid = Grid { inverse: 1.0, half: 1.0, top: 1 };

#[test]
fn tables_have_the_sums_of_subsets() {
    let mut rng = SmallRng::seed_from_u64(8);
    for k in tables() {
        for groups in [0, 1, 3, 16, 17, 192] {
            let query = random(&mut rng, groups * SIGN_GROUP);
            let mut entries = vec![9; groups * 16];
            let SignScale { step, least } = (k.sign_tables)(&query, &mut entries);
            let lows: Vec<f32> =
                query.chunks(SIGN_GROUP).map(|g| g.iter().map(|x| x.min(0.0)).sum()).collect();
            assert!((lows.iter().sum::<f32>() - least).abs() <= 1e-4);
            for (at, entry) in entries.iter().enumerate() {
                let (group, subset) = (at / 16, at % 16);
                let sum: f32 = (0..SIGN_GROUP)
                    .filter(|j| subset >> j & 1 == 1)
                    .map(|j| query[group * SIGN_GROUP + j])
                    .sum();
                let got = f32::from(*entry) * step + lows[group];
                assert!((got - sum).abs() <= step * 0.51, "{}: {got} for {sum}", k.level.name());
            }
        }
        let mut entries = vec![9; 16];
        (k.sign_tables)(&[0.0; 4], &mut entries);
        assert_eq!(entries, [0; 16]);
    }
}

#[test]
fn bounds_of_signs_agree_with_plain_sums() {
    let mut rng = SmallRng::seed_from_u64(9);
    for k in tables() {
        for groups in [16, 32, 48, 256, 272, 1040] {
            for blocks in [0, 1, 3] {
                for most in [1, 255] {
                    let rows = blocks * SIGN_BLOCK;
                    let entries: Vec<u8> = (0..groups * 16)
                        .map(|_| if most == 1 { 255 } else { rng.random_range(0..=most) })
                        .collect();
                    let codes: Vec<u8> =
                        (0..blocks * sign_block_bytes(groups)).map(|_| rng.random()).collect();
                    let columns: Vec<Vec<f32>> = (0..3).map(|_| random(&mut rng, rows)).collect();
                    let of_rows =
                        SignRows { add: &columns[0], scale: &columns[1], error: &columns[2] };
                    let terms =
                        SignTerms { base: 3.0, weight: 0.5, step: 0.01, shift: -2.0, reach: 4.0 };
                    let mut out = vec![f32::NAN; rows];
                    (k.sign_bounds)(&entries, &codes, &of_rows, &terms, &codes, &mut out);
                    for (row, out) in out.iter().enumerate() {
                        let (block, place) = (row / SIGN_BLOCK, row % SIGN_BLOCK);
                        let sum: u32 = (0..groups)
                            .map(|group| {
                                let at = block * sign_block_bytes(groups) + group * 16 + place % 16;
                                let code = (codes[at] >> (place / 16 * 4)) & 15;
                                u32::from(entries[group * 16 + usize::from(code)])
                            })
                            .sum();
                        let product = 0.01 * f64::from(sum) - 2.0;
                        let value = f64::from(columns[0][row])
                            + f64::from(columns[1][row]) * product
                            - 4.0 * f64::from(columns[2][row]);
                        let expected = 3.0 + 0.5 * value;
                        let off = (f64::from(*out) - expected).abs();
                        assert!(off <= 1e-5 * (1.0 + product.abs()), "{}", k.level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn signs_that_do_not_fit_are_refused() {
    for k in tables() {
        let refused = |entries: usize, codes: usize, rows: usize, out: usize| {
            std::panic::catch_unwind(|| {
                let column = vec![0.0; rows];
                let rows = SignRows { add: &column, scale: &column, error: &column };
                let terms = SignTerms::default();
                (k.sign_bounds)(
                    &vec![0; entries],
                    &vec![0; codes],
                    &rows,
                    &terms,
                    &[],
                    &mut vec![0.0; out],
                );
            })
            .is_err()
        };
        assert!(!refused(256, 256, 32, 32));
        assert!(refused(256, 255, 32, 32));
        assert!(refused(256, 256, 31, 32));
        assert!(refused(256, 256, 32, 31));
        assert!(refused(240, 256, 32, 32));
    }
}

#[test]
fn codes_are_the_nearest_multiples_of_the_step() {
    let mut rng = SmallRng::seed_from_u64(11);
    for k in tables() {
        for n in dims() {
            let (values, shift) = (random(&mut rng, n), random(&mut rng, n));
            let mut codes = vec![99; n];
            let step = (k.quantize)(&values, &shift, &mut codes);
            let differences = || values.iter().zip(&shift).map(|(x, s)| x - s);
            let most = differences().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!((most - 127.0 * step).abs() <= 1e-5, "{} at {n}", k.level.name());
            for (x, code) in differences().zip(&codes) {
                assert!((x - step * f32::from(*code)).abs() <= step * 0.501);
            }
            assert_eq!((k.quantize)(&values, &values, &mut codes), 0.0);
            assert!(codes.iter().all(|code| *code == 0));
        }
    }
}

#[test]
fn the_least_of_each_run_is_found() {
    let mut rng = SmallRng::seed_from_u64(10);
    for k in tables() {
        for n in [0, 1, 15, 16, 17, 100, 1000] {
            let mut values = random(&mut rng, n);
            if n > 40 {
                values[20] = f32::NAN;
                values[39] = f32::NEG_INFINITY;
            }
            let mut least = vec![9.0; n.div_ceil(LEAST_OF)];
            (k.least_of_runs)(&values, &mut least);
            for (run, least) in values.chunks(LEAST_OF).zip(least) {
                assert_eq!(run.iter().copied().fold(f32::INFINITY, f32::min), least);
            }
        }
    }
}

#[test]
fn values_up_to_a_bound_are_found() {
    let mut rng = SmallRng::seed_from_u64(11);
    for k in tables() {
        for n in [0, 1, 63, 64, 65, 1000, 5000] {
            let mut values = random(&mut rng, n);
            if n > 40 {
                values[20] = f32::NAN;
                values[39] = f32::NEG_INFINITY;
                values[40] = f32::INFINITY;
            }
            for high in [f32::NEG_INFINITY, -0.5, 0.0, 10.0, f32::INFINITY, f32::NAN] {
                let mut places = vec![7];
                (k.up_to)(&values, high, &mut places);
                let expected = (0..n as u32).filter(|place| values[*place as usize] <= high);
                assert_eq!((k.count_up_to)(&values, high), expected.clone().count());
                assert_eq!(places, [7].into_iter().chain(expected).collect::<Vec<u32>>());
            }
        }
    }
}

#[test]
fn a_level_can_be_forced_where_the_processor_has_it() {
    for level in Level::ALL {
        assert_eq!(Level::from_name(level.name()), Some(level));
        let chosen = choose(Some(level.name())).level;
        let best = choose(None).level;
        assert_eq!(chosen, if kernels_at(level).is_some() { level } else { best });
        assert!(best >= chosen);
    }
    assert_eq!(choose(Some("mmx")).level, choose(None).level);
    assert!(kernels_at(Level::Scalar).is_some());
}
