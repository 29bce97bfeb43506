//! Inner products of many rows with some points, as a blocked matrix product ([`super::assign`]).

use super::assign::{PackedCentroids, Workspace};
use super::Stopped;
use crate::simd::{TILE_COLS, TILE_ROWS};
use std::sync::atomic::AtomicBool;

/// Points that products are taken with at a time.
pub const PANEL: usize = TILE_COLS;

/// Rows that are packed at a time, at most.
pub const BLOCK: usize = 16 * TILE_ROWS;

/// Points, packed for products with rows.
pub struct Points(PackedCentroids);

/// What one thread needs for a block of rows.
#[derive(Default)]
pub struct Room(Workspace);

impl Points {
    /// Packs row-major points as they, and rows, are seen from `origin`, which has as many
    /// components as they.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn new(points: &[f32], origin: Vec<f32>, stop: &AtomicBool) -> Result<Points, Stopped> {
        let layout: Vec<u32> = (0..(points.len() / origin.len()) as u32).collect();
        Ok(Points(PackedCentroids::with_layout(points, &layout, origin, stop)?))
    }

    /// What rows and points are seen from.
    pub fn origin(&self) -> &[f32] {
        self.0.shift()
    }

    /// The squared length of each point; infinite behind the last, up to a whole panel.
    pub fn squares(&self) -> impl Iterator<Item = f32> + '_ {
        (0..self.0.panels()).flat_map(|panel| *self.0.norms(panel))
    }

    /// Calls `each` with the number of a row, that of the first point of a panel, and the products
    /// of the row with the points of that panel, for all rows and panels. Rows are row-major, and
    /// [`BLOCK`] of them at most.
    pub fn each(
        &self,
        room: &mut Room,
        rows: &[f32],
        mut each: impl FnMut(usize, usize, &[f32; PANEL]),
    ) {
        let Room(workspace) = room;
        let rows = rows.chunks_exact(self.0.dim());
        let count = rows.len();
        workspace.pack(rows, self.0.shift());
        for panel in 0..self.0.panels() {
            let first = panel * PANEL;
            workspace.products(&self.0, panel, count, |row, products| each(row, first, products));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    #[test]
    fn products_are_those_of_what_is_seen_from_the_origin() {
        let mut rng = SmallRng::seed_from_u64(1);
        for (dim, points, rows) in [(1, 1, 1), (7, 33, 50), (300, 64, BLOCK)] {
            let mut random = |count: usize| -> Vec<f32> {
                (0..count * dim).map(|_| rng.random_range(-1.0..1.0)).collect()
            };
            let (made_of, rows, origin) = (random(points), random(rows), random(1));
            let packed = Points::new(&made_of, origin.clone(), &AtomicBool::new(false)).unwrap();
            assert_eq!(packed.origin(), origin);
            let seen = |all: &[f32], nth: usize| -> Vec<f64> {
                let one = all[nth * dim..][..dim].iter().zip(&origin);
                one.map(|(x, origin)| f64::from(x - origin)).collect()
            };
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            for (nth, square) in packed.squares().enumerate().take(points) {
                let point = seen(&made_of, nth);
                assert!((f64::from(square) - product(&point, &point)).abs() < 1e-3);
            }
            assert!(packed.squares().skip(points).all(|square| square == f32::INFINITY));
            let mut calls = 0;
            packed.each(&mut Room::default(), &rows, |row, first, products| {
                for (nth, found) in (first..points).zip(products) {
                    let exact = product(&seen(&made_of, nth), &seen(&rows, row));
                    assert!((f64::from(*found) - exact).abs() < 1e-3, "{dim}");
                    calls += 1;
                }
            });
            assert_eq!(calls, points * rows.len() / dim);
        }
    }
}
