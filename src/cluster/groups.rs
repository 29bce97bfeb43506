//! Assignment to many centroids through groups of them.

use super::assign::{Best, Block, Frame, Targets, NONE_YET};
use super::kmeans::{self, by_cluster};
use super::{check, Stopped};
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// With fewer centroids than this, looking at all of them is as fast.
const FEWEST_CENTROIDS: usize = 1_000;
/// Groups looked at for each row.
const PROBES: usize = 12;
/// Iterations of k-means that find the groups.
const ITERATIONS: usize = 8;
/// Most components of the rows that are sorted by group at a time.
const COMPONENTS: usize = 1 << 21;
/// Rows multiplied at a time.
const ROWS: usize = 256;

/// Assigns rows to a set of centroids.
pub(super) enum Assigner {
    /// Looks at all centroids.
    Exact(Targets),
    /// Looks at the nearest groups of centroids.
    Grouped(Groups),
}

impl Assigner {
    /// Makes centroids ready for assignment, in groups if there are many.
    pub(super) fn new(
        centroids: &[f32],
        dim: usize,
        stop: &AtomicBool,
    ) -> Result<Assigner, Stopped> {
        if centroids.len() / dim < FEWEST_CENTROIDS {
            Ok(Assigner::Exact(Targets::new(centroids, dim)))
        } else {
            Ok(Assigner::Grouped(Groups::new(centroids, dim, PROBES, stop)?))
        }
    }

    /// Finds the nearest centroid of each row.
    pub(super) fn nearest(
        &self,
        rows: &[f32],
        out: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        match self {
            Assigner::Exact(targets) => targets.nearest(rows, out, stop),
            Assigner::Grouped(groups) => groups.nearest(rows, out, stop),
        }
    }
}

/// Centroids in about as many groups as each has members.
pub(super) struct Groups {
    frame: Frame,
    /// The centres of the groups.
    centres: Block,
    groups: Vec<Block>,
    probes: usize,
}

#[derive(Default)]
struct Scratch {
    moved: Vec<f32>,
    scores: Vec<f32>,
    order: Vec<(f32, u32)>,
    /// `probes` groups a row.
    probed: Vec<u32>,
    gathered: Vec<f32>,
    gathered_best: Vec<Best>,
    best: Vec<Best>,
}

impl Groups {
    pub(super) fn new(
        centroids: &[f32],
        dim: usize,
        probes: usize,
        stop: &AtomicBool,
    ) -> Result<Groups, Stopped> {
        let frame = Frame::new(centroids, dim);
        let count = centroids.len() / dim;
        let params = kmeans::Params {
            clusters: (count as f64).sqrt() as usize,
            iterations: ITERATIONS,
            seed: count as u64,
            spherical: false,
        };
        let centres = kmeans::train(centroids, dim, &params, stop)?;
        let mut group_of = vec![0; count];
        Targets::new(&centres, dim).nearest(centroids, &mut group_of, stop)?;
        let (starts, members) = by_cluster(&group_of, centres.len() / dim);
        let mut kept = Vec::new();
        let mut groups = Vec::new();
        for (group, ends) in starts.windows(2).enumerate() {
            if ends[0] < ends[1] {
                kept.push(group as u32);
                groups.push(Block::new(&frame, centroids, members[ends[0]..ends[1]].to_vec()));
            }
        }
        let centres = Block::new(&frame, &centres, kept);
        let probes = probes.min(groups.len());
        Ok(Groups { frame, centres, groups, probes })
    }

    pub(super) fn nearest(
        &self,
        rows: &[f32],
        out: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let dim = self.frame.dim();
        assert_eq!(rows.len(), out.len() * dim, "dimensions");
        let count = (COMPONENTS / dim).clamp(ROWS, 16 * ROWS);
        rows.par_chunks(count * dim)
            .zip(out.par_chunks_mut(count))
            .try_for_each_init(Scratch::default, |scratch, (rows, out)| {
                self.nearest_of_some(scratch, rows, out, stop)
            })
    }

    fn nearest_of_some(
        &self,
        scratch: &mut Scratch,
        rows: &[f32],
        out: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let dim = self.frame.dim();
        let Scratch { moved, scores, order, probed, gathered, gathered_best, best } = scratch;
        moved.resize(rows.len(), 0.0);
        for (row, moved) in rows.chunks_exact(dim).zip(moved.chunks_exact_mut(dim)) {
            self.frame.enter(row, moved);
        }
        best.clear();
        best.resize(out.len(), NONE_YET);
        probed.clear();
        for rows in moved.chunks(ROWS * dim) {
            check(stop)?;
            self.centres.scores(dim, rows, scores);
            for scores in scores.chunks_exact(self.centres.len()) {
                order.clear();
                order.extend(scores.iter().copied().zip(0..));
                if self.probes < order.len() {
                    order.select_nth_unstable_by(self.probes, |a, b| a.0.total_cmp(&b.0));
                }
                probed.extend(order[..self.probes].iter().map(|(_, group)| *group));
            }
        }
        let (starts, places) = by_cluster(probed, self.groups.len());
        for (group, ends) in self.groups.iter().zip(starts.windows(2)) {
            for places in places[ends[0]..ends[1]].chunks(ROWS) {
                check(stop)?;
                gathered.clear();
                gathered_best.clear();
                for place in places {
                    let row = *place as usize / self.probes;
                    gathered.extend_from_slice(&moved[row * dim..][..dim]);
                    gathered_best.push(best[row]);
                }
                group.search(dim, gathered, scores, gathered_best);
                for (place, found) in places.iter().zip(&*gathered_best) {
                    best[*place as usize / self.probes] = *found;
                }
            }
        }
        for (out, (_, id)) in out.iter_mut().zip(&*best) {
            *out = *id;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn nearly_every_row_gets_its_nearest_centroid() {
        let dim = 16;
        let mut rng = StdRng::seed_from_u64(1);
        let mut near = |middles: &[f32], count: usize, spread: f32| -> Vec<f32> {
            (0..count)
                .flat_map(|nth| {
                    let middle = nth * dim % middles.len();
                    let offsets: Vec<f32> =
                        (0..dim).map(|_| rng.random_range(-spread..spread)).collect();
                    middles[middle..][..dim]
                        .iter()
                        .zip(offsets)
                        .map(|(m, o)| m + o)
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        let middles = near(&vec![0.0; dim], 100, 1.0);
        let centroids = near(&middles, 2 * FEWEST_CENTROIDS, 0.5);
        let rows = near(&middles, 5_000, 0.5);
        let stop = AtomicBool::new(false);
        let (mut exact, mut found) = (vec![0; 5_000], vec![0; 5_000]);
        Targets::new(&centroids, dim).nearest(&rows, &mut exact, &stop).unwrap();
        let assigner = Assigner::new(&centroids, dim, &stop).unwrap();
        assert!(matches!(assigner, Assigner::Grouped(_)));
        assigner.nearest(&rows, &mut found, &stop).unwrap();
        let same = exact.iter().zip(&found).filter(|(a, b)| a == b).count();
        assert!(same >= 4_950, "{same}");
    }

    #[test]
    fn equal_centroids_are_one_group() {
        let stop = AtomicBool::new(false);
        let groups = Groups::new(&vec![1.0; 3 * FEWEST_CENTROIDS], 3, PROBES, &stop).unwrap();
        assert_eq!(groups.groups.len(), 1);
        let mut out = [7; 2];
        groups.nearest(&[1.0, 1.0, 1.0, f32::NAN, 0.0, 0.0], &mut out, &stop).unwrap();
        assert!(out.iter().all(|id| (*id as usize) < FEWEST_CENTROIDS));
    }
}
