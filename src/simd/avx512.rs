//! Kernels for AVX-512 (F, BW, VL); the int8 products use VNNI where there is one.

mod lowest;
mod tile;

use std::arch::x86_64::*;

use super::prefetch::Ahead;
use super::{
    check_coded, check_rows, check_signs, check_tables, scalar, sign_block_bytes, CosineParts,
    Grid, GridRow, GridSums, Kernels, Level, SignRows, SignScale, SignTerms, SIGN_BLOCK,
    SIGN_GROUP,
};

const LANES: usize = 16;

/// Sums that run side by side to hide the latency of an addition.
const SUMS: usize = 4;

/// Rows of codes that share each load of the query.
const I8_ROWS: usize = 8;

const TABLE: Kernels = Kernels {
    level: Level::Avx512,
    // SAFETY: a table of this module is only handed out by `without_vnni` and
    // `with_vnni`, which have found the instructions.
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
        unsafe { dot_i8_rows_bw(query, rows, stride, out) }
    },
    // SAFETY: as above.
    l1_i8: |query, codes, scale| unsafe { l1_i8(query, codes, scale) },
    // SAFETY: as above.
    residual_i8: |query, centroid, codes| unsafe { residual_i8(query, centroid, codes) },
    // SAFETY: as above.
    tile_product: |rows, cols, products| unsafe { tile::product(rows, cols, products) },
    // SAFETY: as above.
    tile_nearest: |products, norms, panel, best, best_panel| unsafe {
        tile::nearest(products, norms, panel, best, best_panel)
    },
    tile_nearest_coded: |rows, cols, panel, best| {
        check_coded(rows, cols, &best);
        // SAFETY: as above, and the slices have been checked.
        unsafe { tile::nearest_coded_bw(rows, cols, panel, best) }
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
    least_of_runs: |values, least| unsafe { lowest::least_of_runs(values, least) },
    // SAFETY: as above.
    count_up_to: |values, high| unsafe { lowest::count_up_to(values, high) },
    // SAFETY: as above.
    up_to: |values, high, places| unsafe { lowest::up_to(values, high, places) },
};

static WITHOUT_VNNI: Kernels = TABLE;

static WITH_VNNI: Kernels = Kernels {
    dot_i8_rows: |query, rows, stride, out| {
        check_rows(query, rows, stride, out);
        // SAFETY: `with_vnni` has found the instructions, and the slices have been checked.
        unsafe { dot_i8_rows_vnni(query, rows, stride, out) }
    },
    tile_nearest_coded: |rows, cols, panel, best| {
        check_coded(rows, cols, &best);
        // SAFETY: as above.
        unsafe { tile::nearest_coded_vnni(rows, cols, panel, best) }
    },
    ..TABLE
};

/// The table without VNNI, if the processor has the rest.
pub(super) fn without_vnni() -> Option<&'static Kernels> {
    let found = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma");
    found.then_some(&WITHOUT_VNNI)
}

/// The table with VNNI, if the processor has it.
pub(super) fn with_vnni() -> Option<&'static Kernels> {
    without_vnni()?;
    is_x86_feature_detected!("avx512vnni").then_some(&WITH_VNNI)
}

/// The mask of the first `n` of 16 lanes, all of them from 16 on.
fn first16(n: usize) -> __mmask16 {
    if n >= 16 {
        !0
    } else {
        (1 << n) - 1
    }
}

/// The mask of the first `n` of 64 lanes, all of them from 64 on.
fn first64(n: usize) -> __mmask64 {
    if n >= 64 {
        !0
    } else {
        (1 << n) - 1
    }
}

/// Calls `step(s, at, mask)` for every 16 of `n` elements from `at` on, with `s` going round the
/// sums and `mask` the lanes that exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn in_chunks(n: usize, mut step: impl FnMut(usize, usize, __mmask16)) {
    let mut at = 0;
    while at + SUMS * LANES <= n {
        for s in 0..SUMS {
            step(s, at + s * LANES, !0);
        }
        at += SUMS * LANES;
    }
    for s in 0..SUMS {
        let at = at + s * LANES;
        if at < n {
            step(s, at, first16(n - at));
        }
    }
}

/// Adds up all lanes, always in the same order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn total(sums: [__m512; SUMS]) -> f32 {
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}

macro_rules! sum_of_pairs {
    ($name:ident, |$sum:ident, $x:ident, $y:ident| $step:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn $name(a: &[f32], b: &[f32]) -> f32 {
            let n = a.len().min(b.len());
            let (a, b) = (a.as_ptr(), b.as_ptr());
            let mut sums = [_mm512_setzero_ps(); SUMS];
            in_chunks(n, |s, at, mask| {
                // SAFETY: the mask keeps the loads within the n elements of both slices.
                let ($x, $y) = unsafe {
                    (_mm512_maskz_loadu_ps(mask, a.add(at)), _mm512_maskz_loadu_ps(mask, b.add(at)))
                };
                let $sum = sums[s];
                sums[s] = $step;
            });
            total(sums)
        }
    };
}

sum_of_pairs!(l2_squared, |sum, x, y| {
    let difference = _mm512_sub_ps(x, y);
    _mm512_fmadd_ps(difference, difference, sum)
});
sum_of_pairs!(inner_product, |sum, x, y| _mm512_fmadd_ps(x, y, sum));
sum_of_pairs!(l1, |sum, x, y| _mm512_add_ps(sum, _mm512_abs_ps(_mm512_sub_ps(x, y))));

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn cosine(a: &[f32], b: &[f32]) -> CosineParts {
    let n = a.len().min(b.len());
    let (a, b) = (a.as_ptr(), b.as_ptr());
    let zeros = [_mm512_setzero_ps(); SUMS];
    let (mut dot, mut norm_a, mut norm_b) = (zeros, zeros, zeros);
    in_chunks(n, |s, at, mask| {
        // SAFETY: the mask keeps the loads within the n elements of both slices.
        let (x, y) = unsafe {
            (_mm512_maskz_loadu_ps(mask, a.add(at)), _mm512_maskz_loadu_ps(mask, b.add(at)))
        };
        dot[s] = _mm512_fmadd_ps(x, y, dot[s]);
        norm_a[s] = _mm512_fmadd_ps(x, x, norm_a[s]);
        norm_b[s] = _mm512_fmadd_ps(y, y, norm_b[s]);
    });
    CosineParts { dot: total(dot), norm_a: total(norm_a), norm_b: total(norm_b) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn residual_i8(query: &[f32], centroid: &[f32], codes: &[i8]) -> f32 {
    let n = query.len().min(centroid.len()).min(codes.len());
    let (query, centroid, codes) = (query.as_ptr(), centroid.as_ptr(), codes.as_ptr());
    let mut sums = [_mm512_setzero_ps(); SUMS];
    in_chunks(n, |s, at, mask| {
        // SAFETY: the mask keeps the loads within the n elements of all three slices.
        let (x, c, code) = unsafe {
            (
                _mm512_maskz_loadu_ps(mask, query.add(at)),
                _mm512_maskz_loadu_ps(mask, centroid.add(at)),
                _mm_maskz_loadu_epi8(mask, codes.add(at)),
            )
        };
        let code = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(code));
        sums[s] = _mm512_fmadd_ps(_mm512_sub_ps(x, c), code, sums[s]);
    });
    total(sums)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn l1_i8(query: &[f32], codes: &[i8], scale: f32) -> f32 {
    let n = query.len().min(codes.len());
    let (query, codes) = (query.as_ptr(), codes.as_ptr());
    let scale = _mm512_set1_ps(scale);
    let mut sums = [_mm512_setzero_ps(); SUMS];
    in_chunks(n, |s, at, mask| {
        // SAFETY: the mask keeps the loads within the n elements of both slices.
        let (x, code) = unsafe {
            (_mm512_maskz_loadu_ps(mask, query.add(at)), _mm_maskz_loadu_epi8(mask, codes.add(at)))
        };
        let code = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(code));
        let difference = _mm512_abs_ps(_mm512_fnmadd_ps(scale, code, x));
        // Masked, because past the end stands 0 * scale, no zero where the scale is infinite.
        sums[s] = _mm512_mask_add_ps(sums[s], mask, sums[s], difference);
    });
    total(sums)
}

/// Adds up each of four accumulators, in order.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn totals4(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m128i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64::<1>(abcd));
    _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

macro_rules! dot_i8_rows {
    ($name:ident, $block:ident, $features:literal, $chunk:literal,
     |$sum:ident, $query:ident, $row:ident| $step:expr,
     |$whole_query:ident| $correction:expr) => {
        /// The slices have passed [`check_rows`].
        #[target_feature(enable = $features)]
        unsafe fn $name(query: &[i8], rows: &[i8], stride: usize, out: &mut [i32]) {
            let correction = {
                let $whole_query = query;
                $correction
            };
            let mut rows = rows.as_ptr();
            let mut blocks = out.chunks_exact_mut(I8_ROWS);
            for block in &mut blocks {
                // SAFETY: check_rows found a row of `stride` codes for each of `out`.
                let sums = unsafe { $block::<I8_ROWS>(query, rows, stride) };
                let low = totals4(sums[0], sums[1], sums[2], sums[3]);
                let high = totals4(sums[4], sums[5], sums[6], sums[7]);
                let both =
                    _mm256_sub_epi32(_mm256_set_m128i(high, low), _mm256_set1_epi32(correction));
                // SAFETY: the block has I8_ROWS = 8 elements.
                unsafe { _mm256_storeu_si256(block.as_mut_ptr().cast(), both) };
                rows = rows.wrapping_add(I8_ROWS * stride);
            }
            for out in blocks.into_remainder() {
                // SAFETY: as above.
                let [sum] = unsafe { $block::<1>(query, rows, stride) };
                *out = _mm512_reduce_add_epi32(sum) - correction;
                rows = rows.wrapping_add(stride);
            }
        }

        /// Partial sums for `R` rows from `rows` on, all of which are readable.
        #[target_feature(enable = $features)]
        unsafe fn $block<const R: usize>(
            query: &[i8],
            rows: *const i8,
            stride: usize,
        ) -> [__m512i; R] {
            let n = query.len();
            let $query = query.as_ptr();
            let mut sums = [_mm512_setzero_si512(); R];
            let mut at = 0;
            while at < n {
                let mask = first64(n - at);
                let $query = $query.wrapping_add(at);
                // SAFETY: the mask keeps the load within the query.
                let $query = unsafe { load_i8::<$chunk>(mask, $query) };
                for (r, $sum) in sums.iter_mut().enumerate() {
                    // The processor's own prefetching loses track of that many streams.
                    _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add((r + R) * stride + at));
                    // SAFETY: the caller vouches for R rows; the mask keeps within each.
                    let $row = unsafe { load_i8::<$chunk>(mask, rows.add(r * stride + at)) };
                    *$sum = $step;
                }
                at += $chunk;
            }
            sums
        }
    };
}

/// The first `CHUNK` of up to 64 bytes at `from`, those outside the mask as zeros.
///
/// The bytes in the mask are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_i8<const CHUNK: usize>(mask: __mmask64, from: *const i8) -> __m512i {
    let mask = mask & first64(CHUNK);
    // SAFETY: masked bytes are not read, the others are the caller's.
    unsafe { _mm512_maskz_loadu_epi8(mask, from) }
}

dot_i8_rows!(
    dot_i8_rows_bw,
    block_bw,
    "avx512f,avx512bw,avx512vl,avx2",
    32,
    |sum, query, row| {
        let query = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(query));
        let row = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(row));
        _mm512_add_epi32(*sum, _mm512_madd_epi16(query, row))
    },
    |_query| 0
);

// VPDPBUSD multiplies unsigned by signed bytes. The rows are made unsigned by adding 128, which
// adds 128 times the sum of the query to every result.
dot_i8_rows!(
    dot_i8_rows_vnni,
    block_vnni,
    "avx512f,avx512bw,avx512vl,avx512vnni,avx2",
    64,
    |sum, query, row| {
        let row = _mm512_xor_si512(row, _mm512_set1_epi8(-128));
        _mm512_dpbusd_epi32(*sum, row, query)
    },
    |query| 128 * query.iter().map(|&x| i32::from(x)).sum::<i32>()
);

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn hadamard(values: &mut [f32], factors: &[f32]) {
    if values.len() < LANES {
        return scalar::hadamard_body(values, factors);
    }
    // Whole registers are stored here, which can then be loaded at once.
    values.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    let (rows, _) = values.as_chunks_mut::<LANES>();
    let (mut apart, len) = (1, rows.len());
    while apart < len {
        // As many steps at a time as the registers hold rows for.
        let group = (len / apart).min(8);
        for block in rows.chunks_exact_mut(apart * group) {
            for first in 0..apart {
                match group {
                    2 => row_steps::<2>(block, first, apart),
                    4 => row_steps::<4>(block, first, apart),
                    _ => row_steps::<8>(block, first, apart),
                }
            }
        }
        apart *= group;
    }
    for row in rows {
        hadamard_lanes(row);
    }
}

/// The steps of the transform between `N` rows so many apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn row_steps<const N: usize>(rows: &mut [[f32; LANES]], first: usize, apart: usize) {
    let mut held = [_mm512_setzero_ps(); N];
    for (nth, held) in held.iter_mut().enumerate() {
        // SAFETY: the array has LANES elements.
        *held = unsafe { _mm512_loadu_ps(rows[first + nth * apart].as_ptr()) };
    }
    let mut half = 1;
    while half < N {
        for low in (0..N).filter(|low| low & half == 0) {
            let (x, y) = (held[low], held[low + half]);
            held[low] = _mm512_add_ps(x, y);
            held[low + half] = _mm512_sub_ps(x, y);
        }
        half *= 2;
    }
    for (nth, held) in held.iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(rows[first + nth * apart].as_mut_ptr(), *held) };
    }
}

/// The transform of one row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn hadamard_lanes(row: &mut [f32; LANES]) {
    // SAFETY: the array has LANES elements.
    let x = unsafe { _mm512_loadu_ps(row.as_ptr()) };
    // Each lane's partner, and the lane itself, negated where it is the upper one.
    let x = _mm512_fmadd_ps(x, upper_negative(0xaaaa), _mm512_permute_ps::<0b1011_0001>(x));
    let x = _mm512_fmadd_ps(x, upper_negative(0xcccc), _mm512_permute_ps::<0b0100_1110>(x));
    let quarters = _mm512_shuffle_f32x4::<0b1011_0001>(x, x);
    let x = _mm512_fmadd_ps(x, upper_negative(0xf0f0), quarters);
    let halves = _mm512_shuffle_f32x4::<0b0100_1110>(x, x);
    let x = _mm512_fmadd_ps(x, upper_negative(0xff00), halves);
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(row.as_mut_ptr(), x) };
}

/// 1 in each lane, and -1 in those of the mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn upper_negative(upper: __mmask16) -> __m512 {
    _mm512_mask_mov_ps(_mm512_set1_ps(1.0), upper, _mm512_set1_ps(-1.0))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn grid(row: GridRow<'_>, grid: &Grid, digits: &mut [u8]) -> GridSums {
    scalar::grid_body(row, grid, digits)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sign_tables(query: &[f32], tables: &mut [u8]) -> SignScale {
    check_tables(query, tables);
    /// Groups whose ranges one register has.
    const GROUPS: usize = LANES / SIGN_GROUP;
    let (whole, rest) = query.as_chunks::<LANES>();
    if !rest.is_empty() {
        return scalar::sign_tables_body(query, tables);
    }
    let zero = _mm512_setzero_ps();
    let (mut widest, mut least) = (zero, zero);
    for values in whole {
        // SAFETY: the array has LANES elements.
        let values = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        widest = _mm512_max_ps(widest, sum_of_four(_mm512_abs_ps(values)));
        least = _mm512_add_ps(least, _mm512_min_ps(values, zero));
    }
    let step = _mm512_reduce_max_ps(widest) / 255.0;
    let inverse = _mm512_set1_ps(if step > 0.0 { 1.0 / step } else { 0.0 });
    for (values, tables) in whole.iter().zip(tables.as_chunks_mut::<{ 16 * GROUPS }>().0) {
        // SAFETY: the array has LANES elements.
        let loaded = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        let mut lows = [0.0f32; LANES];
        let low = sum_of_four(_mm512_min_ps(loaded, zero));
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(lows.as_mut_ptr(), low) };
        for (group, table) in tables.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let value = |component: usize| _mm512_set1_ps(values[group * SIGN_GROUP + component]);
            // Lane s has bit j where component j is in subset s.
            let first = _mm512_maskz_mov_ps(0xaaaa, value(0));
            let second = _mm512_maskz_mov_ps(0xcccc, value(1));
            let third = _mm512_maskz_mov_ps(0xf0f0, value(2));
            let fourth = _mm512_maskz_mov_ps(0xff00, value(3));
            let sum = _mm512_add_ps(_mm512_add_ps(first, second), _mm512_add_ps(third, fourth));
            let above = _mm512_sub_ps(sum, _mm512_set1_ps(lows[group * SIGN_GROUP]));
            let entries = _mm512_cvtps_epi32(_mm512_mul_ps(above, inverse));
            // SAFETY: the table has sixteen bytes.
            unsafe {
                _mm_storeu_si128(table.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(entries));
            }
        }
    }
    SignScale { step, least: _mm512_reduce_add_ps(least) }
}

/// In each lane the sum of the four lanes of its group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sum_of_four(x: __m512) -> __m512 {
    let pairs = _mm512_add_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x));
    _mm512_add_ps(pairs, _mm512_permute_ps::<0b01_00_11_10>(pairs))
}

/// Registers of tables whose entries can be added up before a 16-bit sum overflows: 256 groups of
/// at most 255, four groups a register.
const TABLES_PER_SUM: usize = 64;

/// Looks codes up in tables by byte shuffles, as in "Quicker ADC" (Andre, Kermarrec and Le
/// Scouarnec, TPAMI 2021): a register holds the tables of four groups, and the codes of 32 rows for
/// these. The slices have passed [`check_signs`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn sign_bounds(
    tables: &[u8],
    codes: &[u8],
    rows: &SignRows<'_>,
    terms: &SignTerms,
    ahead: &[u8],
    out: &mut [f32],
) {
    let registers = tables.len() / 64;
    let block_bytes = sign_block_bytes(tables.len() / 16);
    let (base, weight) = (_mm512_set1_ps(terms.base), _mm512_set1_ps(terms.weight));
    let (step, shift) = (_mm512_set1_ps(terms.step), _mm512_set1_ps(terms.shift));
    let reach = _mm512_set1_ps(terms.reach);
    let mut ahead = Ahead::new(ahead, out.len() / SIGN_BLOCK);
    for (nth, out) in out.chunks_exact_mut(SIGN_BLOCK).enumerate() {
        ahead.step();
        let codes = codes.as_ptr().wrapping_add(nth * block_bytes);
        let mut sums = [_mm512_setzero_si512(); 2];
        for first in (0..registers).step_by(TABLES_PER_SUM) {
            let count = TABLES_PER_SUM.min(registers - first);
            // SAFETY: check_signs found as many registers of tables, and of codes in each block.
            let part =
                unsafe { sign_sums(tables.as_ptr().add(first * 64), codes.add(first * 64), count) };
            sums = [_mm512_add_epi32(sums[0], part[0]), _mm512_add_epi32(sums[1], part[1])];
        }
        for (half, sum) in sums.into_iter().enumerate() {
            let at = nth * SIGN_BLOCK + half * LANES;
            // SAFETY: check_signs found a row in each column, and room, for each of `out`.
            unsafe {
                let product = _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sum), shift);
                let add = _mm512_loadu_ps(rows.add.as_ptr().add(at));
                let value =
                    _mm512_fmadd_ps(_mm512_loadu_ps(rows.scale.as_ptr().add(at)), product, add);
                let error = _mm512_loadu_ps(rows.error.as_ptr().add(at));
                let bound = _mm512_fmadd_ps(weight, _mm512_fnmadd_ps(reach, error, value), base);
                _mm512_storeu_ps(out.as_mut_ptr().add(half * LANES), bound);
            }
        }
    }
}

/// Sums of table entries for the 32 rows of a block, over `count` registers of tables and codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn sign_sums(tables: *const u8, codes: *const u8, count: usize) -> [__m512i; 2] {
    let low_half = _mm512_set1_epi8(15);
    let zero = _mm512_setzero_si512();
    // Of rows 0 to 15 and 16 to 31: whole 16-bit lanes, and their upper bytes alone.
    let (mut both, mut upper) = ([zero; 2], [zero; 2]);
    for i in 0..count {
        // SAFETY: the caller vouches for `count` registers of both.
        let (table, code) = unsafe {
            (
                _mm512_loadu_si512(tables.add(i * 64).cast()),
                _mm512_loadu_si512(codes.add(i * 64).cast()),
            )
        };
        let low = _mm512_shuffle_epi8(table, _mm512_and_si512(code, low_half));
        let code = _mm512_and_si512(_mm512_srli_epi16::<4>(code), low_half);
        let high = _mm512_shuffle_epi8(table, code);
        both = [_mm512_add_epi16(both[0], low), _mm512_add_epi16(both[1], high)];
        upper = [
            _mm512_add_epi16(upper[0], _mm512_srli_epi16::<8>(low)),
            _mm512_add_epi16(upper[1], _mm512_srli_epi16::<8>(high)),
        ];
    }
    let mut sums = [zero; 2];
    for (sum, (both, upper)) in sums.iter_mut().zip(both.into_iter().zip(upper)) {
        // The lower bytes' sums, which the upper ones were added to 256-fold.
        let lower = _mm512_sub_epi16(both, _mm512_slli_epi16::<8>(upper));
        let first = _mm512_unpacklo_epi16(lower, upper);
        let second = _mm512_unpackhi_epi16(lower, upper);
        let rows = _mm256_set_m128i(four_lanes(second), four_lanes(first));
        *sum = _mm512_cvtepu16_epi32(rows);
    }
    sums
}

/// The sum of the four 128-bit lanes of a register of 16-bit numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn four_lanes(x: __m512i) -> __m128i {
    let half = _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
    _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quantize(values: &[f32], shift: &[f32], codes: &mut [i8]) -> f32 {
    scalar::quantize_body(values, shift, codes)
}
