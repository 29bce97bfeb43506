//! What a search for the nearest centroids of some rows has found so far.

use crate::simd::{vectorised, Tile, TilePanels, TILE_COLS, TILE_ROWS};

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

vectorised! {
    /// The centroid of the least score among a row's columns; of equal scores the lowest number, and
    /// of none below infinity 0.
    pub(super) fn least(scores: &[f32], panels: &[u32]) -> u32 = least_body;
    /// The least of the scores; what is not a number is passed over.
    pub(super) fn least_score(scores: &[f32]) -> f32 = least_score_body;
}

#[inline(always)]
fn least_body(scores: &[f32], panels: &[u32]) -> u32 {
    let best = least_score_body(scores);
    let mut number = u32::MAX;
    for (col, (&score, &panel)) in scores.iter().zip(panels).enumerate() {
        let candidate = panel * TILE_COLS as u32 + col as u32;
        number = number.min(if score == best { candidate } else { u32::MAX });
    }
    if best < f32::INFINITY {
        number
    } else {
        0
    }
}

#[inline(always)]
fn least_score_body(scores: &[f32]) -> f32 {
    const LANES: usize = 16;
    let less = |x: f32, y: f32| if y < x { y } else { x };
    let (runs, rest) = scores.as_chunks::<LANES>();
    let mut lanes = [f32::INFINITY; LANES];
    for run in runs {
        for (lane, score) in lanes.iter_mut().zip(run) {
            *lane = less(*lane, *score);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::INFINITY, less)
}
