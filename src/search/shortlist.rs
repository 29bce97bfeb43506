//! From sign codes to the rows whose int8 codes are worth a look.
//!
//! Every row of a probed bucket has a bound from its sign code. The rows of the lowest bounds are
//! estimated from their int8 codes; the rank of the last row that will be wanted is hardly above
//! the estimate as far down. Rows whose bounds are above that are left alone, until more is asked
//! for than was expected.

use super::query::{Bucket, Coded, Rows};
use crate::arena::{RoutingArena, SignCodes, SpilledRow};
use crate::quant::approximate;
use crate::quant::sign::{self, Coding, Widened};
use crate::quant::Factors;
use crate::simd::{self, kernels, select};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::RefCell;

/// Rows estimated from int8 codes first, for each row that is expected to be wanted.
const FIRST_ESTIMATED: usize = 2;

/// By how much the number of expected rows grows when there were too few.
const GROWTH: usize = 4;

/// Rows ahead of the one being estimated whose buckets' centroids are asked for.
const CENTROIDS_AHEAD: usize = 4;

/// Vectors asked for at most while more rows are estimated: what is read much later would be gone.
const VECTORS_AHEAD: usize = 16;

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
    coded: approximate::Query,
    expected: usize,
    horizon: f32,
    /// Runs were added since rows were last followed up.
    is_new: bool,
    room: Room,
}

/// What grows with the rows that are probed. A thread's next search uses it again.
#[derive(Default)]
struct Room {
    /// Bounds of the rows of all `runs`.
    bounds: Vec<f32>,
    runs: Vec<Run>,
    /// Rows whose int8 codes have been looked at.
    seen: FxHashSet<(u32, u64)>,
    /// Their estimated ranks, and these rows.
    values: Vec<f32>,
    rows: Vec<(u32, u64)>,
    /// Ranks of the centroids of their buckets.
    centroids: FxHashMap<u32, f32>,
    widened: Widened,
    scratch: Vec<f32>,
}

/// Rooms with space for more bounds than this are not kept.
const MOST_KEPT: usize = 1 << 20;

const MOST_SEEN: usize = 1 << 13;

thread_local! {
    static SPARE: RefCell<Option<Room>> = const { RefCell::new(None) };
}

impl Drop for Shortlist {
    fn drop(&mut self) {
        let mut room = std::mem::take(&mut self.room);
        if room.bounds.capacity() <= MOST_KEPT {
            room.bounds.clear();
            room.runs.clear();
            // To clear a table takes as long as it is large, not as it is full.
            room.seen =
                Some(room.seen).filter(|seen| seen.capacity() <= MOST_SEEN).unwrap_or_default();
            room.seen.clear();
            room.values.clear();
            room.rows.clear();
            room.centroids.clear();
            // Nobody to keep it for while the thread ends.
            let _ = SPARE.try_with(|spare| spare.replace(Some(room)));
        }
    }
}

/// The bounds of one bucket's rows in one segment.
struct Run {
    /// Place of the first bound.
    start: usize,
    segment: u32,
    bucket: u32,
}

/// A row whose int8 code is to be looked at.
#[derive(Clone, Copy)]
struct Target<'r> {
    segment: u32,
    row: u64,
    bucket: u32,
    factors: &'r Factors,
    codes: &'r [i8],
}

impl Shortlist {
    /// A query as sign codes take it: its point in the router's space, and the square of what it
    /// has beyond the components with a code. Under cosine it has length one.
    pub fn signs(
        routing: &RoutingArena,
        coding: &Coding,
        point: &[f32],
        beyond: f32,
    ) -> sign::Query {
        let (metric, typical) = (routing.identity().metric, routing.typical());
        let lead = coding.components;
        let (point, middle) = (&point[..lead], &routing.middle()[..lead]);
        sign::Query::new(metric, coding, point, beyond, typical, middle)
    }

    /// An empty list for a query as its two kinds of codes take it, and a guess how many rows will
    /// be wanted.
    pub fn new(query: sign::Query, coded: approximate::Query, expected: usize) -> Shortlist {
        Shortlist {
            query,
            expected: expected.max(1),
            horizon: f32::INFINITY,
            is_new: false,
            coded,
            room: SPARE.take().unwrap_or_default(),
        }
    }

    /// Adds the bounds of a bucket's rows. `centroid` is its point in the router's space. The
    /// processor is asked for the bytes `ahead` meanwhile.
    pub fn push(
        &mut self,
        segment: u32,
        bucket: u32,
        centroid: &[f32],
        signs: SignCodes<'_>,
        ahead: &[u8],
    ) {
        let (start, rows) = (self.room.bounds.len(), signs.rows.add.len());
        self.room.bounds.resize(start + rows, f32::NEG_INFINITY);
        match self.query.for_bucket(centroid, sign::DEVIATIONS) {
            Some(terms) => {
                let SignCodes { codes, rows: columns, .. } = &signs;
                let Room { bounds, widened, .. } = &mut self.room;
                let (query, out) = (&self.query, &mut bounds[start..]);
                match sign::is_narrow(rows) {
                    true => query.narrow_bounds(&terms, columns, codes, ahead, widened, out),
                    false => query.bounds(&terms, columns, codes, ahead, out),
                }
            }
            // Nothing can be said of any row, but there are none in the last block's rest.
            None => {
                for (bound, add) in self.room.bounds[start..].iter_mut().zip(signs.rows.add) {
                    *bound = if *add == f32::INFINITY { f32::INFINITY } else { f32::NEG_INFINITY };
                }
            }
        }
        self.room.runs.push(Run { start, segment, bucket });
        self.horizon = f32::NEG_INFINITY;
        self.is_new = true;
    }

    /// A number that the rank of no row is below that was not followed up.
    pub fn horizon(&self) -> f32 {
        self.horizon
    }

    /// The estimated rank of the row that comes after so many others, as far as rows were followed
    /// up.
    pub fn rank_after(&mut self, others: usize) -> Option<f32> {
        let Room { values, scratch, .. } = &mut self.room;
        scratch.clear();
        scratch.extend_from_slice(values);
        let is_known = others < scratch.len();
        is_known.then(|| *scratch.select_nth_unstable_by(others, f32::total_cmp).1)
    }

    /// Follows rows up, and hands them to `found`, until the horizon has moved beyond the ranks of
    /// as many rows as are expected. Called again it expects more.
    pub fn follow_up<R: Rows>(
        &mut self,
        routing: &RoutingArena,
        rows: &R,
        mut found: impl FnMut(Estimated),
    ) {
        if !std::mem::take(&mut self.is_new) {
            self.expected = self.expected.saturating_mul(GROWTH);
        }
        let first = self.expected.saturating_mul(FIRST_ESTIMATED);
        let lowest = select::threshold(&self.room.bounds, first, &mut self.room.scratch);
        self.estimate_up_to(lowest, routing, rows, &mut found);
        let beyond = self.rank_after(self.expected - 1).unwrap_or(f32::INFINITY);
        self.horizon = lowest.max(beyond);
        // Most of them stay the nearest, and are read next.
        let estimated = self.room.values.iter().zip(&self.room.rows);
        let nearest = estimated.filter(|(value, _)| **value <= beyond);
        for (_, (segment, row)) in nearest.take(VECTORS_AHEAD) {
            rows.prefetch_vector(*segment, *row);
        }
        if beyond > lowest {
            self.estimate_up_to(beyond, routing, rows, &mut found);
        }
    }

    /// Estimates the rows whose bounds are up to `high` and that have not been yet.
    fn estimate_up_to<R: Rows>(
        &mut self,
        high: f32,
        routing: &RoutingArena,
        rows: &R,
        found: &mut impl FnMut(Estimated),
    ) {
        // All are asked for before the first is looked at: their codes lie anywhere in memory.
        let targets = self.collect(high, rows, found);
        for (nth, target) in targets.iter().enumerate() {
            if let Some(later) = targets.get(nth + CENTROIDS_AHEAD) {
                routing.prefetch_centroid(later.bucket);
            }
            let Target { segment, row, bucket, factors, codes } = *target;
            let centroid = routing.centroid(bucket);
            let rank =
                self.room.centroids.entry(bucket).or_insert_with(|| self.coded.rank(centroid));
            let estimate = self.coded.estimate((*rank, centroid), factors, codes);
            self.room.values.push(estimate.value);
            self.room.rows.push((segment, row));
            found(Estimated { segment, row, lower: estimate.lower });
        }
    }

    /// Lists the rows whose bounds are up to `high` and that have not been seen, and asks for their
    /// int8 codes to be brought near. Rows whose codes are not to be had are `found` at once.
    fn collect<'r, R: Rows>(
        &mut self,
        high: f32,
        rows: &'r R,
        found: &mut impl FnMut(Estimated),
    ) -> Vec<Target<'r>> {
        let (runs, seen) = (&self.room.runs, &mut self.room.seen);
        let room = 4 * FIRST_ESTIMATED * self.expected.min(1 << 10);
        // Each step asks for what the next one reads: most of it is far away.
        let mut buckets: Vec<(u32, Coded<'r>)> = Vec::with_capacity(runs.len());
        let mut places: Vec<(usize, usize)> = Vec::with_capacity(room);
        let mut next = 0;
        let mut current = None;
        let mut low = Vec::with_capacity(room);
        (kernels().up_to)(&self.room.bounds, high, &mut low);
        for at in low.into_iter().map(|at| at as usize) {
            while runs.get(next).is_some_and(|run| run.start <= at) {
                current = None;
                next += 1;
            }
            let Some(run) = next.checked_sub(1).and_then(|nth| runs.get(nth)) else { continue };
            if current.is_none() {
                let Bucket::Coded(codes) = rows.bucket(run.segment, run.bucket) else { continue };
                current = Some(buckets.len());
                buckets.push((run.segment, codes));
            }
            let Some((nth, (_, codes))) = current.zip(buckets.last()) else { continue };
            let place = at - run.start;
            if let Some(of) = spilled(codes, place) {
                simd::prefetch(bytemuck::bytes_of(of));
            }
            places.push((nth, place));
        }
        let mut targets = Vec::with_capacity(places.len());
        let mut elsewhere = Vec::with_capacity(places.len());
        for (nth, place) in places {
            let (segment, codes) = &buckets[nth];
            if place < codes.factors.len() {
                targets.extend(target(*segment, codes, place, seen));
            } else if let Some(of) = spilled(codes, place) {
                rows.prefetch_entry(*segment, of.entry);
                elsewhere.push((*segment, of));
            }
        }
        for (segment, of) in elsewhere {
            match rows.entry(segment, of.entry) {
                Bucket::Coded(codes) => {
                    targets.extend(target(segment, &codes, of.place as usize, seen));
                }
                Bucket::Uncoded { first_row, .. } => {
                    let row = first_row + u64::from(of.place);
                    if seen.insert((segment, row)) {
                        found(Estimated { segment, row, lower: f32::NEG_INFINITY });
                    }
                }
                Bucket::Empty => {}
            }
        }
        targets
    }
}

/// Where the row of a place is that is not one of the bucket's own.
fn spilled<'r>(codes: &Coded<'r>, place: usize) -> Option<&'r SpilledRow> {
    codes.signs?.spilled.get(place.checked_sub(codes.factors.len())?)
}

/// The row at a place of its own bucket, whose code is asked for; none if it has been seen.
fn target<'r>(
    segment: u32,
    codes: &Coded<'r>,
    place: usize,
    seen: &mut FxHashSet<(u32, u64)>,
) -> Option<Target<'r>> {
    let row = codes.first_row + place as u64;
    let factors = codes.factors.get(place)?;
    if !seen.insert((segment, row)) {
        return None;
    }
    let bucket = codes.bucket;
    let codes = codes.codes.get(place * codes.stride..)?.get(..codes.stride)?;
    simd::prefetch(bytemuck::cast_slice(codes));
    simd::prefetch(bytemuck::bytes_of(factors));
    Some(Target { segment, bucket, row, factors, codes })
}
