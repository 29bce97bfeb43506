//! Blocks of matrix products.

use super::super::{
    scalar, CodedBest, CodedCols, CodedRows, Tile, TilePanels, CODE_GROUP, TILE_COLS, TILE_ROWS,
};
use super::LANES;
use std::arch::x86_64::*;

/// Registers that the columns of a tile take.
const WIDTH: usize = TILE_COLS / LANES;

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn product(rows: &[f32], cols: &[f32], products: &mut Tile) {
    let depth = (rows.len() / TILE_ROWS).min(cols.len() / TILE_COLS);
    let (rows, cols) = (rows.as_ptr(), cols.as_ptr());
    let mut sums = [[_mm512_setzero_ps(); WIDTH]; TILE_ROWS];
    for j in 0..depth {
        // SAFETY: j is below the number of whole steps in both slices.
        let (low, high) = unsafe {
            let col = cols.add(j * TILE_COLS);
            (_mm512_loadu_ps(col), _mm512_loadu_ps(col.add(LANES)))
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let x = _mm512_set1_ps(unsafe { *rows.add(j * TILE_ROWS + r) });
            sums[0] = _mm512_fmadd_ps(x, low, sums[0]);
            sums[1] = _mm512_fmadd_ps(x, high, sums[1]);
        }
    }
    for (products, sums) in products.chunks_exact_mut(LANES).zip(sums.as_flattened()) {
        // SAFETY: the chunk has LANES elements.
        unsafe {
            let before = _mm512_loadu_ps(products.as_ptr());
            _mm512_storeu_ps(products.as_mut_ptr(), _mm512_add_ps(before, *sums));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn nearest(
    products: &Tile,
    norms: &[f32; TILE_COLS],
    panel: u32,
    best: &mut Tile,
    best_panel: &mut TilePanels,
) {
    scalar::tile_nearest_body(products, norms, panel, best, best_panel);
}

/// Defines a kernel whose `step` adds the products of four unsigned and signed bytes a lane.
macro_rules! nearest_coded {
    ($name:ident, $features:literal, $step:expr) => {
        /// # Safety
        /// The processor has the features, and `check_coded` has passed the rows and columns.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(
            rows: CodedRows<'_>,
            cols: CodedCols<'_>,
            panel: u32,
            best: CodedBest<'_>,
        ) {
            let depth = rows.dim / CODE_GROUP;
            let col = cols.codes.as_ptr();
            // SAFETY: there are codes of all rows of the tile.
            let row = rows.tile.map(|n| unsafe { rows.codes.as_ptr().add(n as usize * rows.dim) });
            // SAFETY: the array has TILE_COLS elements.
            let starts = unsafe {
                let starts = cols.starts.as_ptr();
                [_mm512_loadu_epi32(starts), _mm512_loadu_epi32(starts.add(LANES))]
            };
            let mut sums = [starts; TILE_ROWS];
            for j in 0..depth {
                // SAFETY: both sides have `depth` steps.
                let (low, high) = unsafe {
                    let col = col.add(j * TILE_COLS * CODE_GROUP).cast::<i32>();
                    (_mm512_loadu_epi32(col), _mm512_loadu_epi32(col.add(LANES)))
                };
                for (row, sums) in row.iter().zip(&mut sums) {
                    // SAFETY: as above.
                    let x = unsafe { row.add(j * CODE_GROUP).cast::<i32>().read_unaligned() };
                    let x = _mm512_set1_epi32(x);
                    sums[0] = $step(sums[0], x, low);
                    sums[1] = $step(sums[1], x, high);
                }
            }
            let norms = cols.norms.as_ptr();
            let number = _mm512_set1_epi32(panel as i32);
            // Kept apart, so that until here they are in registers.
            let mut kept = [0i32; TILE_ROWS * TILE_COLS];
            for (kept, sum) in kept.chunks_exact_mut(LANES).zip(sums.as_flattened()) {
                // SAFETY: the chunk has LANES elements.
                unsafe { _mm512_storeu_epi32(kept.as_mut_ptr(), *sum) };
            }
            for (row, sums) in rows.tile.iter().zip(kept.as_chunks::<TILE_COLS>().0) {
                let row = *row as usize;
                let scale = _mm512_set1_ps(rows.scales[row] * cols.scale);
                let (best, panels) = (&mut best.scores[row], &mut best.panels[row]);
                for at in [0, LANES] {
                    // SAFETY: `at` is the start of LANES elements of TILE_COLS.
                    unsafe {
                        let sum = _mm512_cvtepi32_ps(_mm512_loadu_epi32(sums.as_ptr().add(at)));
                        let score = _mm512_fnmadd_ps(scale, sum, _mm512_loadu_ps(norms.add(at)));
                        let before = _mm512_loadu_ps(best.as_ptr().add(at));
                        let is_less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(score, before);
                        if is_less != 0 {
                            _mm512_mask_storeu_ps(best.as_mut_ptr().add(at), is_less, score);
                            let panels = panels.as_mut_ptr().add(at).cast();
                            _mm512_mask_storeu_epi32(panels, is_less, number);
                        }
                    }
                }
            }
        }
    };
}

// Codes of rows are below 128, so that two products fit into sixteen bits.
nearest_coded!(nearest_coded_bw, "avx512f,avx512bw,avx512vl", |sum, row, col| {
    let pairs = _mm512_maddubs_epi16(row, col);
    _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
});

nearest_coded!(nearest_coded_vnni, "avx512f,avx512bw,avx512vl,avx512vnni", |sum, row, col| {
    _mm512_dpbusd_epi32(sum, row, col)
});
