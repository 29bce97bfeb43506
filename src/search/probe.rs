//! Which buckets, and in which order.

use super::margin::Gauge;
use crate::arena::{routed_by, RoutingArena};
use crate::cluster::product_reach;
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::simd::{self, kernels, select};
use std::ops::Range;

/// The buckets in the order of their scores, sorted only as far as they are probed.
///
/// Of many centroids those of the nearest groups come first. Where they have sign codes, all of
/// these are estimated, and those that may be next are scored exactly.
pub struct ProbeOrder {
    /// Groups not looked into yet.
    groups: Vec<(f32, usize)>,
    /// The query for sign codes; none where scores are exact from the first.
    signs: Option<sign::Query>,
    /// How far beyond its centroid a bucket may reach, for each unit of its radius.
    reach: f32,
    scores: Vec<f32>,
    /// Where the scores of each group begin, and its first place.
    runs: Vec<(usize, usize)>,
    /// Exactly scored buckets, the next one last.
    batch: Vec<(f32, u32)>,
    /// Of the first `scored` of `scores` those up to this have been in a batch.
    high: Option<f32>,
    scored: usize,
    /// How many buckets the next batch has, about.
    next: usize,
    /// Made of the first batch.
    gauge: Option<Gauge>,
    /// How many have been handed out.
    handed_out: u64,
    scratch: Vec<f32>,
}

/// Buckets in the first batch at least; each further one has four times as many.
const FIRST: usize = 32;
const GROWTH: usize = 4;

/// Buckets scored exactly for each one that will be probed.
const OVERSAMPLED: usize = 2;

/// Fewer centroids than this are all scored exactly.
const FEWEST_ESTIMATED: usize = 512;

/// Centroids of the nearest groups that are looked at for each bucket scored exactly; besides, half
/// a square root of all groups is looked into.
const LOOKED_AT: usize = 12;

/// Buckets that tell of the rows that are near to a query.
const FEW_NEAREST: usize = 4;

/// The places of buckets that tell how strange a query is: neither the nearest, nor far away.
const ABOUT: Range<usize> = 8..FIRST;

impl ProbeOrder {
    /// Orders buckets `0..scores.len()` by ascending score.
    pub fn new(scores: Vec<f32>) -> ProbeOrder {
        ProbeOrder {
            groups: Vec::new(),
            signs: None,
            reach: 0.0,
            scores,
            runs: vec![(0, 0)],
            batch: Vec::new(),
            high: None,
            scored: 0,
            next: FIRST,
            gauge: None,
            handed_out: 0,
            scratch: Vec::new(),
        }
    }

    /// Orders the buckets of a router for a query, given as a point of its space, of which about
    /// `wanted` will be probed. Under cosine the query has length one.
    pub fn routed(routing: &RoutingArena, query: &[f32], wanted: u64) -> ProbeOrder {
        let metric = routing.identity().metric;
        let coding = routing.coding().filter(|_| routing.len() >= FEWEST_ESTIMATED);
        let reach = match metric {
            Metric::InnerProduct => product_reach(query, routing.rotation().dim()),
            _ => 0.0,
        };
        let score = |nth| {
            let group = routing.group(nth);
            (distance(metric, query, group.centre) - reach * group.spread, nth)
        };
        let groups = match routing.groups() {
            1 => vec![(0.0, 0)],
            many => (0..many).map(score).collect(),
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let next = if coding.is_some() { wanted.saturating_mul(OVERSAMPLED) } else { wanted };
        ProbeOrder {
            groups,
            signs: coding.map(|coding| signs(routing, coding, query)),
            reach,
            runs: Vec::new(),
            next: next.max(FIRST),
            ..ProbeOrder::new(Vec::new())
        }
    }

    /// The next bucket. `routing` and `query` are those the order was made for, if it was made for
    /// any.
    pub fn next(&mut self, routing: Option<(&RoutingArena, &[f32])>) -> Option<u32> {
        if self.batch.is_empty() {
            self.fill(routing);
        }
        self.handed_out += 1;
        self.batch.pop().map(|(_, bucket)| bucket)
    }

    /// The margin of the next bucket ([`Gauge`]). `routing` and `query` are those the order was
    /// made for.
    pub fn margin(&mut self, routing: (&RoutingArena, &[f32])) -> Option<f32> {
        if self.batch.is_empty() {
            self.fill(Some(routing));
        }
        let (score, _) = *self.batch.last()?;
        let gauge = match self.gauge {
            Some(gauge) => gauge,
            None => *self.gauge.insert(self.gauge_of(score, routing)),
        };
        Some(gauge.margin(score, self.handed_out))
    }

    /// What tells margins and strangeness, once the margin of a bucket was asked for.
    pub fn gauge(&self) -> Option<&Gauge> {
        self.gauge.as_ref()
    }

    /// The bucket that comes after `skipped` others, if it is known already.
    pub fn following(&self, skipped: usize) -> Option<u32> {
        self.batch.iter().rev().nth(skipped).map(|(_, bucket)| *bucket)
    }

    /// What tells the margins, once the nearest bucket is known.
    fn gauge_of(&self, nearest: f32, (routing, query): (&RoutingArena, &[f32])) -> Gauge {
        let metric = routing.identity().metric;
        let (mut spread, mut longest, mut count) = (0.0, 0.0f32, 0.0);
        for (_, bucket) in self.batch.iter().rev().take(FEW_NEAREST) {
            let radius = routing.radii()[*bucket as usize];
            (spread, count) = (spread + radius * radius, count + 1.0f32);
            if metric == Metric::InnerProduct {
                let point = routing.point(*bucket);
                longest = longest.max((kernels().inner_product)(point, point) + radius * radius);
            }
        }
        let query = (kernels().inner_product)(query, query).sqrt();
        let about = self.batch.iter().rev().take(ABOUT.end).skip(ABOUT.start);
        let about = about.map(|(score, bucket)| {
            let radius = routing.radii()[*bucket as usize];
            (*score, radius * radius)
        });
        Gauge::new(metric, nearest, spread / count.max(1.0), (query, longest.sqrt()))
            .with_surroundings(about)
    }

    fn fill(&mut self, routing: Option<(&RoutingArena, &[f32])>) {
        while self.batch.is_empty() {
            match routing {
                Some((routing, query)) if !self.groups.is_empty() => {
                    self.look_into_groups(routing, query);
                }
                _ if self.high == Some(f32::INFINITY) => return,
                _ => {}
            }
            self.fill_from_scores(routing);
        }
    }

    /// Scores the centroids of the nearest groups that were not looked into yet. The more buckets
    /// are asked for, the more groups: one whose centre is far may have a centroid that is near.
    fn look_into_groups(&mut self, routing: &RoutingArena, query: &[f32]) {
        let groups = routing.groups();
        let members = (routing.len() / groups).max(1);
        let for_next = self.next.saturating_mul(LOOKED_AT) / members;
        let total = groups.isqrt().div_ceil(2).saturating_add(for_next);
        // Where nothing is left of those before, there is no other way to go on.
        let least = usize::from(self.high == Some(f32::INFINITY));
        let count = total.saturating_sub(self.runs.len()).max(least);
        let order = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0);
        if count < self.groups.len() {
            self.groups.select_nth_unstable_by(count, order);
        }
        let metric = routing.identity().metric;
        self.scores.reserve(count.min(self.groups.len()) * (members + members / 4));
        for (_, nth) in self.groups.drain(..count.min(self.groups.len())) {
            let group = routing.group(nth);
            let start = self.scores.len();
            self.runs.push((start, group.places.start));
            self.scores.resize(start + group.places.len(), f32::INFINITY);
            let scores = &mut self.scores[start..];
            let signs = self.signs.as_ref().zip(routing.signs(&group));
            let estimated = signs.is_some_and(|(signs, (codes, rows))| {
                let terms = signs.for_bucket(group.centre, 0.0);
                terms.is_some_and(|terms| {
                    signs.bounds(&terms, &rows, codes, &[], scores);
                    true
                })
            });
            if !estimated || self.reach > 0.0 {
                for (score, place) in scores.iter_mut().zip(group.places) {
                    let Some(bucket) = routing.bucket_at(place) else { continue };
                    if !estimated {
                        *score = distance(metric, query, routing.point(bucket));
                    }
                    *score -= self.reach * routing.radii()[bucket as usize];
                }
            }
        }
    }

    fn fill_from_scores(&mut self, routing: Option<(&RoutingArena, &[f32])>) {
        let (before, scored) = (self.high, self.scored);
        let high = select::threshold(&self.scores, self.next, &mut self.scratch);
        let high = if high.is_nan() { f32::INFINITY } else { high };
        // A threshold for more may be less: neither is exact.
        let high = before.map_or(high, |before| before.max(high));
        let (batch, scores) = (&mut self.batch, &self.scores);
        let about = 2 * self.next.min(scores.len());
        batch.reserve(about);
        let mut runs = self.runs.iter().peekable();
        let mut shift = 0;
        let push = |at: usize| {
            while let Some((start, place)) = runs.next_if(|(start, _)| *start <= at) {
                shift = place.wrapping_sub(*start);
            }
            let place = at.wrapping_add(shift);
            let bucket = match routing {
                Some((routing, _)) => routing.bucket_at(place),
                None => Some(place as u32),
            };
            batch.extend(bucket.map(|bucket| (scores[at], bucket)));
        };
        if high < f32::INFINITY {
            let mut low = Vec::with_capacity(about);
            (kernels().up_to)(scores, high, &mut low);
            let is_new =
                |at: &usize| *at >= scored || before.is_none_or(|before| scores[*at] > before);
            low.into_iter().map(|at| at as usize).filter(is_new).for_each(push);
        } else {
            // What is not a number is up to nothing.
            let is_left = |score: f32, before: f32| {
                before < f32::INFINITY && (score.is_nan() || score > before)
            };
            let is_new = |at: &usize| {
                *at >= scored || before.is_none_or(|before| is_left(scores[*at], before))
            };
            (0..scores.len()).filter(is_new).for_each(push);
        }
        if let (Some(_), Some((routing, query))) = (&self.signs, routing) {
            let metric = routing.identity().metric;
            for (_, bucket) in batch.iter() {
                simd::prefetch(bytemuck::cast_slice(routing.point(*bucket)));
            }
            for (score, bucket) in batch.iter_mut() {
                let radius = if self.reach > 0.0 { routing.radii()[*bucket as usize] } else { 0.0 };
                *score = distance(metric, query, routing.point(*bucket)) - self.reach * radius;
            }
        }
        batch.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        self.high = Some(high);
        self.scored = self.scores.len();
        self.next = self.next.saturating_mul(GROWTH);
    }
}

/// The query as the codes of centroids take it: what these have beyond the components with a code
/// are the other components of a point.
fn signs(routing: &RoutingArena, coding: &Coding, query: &[f32]) -> sign::Query {
    let (lead, beyond) = query.split_at(coding.components);
    let beyond = (kernels().inner_product)(beyond, beyond);
    let metric = routed_by(routing.identity().metric);
    let middle = &routing.middle()[..coding.components];
    sign::Query::new(metric, coding, lead, beyond, routing.typical(), middle)
}

/// The exact score of a centroid, but for the reach of a radius.
fn distance(metric: Metric, query: &[f32], centroid: &[f32]) -> f32 {
    let k = kernels();
    match metric {
        Metric::L2 => (k.l2_squared)(query, centroid),
        Metric::L1 => (k.l1)(query, centroid),
        Metric::Cosine | Metric::InnerProduct => -(k.inner_product)(query, centroid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Groups, Routed, Router};
    use rand::{rngs::SmallRng, Rng, SeedableRng};
    use std::sync::atomic::AtomicBool;

    static STOP: AtomicBool = AtomicBool::new(false);

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

    /// How many of the nearest 30 buckets of 20 queries are among the first 30.
    fn same(router: &Router, groups: &Groups, rng: &mut SmallRng, about: &[f32]) -> usize {
        let routed = Routed { groups, ..router.routed(&STOP).unwrap() };
        let routing = RoutingArena::in_memory(1, router, &routed).unwrap();
        let mut same = 0;
        for _ in 0..20 {
            let at = rng.random_range(0..about.len() / router.dim()) * router.dim();
            let near = &about[at..][..router.dim()];
            let query: Vec<f32> = near.iter().map(|x| x + rng.random_range(-1.0..1.0)).collect();
            let mut rotated = vec![0.0; routing.rotation().padded()];
            routing.rotation().rotate(&query, &mut rotated);
            let mut scores = Vec::new();
            router.scores(&query, &mut scores);
            let exact = all(ProbeOrder::new(scores), None);
            let order = ProbeOrder::routed(&routing, &rotated, 30);
            assert_eq!(order.signs.is_some(), sign::are_used(router.metric(), router.dim()));
            let order = all(order, Some((&routing, &rotated)));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..router.len() as u32), "each comes once");
            same += exact[..30].iter().filter(|bucket| order[..30].contains(bucket)).count();
        }
        same
    }

    #[test]
    fn every_bucket_comes_once_however_many_are_wanted() {
        let mut rng = SmallRng::seed_from_u64(6);
        for (metric, dim) in [(Metric::L2, 64), (Metric::InnerProduct, 64), (Metric::L1, 5)] {
            for buckets in [1, 2, 70, 600, 4000] {
                let centroids = (0..dim * buckets).map(|_| rng.random_range(-1.0..1.0)).collect();
                let router = Router::new(metric, dim, centroids, vec![0.5; buckets]);
                let (points, dim) = router.points(&STOP).unwrap();
                let many = Groups::new(points, dim, &STOP).unwrap();
                for groups in [&Groups::one(points, dim), &many] {
                    let routed = Routed { groups, ..router.routed(&STOP).unwrap() };
                    let routing = RoutingArena::in_memory(1, &router, &routed).unwrap();
                    let query = vec![0.1; routing.rotation().padded()];
                    for wanted in [0, 1, 50, 5000, u64::MAX] {
                        let order = ProbeOrder::routed(&routing, &query, wanted);
                        let mut order = all(order, Some((&routing, &query)));
                        order.sort_unstable();
                        assert!(order.into_iter().eq(0..buckets as u32), "{buckets} {wanted}");
                    }
                }
            }
        }
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
            let (points, dim) = router.points(&STOP).unwrap();
            let groups = Groups::one(points, dim);
            let same = same(&router, &groups, &mut rng, &[0.0; 96]);
            assert!(same >= 20 * 30 / 2, "{metric:?}: {same} of 600");
        }
    }

    #[test]
    fn the_nearest_groups_have_the_first_buckets() {
        let mut rng = SmallRng::seed_from_u64(5);
        for (metric, dim) in
            [(Metric::L2, 64), (Metric::Cosine, 64), (Metric::InnerProduct, 64), (Metric::L1, 20)]
        {
            let buckets = 20_000;
            let about: Vec<f32> = (0..dim * 200).map(|_| rng.random_range(-4.0..4.0)).collect();
            let mut centroids = Vec::new();
            for _ in 0..buckets {
                let centre = &about[rng.random_range(0..200) * dim..][..dim];
                centroids.extend(centre.iter().map(|x| x + rng.random_range(-1.0f32..1.0)));
            }
            let radii = (0..buckets).map(|_| rng.random::<f32>()).collect();
            let router = Router::new(metric, dim, centroids, radii);
            let groups = router.groups(&STOP).unwrap();
            assert!(groups.len() > 100);
            let same = same(&router, groups, &mut rng, &about);
            assert!(same >= 20 * 30 * 7 / 10, "{metric:?}: {same} of 600");
        }
    }
}
