//! Kernels for NEON, which every 64-bit ARM processor has.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::prefetch::Ahead;
use super::{
    check_rows, check_signs, scalar, sign_block_bytes, CosineParts, Kernels, Level, SignRows,
    SignTerms, Tile, TilePanels, SIGN_BLOCK, TILE_COLS, TILE_ROWS,
};

const LANES: usize = 4;

/// Sums that run side by side to hide the latency of an addition.
const SUMS: usize = 4;

/// Codes that one step multiplies.
const I8_CHUNK: usize = 16;

/// Rows of codes that share each load of the query.
const I8_ROWS: usize = 4;

static KERNELS: Kernels = Kernels {
    level: Level::Neon,
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
    residual_i8: scalar::residual_i8_body,
    // SAFETY: as above.
    tile_product: |rows, cols, products| unsafe { tile_product(rows, cols, products) },
    // SAFETY: as above.
    tile_nearest: |products, norms, panel, best, best_panel| unsafe {
        tile_nearest(products, norms, panel, best, best_panel)
    },
    tile_nearest_coded: scalar::tile_nearest_coded,
    // NEON is part of the target's baseline, so the plain code is vectorised already.
    hadamard: |values, factors| scalar::hadamard_body(values, factors),
    grid: scalar::grid_body,
    sign_tables: |query, tables| scalar::sign_tables_body(query, tables),
    sign_bounds: |tables, codes, rows, terms, ahead, out| {
        check_signs(tables, codes, rows, out);
        // SAFETY: as above, and the slices have been checked.
        unsafe { sign_bounds(tables, codes, rows, terms, ahead, out) }
    },
    quantize: |values, shift, codes| scalar::quantize_body(values, shift, codes),
    least_of_runs: |values, least| scalar::least_of_runs_body(values, least),
    count_up_to: scalar::count_up_to_body,
    up_to: |values, high, places| scalar::up_to_body(values, high, 0, places),
};

/// The table, if the processor has the instructions.
pub(super) fn available() -> Option<&'static Kernels> {
    is_aarch64_feature_detected!("neon").then_some(&KERNELS)
}

/// The first `n`, at most 4, elements of a slice, then zeros.
#[inline]
#[target_feature(enable = "neon")]
fn load(from: &[f32]) -> float32x4_t {
    let mut lanes = [0.0; LANES];
    let n = from.len().min(LANES);
    lanes[..n].copy_from_slice(&from[..n]);
    // SAFETY: the array has four elements.
    unsafe { vld1q_f32(lanes.as_ptr()) }
}

/// Calls `step(s, x, y)` for every 4 pairs of elements, with `s` going round the sums; the last
/// call may have zeros after the end.
#[inline]
#[target_feature(enable = "neon")]
fn in_chunks(a: &[f32], b: &[f32], mut step: impl FnMut(usize, float32x4_t, float32x4_t)) {
    const BLOCK: usize = SUMS * LANES;
    let n = a.len().min(b.len());
    let (a_blocks, a_rest) = a[..n].as_chunks::<BLOCK>();
    let (b_blocks, b_rest) = b[..n].as_chunks::<BLOCK>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for s in 0..SUMS {
            step(s, load(&a[s * LANES..]), load(&b[s * LANES..]));
        }
    }
    for (s, (a, b)) in a_rest.chunks(LANES).zip(b_rest.chunks(LANES)).enumerate() {
        step(s, load(a), load(b));
    }
}

/// Adds up all lanes, always in the same order.
#[inline]
#[target_feature(enable = "neon")]
fn total(sums: [float32x4_t; SUMS]) -> f32 {
    let [a, b, c, d] = sums;
    vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
}

macro_rules! sum_of_pairs {
    ($name:ident, |$sum:ident, $x:ident, $y:ident| $step:expr) => {
        #[target_feature(enable = "neon")]
        fn $name(a: &[f32], b: &[f32]) -> f32 {
            let mut sums = [vdupq_n_f32(0.0); SUMS];
            in_chunks(a, b, |s, $x, $y| {
                let $sum = sums[s];
                sums[s] = $step;
            });
            total(sums)
        }
    };
}

sum_of_pairs!(l2_squared, |sum, x, y| {
    let difference = vsubq_f32(x, y);
    vfmaq_f32(sum, difference, difference)
});
sum_of_pairs!(inner_product, |sum, x, y| vfmaq_f32(sum, x, y));
sum_of_pairs!(l1, |sum, x, y| vaddq_f32(sum, vabdq_f32(x, y)));

#[target_feature(enable = "neon")]
fn cosine(a: &[f32], b: &[f32]) -> CosineParts {
    let zeros = [vdupq_n_f32(0.0); SUMS];
    let (mut dot, mut norm_a, mut norm_b) = (zeros, zeros, zeros);
    in_chunks(a, b, |s, x, y| {
        dot[s] = vfmaq_f32(dot[s], x, y);
        norm_a[s] = vfmaq_f32(norm_a[s], x, x);
        norm_b[s] = vfmaq_f32(norm_b[s], y, y);
    });
    CosineParts { dot: total(dot), norm_a: total(norm_a), norm_b: total(norm_b) }
}

#[target_feature(enable = "neon")]
fn l1_i8(query: &[f32], codes: &[i8], scale: f32) -> f32 {
    const CHUNK: usize = 2 * LANES;
    let n = query.len().min(codes.len());
    let (query, query_rest) = query[..n].as_chunks::<CHUNK>();
    let (codes, code_rest) = codes[..n].as_chunks::<CHUNK>();
    let mut sums = [vdupq_n_f32(0.0); SUMS];
    for (i, (x, codes)) in query.iter().zip(codes).enumerate() {
        // SAFETY: both chunks have eight elements.
        let (low, high, codes) = unsafe {
            (vld1q_f32(x.as_ptr()), vld1q_f32(x[LANES..].as_ptr()), vld1_s8(codes.as_ptr()))
        };
        let codes = vmovl_s8(codes);
        let code_low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes)));
        let code_high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(codes)));
        let s = i % 2 * 2;
        sums[s] = vaddq_f32(sums[s], vabsq_f32(vfmsq_n_f32(low, code_low, scale)));
        sums[s + 1] = vaddq_f32(sums[s + 1], vabsq_f32(vfmsq_n_f32(high, code_high, scale)));
    }
    let rest: f32 = query_rest
        .iter()
        .zip(code_rest)
        .map(|(&x, &code)| (-scale).mul_add(f32::from(code), x).abs())
        .sum();
    total(sums) + rest
}

/// The inner products of the query and `R` rows from `rows` on, all of which are readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn dot_i8_block<const R: usize>(
    query: &[i8],
    rows: *const i8,
    stride: usize,
    out: &mut [i32],
) {
    let whole = query.len() - query.len() % I8_CHUNK;
    let mut sums = [vdupq_n_s32(0); R];
    for at in (0..whole).step_by(I8_CHUNK) {
        // SAFETY: a whole chunk of the query, and of each of the caller's rows, starts at `at`.
        let x = unsafe { vld1q_s8(query.as_ptr().add(at)) };
        for (r, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let y = unsafe { vld1q_s8(rows.add(r * stride + at)) };
            // A product fits in 16 bits even for -128 twice; the sum of two would not.
            *sum = vpadalq_s16(*sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
            *sum = vpadalq_s16(*sum, vmull_high_s8(x, y));
        }
    }
    for (r, (sum, out)) in sums.iter().zip(out).enumerate() {
        *out = vaddvq_s32(*sum);
        for (at, &x) in query.iter().enumerate().skip(whole) {
            // SAFETY: `at` is below the length of the query, which each row has.
            *out += i32::from(x) * i32::from(unsafe { *rows.add(r * stride + at) });
        }
    }
}

/// The slices have passed [`check_rows`].
#[target_feature(enable = "neon")]
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

#[target_feature(enable = "neon")]
fn tile_product(rows: &[f32], cols: &[f32], products: &mut Tile) {
    // Six rows of four registers take 24 of 32.
    const ROWS: usize = 6;
    const REGISTERS: usize = 4;
    const COLS: usize = REGISTERS * LANES;
    let depth = (rows.len() / TILE_ROWS).min(cols.len() / TILE_COLS);
    for first_row in (0..TILE_ROWS).step_by(ROWS) {
        for first_col in (0..TILE_COLS).step_by(COLS) {
            let (rows, cols) = (rows.as_ptr(), cols.as_ptr());
            let mut sums = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
            for j in 0..depth {
                // SAFETY: j is below the number of whole steps in both slices, and the columns
                // from first_col on are within a step.
                let col: [float32x4_t; REGISTERS] = std::array::from_fn(|c| unsafe {
                    vld1q_f32(cols.add(j * TILE_COLS + first_col + c * LANES))
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above, for the rows.
                    let x = unsafe { *rows.add(j * TILE_ROWS + first_row + r) };
                    for (sum, col) in sums.iter_mut().zip(col) {
                        *sum = vfmaq_n_f32(*sum, col, x);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let at = (first_row + r) * TILE_COLS + first_col;
                for (products, sum) in products[at..at + COLS].chunks_exact_mut(LANES).zip(sums) {
                    // SAFETY: the chunk has LANES elements.
                    unsafe {
                        let before = vld1q_f32(products.as_ptr());
                        vst1q_f32(products.as_mut_ptr(), vaddq_f32(before, *sum));
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn tile_nearest(
    products: &Tile,
    norms: &[f32; TILE_COLS],
    panel: u32,
    best: &mut Tile,
    best_panel: &mut TilePanels,
) {
    scalar::tile_nearest_body(products, norms, panel, best, best_panel);
}

/// Groups whose entries can be added up before a 16-bit sum overflows.
const GROUPS_PER_SUM: usize = 256;

/// Looks codes up in tables by byte shuffles, one group at a time. The slices have passed
/// [`check_signs`].
#[target_feature(enable = "neon")]
unsafe fn sign_bounds(
    tables: &[u8],
    codes: &[u8],
    rows: &SignRows<'_>,
    terms: &SignTerms,
    ahead: &[u8],
    out: &mut [f32],
) {
    let (tables, _) = tables.as_chunks::<16>();
    let blocks = codes.chunks_exact(sign_block_bytes(tables.len()).max(1));
    let mut ahead = Ahead::new(ahead, out.len() / SIGN_BLOCK);
    for (nth, (out, codes)) in out.chunks_exact_mut(SIGN_BLOCK).zip(blocks).enumerate() {
        ahead.step();
        let (codes, _) = codes.as_chunks::<16>();
        let mut sums = [0u32; SIGN_BLOCK];
        for (tables, codes) in tables.chunks(GROUPS_PER_SUM).zip(codes.chunks(GROUPS_PER_SUM)) {
            let mut parts = [vdupq_n_u16(0); 4];
            for (table, code) in tables.iter().zip(codes) {
                // SAFETY: both arrays have sixteen bytes.
                let (table, code) = unsafe { (vld1q_u8(table.as_ptr()), vld1q_u8(code.as_ptr())) };
                let low = vqtbl1q_u8(table, vandq_u8(code, vdupq_n_u8(15)));
                let high = vqtbl1q_u8(table, vshrq_n_u8::<4>(code));
                parts[0] = vaddw_u8(parts[0], vget_low_u8(low));
                parts[1] = vaddw_u8(parts[1], vget_high_u8(low));
                parts[2] = vaddw_u8(parts[2], vget_low_u8(high));
                parts[3] = vaddw_u8(parts[3], vget_high_u8(high));
            }
            for (sums, part) in sums.chunks_exact_mut(8).zip(parts) {
                let mut lanes = [0u16; 8];
                // SAFETY: the array has eight numbers.
                unsafe { vst1q_u16(lanes.as_mut_ptr(), part) };
                sums.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum += u32::from(lane));
            }
        }
        scalar::finish_bounds(&sums, nth * SIGN_BLOCK, rows, terms, out);
    }
}
