//! Searching the linked rows, and looking at each of the others.

use super::level::{is_member, member, top};
use super::region::{Graph, Region};
use super::{Corrupt, Rank};
use crate::metric::Metric;
use crate::quant::{self, approximate};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// A row and its rank ([`crate::metric::Metric::rank`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Ascending is nearer.
    pub rank: f64,
    /// Number of the row.
    pub row: u32,
}

/// A query, prepared for the bounds of rows from their codes, which are taken about zero.
pub enum Bounding {
    /// Bounds that ranks are hardly ever below.
    Likely(approximate::Query),
    /// Bounds of the confidence named.
    Certain(quant::BucketQuery, f32),
}

impl Bounding {
    /// For bounds of this confidence ([`quant::BucketQuery::estimate`]); those of 1 are certain.
    pub fn new(metric: Metric, query: &[f32], confidence: f32) -> Bounding {
        if confidence < 1.0 && approximate::is_supported(metric) {
            let mut direction = query.to_vec();
            if metric == Metric::Cosine {
                quant::normalize(query, &mut direction);
            }
            return Bounding::Likely(approximate::Query::new(metric, &direction, confidence));
        }
        let mut prepared = quant::BucketQuery::default();
        let zero = vec![0.0; query.len()];
        quant::Query::new(metric, query, 0.0).for_bucket(&zero, &mut prepared);
        Bounding::Certain(prepared, confidence)
    }
}

/// Memory that one search after another uses.
#[derive(Default)]
pub struct Scratch {
    /// For each row, the number of the walk that last came by.
    visited: Vec<u32>,
    walk: u32,
    /// Rows to go on from, nearest first.
    candidates: BinaryHeap<Reverse<(Rank, u32)>>,
    /// The nearest rows that count, farthest first.
    found: BinaryHeap<(Rank, u32)>,
}

impl Scratch {
    /// Starts a walk over rows below `rows`.
    fn begin(&mut self, rows: u32) {
        if self.visited.len() < rows as usize {
            self.visited.resize(rows as usize, 0);
        }
        self.walk = self.walk.wrapping_add(1);
        if self.walk == 0 {
            self.visited.fill(0);
            self.walk = 1;
        }
        self.candidates.clear();
        self.found.clear();
    }

    /// Whether the walk has not come by `row` before; from now on it has.
    fn is_new(&mut self, row: u32) -> bool {
        match self.visited.get_mut(row as usize) {
            Some(last) if *last != self.walk => {
                *last = self.walk;
                true
            }
            _ => false,
        }
    }

    /// What the walk found, nearest first.
    pub(super) fn take_found(&mut self) -> Vec<(Rank, u32)> {
        std::mem::take(&mut self.found).into_sorted_vec()
    }
}

/// Rows to keep in sight (`ef` of the paper) for this share of the nearest rows to be found among
/// `rows` linked ones.
///
/// Measured as recall@10 on word embeddings (100 dimensions, Euclidean), where the effort needed
/// grows as the square root of the rows, and taken half as large again; rows that cluster need
/// less.
pub fn effort(recall: f64, rows: u32) -> usize {
    /// Efforts among [`MEASURED_ROWS`] rows.
    const KNOWN: [(f64, f64); 6] =
        [(0.0, 24.0), (0.9, 56.0), (0.95, 90.0), (0.98, 160.0), (0.99, 240.0), (1.0, 700.0)];
    const MEASURED_ROWS: f64 = 10_000.0;
    const LEAST: f64 = 40.0;
    let after = KNOWN.partition_point(|(known, _)| *known < recall).clamp(1, KNOWN.len() - 1);
    let ((low, few), (high, many)) = (KNOWN[after - 1], KNOWN[after]);
    let part = ((recall - low) / (high - low)).clamp(0.0, 1.0);
    let effort = (few + part * (many - few)) * (f64::from(rows) / MEASURED_ROWS).sqrt();
    effort.max(LEAST) as usize
}

impl<R: Region> Graph<'_, R> {
    /// The rows among the first `linked` that are nearest to `query` and that `accept` takes, at
    /// most `effort`, nearest first. More effort finds the first ones more surely.
    ///
    /// `query` has the graph's dimensions; `linked` is not more than [`Graph::linked`].
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn search(
        &self,
        scratch: &mut Scratch,
        query: &[f32],
        linked: u32,
        effort: usize,
        accept: impl FnMut(u32) -> bool,
    ) -> Result<Vec<Hit>, Corrupt> {
        if linked == 0 {
            return Ok(Vec::new());
        }
        let start = self.descend(query, linked, 0)?;
        self.explore(scratch, 0, query, linked, start, effort.max(1), accept)?;
        let found = scratch.take_found();
        Ok(found.into_iter().map(|(rank, row)| Hit { rank: rank.0, row }).collect())
    }

    /// Calls `each` with the rank of every row of `rows`, which are published.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn scan(
        &self,
        query: &[f32],
        rows: Range<u32>,
        mut each: impl FnMut(Hit),
    ) -> Result<(), Corrupt> {
        self.runs(rows, |first, vectors| {
            for (vector, row) in vectors.chunks_exact(query.len()).zip(first..) {
                each(Hit { rank: self.metric.rank(query, vector), row });
            }
        })
    }

    /// Appends to `bounds`, for every row of `rows`, which are published, a number that its rank is
    /// not below, as surely as `query` was made for.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn bounds(
        &self,
        query: &Bounding,
        rows: Range<u32>,
        bounds: &mut Vec<f32>,
    ) -> Result<(), Corrupt> {
        let stride = quant::stride(self.dims());
        let mut estimates = Vec::new();
        self.coded_runs(rows, |_, factors, codes| match query {
            Bounding::Likely(query) => query.bounds(factors, codes, bounds),
            Bounding::Certain(query, confidence) => {
                query.estimate(factors, codes, stride, *confidence, &mut estimates);
                bounds.extend(estimates.iter().map(|estimate| estimate.lower));
            }
        })
    }

    /// The bound of one published row.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn bound_of(&self, query: &Bounding, row: u32) -> Result<f32, Corrupt> {
        let mut bound = f32::NEG_INFINITY;
        self.coded_runs(row..row.saturating_add(1), |_, factors, codes| {
            let [factors] = factors else { return };
            bound = match query {
                Bounding::Likely(query) => query.bound_of(factors, codes),
                Bounding::Certain(query, confidence) => {
                    let mut estimates = Vec::new();
                    let factors = std::slice::from_ref(factors);
                    query.estimate(factors, codes, codes.len(), *confidence, &mut estimates);
                    estimates.first().map_or(f32::NEG_INFINITY, |estimate| estimate.lower)
                }
            };
        })?;
        Ok(bound)
    }

    /// The rank of a published row.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn rank_of(&self, query: &[f32], row: u32) -> Result<f64, Corrupt> {
        Ok(self.metric.rank(query, self.vector(row)?))
    }

    pub(super) fn rank(&self, query: &[f32], row: u32) -> Result<Rank, Corrupt> {
        Ok(Rank::new(self.metric.rank(query, self.vector(row)?)))
    }

    /// Goes down from the top to above `level`, on each level to where no neighbour is nearer.
    pub(super) fn descend(
        &self,
        query: &[f32],
        linked: u32,
        level: u32,
    ) -> Result<(Rank, u32), Corrupt> {
        let top = top(linked);
        let entry = member(top, 0);
        let mut nearest = (self.rank(query, entry)?, entry);
        for above in (level + 1..=top).rev() {
            loop {
                let from = nearest.1;
                self.for_each_link(above, from, linked, |row| {
                    nearest = nearest.min((self.rank(query, row)?, row));
                    Ok(())
                })?;
                if nearest.1 == from {
                    break;
                }
            }
        }
        Ok(nearest)
    }

    /// Walks `level` from `start` on (algorithm 2 of the paper); `scratch` then has what it found.
    #[allow(clippy::too_many_arguments, reason = "the paper's parameters, and where they apply")]
    pub(super) fn explore(
        &self,
        scratch: &mut Scratch,
        level: u32,
        query: &[f32],
        linked: u32,
        start: (Rank, u32),
        effort: usize,
        mut accept: impl FnMut(u32) -> bool,
    ) -> Result<(), Corrupt> {
        scratch.begin(linked);
        scratch.is_new(start.1);
        scratch.candidates.push(Reverse(start));
        if accept(start.1) {
            scratch.found.push(start);
        }
        while let Some(Reverse(candidate)) = scratch.candidates.pop() {
            let full = scratch.found.len() >= effort;
            if full && scratch.found.peek().is_some_and(|farthest| candidate > *farthest) {
                break;
            }
            self.for_each_link(level, candidate.1, linked, |row| {
                if !scratch.is_new(row) {
                    return Ok(());
                }
                let near = (self.rank(query, row)?, row);
                let full = scratch.found.len() >= effort;
                if full && scratch.found.peek().is_some_and(|farthest| near > *farthest) {
                    return Ok(());
                }
                scratch.candidates.push(Reverse(near));
                if accept(row) {
                    scratch.found.push(near);
                    if full {
                        scratch.found.pop();
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Calls `each` with the rows below `linked` that `row` has links to on `level`.
    fn for_each_link(
        &self,
        level: u32,
        row: u32,
        linked: u32,
        mut each: impl FnMut(u32) -> Result<(), Corrupt>,
    ) -> Result<(), Corrupt> {
        let mut link = |word: u32| {
            let Some(row) = word.checked_sub(1) else { return Ok(()) };
            if row < linked {
                if is_member(level, row) {
                    each(row)
                } else {
                    Err(Corrupt)
                }
            } else if row < self.len() {
                // It is being linked at this moment.
                Ok(())
            } else {
                Err(Corrupt)
            }
        };
        if level == 0 {
            self.base_links(row)?.iter().try_for_each(|word| link(word.load(Ordering::Relaxed)))
        } else {
            let words = self.upper_links(level, row)?;
            words.iter().try_for_each(|word| link(word.load(Ordering::Relaxed)))
        }
    }
}
