//! The rows nearest to some queries, among rows that pass by.

use crate::cluster::{Points, ProductRoom, Stopped, PRODUCT_BLOCK, PRODUCT_PANEL};
use crate::courtesy;
use crate::metric::Metric;
use crate::search::calibration::MANY;
use crate::simd::kernels;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows between two looks at how far the worst neighbours are: few at first, as these become nearer
/// quickly.
const FIRST_ROWS: usize = 256;
const MOST_ROWS: usize = 16 << 10;

/// What rounding makes of a sum of products, at most, for each unit of the squares it is made of.
const ROUNDING: f32 = 1e-4;

/// Queries, and the nearest rows of each so far.
pub struct Nearest {
    metric: Metric,
    dims: usize,
    queries: Vec<f32>,
    /// Nearest first.
    lists: Vec<Vec<Neighbour>>,
    /// The queries, packed when the first rows come; of no use where ranks are no products.
    packed: Option<Points>,
    passed: usize,
}

/// A row near to a query.
pub struct Neighbour {
    /// Its rank.
    pub rank: f64,
    /// Its number.
    pub row: usize,
}

impl Nearest {
    /// No rows have passed by these queries, row-major and under cosine of length one.
    pub fn new(metric: Metric, dims: usize, queries: Vec<f32>) -> Nearest {
        let lists = (0..queries.len() / dims).map(|_| Vec::new()).collect();
        Nearest { metric, dims, queries, lists, packed: None, passed: 0 }
    }

    /// The queries, row-major.
    pub fn queries(&self) -> &[f32] {
        &self.queries
    }

    /// The nearest rows of each query, nearest first.
    pub fn lists(&self) -> &[Vec<Neighbour>] {
        &self.lists
    }

    /// Takes note of the rows from number `first` on, under cosine of length one. A row equal to
    /// the query is passed over: usually it is the query.
    ///
    /// # Errors
    /// [`Stopped`] when `stop` was set.
    pub fn observe(
        &mut self,
        first: usize,
        vectors: &[f32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        if self.packed.is_none() && self.metric != Metric::L1 && !self.queries.is_empty() {
            self.packed = Some(Points::new(&self.queries, self.origin(), stop)?);
        }
        let (mut first, mut left) = (first, vectors);
        while !left.is_empty() {
            let rows = (self.passed / 2).clamp(FIRST_ROWS, MOST_ROWS).min(left.len() / self.dims);
            let (now, later) = left.split_at(rows * self.dims);
            match &self.packed {
                Some(packed) => {
                    let candidates = self.candidates(packed, now, stop)?;
                    self.offer_all(first, now, &candidates);
                }
                None => self.compare_all(first, now, stop)?,
            }
            first += rows;
            self.passed += rows;
            left = later;
        }
        Ok(())
    }

    /// What distances are the most exact from: the mean of the queries. Products are those from
    /// where they are.
    fn origin(&self) -> Vec<f32> {
        let mut mean = vec![0.0f32; self.dims];
        if self.metric == Metric::L2 {
            let count = self.lists.len() as f32;
            for query in self.queries.chunks_exact(self.dims) {
                mean.iter_mut().zip(query).for_each(|(mean, x)| *mean += x / count);
            }
        }
        mean
    }

    /// For each block of rows the pairs of a query and a row that may be one of its nearest, row by
    /// row.
    fn candidates(
        &self,
        packed: &Points,
        rows: &[f32],
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<(u32, u32)>>, Stopped> {
        // A row x is to be compared with a query q where a(x) - c <x, q> <= l(q).
        let factor = if self.metric == Metric::InnerProduct { 1.0 } else { 2.0 };
        let limits: Vec<f32> = packed
            .squares()
            .zip(self.lists.iter().map(Some).chain(std::iter::repeat(None)))
            .map(|(square, list)| list.map_or(f32::NEG_INFINITY, |list| self.limit(list, square)))
            .collect();
        let (limits, _) = limits.as_chunks::<PRODUCT_PANEL>();
        rows.par_chunks(PRODUCT_BLOCK * self.dims)
            .enumerate()
            .map_init(ProductRoom::default, |room, (block, rows)| {
                courtesy::give_way();
                if stop.load(Ordering::Relaxed) {
                    return Err(Stopped);
                }
                let first = (block * PRODUCT_BLOCK) as u32;
                let square = |row| (kernels().l2_squared)(row, packed.origin());
                let squares: Vec<f32> = rows.chunks_exact(self.dims).map(square).collect();
                let mut found = Vec::new();
                packed.each(room, rows, |row, query, products| {
                    let own = match self.metric {
                        Metric::InnerProduct => -ROUNDING * squares[row],
                        _ => squares[row] * (1.0 - ROUNDING),
                    };
                    let limits = &limits[query / PRODUCT_PANEL];
                    // What is not a number is not beyond. All are counted first, which takes no
                    // branches: mostly there is none.
                    let beyond = |(product, limit): (&f32, &f32)| own - factor * product > *limit;
                    if products.iter().zip(limits).filter(|pair| !beyond(*pair)).count() > 0 {
                        let near = products.iter().zip(limits).zip(query as u32..);
                        let near = near.filter(|(pair, _)| !beyond(*pair));
                        found.extend(near.map(|(_, query)| (query, first + row as u32)));
                    }
                });
                Ok(found)
            })
            .collect()
    }

    /// How large what is left of a distance may be without the query's own part, for a row to be one
    /// of its nearest; see [`Nearest::candidates`].
    fn limit(&self, list: &[Neighbour], square: f32) -> f32 {
        let Some(worst) = list.get(MANY - 1) else { return f32::INFINITY };
        let rank = worst.rank as f32;
        match self.metric {
            Metric::InnerProduct => rank + ROUNDING * (square + rank.abs()),
            // Of vectors of length one: |a - b|^2 = 2 - 2 <a, b>.
            Metric::Cosine => 2.0 * rank - square + ROUNDING * (square + 2.0 * rank),
            _ => rank - square + ROUNDING * (square + rank),
        }
    }

    fn offer_all(&mut self, first: usize, rows: &[f32], candidates: &[Vec<(u32, u32)>]) {
        let (metric, dims) = (self.metric, self.dims);
        for (nth, row) in candidates.iter().flatten() {
            courtesy::give_way();
            let (nth, row) = (*nth as usize, *row as usize);
            let (Some(list), Some(query)) =
                (self.lists.get_mut(nth), self.queries.chunks_exact(dims).nth(nth))
            else {
                // A place behind the last query, with a row that is not of numbers.
                continue;
            };
            let vector = &rows[row * dims..][..dims];
            if vector != query {
                offer(list, Neighbour { rank: metric.rank(query, vector), row: first + row });
            }
        }
    }

    /// Compares all rows with all queries.
    fn compare_all(
        &mut self,
        first: usize,
        rows: &[f32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let (metric, dims) = (self.metric, self.dims);
        let queries = self.queries.par_chunks(dims);
        queries.zip(&mut self.lists).try_for_each(|(query, list)| {
            courtesy::give_way();
            if stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            for (vector, row) in rows.chunks_exact(dims).zip(first..) {
                if vector != query {
                    offer(list, Neighbour { rank: metric.rank(query, vector), row });
                }
            }
            Ok(())
        })
    }
}

/// Puts a row in its place among those nearest to a query, unless enough are nearer.
fn offer(nearest: &mut Vec<Neighbour>, row: Neighbour) {
    let is_full = nearest.len() == MANY;
    let is_beyond = is_full && nearest.last().is_some_and(|worst| row.rank >= worst.rank);
    if is_beyond || row.rank.is_nan() {
        return;
    }
    let place = nearest.partition_point(|better| better.rank <= row.rank);
    nearest.truncate(MANY - 1);
    nearest.insert(place, row);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

    #[test]
    fn what_is_not_compared_is_not_among_the_nearest() {
        let mut rng = SmallRng::seed_from_u64(4);
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1] {
            for (dims, away) in [(1, 0.0), (3, 0.0), (20, 1000.0), (300, 0.0)] {
                let count = 1500;
                let mut rows: Vec<f32> =
                    (0..count * dims).map(|_| away + rng.random_range(-1.0..1.0)).collect();
                if metric == Metric::Cosine {
                    quant::normalize_rows(dims, &mut rows);
                }
                let mut nearest = Nearest::new(metric, dims, rows[..40 * dims].to_vec());
                let (early, late) = rows.split_at(700 * dims);
                nearest.observe(0, early, &STOP).unwrap();
                nearest.observe(700, late, &STOP).unwrap();
                for (query, list) in nearest.queries.chunks_exact(dims).zip(nearest.lists()) {
                    let rank = |row: usize| metric.rank(query, &rows[row * dims..][..dims]);
                    let is_other = |row: &usize| rows[row * dims..][..dims] != *query;
                    let mut ranks: Vec<f64> = (0..count).filter(is_other).map(rank).collect();
                    ranks.sort_unstable_by(f64::total_cmp);
                    let found: Vec<f64> = list.iter().map(|near| near.rank).collect();
                    assert_eq!(found, ranks[..MANY], "{metric:?}, {dims}");
                    assert!(list.iter().all(|near| rank(near.row) == near.rank));
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_near_to_nothing() {
        let mut rows: Vec<f32> = (0..300).map(|nth| nth as f32).collect();
        rows[7] = f32::NAN;
        rows[9] = f32::INFINITY;
        for metric in [Metric::L2, Metric::InnerProduct, Metric::L1] {
            let mut nearest = Nearest::new(metric, 1, vec![5.0, f32::NAN]);
            nearest.observe(0, &rows, &STOP).unwrap();
            let [list, none] = nearest.lists() else { panic!("two queries") };
            assert!(list.len() == MANY && list.iter().all(|near| near.row != 7));
            assert!(none.is_empty());
        }
    }

    #[test]
    fn a_raised_flag_ends_it() {
        let stop = AtomicBool::new(true);
        for metric in [Metric::L2, Metric::L1] {
            let mut nearest = Nearest::new(metric, 2, vec![0.0; 4]);
            assert_eq!(nearest.observe(0, &[1.0; 100], &stop), Err(Stopped));
        }
    }
}
