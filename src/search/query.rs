//! One query: what was probed, what is known of it, and what comes next.

use super::calibration::FEW;
use super::effort::{Effort, Goal, FEWEST_ROWS};
use super::frontier::{Candidate, Frontier};
use super::probe::ProbeOrder;
use super::shortlist::{Estimated, Shortlist};
use crate::arena::{RoutingArena, SignCodes};
use crate::metric::Metric;
use crate::quant::{self, approximate, BucketQuery, Estimate, Factors};
use crate::simd::{self, kernels};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// The codes of a bucket's rows.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// Number of the bucket.
    pub bucket: u32,
    /// Its place in the segment's table.
    pub entry: u32,
    /// The segment's row that the first code belongs to.
    pub first_row: u64,
    /// One a row.
    pub factors: &'a [Factors],
    /// `stride` bytes a row.
    pub codes: &'a [i8],
    /// Bytes from one row's code to the next one's.
    pub stride: usize,
    /// Sign codes, if there are any.
    pub signs: Option<SignCodes<'a>>,
}

/// What a segment knows of one bucket's rows.
#[derive(Clone, Copy, Debug)]
pub enum Bucket<'a> {
    /// It has none.
    Empty,
    /// Their codes.
    Coded(Coded<'a>),
    /// The codes are not to be had: all rows are read. One that was spilled may come twice.
    Uncoded {
        /// The first of them.
        first_row: u64,
        /// How many they are.
        rows: u64,
    },
}

/// The rows of an index's segments.
pub trait Rows {
    /// Why a row cannot be read.
    type Error;

    /// Number of segments.
    fn segments(&self) -> u32;

    /// What `segment` has in `bucket`.
    fn bucket(&self, segment: u32, bucket: u32) -> Bucket<'_>;

    /// Asks the processor for what tells where the codes of `bucket` are, which will be asked for
    /// next. A hint.
    fn prefetch_place(&self, _segment: u32, _bucket: u32) {}

    /// The bytes of the codes of `bucket`, which will be looked at next, for the processor to be
    /// asked for. A hint: they need not be sound, nor there.
    fn codes_ahead(&self, _segment: u32, _bucket: u32) -> &[u8] {
        &[]
    }

    /// Asks the processor for what the table of `segment` has at this place. A hint.
    fn prefetch_entry(&self, _segment: u32, _entry: u32) {}

    /// What `segment` has in the bucket at this place of its table; sign codes may be left out.
    fn entry(&self, segment: u32, entry: u32) -> Bucket<'_>;

    /// Asks the processor for the vector of a row that will be wanted soon. A hint.
    fn prefetch_vector(&self, _segment: u32, _row: u64) {}

    /// Hands `with` the vector of `row` of `segment`.
    fn vector<T>(
        &mut self,
        segment: u32,
        row: u64,
        with: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, Self::Error>;
}

/// Whether rows found late, by widening the search, may come out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// They are kept back until everything else has been delivered.
    Strict,
    /// They come as soon as they are found.
    Relaxed,
    /// The search never widens.
    Off,
}

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// How many buckets to probe.
    pub effort: Effort,
    /// What happens when they are not enough.
    pub order: Order,
    /// Rows after which the search no longer widens.
    pub max_rows: u64,
    /// How many rows are likely to be wanted; a guess costs time where it is wrong, no more.
    pub expected: usize,
    /// How many rows the buckets have to be right for that are probed first.
    pub first: u64,
}

/// Where a row was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In L0, at this place of what was given to [`Search::add`].
    Memory(u32),
    /// In a segment.
    Segment {
        /// The segment's number.
        segment: u32,
        /// The row's place in it.
        row: u64,
    },
}

/// A row and its exact rank ([`Metric::rank`]).
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// Ascending is nearer.
    pub rank: f64,
    /// The row.
    pub source: Source,
}

/// A search in progress.
pub struct Search {
    metric: Metric,
    params: Params,
    query: Vec<f32>,
    /// The query as a point of the router's space, under cosine of length one.
    point: Vec<f32>,
    coded: quant::Query,
    bucket: BucketQuery,
    estimates: Vec<Estimate>,
    confidence: f32,
    /// How many rows the probed buckets are right for, and which these are.
    good_for: u64,
    goal: Goal,
    /// How unlike the rows the query is, once the first goal has been reached.
    strangeness: Option<f32>,
    probes: ProbeOrder,
    /// Rows of sign codes; none where there are none, or the search is exact.
    shortlist: Option<Shortlist>,
    /// Rows that `shortlist` has followed up, or whose bucket has no sign codes.
    frontier: Frontier,
    /// Candidates whose vectors have been asked for.
    ahead: usize,
    ready: BinaryHeap<Nearest>,
    late: BinaryHeap<Nearest>,
    last_rank: f64,
    /// The one before, if the last row delivered was in order.
    rank_before: Option<f64>,
    probed: u64,
    scanned: u64,
    delivered: u64,
}

/// How strange a query is of which nothing is known yet.
const USUAL: f32 = f32::NEG_INFINITY;

/// By how much the number of rows grows that the probed buckets are right for, when more are
/// wanted. What lies nearer than the rows delivered before comes late, so it is well ahead.
const WIDENING: u64 = 4;

/// Vectors asked for ahead of their being read.
const AHEAD: usize = 8;

impl Search {
    /// Starts a search for the rows nearest to `query`.
    ///
    /// `routing` is that of the segments [`Search::next`] will be given; none if there are none.
    pub fn new(
        metric: Metric,
        query: &[f32],
        routing: Option<&RoutingArena>,
        params: Params,
    ) -> Search {
        let mut routed = query.to_vec();
        if metric == Metric::Cosine && !quant::normalize(query, &mut routed) {
            routed.fill(0.0);
        }
        let exact = params.effort.is_exact();
        let confidence = if exact { 1.0 } else { quant::likely(query.len()) };
        let mut rotated = routed;
        let mut point = Vec::new();
        let mut rounding = 0.0;
        let mut probes = ProbeOrder::new(Vec::new());
        let mut shortlist = None;
        if let Some(routing) = routing {
            let rotation = routing.rotation();
            let unturned = std::mem::replace(&mut rotated, vec![0.0; rotation.padded()]);
            rotation.rotate(&unturned, &mut rotated);
            rounding = rotation.rounding();
            point = match routing.projection().is_learned() {
                true => routing.project(&unturned),
                false => rotated.clone(),
            };
            let about = params.effort.buckets(params.first);
            probes = ProbeOrder::routed(routing, &point, about);
            if let Some(coding) = routing.coding().filter(|_| !exact) {
                let square = (kernels().inner_product)(&unturned, &unturned);
                let beyond = routing.projection().beyond(square, &point);
                let signs = Shortlist::signs(routing, coding, &point, beyond);
                let coded = approximate::Query::new(metric, &rotated, confidence);
                shortlist = Some(Shortlist::new(signs, coded, params.expected));
            }
        }
        Search {
            metric,
            params,
            query: query.to_vec(),
            coded: quant::Query::new(metric, &rotated, rounding),
            point,
            bucket: BucketQuery::default(),
            estimates: Vec::new(),
            confidence,
            good_for: params.first,
            goal: params.effort.goal(params.first, USUAL),
            strangeness: None,
            probes,
            shortlist,
            frontier: Frontier::default(),
            ahead: 0,
            ready: BinaryHeap::new(),
            late: BinaryHeap::new(),
            last_rank: f64::NEG_INFINITY,
            rank_before: None,
            probed: 0,
            scanned: 0,
            delivered: 0,
        }
    }

    /// Goes on in the place of `earlier`, whose view is outdated: in strict order nothing goes out
    /// before what that one has delivered.
    pub fn resume(&mut self, earlier: &Search) {
        self.last_rank = earlier.last_rank;
        self.delivered = earlier.delivered;
    }

    /// Adds row number `place` of L0.
    pub fn add(&mut self, place: u32, vector: &[f32]) {
        let rank = self.metric.rank(&self.query, vector);
        self.add_ranked(place, rank);
    }

    /// Adds row number `place` of L0, whose rank is known.
    pub fn add_ranked(&mut self, place: u32, rank: f64) {
        self.ready.push(Nearest(Hit { rank, source: Source::Memory(place) }));
    }

    /// Looks at the codes of the first buckets' rows, and returns the rank up to which the rows are
    /// that will be wanted, as far as these tell: in L0, no others need be looked for until more
    /// are asked for than was expected. Infinite where codes do not tell.
    pub fn foresee<R: Rows>(&mut self, routing: Option<&RoutingArena>, rows: &R) -> f64 {
        let Some(routing) = routing.filter(|_| self.shortlist.is_some()) else {
            return f64::INFINITY;
        };
        self.probe(routing, rows);
        let Some(shortlist) = &mut self.shortlist else { return f64::INFINITY };
        if shortlist.horizon() == f32::NEG_INFINITY {
            follow_up(shortlist, routing, rows, &mut self.frontier);
        }
        f64::from(shortlist.horizon())
    }

    /// Takes back the row that [`Search::next`] has just delivered: nearer ones are to be added.
    pub fn put_back(&mut self, hit: Hit) {
        if let Some(rank) = self.rank_before.take() {
            self.last_rank = rank;
            self.delivered = self.delivered.saturating_sub(1);
        }
        self.ready.push(Nearest(hit));
    }

    /// The next row.
    ///
    /// # Errors
    /// What reading a row gave. The search cannot go on then.
    pub fn next<R: Rows>(
        &mut self,
        routing: Option<&RoutingArena>,
        rows: &mut R,
    ) -> Result<Option<Hit>, R::Error> {
        while self.delivered >= self.good_for && self.params.order != Order::Off {
            self.good_for = self.good_for.saturating_mul(WIDENING).max(1);
            let strangeness = self.strangeness.unwrap_or(USUAL);
            self.goal = self.goal.and(self.params.effort.goal(self.good_for, strangeness));
        }
        loop {
            if let Some(routing) = routing {
                self.probe(routing, rows);
            }
            while let Some(hit) = self.nearest(routing, rows)? {
                let in_order =
                    sortable(hit.rank).total_cmp(&sortable(self.last_rank)) != Ordering::Less;
                if in_order || self.params.order == Order::Relaxed {
                    self.rank_before = Some(self.last_rank);
                    self.last_rank = hit.rank;
                    self.delivered += 1;
                    return Ok(Some(hit));
                }
                self.late.push(Nearest(hit));
            }
            let probed = self.probed;
            if self.params.order != Order::Off {
                if let Some(routing) = routing {
                    self.probe_until(Goal::of((probed * 2).max(1)), routing, rows);
                }
            }
            if self.probed == probed {
                self.rank_before = None;
                return Ok(self.late.pop().map(|Nearest(hit)| hit));
            }
        }
    }

    /// Probes what the goal asks for, which is more once the query turns out to be unlike the rows.
    fn probe<R: Rows>(&mut self, routing: &RoutingArena, rows: &R) {
        self.probe_until(self.goal, routing, rows);
        if self.strangeness.is_none() && self.params.effort.heeds_strangeness() {
            let strangeness = self.find_strangeness(routing, rows).unwrap_or(USUAL);
            self.strangeness = Some(strangeness);
            self.goal = self.goal.and(self.params.effort.goal(self.good_for, strangeness));
            self.probe_until(self.goal, routing, rows);
        }
    }

    /// How strange the query is, as far as sign codes lead to its nearest rows.
    fn find_strangeness<R: Rows>(&mut self, routing: &RoutingArena, rows: &R) -> Option<f32> {
        let shortlist = self.shortlist.as_mut()?;
        if shortlist.horizon() == f32::NEG_INFINITY {
            follow_up(shortlist, routing, rows, &mut self.frontier);
        }
        let tenth = shortlist.rank_after(FEW - 1)?;
        Some(self.probes.gauge()?.strangeness(tenth))
    }

    /// Probes until the buckets of a goal have been, and enough rows looked at; not beyond the
    /// first ones once there are more rows than the search may go on after.
    fn probe_until<R: Rows>(&mut self, goal: Goal, routing: &RoutingArena, rows: &R) {
        let strangeness = self.strangeness.unwrap_or(USUAL);
        let first = self.params.effort.goal(self.params.first, strangeness);
        while let Some(margin) = self.probes.margin((routing, &self.point)) {
            if !goal.wants(self.probed, margin) && self.scanned >= FEWEST_ROWS {
                return;
            }
            if !first.wants(self.probed, margin) && self.scanned >= self.params.max_rows {
                return;
            }
            let Some(bucket) = self.probes.next(Some((routing, &self.point))) else { return };
            self.probed += 1;
            if let Some(second) = self.probes.following(1) {
                (0..rows.segments()).for_each(|segment| rows.prefetch_place(segment, second));
            }
            let next = self.probes.following(0);
            let mut prepared = false;
            for segment in 0..rows.segments() {
                let ahead = next.map_or(&[][..], |next| rows.codes_ahead(segment, next));
                match rows.bucket(segment, bucket) {
                    Bucket::Empty => prefetch_begin(ahead),
                    Bucket::Coded(codes) => {
                        if let (Some(shortlist), Some(signs)) = (&mut self.shortlist, codes.signs) {
                            self.scanned += (codes.factors.len() + signs.spilled.len()) as u64;
                            shortlist.push(segment, bucket, routing.point(bucket), signs, ahead);
                            continue;
                        }
                        self.scanned += codes.factors.len() as u64;
                        prefetch_begin(ahead);
                        if !prepared {
                            self.coded.for_bucket(routing.centroid(bucket), &mut self.bucket);
                            prepared = true;
                        }
                        self.bucket.estimate(
                            codes.factors,
                            codes.codes,
                            codes.stride,
                            self.confidence,
                            &mut self.estimates,
                        );
                        let estimates = self.estimates.iter().zip(codes.first_row..);
                        let candidate = |(estimate, row): (&Estimate, u64)| Candidate {
                            lower: estimate.lower,
                            segment,
                            row,
                        };
                        self.frontier.extend().extend(estimates.map(candidate));
                    }
                    Bucket::Uncoded { first_row, rows } => {
                        self.scanned += rows;
                        let lower = f32::NEG_INFINITY;
                        self.frontier.extend().extend(
                            (first_row..first_row + rows).map(|row| Candidate {
                                lower,
                                segment,
                                row,
                            }),
                        );
                    }
                }
            }
        }
    }

    /// The nearest row of the probed ones, once no bound is below its rank.
    fn nearest<R: Rows>(
        &mut self,
        routing: Option<&RoutingArena>,
        rows: &mut R,
    ) -> Result<Option<Hit>, R::Error> {
        loop {
            let best = self.ready.peek().map_or(f64::INFINITY, |Nearest(hit)| hit.rank);
            let lowest = self.frontier.lowest();
            // A rank that is not a number goes after every bound.
            let passes = |bound: f32| best.is_nan() || f64::from(bound) <= best;
            if let (Some(shortlist), Some(routing)) = (&mut self.shortlist, routing) {
                let horizon = shortlist.horizon();
                let next = lowest.is_none_or(|lowest| horizon <= lowest);
                if horizon < f32::INFINITY && next && passes(horizon) {
                    follow_up(shortlist, routing, rows, &mut self.frontier);
                    continue;
                }
            }
            match lowest {
                Some(lowest) if passes(lowest) => {
                    let Some(Candidate { segment, row, .. }) = self.frontier.pop() else {
                        continue;
                    };
                    if self.ahead == 0 {
                        self.ahead = AHEAD;
                        for next in self.frontier.upcoming(AHEAD) {
                            rows.prefetch_vector(next.segment, next.row);
                        }
                    }
                    self.ahead -= 1;
                    let (metric, query) = (self.metric, &self.query);
                    let rank = rows.vector(segment, row, |vector| metric.rank(query, vector))?;
                    self.ready
                        .push(Nearest(Hit { rank, source: Source::Segment { segment, row } }));
                }
                _ => return Ok(self.ready.pop().map(|Nearest(hit)| hit)),
            }
        }
    }
}

/// Asks the processor for the first of a bucket's codes. Its own prefetching goes on from there,
/// across a page.
fn prefetch_begin(codes: &[u8]) {
    const BEGIN: usize = 2048;
    simd::prefetch(&codes[..codes.len().min(BEGIN)]);
}

/// Moves rows of sign codes that may be the next to those whose int8 codes have been looked at.
fn follow_up<R: Rows>(
    shortlist: &mut Shortlist,
    routing: &RoutingArena,
    rows: &R,
    frontier: &mut Frontier,
) {
    let found = frontier.extend();
    shortlist.follow_up(routing, rows, |row| {
        let Estimated { segment, row, lower } = row;
        found.push(Candidate { lower, segment, row });
    });
}

/// A hit that is greater the nearer it is, as [`BinaryHeap`] wants it.
struct Nearest(Hit);

impl Ord for Nearest {
    fn cmp(&self, other: &Nearest) -> Ordering {
        sortable(other.0.rank).total_cmp(&sortable(self.0.rank))
    }
}

/// SQL has one NaN, greater than all numbers, and one zero.
fn sortable(rank: f64) -> f64 {
    if rank.is_nan() {
        f64::NAN
    } else {
        rank + 0.0
    }
}

impl PartialOrd for Nearest {
    fn partial_cmp(&self, other: &Nearest) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Nearest {
    fn eq(&self, other: &Nearest) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Nearest {}
