//! The nearest centroid of many rows where there are many centroids: only groups of centroids near
//! a row are searched.
//!
//! The centroids are themselves clustered into about a square root of groups. A sample of the rows,
//! searched exactly, tells how much farther than the nearest group a row's centroid's own group may
//! lie; rows are then searched in all groups within that margin. This goes group by group, so that
//! full tiles of rows that want a group run past its centroids, wherever else each of them looks.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::assign::{mean, PackedCentroids, Workspace, EMPTY};
use super::best::{Best, Nearest};
use super::coded::{tile_of, CodedBlock, CodedCentroids};
use super::groups::{Groups, FEWEST_GROUPED};
use super::{check, evenly, Stopped};
use crate::courtesy;
use crate::simd::{kernels, TILE_COLS, TILE_ROWS};

/// Centroids below which the exact search is as fast.
pub(super) const LEAST_CENTROIDS: usize = FEWEST_GROUPED;

/// Rows below which the sample would be much of the work.
pub(super) const LEAST_ROWS: usize = 2048;

/// Rows of the sample that sets the margin, at least and at most, and its share of all.
const FEWEST_SAMPLED: usize = 256;
const SAMPLE_ROWS: usize = 1024;
const SAMPLE_SHARE: usize = 32;

/// The part of the sample whose centroids are within the margin.
const WITHIN_MARGIN: f64 = 0.995;

/// The part of all centroids a row may have within its margin for two levels to be worthwhile:
/// choosing costs too.
const WORTHWHILE: f64 = 0.5;

/// Rows of a task, unless there are too few for all threads: enough to fill tiles with those that
/// want a group, and few enough for them, and what is found for them, to stay in a core's
/// second-level cache.
const TASK_ROWS: usize = 1024;
const TASK_BYTES: usize = 1 << 20;

/// Centroids that each row is compared with at least, so that others than the nearest are known.
const FEWEST_COMPARED: usize = 16;

/// Rows that are compared with the groups at a time.
const SCORED_ROWS: usize = 8 * TILE_ROWS;

/// Writes the number of the nearest of `centroids` to each row to `out`, of nearly every row where
/// two levels are faster; see [`PackedCentroids::nearest`].
///
/// # Errors
/// [`Stopped`] when the flag went up.
pub(super) fn nearest(
    rows: &[f32],
    dim: usize,
    centroids: &[f32],
    out: &mut [u32],
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    let count = |values: &[f32]| values.len().checked_div(dim).unwrap_or(0);
    if count(centroids) >= LEAST_CENTROIDS && count(rows) >= LEAST_ROWS {
        let groups = Groups::new(centroids, dim, stop)?;
        let grouped = GroupedCentroids::new(centroids, dim, &groups, stop)?;
        if grouped.nearest(rows, out, stop)? {
            return Ok(());
        }
    }
    PackedCentroids::new(centroids, dim, stop)?.nearest(rows, out, stop)
}

/// Centroids in groups.
pub(super) struct GroupedCentroids {
    groups: PackedCentroids,
    /// The codes of the groups' centres; none where these are not numbers.
    coded_groups: Option<CodedCentroids>,
    /// The centroids group by group, each group from a panel of its own on.
    members: PackedCentroids,
    /// The number of the centroid at each place of `members`.
    layout: Vec<u32>,
    /// Group of each centroid.
    group_of: Vec<u32>,
    /// Centroids of each group.
    sizes: Vec<usize>,
    /// The first panel of each group, and the number of panels.
    first_panel: Vec<usize>,
}

impl GroupedCentroids {
    /// Packs row-major centroids of `dim` components group by group.
    pub(super) fn new(
        centroids: &[f32],
        dim: usize,
        grouped: &Groups,
        stop: &AtomicBool,
    ) -> Result<GroupedCentroids, Stopped> {
        let count = centroids.len() / dim;
        let shift = mean(centroids, dim, stop)?;
        let numbers: Vec<u32> = (0..grouped.len() as u32).collect();
        let groups =
            PackedCentroids::with_layout(grouped.centres(), &numbers, shift.clone(), stop)?;
        let coded_groups = CodedCentroids::new(&groups, stop)?;
        let mut group_of = vec![0; count];
        let sizes = grouped.iter().map(|(_, members)| members.len()).collect();
        let (mut layout, mut first_panel) = (Vec::new(), vec![0]);
        for ((_, members), group) in grouped.iter().zip(0..) {
            members.iter().for_each(|member| group_of[*member as usize] = group);
            layout.extend_from_slice(members);
            layout.resize(layout.len().next_multiple_of(TILE_COLS), EMPTY);
            first_panel.push(layout.len() / TILE_COLS);
        }
        let members = PackedCentroids::with_layout(centroids, &layout, shift, stop)?;
        Ok(GroupedCentroids { groups, coded_groups, members, layout, group_of, sizes, first_panel })
    }

    /// Writes the nearest centroid of nearly every row to `out`; of one in a hundred perhaps, that of
    /// the groups it was looked for in. Of equals it is any, as for a row that has none. Returns
    /// false, and leaves `out` as it was, when searching all centroids is faster for such rows.
    pub(super) fn nearest<T: Nearest>(
        &self,
        rows: &[f32],
        out: &mut [T],
        stop: &AtomicBool,
    ) -> Result<bool, Stopped> {
        let (dim, members) = (self.groups.dim(), &self.members);
        let coded = members.coded(rows, stop)?.zip(self.coded_groups.as_ref());
        let coded_groups = coded.map(|(_, groups)| groups);
        let Some(margin) = self.margin(rows, coded_groups, stop)? else { return Ok(false) };
        let number = |place: u32| self.layout[place as usize];
        let each = (rows.len() / dim).div_ceil(rayon::current_num_threads());
        let most = (TASK_BYTES / (dim * size_of::<f32>())).clamp(SCORED_ROWS, TASK_ROWS);
        let task = each.next_multiple_of(SCORED_ROWS).clamp(SCORED_ROWS, most);
        let tasks = rows.par_chunks(task * dim).zip(out.par_chunks_mut(task));
        tasks.try_for_each_init(Search::default, |search, (rows, out)| {
            let Search { choice, workspace, block, .. } = search;
            let count = rows.len() / dim;
            let (best, found) = (&mut search.best, &mut search.found);
            best.clear(count);
            let Some((coded, coded_groups)) = coded else {
                choice.make(self, rows.chunks(SCORED_ROWS * dim), margin, |scores, rows| {
                    scores.of(&self.groups, rows, stop)
                })?;
                self.each_tile(choice, best, found, |wanting, panels, found| {
                    let rows = wanting.iter().map(|row| &rows[*row as usize * dim..][..dim]);
                    workspace.pack(rows, members.shift());
                    std::mem::swap(&mut workspace.best, found);
                    workspace.search(members, panels, stop)?;
                    std::mem::swap(&mut workspace.best, found);
                    Ok(())
                })?;
                for (row, out) in out.iter_mut().enumerate().take(count) {
                    courtesy::give_way();
                    *out = best.nearest(row, number);
                }
                return Ok(());
            };
            block.code(rows.chunks_exact(dim), members.shift(), coded);
            choice.make(self, tiles(count), margin, |scores, rows| {
                scores.of_codes(&self.groups, coded_groups, block, rows, stop)
            })?;
            for (wanting, panels) in choice.wanting.iter().zip(self.first_panel.windows(2)) {
                for rows in wanting.chunks(TILE_ROWS) {
                    check(stop)?;
                    let tile = tile_of(rows.iter().copied());
                    for panel in panels[0]..panels[1] {
                        block.search(&tile, members, coded, panel, best.rows_mut());
                    }
                }
            }
            for (row, out) in out.iter_mut().enumerate().take(count) {
                courtesy::give_way();
                *out = block.found(members, coded, row, best, number);
            }
            Ok(())
        })?;
        Ok(true)
    }

    /// Calls `look` with each tile of rows that look into a group, the group's panels, and what was
    /// `found` for these rows so far, as `best` has it.
    fn each_tile(
        &self,
        choice: &Choice,
        best: &mut Best,
        found: &mut Best,
        mut look: impl FnMut(&[u32], Range<usize>, &mut Best) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        found.clear(TILE_ROWS);
        for (wanting, panels) in choice.wanting.iter().zip(self.first_panel.windows(2)) {
            for rows in wanting.chunks(TILE_ROWS) {
                let places = || rows.iter().map(|row| *row as usize).enumerate();
                places().for_each(|(place, row)| found.copy(place, best, row));
                look(rows, panels[0]..panels[1], found)?;
                places().for_each(|(place, row)| best.copy(row, found, place));
            }
        }
        Ok(())
    }

    /// How much farther, in squared distance, than the nearest group's centre that of the nearest
    /// centroid's group lies, for nearly all of a sample of the rows; none when so many groups are
    /// within it that nothing is gained.
    fn margin(
        &self,
        rows: &[f32],
        coded_groups: Option<&CodedCentroids>,
        stop: &AtomicBool,
    ) -> Result<Option<f32>, Stopped> {
        let dim = self.groups.dim();
        let count = rows.len() / dim;
        let sampled = (count / SAMPLE_SHARE).clamp(FEWEST_SAMPLED, SAMPLE_ROWS);
        let sample = evenly(rows, dim, sampled.min(count));
        let mut places = vec![0u32; sample.len() / dim];
        self.members.nearest(&sample, &mut places, stop)?;
        let (mut scores, mut block) = (Scores::default(), CodedBlock::default());
        let mut margins: Vec<(f32, Vec<f32>)> = Vec::with_capacity(places.len());
        for (rows, places) in sample.chunks(TILE_ROWS * dim).zip(places.chunks(TILE_ROWS)) {
            // As they will be for all rows, so that the margin allows for what codes are off by.
            let scores = if let Some(coded) = coded_groups {
                block.code(rows.chunks_exact(dim), self.groups.shift(), coded);
                scores.of_codes(&self.groups, coded, &block, 0..places.len(), stop)?
            } else {
                scores.of(&self.groups, rows, stop)?
            };
            for (scores, place) in scores.zip(places) {
                let least = least_of(scores);
                let scores = &scores[..self.sizes.len()];
                let margins_of: Vec<f32> = scores.iter().map(|score| score - least).collect();
                let nearest = self.layout[*place as usize] as usize;
                margins.push((margins_of[self.group_of[nearest] as usize], margins_of));
            }
        }
        let mut own: Vec<f32> = margins.iter().map(|(own, _)| *own).collect();
        own.sort_by(f32::total_cmp);
        let last = (own.len() as f64 * WITHIN_MARGIN) as usize;
        let Some(&margin) = own.get(last.min(own.len().saturating_sub(1))) else { return Ok(None) };
        let panels = |group: usize| self.first_panel[group + 1] - self.first_panel[group];
        let searched: usize = margins
            .iter()
            .flat_map(|(_, margins)| margins.iter().enumerate())
            .filter(|(_, &other)| other <= margin)
            .map(|(group, _)| panels(group))
            .sum();
        let all = self.group_of.len().div_ceil(TILE_COLS) * margins.len();
        let worthwhile = margin.is_finite() && searched as f64 <= WORTHWHILE * all as f64;
        Ok(worthwhile.then_some(margin))
    }
}

/// What one thread needs for the rows of a task.
#[derive(Default)]
struct Search {
    choice: Choice,
    /// What was found for all rows, and for a tile.
    best: Best,
    found: Best,
    workspace: Workspace,
    block: CodedBlock,
}

/// Which groups rows look into.
#[derive(Default)]
struct Choice {
    scores: Scores,
    near: Vec<u32>,
    /// For each group the rows that look into it.
    wanting: Vec<Vec<u32>>,
}

impl Choice {
    /// Chooses the groups within a margin of the nearest, for each row, or as many of the nearest as
    /// have enough centroids.
    ///
    /// `score` gives the scores of each of some rows in turn.
    fn make<R>(
        &mut self,
        grouped: &GroupedCentroids,
        rows: impl Iterator<Item = R>,
        margin: f32,
        mut score: impl for<'s> FnMut(&'s mut Scores, R) -> Result<ScoresOfRows<'s>, Stopped>,
    ) -> Result<(), Stopped> {
        let Choice { scores, near, wanting } = self;
        let sizes = &grouped.sizes;
        wanting.resize_with(sizes.len(), Vec::new);
        wanting.iter_mut().for_each(Vec::clear);
        let mut numbers = 0..;
        for rows in rows {
            for (scores, row) in score(scores, rows)?.zip(&mut numbers) {
                near.clear();
                (kernels().up_to)(scores, least_of(scores) + margin, near);
                // Behind the last group are infinite scores.
                near.retain(|group| (*group as usize) < sizes.len());
                let compared: usize = near.iter().map(|group| sizes[*group as usize]).sum();
                if compared < FEWEST_COMPARED {
                    nearest_groups(scores, sizes, near);
                }
                near.iter().for_each(|group| wanting[*group as usize].push(row));
            }
        }
        Ok(())
    }
}

/// Writes as many of the nearest groups to `near` as have enough centroids.
fn nearest_groups(scores: &[f32], sizes: &[usize], near: &mut Vec<u32>) {
    near.clear();
    near.extend(0..sizes.len() as u32);
    near.sort_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]));
    let mut compared = 0;
    let enough = near.iter().position(|group| {
        compared += sizes[*group as usize];
        compared >= FEWEST_COMPARED
    });
    near.truncate(enough.map_or(near.len(), |last| last + 1));
}

/// Scores of groups: squared distances of their centres, but for a summand that is the row's own.
#[derive(Default)]
struct Scores {
    workspace: Workspace,
    /// Row-major, of whole panels.
    of_rows: Vec<f32>,
}

/// The scores of all groups, row by row.
type ScoresOfRows<'s> = std::slice::ChunksExact<'s, f32>;

/// The numbers of so many rows in tiles.
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(TILE_ROWS).map(move |first| first..rows.min(first + TILE_ROWS))
}

impl Scores {
    /// Those of all groups for each row in turn.
    fn of(
        &mut self,
        groups: &PackedCentroids,
        rows: &[f32],
        stop: &AtomicBool,
    ) -> Result<ScoresOfRows<'_>, Stopped> {
        let (dim, width) = (groups.dim(), groups.panels() * TILE_COLS);
        let count = rows.len() / dim;
        self.workspace.pack(rows.chunks_exact(dim), groups.shift());
        self.of_rows.resize(count * width, 0.0);
        for panel in 0..groups.panels() {
            check(stop)?;
            self.workspace.scores(groups, panel, count, |row, scores| {
                let place = row * width + panel * TILE_COLS;
                self.of_rows[place..][..TILE_COLS].copy_from_slice(scores);
            });
        }
        Ok(self.of_rows.chunks_exact(width))
    }

    /// The same from the codes of a tile's rows, which are those of a block with these numbers.
    fn of_codes(
        &mut self,
        groups: &PackedCentroids,
        coded: &CodedCentroids,
        block: &CodedBlock,
        rows: Range<usize>,
        stop: &AtomicBool,
    ) -> Result<ScoresOfRows<'_>, Stopped> {
        check(stop)?;
        let width = groups.panels() * TILE_COLS;
        self.of_rows.resize(rows.len() * width, 0.0);
        for panel in 0..groups.panels() {
            let scores = block.scores(rows.start, groups, coded, panel);
            for (out, scores) in self.of_rows.chunks_exact_mut(width).zip(&scores) {
                out[panel * TILE_COLS..][..TILE_COLS].copy_from_slice(scores);
            }
        }
        Ok(self.of_rows.chunks_exact(width))
    }
}

fn least_of(scores: &[f32]) -> f32 {
    scores.iter().copied().fold(f32::INFINITY, f32::min)
}

#[cfg(test)]
mod tests {
    use super::super::spill::{Near, NO_BUCKET};
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    /// Rows about centres that are themselves scattered about fewer centres.
    fn clustered(rng: &mut SmallRng, rows: usize, dim: usize) -> Vec<f32> {
        let mut scatter = |count: usize, about: &[f32], spread: f32| -> Vec<f32> {
            let pick = |rng: &mut SmallRng| rng.random_range(0..about.len() / dim) * dim;
            let mut all = Vec::new();
            for _ in 0..count {
                let centre = &about[pick(rng)..][..dim];
                all.extend(centre.iter().map(|x| x + rng.random_range(-spread..spread)));
            }
            all
        };
        let coarse = scatter(40, &vec![0.0; dim], 10.0);
        let fine = scatter(2000, &coarse, 4.0);
        scatter(rows, &fine, 1.5)
    }

    fn grouped(centroids: &[f32], dim: usize) -> GroupedCentroids {
        let groups = Groups::new(centroids, dim, &STOP).unwrap();
        GroupedCentroids::new(centroids, dim, &groups, &STOP).unwrap()
    }

    fn compare(rows: &[f32], centroids: &[f32], dim: usize) -> Option<f64> {
        let exact = PackedCentroids::new(centroids, dim, &STOP).unwrap();
        let grouped = grouped(centroids, dim);
        let (mut want, mut got) = (vec![0; rows.len() / dim], vec![77; rows.len() / dim]);
        exact.nearest(rows, &mut want, &STOP).unwrap();
        if !grouped.nearest(rows, &mut got, &STOP).unwrap() {
            assert!(got.iter().all(|&x| x == 77));
            return None;
        }
        let same = want.iter().zip(&got).filter(|(want, got)| want == got).count();
        let far = |found: &[u32]| -> f64 {
            let centroid = |nth: &u32| &centroids[*nth as usize * dim..][..dim];
            let rows = rows.chunks_exact(dim).zip(found);
            rows.map(|(row, nth)| f64::from((kernels().l2_squared)(row, centroid(nth)))).sum()
        };
        assert!(far(&got) <= far(&want) * 1.01, "{} is not {}", far(&got), far(&want));
        Some(same as f64 / want.len() as f64)
    }

    #[test]
    fn nearly_all_rows_find_the_nearest() {
        let mut rng = SmallRng::seed_from_u64(1);
        for dim in [4, 24] {
            let rows = clustered(&mut rng, 10_001, dim);
            let agreed = compare(&rows, &rows[..1500 * dim], dim);
            assert!(agreed.is_some_and(|agreed| agreed >= 0.99), "{agreed:?} at {dim}");
        }
    }

    #[test]
    fn a_row_in_a_group_of_few_centroids_is_compared_with_others_too() {
        let mut rng = SmallRng::seed_from_u64(3);
        // Two centroids far from all others.
        let mut centroids = clustered(&mut rng, 1500, 4);
        centroids[..4].fill(500.0);
        centroids[4..8].fill(501.0);
        let mut rows = clustered(&mut rng, 4000, 4);
        rows[..4].fill(500.2);
        let grouped = grouped(&centroids, 4);
        let mut near = vec![Near::default(); 4000];
        assert!(grouped.nearest(&rows, &mut near, &STOP).unwrap());
        assert_eq!((near[0].first, near[0].others[0]), (0, 1));
        assert!(near.iter().all(|near| !near.others.contains(&NO_BUCKET)));
    }

    #[test]
    fn rows_without_structure_are_left_to_the_exact_search() {
        let mut rng = SmallRng::seed_from_u64(2);
        let rows: Vec<f32> = (0..3000 * 64).map(|_| rng.random_range(-1.0..1.0)).collect();
        assert_eq!(compare(&rows, &rows[64_000..128_000], 64), None);
    }

    #[test]
    fn degenerate_input_gives_a_number_of_a_centroid() {
        assert_ne!(compare(&[2.0; 64], &[2.0; 4000], 2), Some(0.0));
        let mut rows = vec![1.0f32; 6000];
        rows.iter_mut().step_by(7).for_each(|x| *x = f32::INFINITY);
        let grouped = grouped(&rows, 3);
        let mut out = vec![0; 2000];
        grouped.nearest(&rows, &mut out, &STOP).unwrap();
        assert!(out.iter().all(|&number| number < 2000));
        assert!(!grouped.nearest(&[], &mut [0u32; 0], &STOP).unwrap());
    }

    #[test]
    fn a_raised_flag_stops_the_search() {
        let rows: Vec<f32> = (0..4000).map(|i| i as f32).collect();
        let grouped = grouped(&rows, 2);
        let stop = AtomicBool::new(true);
        let groups = Groups::one(&rows, 2);
        assert!(GroupedCentroids::new(&rows, 2, &groups, &stop).is_err());
        assert_eq!(grouped.nearest(&rows, &mut [0; 2000], &stop), Err(Stopped));
    }
}
