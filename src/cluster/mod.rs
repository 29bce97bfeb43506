//! Clustering: k-means over samples of rows, assignment of rows to centroids, and the router that
//! orders buckets for a query.
//!
//! Nothing here has threads of its own: work is spread over the rayon pool of the caller, and
//! results do not depend on how many threads that has.

use std::sync::atomic::{AtomicBool, Ordering};

pub mod assign;
mod groups;
pub mod kmeans;
mod router;

pub use router::Router;

/// The caller's stop flag became true before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

fn check(stop: &AtomicBool) -> Result<(), Stopped> {
    if stop.load(Ordering::Relaxed) {
        Err(Stopped)
    } else {
        Ok(())
    }
}
