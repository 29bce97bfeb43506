//! How far a query has to go for its neighbours.

use crate::arena::RoutingArena;
use crate::metric::Metric;
use crate::quant;
use crate::search::calibration::FEW;
use crate::search::margin::Gauge;
use crate::search::probe::ProbeOrder;
use rustc_hash::FxHashMap;

/// How far it was to the neighbours of a query.
pub struct Path {
    /// Buckets probed until each was found, nearest first.
    probes: Vec<f64>,
    /// The greatest margin of these.
    margins: Vec<f64>,
    /// The neighbours' ranks.
    ranks: Vec<f64>,
    gauge: Option<Gauge>,
}

impl Path {
    /// Probes until each neighbour has been found, nearest first, of which the rank is given and a
    /// pair of buckets that it may be found in.
    pub fn until_found(
        routing: &RoutingArena,
        query: &[f32],
        wanted: impl Iterator<Item = (f64, (u32, u32))>,
    ) -> Path {
        let (mut probes, mut margins, mut ranks) = (Vec::new(), Vec::new(), Vec::new());
        let mut waiting: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
        for (nth, (rank, (first, second))) in wanted.enumerate() {
            ranks.push(rank);
            probes.push(f64::INFINITY);
            margins.push(f64::INFINITY);
            waiting.entry(first).or_default().push(nth);
            waiting.entry(second).or_default().push(nth);
        }
        let mut left = probes.len();
        let gauge = walk(routing, query, |probed, margin, bucket| {
            for nth in waiting.remove(&bucket).unwrap_or_default() {
                if probes[nth] == f64::INFINITY {
                    (probes[nth], margins[nth]) = (probed as f64, f64::from(margin));
                    left -= 1;
                }
            }
            left > 0
        });
        Path { probes, margins, ranks, gauge }
    }

    /// Buckets probed until each of the first `neighbours` was found.
    pub fn probes(&self, neighbours: usize) -> Vec<f64> {
        self.probes.iter().take(neighbours).copied().collect()
    }

    /// The margins up to which each of the first `neighbours` was found; nothing where `floor`
    /// buckets did it.
    pub fn margins(&self, neighbours: usize, floor: f64) -> Vec<f64> {
        let each = self.probes.iter().zip(&self.margins).take(neighbours);
        each.map(|(probes, margin)| if *probes <= floor { 0.0 } else { *margin }).collect()
    }

    /// How strange the query is to a search that probes `floor` buckets, and all within a margin.
    pub fn strangeness(&self, floor: f64, margin: f64) -> f32 {
        let needed = self.margins(self.ranks.len(), floor);
        let found = needed.iter().zip(&self.ranks).filter(|(needed, _)| **needed <= margin);
        let tenth = found.map(|(_, rank)| rank).nth(FEW - 1).or(self.ranks.last());
        let strangeness =
            self.gauge.zip(tenth).map(|(gauge, rank)| gauge.strangeness(*rank as f32));
        strangeness.unwrap_or(f32::NEG_INFINITY)
    }
}

/// Hands `probe` one bucket after the other, with how many that makes and the greatest margin of
/// these, as long as it wants more. Returns what the margins were told by.
pub fn walk(
    routing: &RoutingArena,
    query: &[f32],
    mut probe: impl FnMut(u64, f32, u32) -> bool,
) -> Option<Gauge> {
    let mut unit = query.to_vec();
    if routing.identity().metric == Metric::Cosine {
        quant::normalize(query, &mut unit);
    }
    let point = routing.project(&unit);
    let about = Some((routing, &point[..]));
    let mut order = ProbeOrder::routed(routing, &point, 1);
    let (mut probed, mut greatest) = (0, 0.0f32);
    while let Some(margin) = order.margin((routing, &point)) {
        let Some(bucket) = order.next(about) else { break };
        probed += 1;
        // What is not a number is within no margin.
        greatest = if margin.is_nan() { f32::INFINITY } else { greatest.max(margin) };
        if !probe(probed, greatest, bucket) {
            break;
        }
    }
    order.gauge().copied()
}
