//! How many buckets margins take.

use super::path::walk;
use crate::arena::RoutingArena;
use crate::cluster::Stopped;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many buckets queries have within margins.
pub struct Tally {
    /// The margin from one number to the next.
    step: f64,
    /// Of each query, for each multiple of it.
    probes: Vec<Vec<f64>>,
    /// On average.
    means: Vec<f64>,
}

/// Numbers in a tally, how far it goes beyond the greatest margin that is asked about, and the
/// least that this is taken to be.
const TALLIED: usize = 1024;
const TALLIED_BEYOND: f64 = 1.25;
const LEAST_TALLIED: f64 = 1.0;

impl Tally {
    /// Counts the buckets that row-major queries have within margins up to a bit more than
    /// `greatest`.
    ///
    /// # Errors
    /// [`Stopped`] when `stop` was set.
    pub fn of(
        queries: &[f32],
        dims: usize,
        routing: &RoutingArena,
        greatest: f64,
        stop: &AtomicBool,
    ) -> Result<Tally, Stopped> {
        let step = greatest.max(LEAST_TALLIED) * TALLIED_BEYOND / TALLIED as f64;
        let count = |query: &[f32]| {
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let mut probes = vec![0.0; TALLIED];
            // The nearest is probed whatever its margin.
            probes[0] = 1.0;
            walk(routing, query, |probed, margin, _| {
                let at = (f64::from(margin) / step).ceil() as usize;
                if let Some(probes) = probes.get_mut(at) {
                    *probes = probed as f64;
                }
                at < TALLIED
            });
            for at in 1..TALLIED {
                probes[at] = probes[at].max(probes[at - 1]);
            }
            Ok(probes)
        };
        let probes: Result<Vec<Vec<f64>>, Stopped> = queries.par_chunks(dims).map(count).collect();
        let probes = probes?;
        let mean = |at: usize| {
            probes.iter().map(|probes| probes[at]).sum::<f64>() / probes.len().max(1) as f64
        };
        let means = (0..TALLIED).map(mean).collect();
        Ok(Tally { step, probes, means })
    }

    /// Buckets probed on average where all within a margin are, and `floor` at least.
    pub fn probed(&self, floor: f64, margin: f64) -> f64 {
        let at = self.place(margin);
        let probed = self.probes.iter().map(|probes| probes[at].max(floor));
        probed.sum::<f64>() / self.probes.len().max(1) as f64
    }

    /// The margin that has so many times as many buckets as another, as far as the tally goes. A
    /// margin of nothing remains.
    pub fn widened(&self, margin: f64, times: f64) -> f64 {
        if margin <= 0.0 {
            return margin;
        }
        let wanted = self.means[self.place(margin)] * times;
        let at = self.means.partition_point(|within| *within < wanted);
        margin.max(at.min(TALLIED - 1) as f64 * self.step)
    }

    fn place(&self, margin: f64) -> usize {
        ((margin / self.step).ceil() as usize).min(TALLIED - 1)
    }
}
