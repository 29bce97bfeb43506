//! A proximity graph over f32 vectors in memory that several processes share.
//!
//! The graph is an HNSW (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
//! search using hierarchical navigable small world graphs", 2018) taken apart into two steps, so
//! that whoever adds a row need not wait for the graph:
//!
//! 1. [`Graph::put`] *publishes* a row, in constant time;
//! 2. [`Graph::link`] *links* the oldest rows that are not linked yet, some at a time, whenever
//!    somebody has the time.
//!
//! A search walks the graph over the linked rows ([`Graph::search`]) and looks at each row of the
//! unlinked tail: at its sign code ([`Graph::sign_bounds`]), at the int8 codes of those that may be
//! near then ([`Graph::bounds`]), and at the vectors of those that still may ([`Graph::rank_of`]);
//! or at once at all vectors ([`Graph::scan`]). Rows have codes from [`Graph::encode`] on: where
//! nobody searches, nobody need make any.
//!
//! ```text
//! a chunk: | vectors     | links     | upper    | labels   | factors  | codes         | u32 words
//!          | rows x dims | rows x 32 | rows x 2 | rows x 2 | rows x n | rows x stride |
//!
//!          | centre of sign codes | blocks of 32 rows                    |
//!          | rotated components   | codes, 32 add, 32 scale, 32 error    |
//! ```
//!
//! There are no pointers: rows are numbers, a row's chunk and place follow from its number, and a
//! link is a row number plus one, so that zeroed chunks are empty ones. Everything that is read
//! is checked against the bounds: memory that another process has spoilt is [`Corrupt`], never a
//! panic or a read elsewhere.
//!
//! # Levels
//!
//! Levels are not drawn by lot. Of each 16 neighbouring rows one, chosen by a hash, is on level 1
//! as well; of each 16 of those one is on level 2, and so on. It joins its level when the last
//! row of its group is linked. Which rows are on a level, where the search enters, and where upper
//! links stand (spread over the group's rows, which are all there) follow from numbers alone.
//!
//! # Who may do what at the same time
//!
//! Any number of searches, one that puts or encodes and one that links. Words that change while
//! others read are atomics; a vector never changes once its row is published.

mod level;
mod link;
mod region;
mod search;
mod signs;
#[cfg(test)]
mod tests;

pub use region::{Graph, Header, Region, Shape};
pub use search::{effort, Bounding, Hit, Scratch};
pub use signs::Signed;

use crate::simd::SIGN_BLOCK;

/// Neighbouring rows that get their codes together.
pub const CODED_BLOCK: u32 = SIGN_BLOCK as u32;

/// Links of a row on level 0, at most.
const BASE_LINKS: usize = 32;
/// Links of a row on each upper level, at most; also rows of a group.
const UPPER_LINKS: usize = 16;
/// Links a new row gets on each level; `M` of the paper.
const NEW_LINKS: usize = 16;
/// Candidates among which a new row's links are chosen; `efConstruction` of the paper.
const CONSTRUCTION_EFFORT: usize = 64;

/// The region holds what nobody here writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the graph's memory holds what no writer leaves")]
pub struct Corrupt;

/// A rank in total order: not a number goes last.
#[derive(Clone, Copy, Debug)]
struct Rank(f64);

impl Rank {
    fn new(rank: f64) -> Rank {
        if rank.is_nan() {
            Rank(f64::NAN)
        } else {
            Rank(rank + 0.0)
        }
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Rank) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Rank) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Rank) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}
