//! One query: what was probed, what is known of it, and what comes next.

use super::frontier::{Candidate, Frontier};
use super::probe::{Effort, ProbeOrder, FEWEST_ROWS};
use crate::cluster::Router;
use crate::metric::Metric;
use crate::quant::{self, BucketQuery, Estimate, Factors};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What a segment knows of one bucket's rows.
pub enum Bucket<'a> {
    /// It has none.
    Empty,
    /// Codes of its rows, which stand from `first_row` on.
    Coded {
        /// The segment's row that the first code belongs to.
        first_row: u64,
        /// One a row.
        factors: &'a [Factors],
        /// `stride` bytes a row.
        codes: &'a [i8],
        /// Bytes from one row's code to the next one's.
        stride: usize,
    },
    /// The codes are not to be had: all rows are read.
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
    fn bucket(&mut self, segment: u32, bucket: u32) -> Bucket<'_>;

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
    coded: quant::Query,
    bucket: BucketQuery,
    estimates: Vec<Estimate>,
    confidence: f32,
    probes: ProbeOrder,
    frontier: Frontier,
    ready: BinaryHeap<Nearest>,
    late: BinaryHeap<Nearest>,
    last_rank: f64,
    /// The one before, if the last row delivered was in order.
    rank_before: Option<f64>,
    probed: u64,
    scanned: u64,
    delivered: u64,
}

/// Standard deviations that separate an estimate from its lower bound unless the search is exact.
const DEVIATIONS: f32 = 3.0;

impl Search {
    /// Starts a search for the rows nearest to `query`.
    ///
    /// `router` is that of the segments [`Search::next`] will be given; none if there are none.
    pub fn new(metric: Metric, query: &[f32], router: Option<&Router>, params: Params) -> Search {
        let mut routed = query.to_vec();
        if metric == Metric::Cosine && !quant::normalize(query, &mut routed) {
            routed.fill(0.0);
        }
        let mut scores = Vec::new();
        if let Some(router) = router {
            router.scores(&routed, &mut scores);
        }
        let confidence = if params.effort.is_exact() {
            1.0
        } else {
            (DEVIATIONS / (query.len() as f32).sqrt()).min(1.0)
        };
        Search {
            metric,
            params,
            query: query.to_vec(),
            coded: quant::Query::new(metric, &routed),
            bucket: BucketQuery::default(),
            estimates: Vec::new(),
            confidence,
            probes: ProbeOrder::new(&scores),
            frontier: Frontier::default(),
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
        router: Option<&Router>,
        rows: &mut R,
    ) -> Result<Option<Hit>, R::Error> {
        let mut wanted = match self.params.order {
            Order::Off => self.params.effort.buckets(0),
            _ => self.params.effort.buckets(self.delivered),
        };
        loop {
            if let Some(router) = router {
                self.probe_until(wanted, router, rows);
            }
            while let Some(hit) = self.nearest(rows)? {
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
                wanted = (probed * 2).max(1);
                if let Some(router) = router {
                    self.probe_until(wanted, router, rows);
                }
            }
            if self.probed == probed {
                self.rank_before = None;
                return Ok(self.late.pop().map(|Nearest(hit)| hit));
            }
        }
    }

    /// Probes until `wanted` buckets have been, and enough rows looked at; not beyond the first
    /// ones once there are more rows than the search may go on after.
    fn probe_until<R: Rows>(&mut self, wanted: u64, router: &Router, rows: &mut R) {
        let first = self.params.effort.buckets(0);
        while self.probed < wanted || self.scanned < FEWEST_ROWS {
            if self.probed >= first && self.scanned >= self.params.max_rows {
                return;
            }
            let Some(bucket) = self.probes.next() else { return };
            self.probed += 1;
            self.coded.for_bucket(router.centroid(bucket as usize), &mut self.bucket);
            for segment in 0..rows.segments() {
                match rows.bucket(segment, bucket) {
                    Bucket::Empty => {}
                    Bucket::Coded { first_row, factors, codes, stride } => {
                        self.scanned += factors.len() as u64;
                        self.estimates.clear();
                        self.bucket.estimate(
                            factors,
                            codes,
                            stride,
                            self.confidence,
                            &mut self.estimates,
                        );
                        self.frontier.extend().extend(self.estimates.iter().zip(first_row..).map(
                            |(estimate, row)| Candidate { lower: estimate.lower, segment, row },
                        ));
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
    fn nearest<R: Rows>(&mut self, rows: &mut R) -> Result<Option<Hit>, R::Error> {
        loop {
            let best = self.ready.peek().map_or(f64::INFINITY, |Nearest(hit)| hit.rank);
            match self.frontier.lowest() {
                // A rank that is not a number goes after every bound.
                Some(lowest) if best.is_nan() || f64::from(lowest) <= best => {
                    let Some(Candidate { segment, row, .. }) = self.frontier.pop() else {
                        continue;
                    };
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
