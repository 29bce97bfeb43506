//! What an assignment has found out about rows that their codes are made from as well.

use super::rows::RowStore;
use crate::arena::Leads;
use crate::courtesy;
use crate::metric::Metric;
use crate::quant::Projection;
use rayon::prelude::*;
use std::mem::size_of;

/// Rows one thread works on at least.
const TASK: usize = 256;

/// The components with a code, and squared lengths, of a store's rows; see [`Leads`].
pub struct KnownLeads {
    components: Vec<f32>,
    squares: Vec<f32>,
}

impl KnownLeads {
    /// Whether those of all rows of a store fit in memory beside it: together they have three
    /// quarters of what a job may use. Otherwise codes are made from the vectors alone.
    pub fn fit(projection: &Projection, store: &RowStore) -> bool {
        let row = (projection.dim() + projection.lead() + 1) * size_of::<f32>();
        let most = store.budget() + store.budget() / 2;
        store.in_memory().is_some() && store.len().saturating_mul(row) <= most
    }

    /// None yet of so many rows.
    pub fn of(projection: &Projection, rows: usize) -> KnownLeads {
        KnownLeads {
            components: Vec::with_capacity(rows * projection.lead()),
            squares: Vec::with_capacity(rows),
        }
    }

    /// Adds the rows that come next, as they are stored and as they are compared, and their points
    /// in the space they are compared in. Works on the current rayon pool.
    pub fn push(
        &mut self,
        metric: Metric,
        projection: &Projection,
        stored: &[f32],
        rows: &[f32],
        points: &[f32],
    ) {
        let (dims, lead) = (projection.dim(), projection.lead());
        let first = self.squares.len();
        self.squares.resize(first + rows.len() / dims, 0.0);
        self.components.resize(self.squares.len() * lead, 0.0);
        let squares = self.squares[first..].par_iter_mut();
        let leads = self.components[first * lead..].par_chunks_mut(lead);
        let points = points.par_chunks(projection.components());
        stored
            .par_chunks(dims)
            .zip(rows.par_chunks(dims).zip(points))
            .zip(leads.zip(squares))
            .with_min_len(TASK)
            .for_each(|((stored, (row, point)), (lead_of, square_of))| {
                courtesy::give_way();
                lead_of.copy_from_slice(&point[..lead]);
                *square_of = Leads::square(metric, stored, row);
            });
    }

    /// The same with their vectors, where the rows of a segment have this order.
    pub fn ordered<'l>(&'l self, vectors: &'l [f32], order: &'l [u32]) -> Leads<'l> {
        Leads { vectors, components: &self.components, squares: &self.squares, order }
    }
}
