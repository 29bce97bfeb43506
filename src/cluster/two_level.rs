//! The nearest centroid of many rows where there are many centroids: only groups of centroids near
//! a row are searched.
//!
//! The centroids are themselves clustered into about a square root of groups. A sample of the rows,
//! searched exactly, tells how much farther than the nearest group a row's centroid's own group may
//! lie; rows are then searched in all groups within that margin. Rows are taken group by group, so
//! that those packed together want the same groups.

use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::assign::{mean, Nearest, PackedCentroids, Workspace, EMPTY};
use super::coded::CodedWorkspace;
use super::groups::Groups;
use super::kmeans::Members;
use super::{evenly, Stopped};
use crate::simd::{TILE_COLS, TILE_ROWS};

/// Centroids below which the exact search is as fast.
pub(super) const LEAST_CENTROIDS: usize = 4000;

/// Rows below which the sample would be much of the work.
pub(super) const LEAST_ROWS: usize = 8192;

/// Rows of the sample that sets the margin.
const SAMPLE_ROWS: usize = 1024;

/// The part of the sample whose centroids are within the margin.
const WITHIN_MARGIN: f64 = 0.998;

/// The part of all centroids a row may have within its margin for two levels to be worthwhile:
/// rows searched together want the union of theirs, and choosing costs too.
const WORTHWHILE: f64 = 0.25;

/// Tiles of rows in a task.
const TASK_TILES: usize = 32;

/// Centroids in groups.
pub(super) struct GroupedCentroids {
    groups: PackedCentroids,
    /// The centroids group by group, each group from a panel of its own on.
    members: PackedCentroids,
    /// The number of the centroid at each place of `members`.
    layout: Vec<u32>,
    /// Group of each centroid.
    group_of: Vec<u32>,
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
        let mut group_of = vec![0; count];
        let (mut layout, mut first_panel) = (Vec::new(), vec![0]);
        for ((_, members), group) in grouped.iter().zip(0..) {
            members.iter().for_each(|member| group_of[*member as usize] = group);
            layout.extend_from_slice(members);
            layout.resize(layout.len().next_multiple_of(TILE_COLS), EMPTY);
            first_panel.push(layout.len() / TILE_COLS);
        }
        let members = PackedCentroids::with_layout(centroids, &layout, shift, stop)?;
        Ok(GroupedCentroids { groups, members, layout, group_of, first_panel })
    }

    /// Writes the nearest centroid of nearly every row to `out`, and of the others
    /// that of one hardly farther. Returns false, and leaves `out` as it was, when searching all
    /// centroids, which `exact` does, is faster for such rows.
    pub(super) fn nearest<T: Nearest>(
        &self,
        rows: &[f32],
        exact: &PackedCentroids,
        out: &mut [T],
        stop: &AtomicBool,
    ) -> Result<bool, Stopped> {
        let Some(margin) = self.margin(rows, exact, stop)? else { return Ok(false) };
        let dim = self.groups.shift().len();
        let mut group = vec![0u32; (rows.len() / dim).min(out.len())];
        self.groups.nearest(rows, &mut group, stop)?;
        let coded = self.members.coded(rows, stop)?;
        let order = Members::new(&group, self.groups.len()).into_rows();
        let mut found = vec![T::default(); order.len()];
        let number = |place: u32| self.layout[place as usize];
        found
            .par_chunks_mut(TASK_TILES * TILE_ROWS)
            .zip(order.par_chunks(TASK_TILES * TILE_ROWS))
            .try_for_each_init(Search::default, |search, (found, order)| {
                let tiles = found.chunks_mut(TILE_ROWS).zip(order.chunks(TILE_ROWS));
                for (found, order) in tiles {
                    let rows = order.iter().map(|&row| &rows[row as usize * dim..][..dim]);
                    search.score_groups(&self.groups, rows.clone());
                    if let Some(coded) = coded {
                        search.coded.pack(rows, self.members.shift(), coded);
                    }
                    for group in 0..self.groups.len() {
                        if search.nearest_margin(group) <= margin {
                            let panels = self.first_panel[group]..self.first_panel[group + 1];
                            match coded {
                                Some(coded) => {
                                    search.coded.search(&self.members, coded, panels, stop)?;
                                }
                                None => search.workspace.search(&self.members, panels, stop)?,
                            }
                        }
                    }
                    for (i, found) in found.iter_mut().enumerate() {
                        *found = match coded {
                            Some(coded) => search.coded.found(&self.members, coded, i, number),
                            None => search.workspace.found(i, number),
                        };
                    }
                }
                Ok(())
            })?;
        for (row, found) in order.into_iter().zip(found) {
            out[row as usize] = found;
        }
        Ok(true)
    }

    /// How much farther, in squared distance, than the nearest group's centre that of the nearest
    /// centroid's group lies, for nearly all of a sample of the rows; none when so many groups are
    /// within it that nothing is gained.
    fn margin(
        &self,
        rows: &[f32],
        exact: &PackedCentroids,
        stop: &AtomicBool,
    ) -> Result<Option<f32>, Stopped> {
        let dim = self.groups.shift().len();
        let sample = evenly(rows, dim, SAMPLE_ROWS.min(rows.len() / dim));
        let mut nearest = vec![0u32; sample.len() / dim];
        exact.nearest(&sample, &mut nearest, stop)?;
        let margins: Vec<(f32, Vec<f32>)> = sample
            .par_chunks(dim)
            .zip(&nearest)
            .map_init(Search::default, |search, (row, &nearest)| {
                search.score_groups(&self.groups, std::iter::once(row));
                let margins: Vec<f32> =
                    (0..self.groups.len()).map(|group| search.nearest_margin(group)).collect();
                (margins[self.group_of[nearest as usize] as usize], margins)
            })
            .collect();
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
        let all = exact.panels() * margins.len();
        let worthwhile = margin.is_finite() && searched as f64 <= WORTHWHILE * all as f64;
        Ok(worthwhile.then_some(margin))
    }
}

/// What one thread needs for a tile of rows.
#[derive(Default)]
struct Search {
    workspace: Workspace,
    coded: CodedWorkspace,
    rows: usize,
    /// For each panel of groups, the scores of each row.
    scores: Vec<[f32; TILE_COLS]>,
    /// The least score of each row.
    least: Vec<f32>,
}

impl Search {
    /// Packs the rows of one tile and scores all groups for each.
    fn score_groups<'a>(
        &mut self,
        groups: &PackedCentroids,
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
    ) {
        self.rows = rows.len();
        self.workspace.pack(rows, groups.shift());
        self.scores.clear();
        self.least.clear();
        self.least.resize(self.rows, f32::INFINITY);
        for panel in 0..groups.panels() {
            self.workspace.scores(groups, panel, self.rows, |row, scores| {
                self.scores.push(*scores);
                self.least[row] = scores.iter().copied().fold(self.least[row], f32::min);
            });
        }
    }

    /// By how much a group's score exceeds the least, for the row where that is least.
    fn nearest_margin(&self, group: usize) -> f32 {
        let scores = &self.scores[group / TILE_COLS * self.rows..][..self.rows];
        let margins = scores.iter().zip(&self.least);
        margins.fold(f32::INFINITY, |least, (scores, best)| {
            least.min(scores[group % TILE_COLS] - best)
        })
    }
}

#[cfg(test)]
mod tests {
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
        if !grouped.nearest(rows, &exact, &mut got, &STOP).unwrap() {
            assert!(got.iter().all(|&x| x == 77));
            return None;
        }
        let same = want.iter().zip(&got).filter(|(a, b)| a == b).count();
        Some(same as f64 / want.len() as f64)
    }

    #[test]
    fn nearly_all_rows_find_the_nearest() {
        let mut rng = SmallRng::seed_from_u64(1);
        for dim in [4, 24] {
            let rows = clustered(&mut rng, 10_001, dim);
            let agreed = compare(&rows, &rows[..1500 * dim], dim);
            assert!(agreed.is_some_and(|agreed| agreed >= 0.995), "{agreed:?} at {dim}");
        }
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
        let exact = PackedCentroids::new(&rows, 3, &STOP).unwrap();
        let grouped = grouped(&rows, 3);
        let mut out = vec![0; 2000];
        grouped.nearest(&rows, &exact, &mut out, &STOP).unwrap();
        assert!(out.iter().all(|&number| number < 2000));
        assert!(!grouped.nearest(&[], &exact, &mut [0u32; 0], &STOP).unwrap());
    }

    #[test]
    fn a_raised_flag_stops_the_search() {
        let rows: Vec<f32> = (0..4000).map(|i| i as f32).collect();
        let exact = PackedCentroids::new(&rows, 2, &STOP).unwrap();
        let grouped = grouped(&rows, 2);
        let stop = AtomicBool::new(true);
        let groups = Groups::one(&rows, 2);
        assert!(GroupedCentroids::new(&rows, 2, &groups, &stop).is_err());
        assert_eq!(grouped.nearest(&rows, &exact, &mut [0; 2000], &stop), Err(Stopped));
    }
}
