//! Exact assignment of rows to their nearest centroids by blocked matrix products.

use super::{check, Stopped};
use gemm::{gemm, Parallelism};
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// Centroids multiplied at a time: with [`ROWS`] this keeps the products within a second-level
/// cache.
const BLOCK: usize = 512;
/// Rows multiplied at a time.
const ROWS: usize = 128;
/// Most components of the rows multiplied at a time, unless they are fewer than [`FEWEST_ROWS`].
const COMPONENTS: usize = 1 << 18;
/// Fewer rows would waste the product.
const FEWEST_ROWS: usize = 16;

/// Finds, for each row of `rows`, the centroid at the least Euclidean distance.
///
/// `rows` and `centroids` are row-major with `dim` components each, `out` has one element a row.
/// The least ||c||^2 - 2<x, c> is looked for, in single precision, after both were moved so that
/// the centroids' mean is the origin: of two centroids whose distances are the same but for that
/// rounding either may be found. A row that is not finite gets any of the centroids.
///
/// # Errors
/// [`Stopped`] once `stop` is true; `out` is then partly written.
///
/// # Panics
/// If the lengths do not agree.
pub fn nearest(
    rows: &[f32],
    dim: usize,
    centroids: &[f32],
    out: &mut [u32],
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    if out.is_empty() {
        return check(stop);
    }
    Targets::new(centroids, dim).nearest(rows, out, stop)
}

/// The coordinates products are computed in: moved to keep differences of near rows from being
/// lost in their common part, scaled by a power of two to keep squares within range.
#[derive(Clone)]
pub(super) struct Frame {
    /// The origin, already scaled.
    origin: Vec<f32>,
    scale: f32,
}

impl Frame {
    pub(super) fn new(centroids: &[f32], dim: usize) -> Frame {
        let mut mean = vec![0f64; dim];
        let mut largest = 0f32;
        for centroid in centroids.chunks_exact(dim) {
            for (mean, &x) in mean.iter_mut().zip(centroid) {
                *mean += f64::from(x);
                largest = largest.max(x.abs());
            }
        }
        let scale = power_of_two_below_inverse(largest);
        let count = (centroids.len() / dim).max(1) as f64;
        let origin = mean
            .iter()
            .map(|sum| (sum / count * f64::from(scale)) as f32)
            .map(|x| if x.is_finite() { x } else { 0.0 })
            .collect();
        Frame { origin, scale }
    }

    pub(super) fn dim(&self) -> usize {
        self.origin.len()
    }

    /// Writes `row` in these coordinates.
    pub(super) fn enter(&self, row: &[f32], out: &mut [f32]) {
        for ((out, &x), &origin) in out.iter_mut().zip(row).zip(&self.origin) {
            *out = x * self.scale - origin;
        }
    }
}

/// The power of two that brings a magnitude to about one; one for what has none.
pub(super) fn power_of_two_below_inverse(magnitude: f32) -> f32 {
    if magnitude > 0.0 && magnitude.is_finite() {
        (-magnitude.log2().ceil()).clamp(-126.0, 126.0).exp2()
    } else {
        1.0
    }
}

/// Some centroids, transposed: all first components, then all second ones, as the product wants
/// them.
pub(super) struct Block {
    ids: Vec<u32>,
    columns: Vec<f32>,
    squares: Vec<f32>,
}

/// The nearest centroid found so far: ||c||^2 - 2<x, c> and its number.
pub(super) type Best = (f32, u32);

/// Before anything was found.
pub(super) const NONE_YET: Best = (f32::INFINITY, 0);

impl Block {
    /// A block of the centroids with these numbers.
    pub(super) fn new(frame: &Frame, centroids: &[f32], ids: Vec<u32>) -> Block {
        let (dim, count) = (frame.dim(), ids.len());
        let mut columns = vec![0.0; dim * count];
        let mut squares = Vec::with_capacity(count);
        let mut moved = vec![0.0; dim];
        for (nth, id) in ids.iter().enumerate() {
            frame.enter(&centroids[*id as usize * dim..][..dim], &mut moved);
            for (column, &x) in columns.chunks_exact_mut(count).zip(&moved) {
                column[nth] = x;
            }
            squares.push(moved.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32);
        }
        Block { ids, columns, squares }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Computes ||c||^2 - 2<x, c> less ||c||^2 of rows in the frame's coordinates with all
    /// centroids, row-major.
    fn products(&self, dim: usize, rows: &[f32], out: &mut Vec<f32>) {
        let (count, width) = (rows.len() / dim, self.len());
        out.clear();
        out.resize(count * width, 0.0);
        assert!(rows.len() == count * dim && self.columns.len() == dim * width);
        // SAFETY: The three matrices are `out` (count x width), `rows` (count x dim) and
        // `columns` (dim x width), each stored row by row without gaps, of exactly the lengths
        // just asserted and allocated, and `out`, being borrowed mutably, overlaps neither of the
        // others.
        unsafe {
            gemm(
                count,
                width,
                dim,
                out.as_mut_ptr(),
                1,
                width as isize,
                false,
                rows.as_ptr(),
                1,
                dim as isize,
                self.columns.as_ptr(),
                1,
                width as isize,
                0.0,
                -2.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    /// Lowers each element of `best` where one of the centroids is nearer to its row.
    pub(super) fn search(
        &self,
        dim: usize,
        rows: &[f32],
        products: &mut Vec<f32>,
        best: &mut [Best],
    ) {
        self.products(dim, rows, products);
        for (products, best) in products.chunks_exact(self.len().max(1)).zip(best) {
            self.lower(products, best);
        }
    }

    fn lower(&self, products: &[f32], best: &mut Best) {
        // The least of some is cheaper than where it is, which is rarely asked.
        const LANES: usize = 16;
        const CHUNK: usize = 4 * LANES;
        let chunks = products.chunks(CHUNK).zip(self.squares.chunks(CHUNK));
        for (nth, (products, squares)) in chunks.enumerate() {
            let mut least = [f32::INFINITY; LANES];
            for (products, squares) in products.chunks(LANES).zip(squares.chunks(LANES)) {
                for ((least, product), square) in least.iter_mut().zip(products).zip(squares) {
                    let score = product + square;
                    *least = if score < *least { score } else { *least };
                }
            }
            if least.iter().any(|least| *least < best.0) {
                let ids = self.ids[nth * CHUNK..].iter();
                for ((product, square), id) in products.iter().zip(squares).zip(ids) {
                    let score = product + square;
                    if score < best.0 {
                        *best = (score, *id);
                    }
                }
            }
        }
    }

    /// ||c||^2 - 2<x, c> of each row with all centroids, row-major.
    pub(super) fn scores(&self, dim: usize, rows: &[f32], out: &mut Vec<f32>) {
        self.products(dim, rows, out);
        for scores in out.chunks_exact_mut(self.len().max(1)) {
            for (score, square) in scores.iter_mut().zip(&self.squares) {
                *score += square;
            }
        }
    }
}

/// Centroids, made ready for assignment.
pub(super) struct Targets {
    frame: Frame,
    blocks: Vec<Block>,
}

impl Targets {
    pub(super) fn new(centroids: &[f32], dim: usize) -> Targets {
        assert!(dim > 0 && centroids.len().is_multiple_of(dim), "dimensions");
        let frame = Frame::new(centroids, dim);
        let count = centroids.len() / dim;
        let blocks = (0..count)
            .step_by(BLOCK)
            .map(|first| {
                let ids = (first as u32..count.min(first + BLOCK) as u32).collect();
                Block::new(&frame, centroids, ids)
            })
            .collect();
        Targets { frame, blocks }
    }

    /// As the function [`nearest`].
    pub(super) fn nearest(
        &self,
        rows: &[f32],
        out: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let dim = self.frame.dim();
        assert_eq!(rows.len(), out.len() * dim, "dimensions");
        let count = (COMPONENTS / dim).clamp(FEWEST_ROWS, ROWS);
        rows.par_chunks(count * dim).zip(out.par_chunks_mut(count)).try_for_each_init(
            Scratch::default,
            |Scratch { moved, products, best }, (rows, out)| {
                moved.resize(rows.len(), 0.0);
                for (row, moved) in rows.chunks_exact(dim).zip(moved.chunks_exact_mut(dim)) {
                    self.frame.enter(row, moved);
                }
                best.clear();
                best.resize(out.len(), NONE_YET);
                for block in &self.blocks {
                    check(stop)?;
                    block.search(dim, moved, products, best);
                }
                for (out, (_, id)) in out.iter_mut().zip(best) {
                    *out = *id;
                }
                Ok(())
            },
        )
    }
}

#[derive(Default)]
struct Scratch {
    moved: Vec<f32>,
    products: Vec<f32>,
    best: Vec<Best>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn squared(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
    }

    fn assert_nearest(rows: &[f32], dim: usize, centroids: &[f32], tolerance: f64) {
        let mut out = vec![u32::MAX; rows.len() / dim];
        nearest(rows, dim, centroids, &mut out, &AtomicBool::new(false)).unwrap();
        for (row, found) in rows.chunks_exact(dim).zip(out) {
            let distances: Vec<f64> =
                centroids.chunks_exact(dim).map(|centroid| squared(row, centroid)).collect();
            let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
            let found = distances[found as usize];
            assert!(found <= least * (1.0 + tolerance), "{found} instead of {least}");
        }
    }

    fn random(seed: u64, count: usize, from: f32, to: f32) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count).map(|_| rng.random_range(from..to)).collect()
    }

    #[test]
    fn finds_what_brute_force_finds() {
        for (dim, rows, centroids) in
            [(1, 300, 7), (3, 129, 65), (17, 1000, 513), (128, 400, 1100), (1000, 40, 30)]
        {
            let rows = random(1, rows * dim, -1.0, 1.0);
            let centroids = random(2, centroids * dim, -1.0, 1.0);
            assert_nearest(&rows, dim, &centroids, 1e-5);
        }
    }

    #[test]
    fn a_common_part_does_not_drown_the_differences() {
        let (dim, count) = (32, 50);
        let rows = random(3, 500 * dim, 999.0, 1001.0);
        let centroids = random(4, count * dim, 999.0, 1001.0);
        assert_nearest(&rows, dim, &centroids, 1e-3);
    }

    #[test]
    fn magnitudes_whose_squares_have_no_place_are_told_apart() {
        for scale in [1e-35, 1e-25, 1e25, 1e35] {
            let rows = random(5, 100 * 8, -scale, scale);
            let centroids = random(6, 20 * 8, -scale, scale);
            assert_nearest(&rows, 8, &centroids, 1e-4);
        }
    }

    #[test]
    fn what_is_not_finite_harms_no_other_row() {
        let rows = [f32::NAN, 0.0, f32::INFINITY, 1.0, 0.9, 1.1];
        let mut out = [9; 3];
        nearest(&rows, 2, &[0.0, 0.0, 1.0, 1.0], &mut out, &AtomicBool::new(false)).unwrap();
        assert!(out[0] < 2 && out[1] < 2 && out[2] == 1, "{out:?}");
        nearest(&rows, 2, &[f32::INFINITY, 0.0, 1.0, 1.0], &mut out, &AtomicBool::new(false))
            .unwrap();
        assert_eq!(out[2], 1);
    }

    #[test]
    fn a_stop_is_obeyed() {
        let mut out = [0; 1];
        let found = nearest(&[1.0], 1, &[0.0], &mut out, &AtomicBool::new(true));
        assert_eq!(found, Err(Stopped));
    }
}
