//! What a search for the nearest centroids of some rows has found so far.

use crate::simd::{Tile, TilePanels, TILE_COLS, TILE_ROWS};

const TILE_LEN: usize = TILE_ROWS * TILE_COLS;

/// For each row the least score of each column of the panels it was compared with, and the panel
/// that has it.
#[derive(Default)]
pub(super) struct Best {
    scores: Vec<Tile>,
    panels: Vec<TilePanels>,
}

impl Best {
    /// Forgets all, and takes so many rows.
    pub fn clear(&mut self, rows: usize) {
        let tiles = rows.div_ceil(TILE_ROWS);
        self.scores.clear();
        self.scores.resize(tiles, [f32::INFINITY; TILE_LEN]);
        self.panels.clear();
        self.panels.resize(tiles, [0; TILE_LEN]);
    }

    /// The tiles of rows, as kernels want them.
    pub fn tiles_mut(&mut self) -> impl Iterator<Item = (&mut Tile, &mut TilePanels)> {
        self.scores.iter_mut().zip(&mut self.panels)
    }

    /// The scores of a row and their panels.
    pub fn of(&self, row: usize) -> (&[f32], &[u32]) {
        let (tile, first) = (row / TILE_ROWS, row % TILE_ROWS * TILE_COLS);
        let columns = first..first + TILE_COLS;
        (&self.scores[tile][columns.clone()], &self.panels[tile][columns])
    }

    /// What is kept of a row's search; `number` is that of the centroid at a place.
    pub fn nearest<T: Nearest>(&self, row: usize, number: impl Fn(u32) -> u32) -> T {
        let (scores, panels) = self.of(row);
        T::of(least(scores, panels), scores, panels, number)
    }

    /// Takes for a row what was found for another.
    pub fn copy(&mut self, row: usize, other: &Best, of: usize) {
        let (tile, first) = (row / TILE_ROWS, row % TILE_ROWS * TILE_COLS);
        let columns = first..first + TILE_COLS;
        let (scores, panels) = other.of(of);
        self.scores[tile][columns.clone()].copy_from_slice(scores);
        self.panels[tile][columns].copy_from_slice(panels);
    }
}

/// What is kept of a search for the nearest centroid of a row.
pub trait Nearest: Copy + Default + Send {
    /// From the place of the nearest, and the least score of each column with its panel. `number` is
    /// that of the centroid at a place.
    fn of(place: u32, scores: &[f32], panels: &[u32], number: impl Fn(u32) -> u32) -> Self;
}

/// The number of the nearest.
impl Nearest for u32 {
    fn of(place: u32, _: &[f32], _: &[u32], number: impl Fn(u32) -> u32) -> u32 {
        number(place)
    }
}

/// The centroid of the least score among a row's columns; of equal scores the lowest number.
pub(super) fn least(scores: &[f32], panels: &[u32]) -> u32 {
    let (mut best, mut number) = (f32::INFINITY, 0);
    for (col, (&score, &panel)) in scores.iter().zip(panels).enumerate() {
        let candidate = panel * TILE_COLS as u32 + col as u32;
        if score < best || (score == best && candidate < number) {
            (best, number) = (score, candidate);
        }
    }
    number
}
