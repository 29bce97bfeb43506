//! The nearest centroid of many rows, as a blocked matrix product: of vectors, or of their codes
//! where those tell it ([`super::coded`]).
//!
//! `|x - c|^2` is least where `|c|^2 - 2 <x, c>` is, so that nearly all the work is the product of
//! the rows and the centroids. It is blocked for registers and caches after Goto and van de Geijn,
//! "Anatomy of High-Performance Matrix Multiplication" (2008): panels of 32 centroids stay in the
//! nearest cache while packed tiles of 12 rows run past them. Both sides are shifted by the mean of
//! the centroids, because the difference of two large numbers would lose what tells the centroids
//! apart where the data lies far from the origin.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::best::{Best, Nearest};
use super::coded::{self, CodedCentroids, CodedWorkspace};
use super::{check, evenly, get_or_try_init, Stopped};
use crate::simd::{kernels, Kernels, Tile, TILE_COLS, TILE_ROWS};

/// Bytes of packed rows that one task works on: a good part of a core's second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// Tiles in a block of rows, at most.
const BLOCK_TILES: usize = 16;

/// Tiles in a block of coded rows: what is found for them stays in the nearest cache.
const CODED_TILES: usize = 8;

/// Components that are multiplied in one go, so that a panel's part stays in the nearest cache.
const DEPTH: usize = 256;

/// Centroids packed for the search.
pub struct PackedCentroids {
    dim: usize,
    count: usize,
    /// Subtracted from rows and centroids alike.
    shift: Vec<f32>,
    /// Panels of `TILE_COLS` centroids, each `dim` times the same component of all of them.
    panels: Vec<f32>,
    /// For each panel the squared lengths; infinite for the places after the last centroid.
    norms: Vec<[f32; TILE_COLS]>,
    /// Their codes, unless they are of no use; made when the first rows come.
    coded: OnceLock<Option<CodedCentroids>>,
}

/// Stands for no centroid in a layout.
pub(super) const EMPTY: u32 = u32::MAX;

impl PackedCentroids {
    /// Packs row-major centroids of `dim` components.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn new(
        centroids: &[f32],
        dim: usize,
        stop: &AtomicBool,
    ) -> Result<PackedCentroids, Stopped> {
        let shift = mean(centroids, dim, stop)?;
        let count = centroids.len().checked_div(dim).unwrap_or(0);
        let layout: Vec<u32> = (0..count as u32).collect();
        PackedCentroids::with_layout(centroids, &layout, shift, stop)
    }

    /// Packs the centroids that a layout names, in its order, [`EMPTY`] ones as never the nearest.
    pub(super) fn with_layout(
        centroids: &[f32],
        layout: &[u32],
        shift: Vec<f32>,
        stop: &AtomicBool,
    ) -> Result<PackedCentroids, Stopped> {
        let (dim, count) = (shift.len(), layout.len());
        let panel_count = count.div_ceil(TILE_COLS);
        let mut panels = vec![0.0; panel_count * dim * TILE_COLS];
        let mut norms = vec![[f32::INFINITY; TILE_COLS]; panel_count];
        let norm = kernels().inner_product;
        if count > 0 {
            panels
                .par_chunks_exact_mut(dim * TILE_COLS)
                .zip(&mut norms)
                .zip(layout.par_chunks(TILE_COLS))
                .try_for_each_init(
                    || vec![0.0; dim],
                    |shifted, ((panel, norms), layout)| {
                        check(stop)?;
                        for (col, &number) in layout.iter().enumerate() {
                            if number == EMPTY {
                                continue;
                            }
                            let centroid = &centroids[number as usize * dim..][..dim];
                            for (x, (c, shift)) in
                                shifted.iter_mut().zip(centroid.iter().zip(&shift))
                            {
                                *x = c - shift;
                            }
                            norms[col] = norm(shifted, shifted);
                            for (step, x) in panel.chunks_exact_mut(TILE_COLS).zip(shifted.iter()) {
                                step[col] = *x;
                            }
                        }
                        Ok(())
                    },
                )?;
        }
        Ok(PackedCentroids { dim, count, shift, panels, norms, coded: OnceLock::new() })
    }

    /// How many panels there are.
    pub(super) fn panels(&self) -> usize {
        self.norms.len()
    }

    /// A panel's centroids: for each component those of all of them.
    pub(super) fn panel(&self, panel: usize) -> &[f32] {
        &self.panels[panel * self.dim * TILE_COLS..][..self.dim * TILE_COLS]
    }

    /// The squared lengths of a panel's centroids; infinite where there is none.
    pub(super) fn norms(&self, panel: usize) -> &[f32; TILE_COLS] {
        &self.norms[panel]
    }

    /// Components of a centroid.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// What rows are shifted by.
    pub(super) fn shift(&self) -> &[f32] {
        &self.shift
    }

    /// How many centroids there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The centroids' codes, if they tell the nearest of such rows.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub(super) fn coded(
        &self,
        rows: &[f32],
        stop: &AtomicBool,
    ) -> Result<Option<&CodedCentroids>, Stopped> {
        if let Some(known) = self.coded.get() {
            return Ok(known.as_ref());
        }
        let count = rows.len().checked_div(self.dim).unwrap_or(0);
        if self.count < coded::LEAST_CENTROIDS || count < coded::LEAST_ROWS {
            return Ok(None);
        }
        let made = get_or_try_init(&self.coded, || {
            let Some(coded) = CodedCentroids::new(self, stop)? else { return Ok(None) };
            let sample = evenly(rows, self.dim, coded::SAMPLE_ROWS);
            let (mut exact, mut found) = ([0; coded::SAMPLE_ROWS], [0; coded::SAMPLE_ROWS]);
            self.nearest_by_products(&sample, &mut exact, stop)?;
            self.nearest_by_codes(&coded, &sample, &mut found, stop)?;
            let agreed = exact.iter().zip(&found).filter(|(exact, found)| exact == found).count();
            let enough = agreed as f64 >= coded::LEAST_AGREED * coded::SAMPLE_ROWS as f64;
            Ok(enough.then_some(coded))
        })?;
        Ok(made.as_ref())
    }

    /// Writes the number of the nearest centroid of each row to `out`, the lowest of equals; of a
    /// row in a thousand perhaps that of one hardly farther.
    ///
    /// Rows and results correspond up to the shorter of the two. A row that has no nearest
    /// centroid, because a distance is no number or there are no centroids, gets 0.
    pub fn nearest<T: Nearest>(
        &self,
        rows: &[f32],
        out: &mut [T],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        if self.is_empty() {
            out.fill(T::default());
            return Ok(());
        }
        match self.coded(rows, stop)? {
            Some(coded) => self.nearest_by_codes(coded, rows, out, stop),
            None => self.nearest_by_products(rows, out, stop),
        }
    }

    fn nearest_by_codes<T: Nearest>(
        &self,
        coded: &CodedCentroids,
        rows: &[f32],
        out: &mut [T],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        const ROWS: usize = CODED_TILES * TILE_ROWS;
        rows.par_chunks(ROWS * self.dim).zip(out.par_chunks_mut(ROWS)).try_for_each_init(
            CodedWorkspace::default,
            |workspace, (rows, out)| {
                workspace.block.code(rows.chunks_exact(self.dim), &self.shift, coded);
                workspace.search(self, coded, stop)?;
                for (i, out) in out.iter_mut().enumerate().take(rows.len() / self.dim) {
                    let best = &workspace.best;
                    *out = workspace.block.found(self, coded, i, best, |place| place);
                }
                Ok(())
            },
        )
    }

    fn nearest_by_products<T: Nearest>(
        &self,
        rows: &[f32],
        out: &mut [T],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let tile_bytes = self.dim * TILE_ROWS * size_of::<f32>();
        let block_rows = (BLOCK_BYTES / tile_bytes).clamp(1, BLOCK_TILES) * TILE_ROWS;
        rows.par_chunks(block_rows * self.dim)
            .zip(out.par_chunks_mut(block_rows))
            .try_for_each_init(Workspace::default, |workspace, (rows, out)| {
                workspace.pack(rows.chunks_exact(self.dim), &self.shift);
                workspace.search(self, 0..self.panels(), stop)?;
                for (i, out) in out.iter_mut().enumerate().take(rows.len() / self.dim) {
                    *out = workspace.best.nearest(i, |place| place);
                }
                Ok(())
            })
    }
}

/// The nearest of `centroids` for each row, into `out`; see [`PackedCentroids::nearest`].
pub fn nearest(
    rows: &[f32],
    dim: usize,
    centroids: &[f32],
    out: &mut [u32],
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    PackedCentroids::new(centroids, dim, stop)?.nearest(rows, out, stop)
}

/// The mean of the rows; zeros where it is not finite.
pub(super) fn mean(rows: &[f32], dim: usize, stop: &AtomicBool) -> Result<Vec<f32>, Stopped> {
    if dim == 0 || rows.is_empty() {
        return Ok(vec![0.0; dim]);
    }
    let mut sums = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        check(stop)?;
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let count = (rows.len() / dim) as f64;
    let mean = sums.into_iter().map(|sum| (sum / count) as f32);
    Ok(mean.map(|x| if x.is_finite() { x } else { 0.0 }).collect())
}

/// What one thread needs for a block of rows.
#[derive(Default)]
pub(super) struct Workspace {
    /// Tiles of rows, each `dim` times the same component of `TILE_ROWS` rows.
    packed: Vec<f32>,
    products: Vec<Tile>,
    /// What was found for the rows.
    pub(super) best: Best,
}

impl Workspace {
    /// Packs the rows into tiles, the last filled up with zeros, and forgets earlier ones.
    pub(super) fn pack<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
        shift: &[f32],
    ) {
        let (dim, count) = (shift.len(), rows.len());
        let tiles = count.div_ceil(TILE_ROWS);
        self.packed.resize(tiles * dim * TILE_ROWS, 0.0);
        if !count.is_multiple_of(TILE_ROWS) {
            self.packed[(tiles - 1) * dim * TILE_ROWS..].fill(0.0);
        }
        for (i, row) in rows.enumerate() {
            let tile = &mut self.packed[i / TILE_ROWS * dim * TILE_ROWS..][..dim * TILE_ROWS];
            let (steps, _) = tile.as_chunks_mut::<TILE_ROWS>();
            for (step, (x, shift)) in steps.iter_mut().zip(row.iter().zip(shift)) {
                step[i % TILE_ROWS] = x - shift;
            }
        }
        self.products.resize(tiles, [0.0; TILE_ROWS * TILE_COLS]);
        self.best.clear(count);
    }

    /// Looks for nearer centroids in the panels of that range.
    pub(super) fn search(
        &mut self,
        centroids: &PackedCentroids,
        panels: Range<usize>,
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let k = kernels();
        for panel in panels {
            check(stop)?;
            self.multiply(k, centroids, panel);
            for (products, (best, best_panel)) in self.products.iter().zip(self.best.tiles_mut()) {
                (k.tile_nearest)(products, &centroids.norms[panel], panel as u32, best, best_panel);
            }
        }
        Ok(())
    }

    /// For each of the first `rows` packed rows in turn calls `each` with the scores of a panel's
    /// centroids: squared distances, but for a summand that is the row's own.
    pub(super) fn scores(
        &mut self,
        centroids: &PackedCentroids,
        panel: usize,
        rows: usize,
        mut each: impl FnMut(usize, &[f32; TILE_COLS]),
    ) {
        let norms = &centroids.norms[panel];
        self.products(centroids, panel, rows, |row, products| {
            each(row, &std::array::from_fn(|col| norms[col] - 2.0 * products[col]));
        });
    }

    /// For each of the first `rows` packed rows in turn calls `each` with its products with a
    /// panel's centroids.
    pub(super) fn products(
        &mut self,
        centroids: &PackedCentroids,
        panel: usize,
        rows: usize,
        mut each: impl FnMut(usize, &[f32; TILE_COLS]),
    ) {
        self.multiply(kernels(), centroids, panel);
        let products = self.products.as_flattened().as_chunks::<TILE_COLS>().0;
        products.iter().enumerate().take(rows).for_each(|(row, products)| each(row, products));
    }

    /// The products of all packed tiles and one panel.
    fn multiply(&mut self, k: &Kernels, centroids: &PackedCentroids, panel: usize) {
        let dim = centroids.dim;
        let cols = centroids.panel(panel);
        self.products.fill([0.0; TILE_ROWS * TILE_COLS]);
        for from in (0..dim).step_by(DEPTH) {
            let to = dim.min(from + DEPTH);
            let cols = &cols[from * TILE_COLS..to * TILE_COLS];
            for (tile, products) in self.products.iter_mut().enumerate() {
                let rows = &self.packed[tile * dim * TILE_ROWS..][..dim * TILE_ROWS];
                (k.tile_product)(&rows[from * TILE_ROWS..to * TILE_ROWS], cols, products);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    fn random(rng: &mut SmallRng, n: usize, offset: f32) -> Vec<f32> {
        (0..n).map(|_| offset + rng.random_range(-1.0f32..1.0)).collect()
    }

    fn run(rows: &[f32], dim: usize, centroids: &[f32]) -> Vec<u32> {
        let mut out = vec![u32::MAX; rows.len() / dim];
        nearest(rows, dim, centroids, &mut out, &AtomicBool::new(false)).unwrap();
        out
    }

    fn squared(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
    }

    #[test]
    fn the_nearest_is_that_of_a_plain_search() {
        let mut rng = SmallRng::seed_from_u64(1);
        for dim in [1, 2, 3, 31, 128, 300, 1536] {
            for (n, count) in [(1, 1), (11, 33), (13, 64), (200, 100), (37, 1000)] {
                for offset in [0.0, 1000.0] {
                    let rows = random(&mut rng, n * dim, offset);
                    let centroids = random(&mut rng, count * dim, offset);
                    let found = run(&rows, dim, &centroids);
                    for (row, &found) in rows.chunks(dim).zip(&found) {
                        let distances: Vec<f64> =
                            centroids.chunks(dim).map(|c| squared(row, c)).collect();
                        let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
                        // Rounding may swap two that are as good as equally near.
                        let allowed = least + 1e-6 * dim as f64;
                        assert!(distances[found as usize] <= allowed, "{dim} dimensions");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_centroids_find_themselves() {
        let mut rng = SmallRng::seed_from_u64(2);
        for dim in [2, 100, 16_000] {
            let centroids = random(&mut rng, 70 * dim, 5.0);
            assert_eq!(run(&centroids, dim, &centroids), (0..70).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn of_equals_the_first_is_taken() {
        let centroids = [3.0f32, 1.0].repeat(100);
        assert_eq!(run(&[3.0, 1.0, 0.0, 0.0], 2, &centroids), [0, 0]);
    }

    #[test]
    fn degenerate_input_gives_a_number_of_a_centroid() {
        assert_eq!(run(&[1.0, 2.0], 1, &[]), [0, 0]);
        assert_eq!(run(&[], 3, &[1.0, 2.0, 3.0]), [0u32; 0]);
        let rows = [f32::INFINITY, f32::NAN, 3e38, -3e38];
        for number in run(&rows, 2, &[1.0, f32::INFINITY, 0.0, 0.0, 3e38, -3e38]) {
            assert!(number < 3);
        }
    }

    #[test]
    fn a_raised_flag_stops_the_search() {
        let rows = vec![1.0; 3000];
        let mut out = vec![0; 1000];
        let stop = AtomicBool::new(true);
        assert_eq!(nearest(&rows, 3, &[1.0; 3], &mut out, &stop), Err(Stopped));
    }
}
