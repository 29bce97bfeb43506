//! Kernels for AVX2 with FMA.

use std::arch::x86_64::*;

use super::prefetch::Ahead;
use super::{
    check_coded, check_rows, check_signs, scalar, sign_block_bytes, CodedBest, CodedCols,
    CodedRows, CosineParts, Grid, GridRow, GridSums, Kernels, Level, SignRows, SignScale,
    SignTerms, Tile, TilePanels, CODE_GROUP, SIGN_BLOCK, TILE_COLS, TILE_ROWS,
};

const LANES: usize = 8;

/// Sums that run side by side to hide the latency of an addition.
const SUMS: usize = 4;

/// Codes that one step widens and multiplies.
const I8_CHUNK: usize = 16;

const CACHE_LINE: usize = 64;

/// Rows of codes that share each load of the query.
const I8_ROWS: usize = 4;

static KERNELS: Kernels = Kernels {
    level: Level::Avx2,
    // SAFETY: the table is only handed out by `available`, which has found the
    // instructions.
    l2_squared: |a, b| unsafe { l2_squared(a, b) },
    // SAFETY: as above.
    inner_product: |a, b| unsafe { inner_product(a, b) },
    // SAFETY: as above.
    l1: |a, b| unsafe { l1(a, b) },
    // SAFETY: as above.
    cosine: |a, b| unsafe { cosine(a, b) },
    dot_i8_rows: |query, rows, stride, out| {
        check_rows(query, rows, stride, out);
        // SAFETY: as above, and the slices have been checked.
        unsafe { dot_i8_rows(query, rows, stride, out) }
    },
    // SAFETY: as above.
    l1_i8: |query, codes, scale| unsafe { l1_i8(query, codes, scale) },
    // SAFETY: as above.
    residual_i8: |query, centroid, codes| unsafe { residual_i8(query, centroid, codes) },
    // SAFETY: as above.
    tile_product: |rows, cols, products| unsafe { tile_product(rows, cols, products) },
    // SAFETY: as above.
    tile_nearest: |products, norms, panel, best, best_panel| unsafe {
        tile_nearest(products, norms, panel, best, best_panel)
    },
    tile_nearest_coded: |rows, cols, panel, best| {
        check_coded(rows, cols, &best);
        // SAFETY: as above, and the slices have been checked.
        unsafe { tile_nearest_coded(rows, cols, panel, best) }
    },
    // SAFETY: as above.
    hadamard: |values, factors| unsafe { hadamard(values, factors) },
    // SAFETY: as above.
    sign_tables: |query, tables| unsafe { sign_tables(query, tables) },
    sign_bounds: |tables, codes, rows, terms, ahead, out| {
        check_signs(tables, codes, rows, out);
        // SAFETY: as above, and the slices have been checked.
        unsafe { sign_bounds(tables, codes, rows, terms, ahead, out) }
    },
    // SAFETY: as above.
    grid: |row, terms, digits| unsafe { grid(row, terms, digits) },
    // SAFETY: as above.
    quantize: |values, shift, codes| unsafe { quantize(values, shift, codes) },
    // SAFETY: as above.
    least_of_runs: |values, least| unsafe { least_of_runs(values, least) },
    // SAFETY: as above.
    count_up_to: |values, high| unsafe { count_up_to(values, high) },
    // SAFETY: as above.
    up_to: |values, high, places| unsafe { up_to(values, high, places) },
};

/// The table, if the processor has the instructions.
pub(super) fn available() -> Option<&'static Kernels> {
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(&KERNELS)
}

/// The mask of the first `n` of 8 lanes, all of them from 8 on.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first8(n: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(LANES) as i32), lanes)
}

/// Calls `step(s, at, n)` for every 8 of `n` elements from `at` on, with `s` going round the sums
/// and the third argument the number of elements that are left.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn in_chunks(n: usize, mut step: impl FnMut(usize, usize, usize)) {
    let mut at = 0;
    while at + SUMS * LANES <= n {
        for s in 0..SUMS {
            step(s, at + s * LANES, LANES);
        }
        at += SUMS * LANES;
    }
    for s in 0..SUMS {
        let at = at + s * LANES;
        if at < n {
            step(s, at, n - at);
        }
    }
}

/// The first `n`, at most 8, elements at `from`, then zeros. They are readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load(from: *const f32, n: usize) -> __m256 {
    if n >= LANES {
        // SAFETY: the caller vouches for eight elements.
        unsafe { _mm256_loadu_ps(from) }
    } else {
        // SAFETY: the mask keeps to the caller's n elements.
        unsafe { _mm256_maskload_ps(from, first8(n)) }
    }
}

/// Adds up all lanes, always in the same order.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn total(sums: [__m256; SUMS]) -> f32 {
    let [a, b, c, d] = sums;
    let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn absolute(x: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
}

macro_rules! sum_of_pairs {
    ($name:ident, |$sum:ident, $x:ident, $y:ident| $step:expr) => {
        #[target_feature(enable = "avx2,fma")]
        fn $name(a: &[f32], b: &[f32]) -> f32 {
            let n = a.len().min(b.len());
            let (a, b) = (a.as_ptr(), b.as_ptr());
            let mut sums = [_mm256_setzero_ps(); SUMS];
            in_chunks(n, |s, at, left| {
                // SAFETY: `left` elements from `at` on are within both slices.
                let ($x, $y) = unsafe { (load(a.add(at), left), load(b.add(at), left)) };
                let $sum = sums[s];
                sums[s] = $step;
            });
            total(sums)
        }
    };
}

sum_of_pairs!(l2_squared, |sum, x, y| {
    let difference = _mm256_sub_ps(x, y);
    _mm256_fmadd_ps(difference, difference, sum)
});
sum_of_pairs!(inner_product, |sum, x, y| _mm256_fmadd_ps(x, y, sum));
sum_of_pairs!(l1, |sum, x, y| _mm256_add_ps(sum, absolute(_mm256_sub_ps(x, y))));

#[target_feature(enable = "avx2,fma")]
fn cosine(a: &[f32], b: &[f32]) -> CosineParts {
    let n = a.len().min(b.len());
    let (a, b) = (a.as_ptr(), b.as_ptr());
    let zeros = [_mm256_setzero_ps(); SUMS];
    let (mut dot, mut norm_a, mut norm_b) = (zeros, zeros, zeros);
    in_chunks(n, |s, at, left| {
        // SAFETY: `left` elements from `at` on are within both slices.
        let (x, y) = unsafe { (load(a.add(at), left), load(b.add(at), left)) };
        dot[s] = _mm256_fmadd_ps(x, y, dot[s]);
        norm_a[s] = _mm256_fmadd_ps(x, x, norm_a[s]);
        norm_b[s] = _mm256_fmadd_ps(y, y, norm_b[s]);
    });
    CosineParts { dot: total(dot), norm_a: total(norm_a), norm_b: total(norm_b) }
}

#[target_feature(enable = "avx2,fma")]
fn residual_i8(query: &[f32], centroid: &[f32], codes: &[i8]) -> f32 {
    let n = query.len().min(centroid.len()).min(codes.len());
    let (query, query_rest) = query[..n].as_chunks::<LANES>();
    let (centroid, centroid_rest) = centroid[..n].as_chunks::<LANES>();
    let (codes, codes_rest) = codes[..n].as_chunks::<LANES>();
    let mut sums = [_mm256_setzero_ps(); SUMS];
    for (i, ((x, c), codes)) in query.iter().zip(centroid).zip(codes).enumerate() {
        // SAFETY: all three chunks have eight elements.
        let (x, c, codes) = unsafe {
            (
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(c.as_ptr()),
                _mm_loadl_epi64(codes.as_ptr().cast()),
            )
        };
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
        let sum = &mut sums[i % SUMS];
        *sum = _mm256_fmadd_ps(_mm256_sub_ps(x, c), codes, *sum);
    }
    total(sums) + scalar::residual_i8_body(query_rest, centroid_rest, codes_rest)
}

#[target_feature(enable = "avx2,fma")]
fn l1_i8(query: &[f32], codes: &[i8], scale: f32) -> f32 {
    let n = query.len().min(codes.len());
    let (query, codes) = (&query[..n], &codes[..n]);
    let scales = _mm256_set1_ps(scale);
    let mut sums = [_mm256_setzero_ps(); SUMS];
    let (query_chunks, query_rest) = query.as_chunks::<LANES>();
    let (code_chunks, code_rest) = codes.as_chunks::<LANES>();
    for (i, (x, codes)) in query_chunks.iter().zip(code_chunks).enumerate() {
        // SAFETY: both chunks have eight elements.
        let (x, codes) =
            unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm_loadl_epi64(codes.as_ptr().cast())) };
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
        let sum = &mut sums[i % SUMS];
        *sum = _mm256_add_ps(*sum, absolute(_mm256_fnmadd_ps(scales, codes, x)));
    }
    let rest: f32 = query_rest
        .iter()
        .zip(code_rest)
        .map(|(&x, &code)| (-scale).mul_add(f32::from(code), x).abs())
        .sum();
    total(sums) + rest
}

/// Sixteen codes at `from`, which are readable, as 16-bit integers.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn widen(from: *const i8) -> __m256i {
    // SAFETY: the caller vouches for sixteen bytes.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(from.cast()) })
}

/// The inner products of the query and `R` rows from `rows` on, all of which are readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_i8_block<const R: usize>(
    query: &[i8],
    rows: *const i8,
    stride: usize,
    out: &mut [i32],
) {
    let whole = query.len() - query.len() % I8_CHUNK;
    let mut sums = [_mm256_setzero_si256(); R];
    for at in (0..whole).step_by(I8_CHUNK) {
        // SAFETY: a whole chunk of the query, and of each of the caller's rows, starts at `at`.
        let x = unsafe { widen(query.as_ptr().add(at)) };
        for (r, sum) in sums.iter_mut().enumerate() {
            if at % CACHE_LINE == 0 {
                // The processor's own prefetching loses track of that many streams.
                _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add((r + R) * stride + at));
            }
            // SAFETY: as above.
            let y = unsafe { widen(rows.add(r * stride + at)) };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, y));
        }
    }
    for (r, (sum, out)) in sums.iter().zip(out).enumerate() {
        let half = _mm_add_epi32(_mm256_castsi256_si128(*sum), _mm256_extracti128_si256::<1>(*sum));
        let half = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
        let half = _mm_add_epi32(half, _mm_shuffle_epi32::<0b10_11_00_01>(half));
        *out = _mm_cvtsi128_si32(half);
        for (at, &x) in query.iter().enumerate().skip(whole) {
            // SAFETY: `at` is below the length of the query, which each row has.
            *out += i32::from(x) * i32::from(unsafe { *rows.add(r * stride + at) });
        }
    }
}

/// The slices have passed [`check_rows`].
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_i8_rows(query: &[i8], rows: &[i8], stride: usize, out: &mut [i32]) {
    let mut rows = rows.as_ptr();
    let mut blocks = out.chunks_exact_mut(I8_ROWS);
    for block in &mut blocks {
        // SAFETY: check_rows found a row of `stride` codes for each of `out`.
        unsafe { dot_i8_block::<I8_ROWS>(query, rows, stride, block) };
        rows = rows.wrapping_add(I8_ROWS * stride);
    }
    for out in blocks.into_remainder().chunks_mut(1) {
        // SAFETY: as above.
        unsafe { dot_i8_block::<1>(query, rows, stride, out) };
        rows = rows.wrapping_add(stride);
    }
}

#[target_feature(enable = "avx2,fma")]
fn tile_product(rows: &[f32], cols: &[f32], products: &mut Tile) {
    // Six rows of sixteen columns take twelve of the sixteen registers.
    const ROWS: usize = 6;
    const COLS: usize = 2 * LANES;
    let depth = (rows.len() / TILE_ROWS).min(cols.len() / TILE_COLS);
    for first_row in (0..TILE_ROWS).step_by(ROWS) {
        for first_col in (0..TILE_COLS).step_by(COLS) {
            let (rows, cols) = (rows.as_ptr(), cols.as_ptr());
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            for j in 0..depth {
                // SAFETY: j is below the number of whole steps in both slices, and the columns
                // from first_col on are within a step.
                let (low, high) = unsafe {
                    let col = cols.add(j * TILE_COLS + first_col);
                    (_mm256_loadu_ps(col), _mm256_loadu_ps(col.add(LANES)))
                };
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above, for the rows.
                    let x = _mm256_set1_ps(unsafe { *rows.add(j * TILE_ROWS + first_row + r) });
                    sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let at = (first_row + r) * TILE_COLS + first_col;
                for (products, sum) in products[at..at + COLS].chunks_exact_mut(LANES).zip(sums) {
                    // SAFETY: the chunk has LANES elements.
                    unsafe {
                        let before = _mm256_loadu_ps(products.as_ptr());
                        _mm256_storeu_ps(products.as_mut_ptr(), _mm256_add_ps(before, *sum));
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn tile_nearest(
    products: &Tile,
    norms: &[f32; TILE_COLS],
    panel: u32,
    best: &mut Tile,
    best_panel: &mut TilePanels,
) {
    scalar::tile_nearest_body(products, norms, panel, best, best_panel);
}

/// # Safety
/// The processor has the instructions, and `check_coded` has passed the rows and columns.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_nearest_coded(
    rows: CodedRows<'_>,
    cols: CodedCols<'_>,
    panel: u32,
    mut best: CodedBest<'_>,
) {
    // Three rows of thirty-two columns take twelve of the sixteen registers.
    const ROWS: usize = 3;
    const WIDTH: usize = TILE_COLS / LANES;
    let depth = rows.dim / CODE_GROUP;
    let col = cols.codes.as_ptr();
    let ones = _mm256_set1_epi16(1);
    for tile in rows.tile.as_chunks::<ROWS>().0 {
        // SAFETY: there are codes of all rows of the tile.
        let row = tile.map(|row| unsafe { rows.codes.as_ptr().add(row as usize * rows.dim) });
        let mut held = [[_mm256_setzero_si256(); WIDTH]; ROWS];
        for j in 0..depth {
            for (row, held) in row.iter().zip(&mut held) {
                // SAFETY: both sides have `depth` steps.
                let x = unsafe { row.add(j * CODE_GROUP).cast::<i32>().read_unaligned() };
                let x = _mm256_set1_epi32(x);
                for (c, held) in held.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let y = unsafe {
                        let at = (j * TILE_COLS + c * LANES) * CODE_GROUP;
                        _mm256_loadu_si256(col.add(at).cast())
                    };
                    // Codes of rows are below 128, so that two products fit into sixteen bits.
                    let pairs = _mm256_maddubs_epi16(x, y);
                    *held = _mm256_add_epi32(*held, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (row, held) in tile.iter().zip(&held) {
            let mut sums = [0i32; TILE_COLS];
            for (sums, held) in sums.chunks_exact_mut(LANES).zip(held) {
                // SAFETY: the chunk has LANES elements.
                unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *held) };
            }
            scalar::coded_nearest_body(*row, &sums, rows, cols, panel, &mut best);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn hadamard(values: &mut [f32], factors: &[f32]) {
    scalar::hadamard_body(values, factors);
}

#[target_feature(enable = "avx2,fma")]
fn grid(row: GridRow<'_>, grid: &Grid, digits: &mut [u8]) -> GridSums {
    scalar::grid_body(row, grid, digits)
}

#[target_feature(enable = "avx2,fma")]
fn sign_tables(query: &[f32], tables: &mut [u8]) -> SignScale {
    scalar::sign_tables_body(query, tables)
}

#[target_feature(enable = "avx2,fma")]
fn quantize(values: &[f32], shift: &[f32], codes: &mut [i8]) -> f32 {
    scalar::quantize_body(values, shift, codes)
}

#[target_feature(enable = "avx2,fma")]
fn count_up_to(values: &[f32], high: f32) -> usize {
    scalar::count_up_to_body(values, high)
}

#[target_feature(enable = "avx2,fma")]
fn up_to(values: &[f32], high: f32, places: &mut Vec<u32>) {
    scalar::up_to_body(values, high, 0, places);
}

#[target_feature(enable = "avx2,fma")]
fn least_of_runs(values: &[f32], least: &mut [f32]) {
    scalar::least_of_runs_body(values, least);
}

/// Registers of tables whose entries can be added up before a 16-bit sum overflows: 256 groups of
/// at most 255, two groups a register.
const TABLES_PER_SUM: usize = 128;

/// Looks codes up in tables by byte shuffles; a register holds the tables of two groups, and the
/// codes of 32 rows for these. The slices have passed [`check_signs`].
#[target_feature(enable = "avx2,fma")]
unsafe fn sign_bounds(
    tables: &[u8],
    codes: &[u8],
    rows: &SignRows<'_>,
    terms: &SignTerms,
    ahead: &[u8],
    out: &mut [f32],
) {
    let registers = tables.len() / 32;
    let block_bytes = sign_block_bytes(tables.len() / 16);
    let (base, weight) = (_mm256_set1_ps(terms.base), _mm256_set1_ps(terms.weight));
    let (step, shift) = (_mm256_set1_ps(terms.step), _mm256_set1_ps(terms.shift));
    let reach = _mm256_set1_ps(terms.reach);
    let mut ahead = Ahead::new(ahead, out.len() / SIGN_BLOCK);
    for (nth, out) in out.chunks_exact_mut(SIGN_BLOCK).enumerate() {
        ahead.step();
        let codes = codes.as_ptr().wrapping_add(nth * block_bytes);
        let mut sums = [_mm256_setzero_si256(); 4];
        for first in (0..registers).step_by(TABLES_PER_SUM) {
            let count = TABLES_PER_SUM.min(registers - first);
            // SAFETY: check_signs found as many registers of tables, and of codes in each block.
            let part =
                unsafe { sign_sums(tables.as_ptr().add(first * 32), codes.add(first * 32), count) };
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum = _mm256_add_epi32(*sum, part);
            }
        }
        for (part, sum) in sums.into_iter().enumerate() {
            let at = nth * SIGN_BLOCK + part * LANES;
            // SAFETY: check_signs found a row in each column, and room, for each of `out`.
            unsafe {
                let product = _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(sum), shift);
                let add = _mm256_loadu_ps(rows.add.as_ptr().add(at));
                let value =
                    _mm256_fmadd_ps(_mm256_loadu_ps(rows.scale.as_ptr().add(at)), product, add);
                let error = _mm256_loadu_ps(rows.error.as_ptr().add(at));
                let bound = _mm256_fmadd_ps(weight, _mm256_fnmadd_ps(reach, error, value), base);
                _mm256_storeu_ps(out.as_mut_ptr().add(part * LANES), bound);
            }
        }
    }
}

/// Sums of table entries for the 32 rows of a block, over `count` registers of tables and codes.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn sign_sums(tables: *const u8, codes: *const u8, count: usize) -> [__m256i; 4] {
    let low_half = _mm256_set1_epi8(15);
    let zero = _mm256_setzero_si256();
    // Of rows 0 to 15 and 16 to 31: whole 16-bit lanes, and their upper bytes alone.
    let (mut both, mut upper) = ([zero; 2], [zero; 2]);
    for i in 0..count {
        // SAFETY: the caller vouches for `count` registers of both.
        let (table, code) = unsafe {
            (
                _mm256_loadu_si256(tables.add(i * 32).cast()),
                _mm256_loadu_si256(codes.add(i * 32).cast()),
            )
        };
        let low = _mm256_shuffle_epi8(table, _mm256_and_si256(code, low_half));
        let code = _mm256_and_si256(_mm256_srli_epi16::<4>(code), low_half);
        let high = _mm256_shuffle_epi8(table, code);
        both = [_mm256_add_epi16(both[0], low), _mm256_add_epi16(both[1], high)];
        upper = [
            _mm256_add_epi16(upper[0], _mm256_srli_epi16::<8>(low)),
            _mm256_add_epi16(upper[1], _mm256_srli_epi16::<8>(high)),
        ];
    }
    let mut sums = [zero; 4];
    for (half, (both, upper)) in both.into_iter().zip(upper).enumerate() {
        // The lower bytes' sums, which the upper ones were added to 256-fold.
        let lower = _mm256_sub_epi16(both, _mm256_slli_epi16::<8>(upper));
        let first = two_lanes(_mm256_unpacklo_epi16(lower, upper));
        let second = two_lanes(_mm256_unpackhi_epi16(lower, upper));
        sums[2 * half] = _mm256_cvtepu16_epi32(first);
        sums[2 * half + 1] = _mm256_cvtepu16_epi32(second);
    }
    sums
}

/// The sum of the two 128-bit lanes of a register of 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn two_lanes(x: __m256i) -> __m128i {
    _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}
