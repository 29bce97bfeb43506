//! The reference kernels, for any processor. Sixteen sums run side by side, which the compiler
//! turns into whatever vectors the target's baseline has.

use super::{check_rows, CosineParts, Kernels, Level, Tile, TilePanels, TILE_COLS, TILE_ROWS};

const LANES: usize = 16;

pub(super) static KERNELS: Kernels = Kernels {
    level: Level::Scalar,
    l2_squared,
    inner_product,
    l1,
    cosine,
    dot_i8_rows,
    l1_i8,
    tile_product,
    tile_nearest,
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
