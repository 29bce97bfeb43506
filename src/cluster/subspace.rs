//! Components of many vectors in a learned space at once, as a blocked matrix product.

use super::assign::{PackedCentroids, Workspace};
use super::{check, Stopped};
use crate::courtesy;
use crate::metric::Metric;
use crate::quant::Projection;
use crate::simd::{TILE_COLS, TILE_ROWS};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::atomic::AtomicBool;

/// Rows one task works on.
const TASK: usize = 16 * TILE_ROWS;

/// A projection and its directions.
#[derive(Clone, Debug)]
pub struct VectorSpace {
    /// What becomes of a vector.
    pub projection: Projection,
    /// The directions of a learned space, row-major, as [`Projection::project`] takes them.
    pub basis: Vec<f32>,
}

impl VectorSpace {
    /// That of rows from which nothing was learned.
    pub fn plain(metric: Metric, dim: usize) -> VectorSpace {
        VectorSpace { projection: Projection::plain(metric, dim), basis: Vec::new() }
    }

    /// The components of row-major vectors, row-major.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn project_rows<'r>(
        &self,
        rows: &'r [f32],
        stop: &AtomicBool,
    ) -> Result<Cow<'r, [f32]>, Stopped> {
        let (projection, components) = (&self.projection, self.projection.components());
        if projection.is_learned() {
            return project_rows(projection, &self.basis, components, rows, stop).map(Cow::Owned);
        }
        if projection.coding().is_none() {
            return Ok(Cow::Borrowed(rows));
        }
        check(stop)?;
        let mut out = vec![0.0; rows.len() / projection.dim() * components];
        rows.par_chunks(projection.dim())
            .zip(out.par_chunks_mut(components))
            .with_min_len(TASK)
            .for_each(|(row, out)| {
                courtesy::give_way();
                projection.project(&[], row, out);
            });
        Ok(Cow::Owned(out))
    }
}

/// The first `components` components, at least those with a code, of row-major vectors in a learned
/// space.
///
/// # Errors
/// [`Stopped`] when the flag went up.
///
/// # Panics
/// When the projection was not learned, or the directions are not its own.
pub fn project_rows(
    projection: &Projection,
    basis: &[f32],
    components: usize,
    rows: &[f32],
    stop: &AtomicBool,
) -> Result<Vec<f32>, Stopped> {
    let dim = projection.dim();
    assert!(projection.is_learned() && components >= projection.lead(), "a learned space");
    let directions = &basis[..components * dim];
    let mut out = vec![0.0; rows.len() / dim * components];
    products(rows, dim, directions, components, &mut out, stop)?;
    out.par_chunks_mut(components).with_min_len(TASK).for_each(|row| {
        courtesy::give_way();
        projection.mix(row);
    });
    Ok(out)
}

/// Writes the inner product of each row with each of `count` directions to `out`, row-major.
pub(super) fn products(
    rows: &[f32],
    dim: usize,
    directions: &[f32],
    count: usize,
    out: &mut [f32],
    stop: &AtomicBool,
) -> Result<(), Stopped> {
    let layout: Vec<u32> = (0..count as u32).collect();
    let unshifted = vec![0.0; dim];
    let packed = PackedCentroids::with_layout(directions, &layout, unshifted.clone(), stop)?;
    rows.par_chunks(TASK * dim).zip(out.par_chunks_mut(TASK * count)).try_for_each_init(
        Workspace::default,
        |workspace, (rows, out)| {
            workspace.pack(rows.chunks_exact(dim), &unshifted);
            for panel in 0..packed.panels() {
                check(stop)?;
                let first = panel * TILE_COLS;
                let width = TILE_COLS.min(count - first);
                workspace.products(&packed, panel, rows.len() / dim, |row, products| {
                    out[row * count + first..][..width].copy_from_slice(&products[..width]);
                });
            }
            Ok(())
        },
    )
}
