//! The rows of the memtable that are nearest to a query.

use super::slot::{tid, Chunks, Held, Key};
use super::write::{encode_for_search, with_scratch};
use crate::graph::{self, Bounding, Corrupt, Graph, Signed};
use crate::page::{Index, LogStart, Read, Tid, View};
use crate::quant;
use crate::simd::{kernels, select};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Bytes looked at before interrupts are heeded.
const STEP_BYTES: usize = 8 << 20;
/// Rows whose ranks cost as much as a walk's effort of one: a walk looks at more, in no order.
const ROWS_PER_EFFORT: usize = 64;

/// Rows of the lowest bounds that are ranked first.
const RANKED: usize = 40;
/// Rows whose int8 codes are looked at first, for each whose vector will be.
const REFINED_FIRST: usize = 4;
/// Rows ahead for which int8 codes, or vectors, are asked for.
const CODES_AHEAD: usize = 8;
const VECTORS_AHEAD: usize = 4;

/// A row of the log.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    /// Its record's sequence number.
    pub seq: u64,
    /// Where it is in the heap.
    pub tid: Tid,
    /// [`crate::metric::Metric::rank`].
    pub rank: f64,
}

/// What the memtable has found.
pub struct Nearest {
    /// Rows, in no order.
    pub rows: Vec<Near>,
    /// The rank beyond which there are, or may be, other rows; none if there are none.
    pub horizon: Option<f64>,
}

/// Which records the memtable has been asked for.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The log's head.
    head: LogStart,
    /// Where the memtable's records end, and a page from which the rest can be read.
    pub rest: LogStart,
}

impl Known {
    /// Nothing: the whole log is to be read.
    pub fn nothing(view: &View) -> Known {
        Known { head: view.log_start(), rest: view.log_start() }
    }

    /// Their sequence numbers.
    pub fn records(&self) -> Range<u64> {
        self.head.seq..self.rest.seq
    }

    /// Whether it is none.
    pub fn is_empty(&self) -> bool {
        self.head.seq == self.rest.seq
    }
}

/// How a search of the memtable is done.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Share of the nearest rows to find; from 1 on all.
    pub recall: f64,
    /// The search before found too few: how often.
    pub round: u32,
    /// How many rows are likely to be wanted.
    pub expected: usize,
    /// Rows beyond this rank need not be found.
    pub cutoff: f64,
}

/// Takes the newest view, and which of its records the memtable has.
///
/// # Errors
/// What reading the metapage gave.
pub fn take(index: Index) -> Read<(View, Known)> {
    let Some(held) = Held::find(index) else {
        let view = View::take(index)?;
        return Ok((view, Known::nothing(&view)));
    };
    let view = View::take(index)?;
    let known = what_is_known(&held, index, &view);
    let is_sound = known.is_none() || {
        held.slot().touch_for_search();
        encode_for_search(&held).is_ok()
    };
    if !is_sound {
        held.forget();
    }
    Ok((view, known.filter(|_| is_sound).unwrap_or(Known::nothing(&view))))
}

/// The rows among those `known` that are nearest to `query`; none if they are no longer in memory.
pub fn nearest(
    index: Index,
    view: &View,
    query: &[f32],
    known: Known,
    wanted: Wanted,
) -> Option<Nearest> {
    let held = Held::find(index)?;
    let now = what_is_known(&held, index, view)?;
    if now.rest.seq < known.rest.seq {
        return None;
    }
    search(held, index, view, query, known, wanted)
}

/// Which records of the view's log the slot has.
fn what_is_known(held: &Held, index: Index, view: &View) -> Option<Known> {
    let slot = held.slot();
    let head = view.log_start();
    if slot.key() != Key::new(index, view.log_id())
        || slot.kills() != view.log_kills()
        || slot.first_seq() > head.seq
    {
        return None;
    }
    let (generation, graph) = held.graph(slot.active())?;
    // Before the rows are counted: it is moved on after they have been published.
    let block = slot.last_block();
    let seq = generation.base().checked_add(u64::from(graph.len()))?;
    (seq > head.seq).then_some(Known { head, rest: LogStart { block, seq } })
}

/// The nearest rows so far.
struct Best {
    most: usize,
    rows: BinaryHeap<Farthest>,
    /// Some were left out.
    left_out: bool,
}

/// Greater is farther.
struct Farthest(Near);

impl Best {
    fn offer(&mut self, near: impl FnOnce() -> Option<Near>, rank: f64) {
        let full = self.rows.len() >= self.most;
        // Where both are numbers, which is the rule, to compare them takes one instruction.
        let is_behind = |worst: f64| rank > worst || order(rank, worst).is_ge();
        if full && self.rows.peek().is_some_and(|worst| is_behind(worst.0.rank)) {
            self.left_out = true;
            return;
        }
        let Some(near) = near() else { return };
        self.rows.push(Farthest(near));
        if full {
            self.rows.pop();
            self.left_out = true;
        }
    }
}

/// The rows of one generation that are to be searched.
struct Part {
    generation: usize,
    base: u64,
    rows: Range<u32>,
}

/// None if the rows are not there any more.
fn search(
    held: Held,
    index: Index,
    view: &View,
    query: &[f32],
    known: Known,
    wanted: Wanted,
) -> Option<Nearest> {
    let parts = parts(&held, &known);
    let total: usize = parts.iter().map(|part| part.rows.len()).sum();
    let growth = (3 * wanted.round).min(30);
    let effort = graph::effort(wanted.recall, total as u32) << growth;
    let most = if effort * 8 >= total { usize::MAX } else { effort };
    let mut best = Best { most, rows: BinaryHeap::new(), left_out: false };
    let mut walked = false;
    let mut tails = Vec::new();
    for part in parts {
        let (_, graph) = held.graph(part.generation)?;
        if graph.dims() != query.len() {
            return spoilt(held);
        }
        let linked = graph.linked().min(part.rows.end);
        let mut tail = part.rows.clone();
        let walks = wanted.recall < 1.0 && most != usize::MAX;
        if walks && linked as usize > effort.saturating_mul(ROWS_PER_EFFORT) {
            let accept = |row| {
                part.rows.contains(&row)
                    && graph.label(row).is_ok_and(|label| tid(label).is_valid())
            };
            let found =
                with_scratch(|scratch| graph.search(scratch, query, linked, effort, accept));
            let Ok(found) = found else { return spoilt(held) };
            if found.len() >= effort {
                walked = true;
                tail.start = tail.start.max(linked);
                for hit in found {
                    let near = || near(&graph, part.base, hit.row, hit.rank);
                    best.offer(near, hit.rank);
                }
            }
        }
        tails.push(Part { rows: tail, ..part });
    }
    let mut scan = Scan { index, view, known, held: Some(held), budget: STEP_BYTES };
    let looked_at = if most == usize::MAX {
        scan.every_row(query, &tails, &mut best).map(|()| f64::INFINITY)
    } else {
        // Bounds tell what is near more surely than a walk does.
        let count = if walked { most } else { most.min(RANKED.max(wanted.expected) << growth) };
        scan.nearest_rows(query, wanted, &tails, count, &mut best)
    };
    let horizon = match looked_at {
        Ok(horizon) => horizon,
        Err(Gone::Moved) => return None,
        Err(Gone::Spoilt) => return scan.held.and_then(spoilt),
    };
    let worst = best.rows.peek().map(|worst| worst.0.rank);
    let worst = worst.filter(|_| best.left_out || walked);
    let rows = best.rows.into_iter().map(|farthest| farthest.0).collect();
    let horizon = match worst {
        Some(worst) if order(worst, horizon).is_lt() => Some(worst),
        _ => Some(horizon).filter(|horizon| *horizon < f64::INFINITY).or(worst),
    };
    Some(Nearest { rows, horizon })
}

/// Why rows cannot be looked at.
enum Gone {
    /// They are not where they were.
    Moved,
    /// The memory is not what this code has written.
    Spoilt,
}

impl From<Corrupt> for Gone {
    fn from(_: Corrupt) -> Gone {
        Gone::Spoilt
    }
}

/// A look at rows one by one, for a while at a time.
struct Scan<'v> {
    index: Index,
    view: &'v View,
    known: Known,
    held: Option<Held>,
    /// Bytes until interrupts are heeded.
    budget: usize,
}

impl Scan<'_> {
    /// Ranks all rows.
    fn every_row(&mut self, query: &[f32], tails: &[Part], best: &mut Best) -> Result<(), Gone> {
        self.each_piece(tails, size_of_val(query), |graph, part, rows| {
            graph.scan(query, rows, |hit| {
                best.offer(|| near(graph, part.base, hit.row, hit.rank), hit.rank);
            })
        })
    }

    /// Ranks about the `most` rows of the lowest bounds; returns what the ranks of the others are
    /// not below.
    fn nearest_rows(
        &mut self,
        query: &[f32],
        wanted: Wanted,
        tails: &[Part],
        most: usize,
        best: &mut Best,
    ) -> Result<f64, Gone> {
        let dims = query.len();
        let confidence = if wanted.recall < 1.0 { quant::likely(dims) } else { 1.0 };
        let bounding = Bounding::new(self.view.metric, query, confidence);
        let signed = if wanted.recall < 1.0 { Signed::new(self.view.metric, query) } else { None };
        let mut bounds = Vec::with_capacity(tails.iter().map(|part| part.rows.len()).sum());
        // Places in `bounds` that have the bounds of sign codes.
        let mut coarse = Vec::new();
        self.each_piece(tails, dims, |graph, _, rows| {
            let coded = rows.start..graph.coded().clamp(rows.start, rows.end);
            let uncoded = coded.end..rows.end;
            if let Some(signed) = &signed {
                let by_sign = graph.signed_rows(&coded);
                graph.bounds(&bounding, coded.start..by_sign.start, &mut bounds)?;
                let start = bounds.len();
                graph.sign_bounds(signed, by_sign.clone(), &mut bounds)?;
                coarse.push(start..bounds.len());
                graph.bounds(&bounding, by_sign.end..coded.end, &mut bounds)?;
            } else {
                graph.bounds(&bounding, coded, &mut bounds)?;
            }
            graph.scan(query, uncoded, |hit| bounds.push(below(hit.rank)))
        })?;
        let (high, low) =
            self.refine(&bounding, tails, &coarse, most, wanted.cutoff, &mut bounds)?;
        self.at_places(tails, &low, |graph, part, rows| {
            for (nth, row) in rows.iter().enumerate() {
                if let Some(ahead) = rows.get(nth + VECTORS_AHEAD) {
                    graph.prefetch_vector(*ahead);
                }
                let rank = graph.rank_of(query, *row)?;
                best.offer(|| near(graph, part.base, *row, rank), rank);
            }
            Ok(())
        })?;
        Ok(f64::from(high))
    }

    /// Puts the bounds of int8 codes into the place of those that may be among the `most` lowest
    /// then, and up to `cutoff`; `coarse` are the places of bounds from sign codes. Returns a
    /// number that about as many bounds are up to, and their places.
    fn refine(
        &mut self,
        bounding: &Bounding,
        tails: &[Part],
        coarse: &[Range<usize>],
        most: usize,
        cutoff: f64,
        bounds: &mut [f32],
    ) -> Result<(f32, Vec<u32>), Gone> {
        let (cutoff, at_first) = (above(cutoff), most.saturating_mul(REFINED_FIRST));
        let mut low = Vec::new();
        let mut first = cutoff;
        if cutoff < f32::INFINITY {
            (kernels().up_to)(bounds, cutoff, &mut low);
        }
        if low.len() > at_first || cutoff == f32::INFINITY {
            first = threshold(bounds, at_first).min(cutoff);
            low.clear();
            (kernels().up_to)(bounds, first, &mut low);
        }
        let done = among(coarse, &low);
        let mut fine = self.refine_at(bounding, tails, &done, bounds)?;
        let high = match fine.len() >= most {
            true => fine.select_nth_unstable_by(most - 1, f32::total_cmp).1.min(cutoff),
            false => cutoff,
        };
        if high > first {
            low.clear();
            (kernels().up_to)(bounds, high, &mut low);
            let mut rest = among(coarse, &low);
            rest.retain(|place| done.binary_search(place).is_err());
            self.refine_at(bounding, tails, &rest, bounds)?;
        }
        // Whatever is not among `low` has a bound beyond the last of these.
        let mut values: Vec<f32> = low.iter().map(|place| bounds[*place as usize]).collect();
        let last = match values.len() >= most {
            true => values.select_nth_unstable_by(most - 1, f32::total_cmp).1.min(cutoff),
            false => cutoff,
        };
        low.retain(|place| bounds[*place as usize] <= last);
        Ok((last, low))
    }

    /// Refines the bounds at these places, ascending, and returns the new ones.
    fn refine_at(
        &mut self,
        bounding: &Bounding,
        tails: &[Part],
        places: &[u32],
        bounds: &mut [f32],
    ) -> Result<Vec<f32>, Gone> {
        let mut fine = Vec::with_capacity(places.len());
        self.at_places(tails, places, |graph, _, rows| {
            // Rows that were read anew since have no codes yet.
            let coded = graph.coded();
            for (nth, row) in rows.iter().enumerate() {
                if let Some(ahead) = rows.get(nth + CODES_AHEAD) {
                    graph.prefetch_codes(*ahead);
                }
                fine.push(match *row < coded {
                    true => graph.bound_of(bounding, *row)?,
                    false => f32::NEG_INFINITY,
                });
            }
            Ok(())
        })?;
        for (place, bound) in places.iter().zip(&fine) {
            bounds[*place as usize] = *bound;
        }
        Ok(fine)
    }

    /// Calls `with` with each part's rows that stand at these places, ascending, of all of them.
    fn at_places(
        &mut self,
        parts: &[Part],
        places: &[u32],
        mut with: impl FnMut(&Graph<'_, Chunks>, &Part, &[u32]) -> Result<(), Corrupt>,
    ) -> Result<(), Gone> {
        let (mut first, mut rest) = (0, places);
        for part in parts {
            let end = first + part.rows.len() as u32;
            let (here, later) = rest.split_at(rest.partition_point(|place| *place < end));
            let rows: Vec<u32> =
                here.iter().map(|place| part.rows.start + (place - first)).collect();
            let held = self.hold(part)?;
            let graph = held.graph(part.generation).ok_or(Gone::Moved)?.1;
            with(&graph, part, &rows)?;
            (first, rest) = (end, later);
        }
        Ok(())
    }

    /// Calls `with` with pieces of the parts, and heeds interrupts between them.
    fn each_piece(
        &mut self,
        parts: &[Part],
        bytes_each: usize,
        mut with: impl FnMut(&Graph<'_, Chunks>, &Part, Range<u32>) -> Result<(), Corrupt>,
    ) -> Result<(), Gone> {
        for part in parts {
            let mut rows = part.rows.clone();
            while !rows.is_empty() {
                if self.budget < bytes_each {
                    drop(self.held.take());
                    pgrx::check_for_interrupts!();
                    self.budget = STEP_BYTES.max(bytes_each);
                }
                let most = u32::try_from(self.budget / bytes_each.max(1)).unwrap_or(u32::MAX);
                let end = rows.end.min(rows.start.saturating_add(most));
                self.budget -= (end - rows.start) as usize * bytes_each;
                let held = self.hold(part)?;
                let graph = held.graph(part.generation).ok_or(Gone::Moved)?.1;
                with(&graph, part, rows.start..end)?;
                rows.start = end;
            }
        }
        Ok(())
    }

    /// The slot, which may have been let go meanwhile, with the rows of a part where they were.
    fn hold(&mut self, part: &Part) -> Result<&Held, Gone> {
        if self.held.is_none() {
            let again = Held::find(self.index).ok_or(Gone::Moved)?;
            let still = what_is_known(&again, self.index, self.view).ok_or(Gone::Moved)?;
            if still.rest.seq < self.known.rest.seq {
                return Err(Gone::Moved);
            }
            self.held = Some(again);
        }
        let held = self.held.as_ref().ok_or(Gone::Moved)?;
        let (generation, graph) = held.graph(part.generation).ok_or(Gone::Moved)?;
        if generation.base() != part.base || graph.len() < part.rows.end {
            return Err(Gone::Moved);
        }
        Ok(held)
    }
}

/// A bound of a row whose rank is known.
fn below(rank: f64) -> f32 {
    let near = rank as f32;
    if near.is_nan() {
        f32::NEG_INFINITY
    } else if f64::from(near) > rank {
        near.next_down()
    } else {
        near
    }
}

/// A number that bounds of rows up to a rank are up to.
fn above(rank: f64) -> f32 {
    let near = rank as f32;
    match near.is_nan() {
        true => f32::INFINITY,
        false => near.next_up(),
    }
}

/// A number that about `count` bounds are up to; what is not a number bounds nothing, then all are.
fn threshold(bounds: &[f32], count: usize) -> f32 {
    let high = select::threshold(bounds, count, &mut Vec::new());
    if high.is_nan() {
        f32::INFINITY
    } else {
        high
    }
}

/// Those of `places` that are within the runs; both ascend.
fn among(runs: &[Range<usize>], places: &[u32]) -> Vec<u32> {
    let mut runs = runs.iter().peekable();
    let is_within = |place: &u32| {
        let place = *place as usize;
        while runs.next_if(|run| run.end <= place).is_some() {}
        runs.peek().is_some_and(|run| run.contains(&place))
    };
    places.iter().copied().filter(is_within).collect()
}

fn near<R: graph::Region>(
    graph: &graph::Graph<'_, R>,
    base: u64,
    row: u32,
    rank: f64,
) -> Option<Near> {
    let tid = graph.label(row).ok().map(tid).filter(|tid| tid.is_valid())?;
    Some(Near { seq: base + u64::from(row), tid, rank })
}

/// The generations' rows that are among the known records.
fn parts(held: &Held, known: &Known) -> Vec<Part> {
    let generations = 0..super::slot::GENERATIONS;
    let part = |nth| {
        let (generation, graph) = held.graph(nth)?;
        let base = generation.base();
        let place = |seq: u64| seq.saturating_sub(base).min(u64::from(graph.len())) as u32;
        let end = generation.end().min(known.rest.seq);
        let rows = place(known.head.seq)..place(end);
        (!rows.is_empty()).then_some(Part { generation: nth, base, rows })
    };
    generations.filter_map(part).collect()
}

fn spoilt(held: Held) -> Option<Nearest> {
    held.forget();
    None
}

/// Orders ranks as a sequential scan does: not a number goes last.
fn order(a: f64, b: f64) -> Ordering {
    let sortable = |rank: f64| if rank.is_nan() { f64::NAN } else { rank + 0.0 };
    sortable(a).total_cmp(&sortable(b))
}

impl Ord for Farthest {
    fn cmp(&self, other: &Farthest) -> Ordering {
        order(self.0.rank, other.0.rank)
    }
}

impl PartialOrd for Farthest {
    fn partial_cmp(&self, other: &Farthest) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Farthest {
    fn eq(&self, other: &Farthest) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Farthest {}
