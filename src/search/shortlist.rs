//! From sign codes to the rows whose int8 codes are worth a look.
//!
//! Every row of a probed bucket has a bound from its sign code. The rows of the lowest bounds are
//! estimated from their int8 codes; the rank of the last row that will be wanted is hardly above
//! the estimate as far down. Rows whose bounds are above that are left alone, until more is asked
//! for than was expected.

use super::query::{Bucket, Coded, Rows};
use super::select;
use crate::arena::{RoutingArena, SignCodes};
use crate::quant::{self, sign, BucketQuery, Estimate};
use crate::simd;
use rustc_hash::{FxHashMap, FxHashSet};

/// Standard deviations between a row's estimate and its bound.
const DEVIATIONS: f32 = 1.6;

/// Rows estimated from int8 codes first, for each row that is expected to be wanted.
const FIRST_ESTIMATED: usize = 4;

/// By how much the number of expected rows grows when there were too few.
const GROWTH: usize = 4;

/// A row whose int8 code was looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimated {
    /// Number of its segment.
    pub segment: u32,
    /// Its place in the segment.
    pub row: u64,
    /// No more than its rank.
    pub lower: f32,
}

/// The probed rows' bounds, and which of them were followed up.
pub struct Shortlist {
    query: sign::Query,
    /// Bounds of the rows of all `runs`.
    bounds: Vec<f32>,
    runs: Vec<Run>,
    /// Rows whose int8 codes have been looked at.
    seen: FxHashSet<(u32, u64)>,
    /// Their estimated ranks.
    values: Vec<f32>,
    expected: usize,
    horizon: f32,
    queries: BucketQueries,
    targets: Vec<Target>,
    scratch: Vec<f32>,
    estimates: Vec<Estimate>,
}

/// The bounds of one bucket's rows in one segment.
struct Run {
    /// Place of the first bound.
    start: usize,
    segment: u32,
    bucket: u32,
}

/// A row to be looked at.
struct Target {
    segment: u32,
    /// In the segment's table.
    entry: u32,
    bucket: u32,
    place: u32,
    row: u64,
}

impl Shortlist {
    /// An empty list for a rotated query, of length one under cosine, and a guess how many rows
    /// will be wanted.
    pub fn new(routing: &RoutingArena, rotated: &[f32], expected: usize) -> Shortlist {
        Shortlist {
            query: sign::Query::new(routing.identity().metric, rotated, routing.typical()),
            bounds: Vec::new(),
            runs: Vec::new(),
            seen: FxHashSet::default(),
            values: Vec::new(),
            expected: expected.max(1),
            horizon: f32::INFINITY,
            queries: BucketQueries::default(),
            targets: Vec::new(),
            scratch: Vec::new(),
            estimates: Vec::new(),
        }
    }

    /// Adds the bounds of a bucket's rows.
    pub fn push(&mut self, segment: u32, bucket: u32, centroid: &[f32], signs: SignCodes<'_>) {
        let (start, rows) = (self.bounds.len(), signs.rows.add.len());
        self.bounds.resize(start + rows, f32::NEG_INFINITY);
        match self.query.for_bucket(centroid, DEVIATIONS) {
            Some(terms) => {
                self.query.bounds(&terms, signs.rows, signs.codes, &mut self.bounds[start..]);
            }
            // Nothing can be said of any row, but there are none in the last block's rest.
            None => {
                for (bound, add) in self.bounds[start..].iter_mut().zip(signs.rows.add) {
                    *bound = if *add == f32::INFINITY { f32::INFINITY } else { f32::NEG_INFINITY };
                }
            }
        }
        self.runs.push(Run { start, segment, bucket });
        self.horizon = f32::NEG_INFINITY;
    }

    /// A number that the rank of no row is below that was not followed up.
    pub fn horizon(&self) -> f32 {
        self.horizon
    }

    /// Follows rows up, and hands them to `found`, until the horizon has moved beyond the ranks of
    /// as many rows as are expected. Called again it expects more.
    pub fn follow_up<R: Rows>(
        &mut self,
        coded: &quant::Query,
        confidence: f32,
        routing: &RoutingArena,
        rows: &mut R,
        mut found: impl FnMut(Estimated),
    ) {
        if self.horizon > f32::NEG_INFINITY {
            self.expected = self.expected.saturating_mul(GROWTH);
        }
        let first = self.expected.saturating_mul(FIRST_ESTIMATED);
        let lowest = select::threshold(&self.bounds, first, &mut self.scratch);
        self.estimate_up_to(lowest, coded, confidence, routing, rows, &mut found);
        let last = self.expected - 1;
        let beyond = if last < self.values.len() {
            self.scratch.clear();
            self.scratch.extend_from_slice(&self.values);
            *self.scratch.select_nth_unstable_by(last, f32::total_cmp).1
        } else {
            f32::INFINITY
        };
        self.horizon = lowest.max(beyond);
        if beyond > lowest {
            self.estimate_up_to(beyond, coded, confidence, routing, rows, &mut found);
        }
    }

    /// Estimates the rows whose bounds are up to `high` and that have not been yet.
    fn estimate_up_to<R: Rows>(
        &mut self,
        high: f32,
        coded: &quant::Query,
        confidence: f32,
        routing: &RoutingArena,
        rows: &mut R,
        found: &mut impl FnMut(Estimated),
    ) {
        self.collect(high, rows, found);
        for target in &self.targets {
            let Bucket::Coded(codes) = rows.entry(target.segment, target.entry) else { continue };
            let place = target.place as usize;
            let row_codes = &codes.codes[place * codes.stride..][..codes.stride];
            let factors = &codes.factors[place..=place];
            let query = self.queries.get(coded, routing, target.bucket);
            query.estimate(factors, row_codes, codes.stride, confidence, &mut self.estimates);
            for estimate in &self.estimates {
                self.values.push(estimate.value);
                let (segment, row) = (target.segment, target.row);
                found(Estimated { segment, row, lower: estimate.lower });
            }
        }
    }

    /// Lists the rows whose bounds are up to `high` and that have not been seen, and asks for their
    /// int8 codes to be brought near. Rows whose codes are not to be had are `found` at once.
    fn collect<R: Rows>(&mut self, high: f32, rows: &mut R, found: &mut impl FnMut(Estimated)) {
        self.targets.clear();
        let (runs, seen, targets) = (&self.runs, &mut self.seen, &mut self.targets);
        let mut nth = 0;
        select::up_to(&self.bounds, high, |at| {
            while runs.get(nth + 1).is_some_and(|next| next.start <= at) {
                nth += 1;
            }
            let Some(run) = runs.get(nth) else { return };
            let segment = run.segment;
            let (mut bucket, mut place) = (run.bucket, (at - run.start) as u32);
            let mut codes = match rows.bucket(segment, run.bucket) {
                Bucket::Coded(codes) => codes,
                _ => return,
            };
            if place as usize >= codes.factors.len() {
                let spilled = codes.signs.map_or(&[][..], |signs| signs.spilled);
                let Some(of) = spilled.get(place as usize - codes.factors.len()) else { return };
                let of = *of;
                place = of.place;
                codes = match rows.entry(segment, of.entry) {
                    Bucket::Coded(codes) => codes,
                    Bucket::Uncoded { first_row, .. } => {
                        let row = first_row + u64::from(place);
                        if seen.insert((segment, row)) {
                            found(Estimated { segment, row, lower: f32::NEG_INFINITY });
                        }
                        return;
                    }
                    Bucket::Empty => return,
                };
                bucket = codes.bucket;
            }
            let row = codes.first_row + u64::from(place);
            if (place as usize) < codes.factors.len() && seen.insert((segment, row)) {
                codes.prefetch(place as usize);
                targets.push(Target { segment, entry: codes.entry, bucket, place, row });
            }
        });
    }
}

impl Coded<'_> {
    /// Asks the processor for a row's int8 code.
    fn prefetch(&self, place: usize) {
        simd::prefetch(bytemuck::cast_slice(&self.codes[place * self.stride..][..self.stride]));
        simd::prefetch(bytemuck::bytes_of(&self.factors[place]));
    }
}

/// The query as prepared for each bucket that has been met.
#[derive(Default)]
struct BucketQueries {
    places: FxHashMap<u32, usize>,
    prepared: Vec<BucketQuery>,
}

impl BucketQueries {
    fn get(&mut self, coded: &quant::Query, routing: &RoutingArena, bucket: u32) -> &BucketQuery {
        let prepared = &mut self.prepared;
        let place = *self.places.entry(bucket).or_insert_with(|| {
            let mut query = BucketQuery::default();
            coded.for_bucket(routing.centroid(bucket), &mut query);
            prepared.push(query);
            prepared.len() - 1
        });
        &self.prepared[place]
    }
}
