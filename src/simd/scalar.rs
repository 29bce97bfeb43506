//! The reference kernels, for any processor. Sixteen sums run side by side, which the compiler
//! turns into whatever vectors the target's baseline has.

use super::prefetch::Ahead;
use super::{
    check_coded, check_grid, check_rows, check_signs, check_tables, sign_block_bytes, CodedBest,
    CodedCols, CodedRows, CosineParts, Grid, GridRow, GridSums, Kernels, Level, SignRows,
    SignScale, SignTerms, Tile, TilePanels, CODE_GROUP, LEAST_OF, SIGN_BLOCK, SIGN_GROUP,
    TILE_COLS, TILE_ROWS,
};

const LANES: usize = 16;

pub(super) static KERNELS: Kernels = Kernels {
    level: Level::Scalar,
    l2_squared,
    inner_product,
    l1,
    cosine,
    dot_i8_rows,
    l1_i8,
    residual_i8: residual_i8_body,
    tile_product,
    tile_nearest,
    tile_nearest_coded,
    hadamard: |values, factors| hadamard_body(values, factors),
    sign_tables: |query, tables| sign_tables_body(query, tables),
    sign_bounds,
    grid: grid_body,
    quantize: |values, shift, codes| quantize_body(values, shift, codes),
    least_of_runs: |values, least| least_of_runs_body(values, least),
    count_up_to: count_up_to_body,
    up_to: |values, high, places| up_to_body(values, high, 0, places),
};

fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    sum_terms(a, b, |x, y| (x - y) * (x - y))
}

fn inner_product(a: &[f32], b: &[f32]) -> f32 {
    sum_terms(a, b, |x, y| x * y)
}

fn l1(a: &[f32], b: &[f32]) -> f32 {
    sum_terms(a, b, |x, y| (x - y).abs())
}

fn cosine(a: &[f32], b: &[f32]) -> CosineParts {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    CosineParts {
        dot: inner_product(a, b),
        norm_a: inner_product(a, a),
        norm_b: inner_product(b, b),
    }
}

fn l1_i8(query: &[f32], codes: &[i8], scale: f32) -> f32 {
    sum_terms(query, codes, |x, code| (x - scale * f32::from(code)).abs())
}

/// [`Kernels::residual_i8`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn residual_i8_body(query: &[f32], centroid: &[f32], codes: &[i8]) -> f32 {
    let n = query.len().min(centroid.len()).min(codes.len());
    let (query, query_rest) = query[..n].as_chunks::<LANES>();
    let (centroid, centroid_rest) = centroid[..n].as_chunks::<LANES>();
    let (codes, codes_rest) = codes[..n].as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for ((query, centroid), codes) in query.iter().zip(centroid).zip(codes) {
        for lane in 0..LANES {
            sums[lane] += (query[lane] - centroid[lane]) * f32::from(codes[lane]);
        }
    }
    let rest = query_rest.iter().zip(centroid_rest).zip(codes_rest);
    let rest: f32 = rest.map(|((x, c), code)| (x - c) * f32::from(*code)).sum();
    total(sums) + rest
}

#[inline(always)]
fn sum_terms<B: Copy>(a: &[f32], b: &[B], term: impl Fn(f32, B) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let (a, a_rest) = a[..n].as_chunks::<LANES>();
    let (b, b_rest) = b[..n].as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += term(a[lane], b[lane]);
        }
    }
    for (sum, (&x, &y)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += term(x, y);
    }
    total(sums)
}

/// Adds up all lanes, always in the same order.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

fn dot_i8_rows(query: &[i8], rows: &[i8], stride: usize, out: &mut [i32]) {
    check_rows(query, rows, stride, out);
    for (i, out) in out.iter_mut().enumerate() {
        let row = &rows[i * stride..][..query.len()];
        *out = query.iter().zip(row).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
    }
}

fn tile_product(rows: &[f32], cols: &[f32], products: &mut Tile) {
    // Four rows of eight columns are what sixteen 128-bit registers hold.
    const ROWS: usize = 4;
    const COLS: usize = 8;
    let (rows, _) = rows.as_chunks::<TILE_ROWS>();
    let (cols, _) = cols.as_chunks::<TILE_COLS>();
    for first_row in (0..TILE_ROWS).step_by(ROWS) {
        for first_col in (0..TILE_COLS).step_by(COLS) {
            let mut sums = [[0.0f32; COLS]; ROWS];
            for (row, col) in rows.iter().zip(cols) {
                for r in 0..ROWS {
                    for c in 0..COLS {
                        sums[r][c] += row[first_row + r] * col[first_col + c];
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let at = (first_row + r) * TILE_COLS + first_col;
                for (product, sum) in products[at..at + COLS].iter_mut().zip(sums) {
                    *product += sum;
                }
            }
        }
    }
}

fn tile_nearest(
    products: &Tile,
    norms: &[f32; TILE_COLS],
    panel: u32,
    best: &mut Tile,
    best_panel: &mut TilePanels,
) {
    tile_nearest_body(products, norms, panel, best, best_panel);
}

pub(super) fn tile_nearest_coded(
    rows: CodedRows<'_>,
    cols: CodedCols<'_>,
    panel: u32,
    mut best: CodedBest<'_>,
) {
    check_coded(rows, cols, &best);
    for &row in rows.tile {
        let codes = &rows.codes[row as usize * rows.dim..][..rows.dim];
        let mut sums = [0i32; TILE_COLS];
        let steps = codes.chunks_exact(CODE_GROUP);
        for (row, col) in steps.zip(cols.codes.chunks_exact(TILE_COLS * CODE_GROUP)) {
            for (col, sum) in col.chunks_exact(CODE_GROUP).zip(&mut sums) {
                let products = row.iter().zip(col).map(|(x, y)| i32::from(*x) * i32::from(*y));
                *sum += products.sum::<i32>();
            }
        }
        coded_nearest_body(row, &sums, rows, cols, panel, &mut best);
    }
}

/// The end of [`Kernels::tile_nearest_coded`] for one row, for the compiler to vectorise with its
/// caller's instruction set.
#[inline(always)]
pub(super) fn coded_nearest_body(
    row: u32,
    sums: &[i32; TILE_COLS],
    rows: CodedRows<'_>,
    cols: CodedCols<'_>,
    panel: u32,
    best: &mut CodedBest<'_>,
) {
    let row = row as usize;
    let scale = rows.scales[row] * cols.scale;
    let (best, best_panel) = (&mut best.scores[row], &mut best.panels[row]);
    for c in 0..TILE_COLS {
        let score = cols.norms[c] - scale * (cols.starts[c] + sums[c]) as f32;
        let better = score < best[c];
        best[c] = if better { score } else { best[c] };
        best_panel[c] = if better { panel } else { best_panel[c] };
    }
}

/// [`Kernels::tile_nearest`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn tile_nearest_body(
    products: &Tile,
    norms: &[f32; TILE_COLS],
    panel: u32,
    best: &mut Tile,
    best_panel: &mut TilePanels,
) {
    for r in 0..TILE_ROWS {
        let row = r * TILE_COLS..(r + 1) * TILE_COLS;
        let products = &products[row.clone()];
        let best = &mut best[row.clone()];
        let best_panel = &mut best_panel[row];
        for c in 0..TILE_COLS {
            let score = norms[c] - 2.0 * products[c];
            let better = score < best[c];
            best[c] = if better { score } else { best[c] };
            best_panel[c] = if better { panel } else { best_panel[c] };
        }
    }
}

/// [`Kernels::hadamard`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn hadamard_body(values: &mut [f32], factors: &[f32]) {
    const WIDTH: usize = 16;
    debug_assert!(values.len().is_power_of_two());
    values.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    let (rows, rest) = values.as_chunks_mut::<WIDTH>();
    if rows.is_empty() {
        return butterflies(rest);
    }
    for row in rows.iter_mut() {
        butterfly::<1>(row);
        butterfly::<2>(row);
        butterfly::<4>(row);
        butterfly::<8>(row);
    }
    row_butterflies(rows);
}

/// Sums and differences of values `H` apart, in place.
#[inline(always)]
fn butterfly<const H: usize>(row: &mut [f32; 16]) {
    let before = *row;
    for (i, value) in row.iter_mut().enumerate() {
        let partner = before[i ^ H];
        *value = if i & H == 0 { before[i] + partner } else { partner - before[i] };
    }
}

/// The steps of the transform from whole rows apart on.
#[inline(always)]
fn row_butterflies(rows: &mut [[f32; 16]]) {
    let mut half = 1;
    while half < rows.len() {
        for pair in rows.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (x, y) in low.iter_mut().zip(high) {
                let (a, b) = (*x, *y);
                for i in 0..16 {
                    x[i] = a[i] + b[i];
                    y[i] = a[i] - b[i];
                }
            }
        }
        half *= 2;
    }
}

/// The steps of the transform of fewer values than a row has.
#[inline(always)]
fn butterflies(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (x, y) in low.iter_mut().zip(high) {
                (*x, *y) = (*x + *y, *x - *y);
            }
        }
        half *= 2;
    }
}

/// For each component of a group, whether it is in a subset.
const MEMBERS: [[f32; 16]; SIGN_GROUP] = {
    let mut members = [[0.0; 16]; SIGN_GROUP];
    let mut subset = 0;
    while subset < 16 {
        let mut component = 0;
        while component < SIGN_GROUP {
            members[component][subset] = ((subset >> component) & 1) as f32;
            component += 1;
        }
        subset += 1;
    }
    members
};

/// [`Kernels::sign_tables`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn sign_tables_body(query: &[f32], tables: &mut [u8]) -> SignScale {
    check_tables(query, tables);
    let (groups, _) = query.as_chunks::<SIGN_GROUP>();
    let (tables, _) = tables.as_chunks_mut::<16>();
    let (mut widest, mut least) = (0.0f32, 0.0f32);
    for group in groups {
        widest = widest.max(group[0].abs() + group[1].abs() + group[2].abs() + group[3].abs());
        least += group.iter().map(|x| x.min(0.0)).sum::<f32>();
    }
    let step = widest / 255.0;
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    for (group, table) in groups.iter().zip(tables) {
        let low = group.iter().map(|x| x.min(0.0)).sum::<f32>();
        for (subset, entry) in table.iter_mut().enumerate() {
            let sum = MEMBERS[0][subset] * group[0]
                + MEMBERS[1][subset] * group[1]
                + MEMBERS[2][subset] * group[2]
                + MEMBERS[3][subset] * group[3];
            *entry = ((sum - low) * inverse + 0.5) as i32 as u8;
        }
    }
    SignScale { step, least }
}

/// Added to a small number it leaves the nearest integer in the lowest bits of the sum.
const MAGIC: f32 = 1.5 * (1 << 23) as f32;

/// [`Kernels::grid`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn grid_body(row: GridRow<'_>, grid: &Grid, digits: &mut [u8]) -> GridSums {
    check_grid(row, digits);
    let GridRow { residual, centroid, middle } = row;
    let Grid { inverse, half, top } = *grid;
    let centre = top as f32 / 2.0;
    let (mut along, mut lengths) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (mut product, mut shifted) = ([0.0f32; LANES], [0.0f32; LANES]);
    let columns = residual.as_chunks::<LANES>().0.iter().zip(centroid.as_chunks::<LANES>().0);
    let columns = columns.zip(middle.as_chunks::<LANES>().0);
    for (((r, c), m), digits) in columns.zip(digits.as_chunks_mut::<LANES>().0) {
        for i in 0..LANES {
            let place = r[i] * inverse + (half - 0.5);
            // What is not a number is put at the lower end.
            let place = if place > 0.0 { place } else { 0.0 };
            let rounded = if place < top as f32 { place } else { top as f32 } + MAGIC;
            let point = rounded - MAGIC - centre;
            digits[i] = rounded.to_bits() as u8;
            along[i] += r[i] * point;
            lengths[i] += point * point;
            product[i] += r[i] * c[i];
            shifted[i] += point * (c[i] - m[i]);
        }
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().sum();
    GridSums {
        along: sum(along),
        lengths: sum(lengths),
        product: sum(product),
        shifted: sum(shifted),
    }
}

fn sign_bounds(
    tables: &[u8],
    codes: &[u8],
    rows: &SignRows<'_>,
    terms: &SignTerms,
    ahead: &[u8],
    out: &mut [f32],
) {
    check_signs(tables, codes, rows, out);
    let (tables, _) = tables.as_chunks::<16>();
    let blocks = codes.chunks_exact(sign_block_bytes(tables.len()).max(1));
    let mut ahead = Ahead::new(ahead, out.len() / SIGN_BLOCK);
    for (nth, (out, codes)) in out.chunks_exact_mut(SIGN_BLOCK).zip(blocks).enumerate() {
        ahead.step();
        let mut sums = [0u32; SIGN_BLOCK];
        for (table, codes) in tables.iter().zip(codes.as_chunks::<16>().0) {
            for (row, code) in codes.iter().enumerate() {
                sums[row] += u32::from(table[usize::from(code & 15)]);
                sums[row + 16] += u32::from(table[usize::from(code >> 4)]);
            }
        }
        finish_bounds(&sums, nth * SIGN_BLOCK, rows, terms, out);
    }
}

/// Turns the sums of a block, whose first row is number `first`, into bounds.
#[inline(always)]
pub(super) fn finish_bounds(
    sums: &[u32; SIGN_BLOCK],
    first: usize,
    rows: &SignRows<'_>,
    terms: &SignTerms,
    out: &mut [f32],
) {
    for (row, (out, sum)) in (first..).zip(out.iter_mut().zip(sums)) {
        let product = terms.step * *sum as f32 + terms.shift;
        let value = rows.add[row] + rows.scale[row] * product;
        *out = terms.base + terms.weight * (value - terms.reach * rows.error[row]);
    }
}

/// [`Kernels::quantize`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn quantize_body(values: &[f32], shift: &[f32], codes: &mut [i8]) -> f32 {
    const TOP: f32 = 127.0;
    let n = values.len().min(shift.len()).min(codes.len());
    let (values, values_rest) = values[..n].as_chunks::<LANES>();
    let (shift, shift_rest) = shift[..n].as_chunks::<LANES>();
    let (codes, codes_rest) = codes[..n].as_chunks_mut::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (values, shift) in values.iter().zip(shift) {
        for lane in 0..LANES {
            let size = (values[lane] - shift[lane]).abs();
            lanes[lane] = if size > lanes[lane] { size } else { lanes[lane] };
        }
    }
    let rest = values_rest.iter().zip(shift_rest);
    let most = rest.clone().map(|(x, s)| (x - s).abs()).chain(lanes).fold(0.0f32, f32::max);
    let step = most / TOP;
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let code = |x: f32, s: f32| (((x - s) * inverse).clamp(-TOP, TOP) + MAGIC).to_bits() as i8;
    for ((values, shift), codes) in values.iter().zip(shift).zip(codes) {
        for lane in 0..LANES {
            codes[lane] = code(values[lane], shift[lane]);
        }
    }
    for (code_out, (x, s)) in codes_rest.iter_mut().zip(rest) {
        *code_out = code(*x, *s);
    }
    step
}

/// [`Kernels::count_up_to`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn count_up_to_body(values: &[f32], high: f32) -> usize {
    // Counters as wide as values, for no more than they can count.
    let count = |values: &[f32]| values.iter().map(|value| u32::from(*value <= high)).sum::<u32>();
    values.chunks(1 << 16).map(|values| count(values) as usize).sum()
}

/// [`Kernels::up_to`] for the compiler to vectorise with its caller's instruction set: it looks at
/// a whole run first, for few values are up to the bound. `first` is the place of the first value.
#[inline(always)]
pub(super) fn up_to_body(values: &[f32], high: f32, first: u32, places: &mut Vec<u32>) {
    const RUN: usize = 32;
    let (runs, rest) = values.as_chunks::<RUN>();
    let mut look = |run: &[f32], first: u32| {
        for (value, place) in run.iter().zip(first..) {
            if *value <= high {
                places.push(place);
            }
        }
    };
    for (run, first) in runs.iter().zip((first..).step_by(RUN)) {
        if run.iter().fold(false, |any, value| any | (*value <= high)) {
            look(run, first);
        }
    }
    look(rest, first + (runs.len() * RUN) as u32);
}

/// [`Kernels::least_of_runs`] for the compiler to vectorise with its caller's instruction set.
#[inline(always)]
pub(super) fn least_of_runs_body(values: &[f32], least: &mut [f32]) {
    for (run, least) in values.chunks(LEAST_OF).zip(least) {
        *least = run.iter().fold(f32::INFINITY, |a, &b| if b < a { b } else { a });
    }
}
