//! Two-stage search over segments, wherever their rows are.
//!
//! 1. The router orders the buckets ([`probe`]); as many are probed as the query's margin takes
//!    ([`effort`], [`margin`]), which a trial ([`trial`]) has found for the recall ([`calibration`]).
//!    For a query that turns out to be unlike the rows it is a greater one ([`strangeness`],
//!    [`reach`]).
//! 2. Stage 1 bounds the rank of every row of the probed buckets from its sign code, and that of
//!    the few which then look near from their int8 code ([`shortlist`], [`crate::quant`]).
//! 3. Stage 2 reads the vectors of those rows whose lower bound is below the best exact rank that
//!    has not been delivered yet ([`frontier`]), and [`Search::next`] delivers a row as soon as no
//!    bound left is below its rank.
//!
//! An exact search bounds every row from its int8 code: those bounds are certain.
//!
//! Nothing needs to know how many rows will be asked for: each further row costs the few vectors
//! whose bounds it passes, and the set of probed buckets widens ahead of what has been delivered.

mod calibration;
mod effort;
mod frontier;
mod margin;
mod probe;
mod query;
mod reach;
mod shortlist;
mod strangeness;
#[cfg(test)]
mod tests;
mod trial;

pub use calibration::{Calibration, Margins, Shares};
pub use effort::Effort;
pub use probe::ProbeOrder;
pub use query::{Bucket, Coded, Hit, Order, Params, Rows, Search, Source};
pub use reach::Strangers;
pub use trial::Trial;
