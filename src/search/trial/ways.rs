//! The cheapest way to a recall: how many buckets are probed at least, and within what margin all
//! are.
//!
//! A margin alone takes the fewest buckets where neighbours lie about a query as rows lie about each
//! other. It takes too many where some queries all but are centroids, or equal rows fill buckets:
//! there a number does it. Mostly it is some of both.

use super::needed::needed;
use super::path::Path;
use super::tally::Tally;
use super::{GREATEST_MARGIN, SAFETY};
use crate::search::calibration::{Calibration, Margins, Shares, FEW, MANY, RECALLS};
use rayon::prelude::*;

/// Of the number of buckets that would do alone, the parts that are tried together with a margin.
const PARTS: [f64; 7] = [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0];

/// So many buckets, and all within a margin.
#[derive(Clone, Copy)]
struct Way {
    floor: f64,
    margin: f64,
}

/// The cheapest calibration for these queries among `buckets` buckets.
pub fn cheapest(paths: &[Path], tally: &Tally, buckets: usize) -> Option<Calibration> {
    let of = |neighbours| ways(paths, tally, neighbours, buckets as f64);
    let (few, mut many) = (ascending(of(FEW)), of(MANY));
    many.iter_mut().zip(few).for_each(|(many, few)| *many = many.and(few));
    let many = ascending(many);
    let ways = [few, many];
    let share = |probes: f64| (probes / buckets.max(1) as f64).min(1.0) as f32;
    let probed = |way: Way| share(tally.probed(way.floor, way.margin));
    let shares: [Shares; 2] = ways.map(|ways| ways.map(probed));
    let floors: [Shares; 2] = ways.map(|ways| ways.map(|way| share(way.floor)));
    let margins: [Margins; 2] = ways.map(|ways| ways.map(|way| way.margin as f32));
    Calibration::from_shares(shares)?.with_margins(floors, margins)
}

impl Way {
    /// What both take.
    fn and(self, other: Way) -> Way {
        Way { floor: self.floor.max(other.floor), margin: self.margin.max(other.margin) }
    }
}

/// More recall takes no less.
fn ascending(mut ways: [Way; RECALLS.len()]) -> [Way; RECALLS.len()] {
    for nth in 1..ways.len() {
        ways[nth] = ways[nth].and(ways[nth - 1]);
    }
    ways
}

/// The cheapest way to each recall of the first `neighbours` of each query, with some safety.
fn ways(paths: &[Path], tally: &Tally, neighbours: usize, buckets: f64) -> [Way; RECALLS.len()] {
    let probes: Vec<Vec<f64>> = paths.iter().map(|path| path.probes(neighbours)).collect();
    RECALLS.map(|recall| {
        let alone = needed(&probes, recall).min(buckets);
        let tried = PARTS.par_iter().map(|part| {
            let floor = (alone * part).ceil();
            let margins: Vec<Vec<f64>> =
                paths.iter().map(|path| path.margins(neighbours, floor)).collect();
            let margin = needed(&margins, recall).min(GREATEST_MARGIN);
            Way { floor: floor * SAFETY, margin: tally.widened(margin, SAFETY) }
        });
        let cost = |way: &Way| tally.probed(way.floor, way.margin);
        let all = Way { floor: buckets, margin: 0.0 };
        tried.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(all)
    })
}
