//! What a search for the nearest centroids of some rows has found so far.

use crate::simd::{vectorised, CodedBest, Tile, TilePanels, TILE_COLS, TILE_ROWS};

const TILE_LEN: usize = TILE_ROWS * TILE_COLS;

/// For each row the least score of each column of the panels it was compared with, and the panel
/// that has it.
#[derive(Default)]
pub(super) struct Best {
    scores: Vec<[f32; TILE_COLS]>,
    panels: Vec<[u32; TILE_COLS]>,
}

impl Best {
    /// Forgets all, and takes so many rows.
    pub fn clear(&mut self, rows: usize) {
        let rows = rows.next_multiple_of(TILE_ROWS);
        self.scores.clear();
        self.scores.resize(rows, [f32::INFINITY; TILE_COLS]);
        self.panels.clear();
        self.panels.resize(rows, [0; TILE_COLS]);
    }

    /// All rows, for a kernel that is told which of them.
    pub fn rows_mut(&mut self) -> CodedBest<'_> {
        CodedBest { scores: &mut self.scores, panels: &mut self.panels }
    }

    /// The tiles of rows, as kernels want them.
    pub fn tiles_mut(&mut self) -> impl Iterator<Item = (&mut Tile, &mut TilePanels)> {
        let (scores, _) = self.scores.as_flattened_mut().as_chunks_mut::<TILE_LEN>();
        let (panels, _) = self.panels.as_flattened_mut().as_chunks_mut::<TILE_LEN>();
        scores.iter_mut().zip(panels)
    }

    /// The scores of a row and their panels.
    pub fn of(&self, row: usize) -> (&[f32], &[u32]) {
        (&self.scores[row], &self.panels[row])
    }

    /// What is kept of a row's search; `number` is that of the centroid at a place.
    pub fn nearest<T: Nearest>(&self, row: usize, number: impl Fn(u32) -> u32) -> T {
        let (scores, panels) = self.of(row);
        T::of(least(scores, panels), scores, panels, number)
    }

    /// Takes for a row what was found for another.
    pub fn copy(&mut self, row: usize, other: &Best, of: usize) {
        self.scores[row] = other.scores[of];
        self.panels[row] = other.panels[of];
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
