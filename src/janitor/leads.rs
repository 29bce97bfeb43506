//! What an assignment has found out about rows that their codes are made from as well.

use crate::arena::Leads;
use crate::quant::Projection;
use crate::simd::kernels;
use rayon::prelude::*;

/// Rows one thread works on at least.
const TASK: usize = 256;

/// The components with a code, and squared lengths, of a store's first rows; see [`Leads`].
#[derive(Default)]
pub struct KnownLeads {
    components: Vec<f32>,
    squares: Vec<f32>,
}

impl KnownLeads {
    /// Of none, with room for so many rows.
    pub fn with_room(projection: &Projection, rows: usize) -> KnownLeads {
        KnownLeads {
            components: Vec::with_capacity(rows * projection.lead()),
            squares: Vec::with_capacity(rows),
        }
    }

    /// How many rows they are of.
    pub fn rows(&self) -> usize {
        self.squares.len()
    }

    /// Adds the rows that come next, as they are compared, and their points in the space they are
    /// compared in. Works on the current rayon pool.
    pub fn push(&mut self, projection: &Projection, rows: &[f32], points: &[f32]) {
        let (dims, lead) = (projection.dim(), projection.lead());
        let first = self.squares.len();
        self.squares.resize(first + rows.len() / dims, 0.0);
        self.components.resize(self.squares.len() * lead, 0.0);
        let squares = self.squares[first..].par_iter_mut();
        let leads = self.components[first * lead..].par_chunks_mut(lead);
        let points = points.par_chunks(projection.components());
        rows.par_chunks(dims).zip(points).zip(leads.zip(squares)).with_min_len(TASK).for_each(
            |((row, point), (out, square))| {
                out.copy_from_slice(&point[..lead]);
                *square = (kernels().inner_product)(row, row);
            },
        );
    }

    /// The same where the rows of a segment have this order.
    pub fn ordered<'l>(&'l self, order: &'l [u32]) -> Leads<'l> {
        Leads { components: &self.components, squares: &self.squares, order }
    }
}
