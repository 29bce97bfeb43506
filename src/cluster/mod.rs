//! Clustering: k-means, the search for the nearest centroid, and the router that decides which
//! buckets a query looks into.
//!
//! Vectors come as row-major slices of `dim` components a row. The long loops run on the current
//! rayon pool, which is the caller's to install, and look at the caller's stop flag many times a
//! second. Results depend on the seed alone, not on the number of threads.

use crate::courtesy;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

pub mod assign;
mod best;
mod coded;
mod coding;
mod groups;
pub mod kmeans;
mod principal;
mod products;
mod router;
mod spill;
mod subspace;
mod training;
mod two_level;

pub use groups::Groups;
pub use products::{Points, Room as ProductRoom, BLOCK as PRODUCT_BLOCK, PANEL as PRODUCT_PANEL};
pub use router::{product_reach, Routed, Router};
pub use spill::NO_BUCKET;
pub use subspace::{project_rows, VectorSpace};
pub use training::{train, Trained};

/// The caller's stop flag went up before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// `count` of the row-major `rows`, which are as many at least, evenly taken.
fn evenly(rows: &[f32], dim: usize, count: usize) -> Vec<f32> {
    let all = rows.len() / dim;
    let row = |nth: usize| &rows[nth * all / count * dim..][..dim];
    let mut taken = Vec::with_capacity(count * dim);
    (0..count).for_each(|nth| taken.extend_from_slice(row(nth)));
    taken
}

/// Fails once the flag is up.
fn check(stop: &AtomicBool) -> Result<(), Stopped> {
    courtesy::give_way();
    if stop.load(Ordering::Relaxed) {
        Err(Stopped)
    } else {
        Ok(())
    }
}

/// The cell's value, made if there is none. Of two made at once, the first stays.
fn get_or_try_init<T, E>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}
