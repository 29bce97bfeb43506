//! Which buckets, in which order, and how many.

use super::calibration::Calibration;
use super::select;
use crate::arena::{routed_by, RoutingArena};
use crate::cluster::product_reach;
use crate::metric::Metric;
use crate::quant::sign;
use crate::simd::{self, kernels, SIGN_BLOCK};

/// The buckets in the order of their scores, sorted only as far as they are probed.
///
/// Where the centroids have sign codes, all are estimated from these, and those that may be next
/// are scored exactly.
pub struct ProbeOrder {
    scores: Vec<f32>,
    /// Whether `scores` are estimates.
    estimated: bool,
    /// Exactly scored buckets, the next one last.
    batch: Vec<(f32, u32)>,
    /// Buckets of batches so far have scores up to this.
    high: Option<f32>,
    /// How many buckets the next batch has, about.
    next: usize,
    scratch: Vec<f32>,
}

/// Buckets in the first batch at least; each further one has four times as many.
const FIRST: usize = 64;
const GROWTH: usize = 4;

/// Buckets scored exactly for each one that will be probed.
const OVERSAMPLED: usize = 4;

/// Fewer centroids than this are all scored exactly.
const FEWEST_ESTIMATED: usize = 512;

impl ProbeOrder {
    /// Orders buckets `0..scores.len()` by ascending score.
    pub fn new(scores: Vec<f32>) -> ProbeOrder {
        ProbeOrder {
            scores,
            estimated: false,
            batch: Vec::new(),
            high: None,
            next: FIRST,
            scratch: Vec::new(),
        }
    }

    /// Orders the buckets of a router for a rotated query, of which about `wanted` will be probed.
    /// Under cosine the query has length one.
    pub fn routed(routing: &RoutingArena, query: &[f32], wanted: u64) -> ProbeOrder {
        let estimates = routing.signs().filter(|_| routing.len() >= FEWEST_ESTIMATED).and_then(
            |(codes, rows)| {
                let metric = routed_by(routing.identity().metric);
                let mut prepared = sign::Query::new(metric, query, routing.typical());
                let terms = prepared.for_bucket(routing.mean(), 0.0)?;
                let mut scores = vec![0.0; routing.len().next_multiple_of(SIGN_BLOCK)];
                prepared.bounds(&terms, rows, codes, &mut scores);
                scores.truncate(routing.len());
                Some(scores)
            },
        );
        let estimated = estimates.is_some();
        let mut scores = estimates.unwrap_or_else(|| {
            (0..routing.len() as u32).map(|bucket| distance(routing, query, bucket)).collect()
        });
        if routing.identity().metric == Metric::InnerProduct {
            let reach = product_reach(query, routing.rotation().dim());
            scores.iter_mut().zip(routing.radii()).for_each(|(x, radius)| *x -= reach * radius);
        }
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let next = if estimated { wanted.saturating_mul(OVERSAMPLED) } else { wanted };
        ProbeOrder { estimated, next: next.max(FIRST), ..ProbeOrder::new(scores) }
    }

    /// The next bucket. `routing` and `query` are those the order was made for; without them
    /// estimates count as scores.
    pub fn next(&mut self, routing: Option<(&RoutingArena, &[f32])>) -> Option<u32> {
        if self.batch.is_empty() {
            self.fill(routing);
        }
        self.batch.pop().map(|(_, bucket)| bucket)
    }

    /// The bucket after the next one, if it is known already.
    pub fn following(&self) -> Option<u32> {
        self.batch.len().checked_sub(1).and_then(|last| self.batch.get(last)).map(|(_, b)| *b)
    }

    fn fill(&mut self, routing: Option<(&RoutingArena, &[f32])>) {
        if self.high == Some(f32::INFINITY) {
            return;
        }
        let before = self.high;
        let high = select::threshold(&self.scores, self.next, &mut self.scratch);
        let (batch, scores) = (&mut self.batch, &self.scores);
        select::up_to(scores, high, |bucket| {
            if before.is_none_or(|before| scores[bucket] > before) {
                batch.push((scores[bucket], bucket as u32));
            }
        });
        if high == f32::INFINITY {
            // What is not a number is up to nothing.
            let unknown = scores.iter().zip(0..).filter(|(score, _)| score.is_nan());
            batch.extend(unknown.map(|(score, bucket)| (*score, bucket)));
        }
        if let (true, Some((routing, query))) = (self.estimated, routing) {
            let offset = match routing.identity().metric {
                Metric::InnerProduct => product_reach(query, routing.rotation().dim()),
                _ => 0.0,
            };
            for (_, bucket) in batch.iter() {
                simd::prefetch(bytemuck::cast_slice(routing.centroid(*bucket)));
            }
            for (score, bucket) in batch.iter_mut() {
                let radius = if offset > 0.0 { routing.radii()[*bucket as usize] } else { 0.0 };
                *score = distance(routing, query, *bucket) - offset * radius;
            }
        }
        batch.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        self.high = Some(high);
        self.next = self.next.saturating_mul(GROWTH);
        if batch.is_empty() {
            self.fill(routing);
        }
    }
}

/// The exact score of a bucket, but for the reach of its radius.
fn distance(routing: &RoutingArena, query: &[f32], bucket: u32) -> f32 {
    let (k, centroid) = (kernels(), routing.centroid(bucket));
    match routing.identity().metric {
        Metric::L2 => (k.l2_squared)(query, centroid),
        Metric::L1 => (k.l1)(query, centroid),
        Metric::Cosine | Metric::InnerProduct => -(k.inner_product)(query, centroid),
    }
}

/// How many buckets are probed for a wanted recall.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    first: u64,
    exact: bool,
}

impl Effort {
    /// The effort to find `recall` of the nearest rows in `buckets` buckets.
    ///
    /// Counted in buckets, not in rows, it holds when rows crowd into some buckets after the
    /// calibration. From 1 on, all are probed and every bound is rigorous.
    pub fn new(recall: f64, buckets: usize, calibration: &Calibration) -> Effort {
        if recall >= 1.0 {
            return Effort { first: u64::MAX, exact: true };
        }
        let first = (buckets as f64 * calibration.share(recall)).ceil() as u64;
        Effort { first: first.max(1), exact: false }
    }

    /// The effort of probing so many buckets first.
    pub fn of(first: u64) -> Effort {
        Effort { first: first.max(1), exact: false }
    }

    /// Buckets to have probed before row number `delivered` (from 0) is handed out.
    ///
    /// It grows as the square: many more rows are asked for only behind a filter, and then few
    /// that are near may still be unseen by the time farther ones go out.
    pub fn buckets(&self, delivered: u64) -> u64 {
        let growth = delivered.saturating_mul(delivered) / DELIVERED_PER_FIRST.pow(2);
        self.first.saturating_mul(1 + growth)
    }

    /// Whether nothing may be missed.
    pub fn is_exact(&self) -> bool {
        self.exact
    }
}

/// Below this many rows, looking at all of them costs less than choosing.
pub const FEWEST_ROWS: u64 = 1_000;
/// Rows delivered before the probed set is twice as wide.
const DELIVERED_PER_FIRST: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Router;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    fn all(mut order: ProbeOrder, routing: Option<(&RoutingArena, &[f32])>) -> Vec<u32> {
        std::iter::from_fn(|| order.next(routing)).collect()
    }

    #[test]
    fn buckets_come_in_the_order_of_their_scores() {
        let scores: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        let order = all(ProbeOrder::new(scores.clone()), None);
        assert_eq!(order.len(), scores.len());
        assert!(order.windows(2).all(|w| scores[w[0] as usize] < scores[w[1] as usize]));
    }

    #[test]
    fn no_bucket_is_no_probe_and_every_bucket_comes_once() {
        assert!(all(ProbeOrder::new(Vec::new()), None).is_empty());
        for scores in [vec![1.0; 300], vec![f32::NAN; 300], vec![f32::INFINITY; 300]] {
            let mut order = all(ProbeOrder::new(scores), None);
            order.sort_unstable();
            assert_eq!(order, (0..300).collect::<Vec<u32>>());
        }
        let mut scores = vec![0.5; 500];
        scores[7] = f32::NAN;
        scores[100] = f32::NEG_INFINITY;
        let order = all(ProbeOrder::new(scores), None);
        assert_eq!((order.len(), order[0], order[499]), (500, 100, 7));
    }

    #[test]
    fn estimates_lead_to_the_same_first_buckets() {
        let mut rng = SmallRng::seed_from_u64(2);
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
            let (dim, buckets) = (96, 3000);
            let centroids: Vec<f32> =
                (0..dim * buckets).map(|_| 0.3 + rng.random_range(-1.0f32..1.0)).collect();
            let radii = (0..buckets).map(|_| rng.random::<f32>()).collect();
            let router = Router::new(metric, dim, centroids, radii);
            let routing = RoutingArena::in_memory(1, &router).unwrap();
            let mut same = 0;
            for _ in 0..20 {
                let query: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
                let mut rotated = vec![0.0; routing.rotation().padded()];
                routing.rotation().rotate(&query, &mut rotated);
                let mut scores = Vec::new();
                router.scores(&query, &mut scores);
                let exact = all(ProbeOrder::new(scores), None);
                let order = ProbeOrder::routed(&routing, &rotated, 30);
                assert!(order.estimated);
                let order = all(order, Some((&routing, &rotated)));
                assert_eq!(order.len(), buckets);
                same += exact[..30].iter().filter(|bucket| order[..30].contains(bucket)).count();
            }
            assert!(same >= 20 * 30 * 7 / 10, "{metric:?}: {same} of 600");
        }
    }

    #[test]
    fn more_recall_is_never_less_effort() {
        let shares = [0.001, 0.002, 0.003, 0.005, 0.008, 0.01, 0.02, 0.03];
        let calibration = Calibration::from_shares(shares).unwrap();
        for buckets in [0, 1, 10, 10_000, 1_000_000] {
            let efforts: Vec<u64> = [0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0]
                .iter()
                .map(|recall| Effort::new(*recall, buckets, &calibration).buckets(0))
                .collect();
            assert!(efforts.is_sorted(), "{buckets}: {efforts:?}");
        }
    }

    #[test]
    fn the_probed_set_widens_ahead_of_what_is_delivered() {
        let calibration = Calibration::from_shares([0.01; 8]).unwrap();
        let effort = Effort::new(0.95, 8_000, &calibration);
        assert_eq!(effort.buckets(0), effort.buckets(50));
        assert!(effort.buckets(1000) >= 5 * effort.buckets(0));
    }
}
