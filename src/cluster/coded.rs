//! The nearest centroid of many rows by products of short codes.
//!
//! A processor multiplies bytes several times as fast as floats. Rows and centroids, both less the
//! centroids' mean, are rounded to multiples of a step, and the centroids whose scores then come as
//! near to the least as rounding can be to blame for are compared once more as they are. Where
//! centroids lie too close together for that, which a sample of the rows tells, nothing is coded.

use std::sync::atomic::AtomicBool;

use super::assign::PackedCentroids;
use super::best::{least, least_score, Best, Nearest};
use super::{check, Stopped};
use crate::courtesy;
use crate::simd::{
    kernels, vectorised, CodedBest, CodedCols, CodedRows, CODE_GROUP, TILE_COLS, TILE_ROWS,
};

/// Centroids below which codes save little.
pub(super) const LEAST_CENTROIDS: usize = 256;

/// Rows below which the sample would be much of the work.
pub(super) const LEAST_ROWS: usize = 1024;

/// Rows of the sample.
pub(super) const SAMPLE_ROWS: usize = 256;

/// The part of the sample that has to find its nearest centroid.
pub(super) const LEAST_AGREED: f64 = 0.99;

/// What stands for zero in a row's codes, which are not negative.
const ZERO: u8 = 64;

/// The largest absolutes of codes.
const ROW_CODES: f32 = 63.0;
const COL_CODES: f32 = 127.0;

/// Standard deviations of the rounding that two scores may be apart by.
const DEVIATIONS: f32 = 5.0;

/// Codes of packed centroids.
pub(super) struct CodedCentroids {
    dim: usize,
    /// The shifted centroids of all places, row-major.
    rows: Vec<f32>,
    /// Panels as [`CodedCols`] wants them.
    codes: Vec<i8>,
    starts: Vec<[i32; TILE_COLS]>,
    /// What a code of a centroid stands for.
    step: f32,
    /// Root of the mean squared length.
    length: f32,
}

impl CodedCentroids {
    /// Codes the centroids; none where they are not numbers.
    pub fn new(packed: &PackedCentroids, stop: &AtomicBool) -> Result<Option<Self>, Stopped> {
        let dim = packed.dim();
        let places = packed.panels() * TILE_COLS;
        let mut rows = vec![0.0; places * dim];
        let (mut widest, mut are_finite, mut squares) = (0.0f32, true, 0.0f64);
        for panel in 0..packed.panels() {
            check(stop)?;
            let out = &mut rows[panel * TILE_COLS * dim..][..TILE_COLS * dim];
            for (j, step) in packed.panel(panel).chunks_exact(TILE_COLS).enumerate() {
                for (col, x) in step.iter().enumerate() {
                    out[col * dim + j] = *x;
                    widest = widest.max(x.abs());
                    are_finite &= x.is_finite();
                }
            }
            squares += f64::from((kernels().inner_product)(out, out));
        }
        if !are_finite {
            return Ok(None);
        }
        let step = if widest > 0.0 { widest / COL_CODES } else { 1.0 };
        let groups = dim.div_ceil(CODE_GROUP);
        let mut codes = vec![0i8; places * groups * CODE_GROUP];
        let mut starts = vec![[0i32; TILE_COLS]; packed.panels()];
        let panel_codes = codes.chunks_exact_mut((groups * TILE_COLS * CODE_GROUP).max(1));
        for ((panel, codes), starts) in panel_codes.enumerate().zip(&mut starts) {
            check(stop)?;
            let (groups, _) = codes.as_chunks_mut::<{ TILE_COLS * CODE_GROUP }>();
            let mut sums = [0; TILE_COLS];
            for (j, values) in packed.panel(panel).chunks_exact(TILE_COLS).enumerate() {
                let (group, _) = groups[j / CODE_GROUP].as_chunks_mut::<CODE_GROUP>();
                for ((code, sum), x) in group.iter_mut().zip(&mut sums).zip(values) {
                    // A cast cuts off, so what is rounded is above zero; and it has bounds, where
                    // the step of the least numbers there are is zero.
                    let rounded = i32::from((x / step + 128.5) as u8) - 128;
                    code[j % CODE_GROUP] = rounded as i8;
                    *sum += rounded;
                }
            }
            *starts = sums.map(|sum| -i32::from(ZERO) * sum);
        }
        let norms = (0..packed.panels()).flat_map(|panel| packed.norms(panel));
        let count = norms.filter(|norm| norm.is_finite()).count();
        let length = (squares / count.max(1) as f64).sqrt() as f32;
        Ok(Some(CodedCentroids { dim, rows, codes, starts, step, length }))
    }

    fn panel<'a>(&'a self, packed: &'a PackedCentroids, panel: usize) -> CodedCols<'a> {
        let len = self.codes.len() / self.starts.len();
        CodedCols {
            codes: &self.codes[panel * len..][..len],
            starts: &self.starts[panel],
            norms: packed.norms(panel),
            scale: 2.0 * self.step,
        }
    }

    /// Groups of components that have a code together.
    fn code_groups(&self) -> usize {
        self.dim.div_ceil(CODE_GROUP)
    }

    fn row(&self, place: u32) -> &[f32] {
        &self.rows[place as usize * self.dim..][..self.dim]
    }
}

/// Rows and their codes.
#[derive(Default)]
pub(super) struct CodedBlock {
    /// The shifted rows, row-major.
    rows: Vec<f32>,
    /// Row-major, in whole groups.
    codes: Vec<[u8; CODE_GROUP]>,
    /// What a code of each row stands for.
    steps: Vec<f32>,
    /// What the scores of a row may be off by.
    margins: Vec<f32>,
}

impl CodedBlock {
    /// Codes the rows, to be compared with these centroids, and forgets earlier ones.
    pub fn code<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
        shift: &[f32],
        coded: &CodedCentroids,
    ) {
        let groups = coded.code_groups();
        self.rows.clear();
        self.steps.clear();
        self.margins.clear();
        self.codes.clear();
        self.codes.resize(rows.len() * groups, [ZERO; CODE_GROUP]);
        for (row, codes) in rows.zip(self.codes.chunks_exact_mut(groups)) {
            courtesy::give_way();
            let start = self.rows.len();
            let step = code_row(row, shift, &mut self.rows, codes.as_flattened_mut());
            let shifted = &self.rows[start..];
            let length = (kernels().inner_product)(shifted, shifted).sqrt();
            self.steps.push(step);
            // A component is off by a twelfth of a squared step in the mean, and counts as much as
            // the other side's is long.
            let of_row = step * step * coded.length * coded.length;
            let of_centroid = coded.step * coded.step * length * length;
            self.margins.push(DEVIATIONS * 2.0 * ((of_row + of_centroid) / 12.0).sqrt());
        }
    }

    /// Looks for nearer centroids in a panel, for the rows of a tile.
    pub fn search(
        &self,
        tile: &[u32; TILE_ROWS],
        packed: &PackedCentroids,
        coded: &CodedCentroids,
        panel: usize,
        best: CodedBest<'_>,
    ) {
        let (rows, cols) = (self.from(0, coded, tile), coded.panel(packed, panel));
        (kernels().tile_nearest_coded)(rows, cols, panel as u32, best);
    }

    /// The scores of a panel's centroids, for rows with numbers from `first` on.
    pub fn scores(
        &self,
        first: usize,
        packed: &PackedCentroids,
        coded: &CodedCentroids,
        panel: usize,
    ) -> [[f32; TILE_COLS]; TILE_ROWS] {
        let tile = tile_of(0..(self.steps.len() - first) as u32);
        let (rows, cols) = (self.from(first, coded, &tile), coded.panel(packed, panel));
        // Of one panel, the best of each column is its only one.
        let mut scores = [[f32::INFINITY; TILE_COLS]; TILE_ROWS];
        let best = CodedBest { scores: &mut scores, panels: &mut [[0; TILE_COLS]; TILE_ROWS] };
        (kernels().tile_nearest_coded)(rows, cols, panel as u32, best);
        scores
    }

    /// Rows for a kernel, which counts them from `first` on.
    fn from<'a>(
        &'a self,
        first: usize,
        coded: &CodedCentroids,
        tile: &'a [u32; TILE_ROWS],
    ) -> CodedRows<'a> {
        let groups = coded.code_groups();
        let codes = self.codes[first * groups..].as_flattened();
        CodedRows { codes, dim: groups * CODE_GROUP, scales: &self.steps[first..], tile }
    }

    /// What was found for a row; `number` is that of the centroid at a place. But for the nearest,
    /// scores are those of the codes.
    pub fn found<T: Nearest>(
        &self,
        packed: &PackedCentroids,
        coded: &CodedCentroids,
        row: usize,
        best: &Best,
        number: impl Fn(u32) -> u32,
    ) -> T {
        let (of_codes, panels) = best.of(row);
        let mut scores: [f32; TILE_COLS] = std::array::from_fn(|col| of_codes[col]);
        let high = least_score(&scores) + self.margins[row];
        let shifted = &self.rows[row * coded.dim..][..coded.dim];
        for (col, (score, panel)) in scores.iter_mut().zip(panels).enumerate() {
            *score = if *score <= high {
                let place = panel * TILE_COLS as u32 + col as u32;
                let product = (kernels().inner_product)(shifted, coded.row(place));
                packed.norms(*panel as usize)[col] - 2.0 * product
            } else {
                f32::INFINITY
            };
        }
        T::of(least(&scores, panels), of_codes, panels, number)
    }
}

vectorised! {
    /// Appends a row less `shift` to `rows`, writes its codes, and returns what one stands for.
    fn code_row(row: &[f32], shift: &[f32], rows: &mut Vec<f32>, codes: &mut [u8]) -> f32 =
        code_row_body;
}

#[inline(always)]
fn code_row_body(row: &[f32], shift: &[f32], rows: &mut Vec<f32>, codes: &mut [u8]) -> f32 {
    let start = rows.len();
    rows.extend(row.iter().zip(shift).map(|(x, shift)| x - shift));
    let row = &rows[start..];
    // Added to a small number it leaves the nearest integer in the lowest bits of the sum.
    const MAGIC: f32 = 1.5 * (1 << 23) as f32;
    let (runs, rest) = row.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    let larger = |x: f32, y: f32| if y.abs() > x { y.abs() } else { x };
    for run in runs {
        lanes.iter_mut().zip(run).for_each(|(lane, x)| *lane = larger(*lane, *x));
    }
    let widest = lanes.iter().chain(rest).copied().fold(0.0, larger);
    // A row that is not of numbers finds any centroid.
    let step = if widest.is_finite() { widest / ROW_CODES } else { 0.0 };
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(row) {
        *code = ((x * inverse + MAGIC).to_bits() as u8).wrapping_add(ZERO) & 127;
    }
    step
}

/// A tile of these rows, the last of them as often as it takes; at least one, and `TILE_ROWS` at
/// most.
pub(super) fn tile_of(rows: impl Iterator<Item = u32> + Clone) -> [u32; TILE_ROWS] {
    let mut tile = [0; TILE_ROWS];
    let mut last = 0;
    let mut rows = rows.into_iter();
    for place in &mut tile {
        last = rows.next().unwrap_or(last);
        *place = last;
    }
    tile
}

/// What one thread needs for a block of rows that look at all centroids.
#[derive(Default)]
pub(super) struct CodedWorkspace {
    /// The rows.
    pub block: CodedBlock,
    /// What was found for them.
    pub best: Best,
}

impl CodedWorkspace {
    /// Looks for the nearest of all centroids for each row of the block.
    pub fn search(
        &mut self,
        packed: &PackedCentroids,
        coded: &CodedCentroids,
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let rows = self.block.steps.len() as u32;
        self.best.clear(rows as usize);
        for panel in 0..packed.panels() {
            check(stop)?;
            for first in (0..rows).step_by(TILE_ROWS) {
                let tile = tile_of(first..rows);
                self.block.search(&tile, packed, coded, panel, self.best.rows_mut());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    /// Rows about as many centres, which lie apart by `apart` times what a row does from its own.
    fn rows(rng: &mut SmallRng, count: usize, dim: usize, centres: usize, apart: f32) -> Vec<f32> {
        let centres: Vec<f32> =
            (0..centres * dim).map(|_| rng.random_range(-apart..apart)).collect();
        let places = centres.len() / dim;
        let of = |nth: usize| &centres[nth % places * dim..][..dim];
        let mut all = Vec::new();
        for nth in 0..count {
            all.extend(of(nth).iter().map(|x| 100.0 + x + rng.random_range(-1.0f32..1.0)));
        }
        all
    }

    #[test]
    fn nearly_all_rows_find_the_nearest() {
        let mut rng = SmallRng::seed_from_u64(1);
        for dim in [24, 31, 128, 770] {
            for centres in [1, 40] {
                let rows = rows(&mut rng, 3000, dim, centres, 2.0);
                let (centroids, rows) = rows.split_at(500 * dim);
                let packed = PackedCentroids::new(centroids, dim, &STOP).unwrap();
                let coded = packed.coded(rows, &STOP).unwrap();
                assert!(coded.is_some(), "{dim} dimensions, {centres} centres");
                let mut found = vec![0; 2500];
                packed.nearest(rows, &mut found, &STOP).unwrap();
                let mut same = 0;
                for (row, place) in rows.chunks_exact(dim).zip(&found) {
                    let distance = |centroid| (kernels().l2_squared)(row, centroid);
                    let all: Vec<f32> = centroids.chunks_exact(dim).map(distance).collect();
                    let least = all.iter().copied().fold(f32::INFINITY, f32::min);
                    assert!(all[*place as usize] <= least * 1.1, "not nearly as near");
                    same += usize::from(all[*place as usize] == least);
                }
                assert!(same >= 2475, "{dim} dimensions, {centres} centres: {same}");
            }
        }
    }

    #[test]
    fn centroids_too_close_together_are_not_told_apart_by_codes() {
        let mut rng = SmallRng::seed_from_u64(2);
        for dim in [2, 16] {
            let rows = rows(&mut rng, 4000, dim, 5, 2000.0);
            let packed = PackedCentroids::new(&rows[..1000 * dim], dim, &STOP).unwrap();
            assert!(packed.coded(&rows[1000 * dim..], &STOP).unwrap().is_none(), "{dim}");
        }
    }

    #[test]
    fn what_is_no_number_has_no_codes_and_finds_any_centroid() {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut rows = rows(&mut rng, 2000, 8, 1, 2.0);
        let packed = PackedCentroids::new(&rows[..300 * 8], 8, &STOP).unwrap();
        for (nth, x) in [f32::NAN, f32::INFINITY, 3e38, f32::MIN].into_iter().enumerate() {
            rows[8 * (400 + nth)] = x;
        }
        let mut found = vec![u32::MAX; 2000];
        assert!(packed.coded(&rows, &STOP).unwrap().is_some());
        packed.nearest(&rows, &mut found, &STOP).unwrap();
        assert!(found.iter().all(|place| *place < 300));
        assert_eq!(found[..300], (0..300).collect::<Vec<u32>>());
        rows[80] = f32::NAN;
        let packed = PackedCentroids::new(&rows[..300 * 8], 8, &STOP).unwrap();
        assert!(packed.coded(&rows, &STOP).unwrap().is_none());
        packed.nearest(&rows, &mut found, &STOP).unwrap();
        assert!(found.iter().all(|place| *place < 300));
    }

    #[test]
    fn centroids_of_the_least_numbers_there_are_find_rows() {
        let mut rng = SmallRng::seed_from_u64(5);
        let least = f32::from_bits(1);
        for most in [1.0f32, 60.0, 100.0] {
            let number = |_| rng.random_range(-most..=most).round() * least;
            let rows: Vec<f32> = (0..2000 * 8).map(number).collect();
            let packed = PackedCentroids::new(&rows[..300 * 8], 8, &STOP).unwrap();
            let mut found = vec![u32::MAX; 2000];
            packed.nearest(&rows, &mut found, &STOP).unwrap();
            assert!(found.iter().all(|place| *place < 300));
        }
    }

    #[test]
    fn a_raised_flag_stops_the_search() {
        let mut rng = SmallRng::seed_from_u64(4);
        let rows = rows(&mut rng, 2000, 8, 1, 2.0);
        let packed = PackedCentroids::new(&rows[..300 * 8], 8, &STOP).unwrap();
        assert!(packed.coded(&rows, &STOP).unwrap().is_some());
        let stop = AtomicBool::new(true);
        assert_eq!(packed.nearest(&rows, &mut [0; 2000], &stop), Err(Stopped));
    }
}
