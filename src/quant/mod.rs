//! Codes of vectors, and bounds of what they lose: few bits a component first, eight for the few
//! rows that look near then.
//!
//! Both are made of a row's residual to the centroid of its bucket, under a random [`Rotation`]
//! that spreads it evenly over the components. [`sign`] has the bits, of the components that a
//! [`Projection`] picks, and bounds that hold with the wanted probability. The rest of this page is
//! about the other ones, whose bounds are certain.
//!
//! A row is kept as the code of its residual: one byte a component and three [`Factors`]. From
//! these and a query comes an [`Estimate`]: a value close to
//! [`Metric::rank`](crate::metric::Metric::rank) and a number it cannot be below. Rows whose bound
//! already exceeds the k-th best exact rank need not be fetched.
//!
//! ```text
//! row x  ->  r = x - c (f64)  ->  r̂ = scale * code      scale = max|r| / 127
//!                                 norm = |r̂|²           error = |r - r̂|
//! ```
//!
//! The bounds are the triangle and the Cauchy-Schwarz inequality, as in the VA-file (Weber, Schek
//! and Blott, VLDB 1998, section 4) with residuals for cells; [`BucketQuery::estimate`] has them
//! metric by metric. Nothing is trained: codes stay valid however the data drifts.

pub mod approximate;
mod projection;
mod rotation;
pub mod sign;
mod sq8;
#[cfg(test)]
mod tests;

pub use projection::{Projection, Subspace};
pub use rotation::Rotation;
pub(crate) use sq8::to_unit;
pub use sq8::{encode, BucketQuery, Query};

use bytemuck::{Pod, Zeroable};

/// The most dimensions a code may have: inner products of two codes then fit an `i32`.
pub const MAX_DIM: usize = 1 << 16;

/// What is kept of a row beside its codes.
///
/// Not finite in any part means that nothing is known of the row; [`encode`] writes
/// [`Factors::UNKNOWN`] then.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Factors {
    /// Step of the codes, in the vector's unit; the row's residual is about `scale * code`.
    pub scale: f32,
    /// Squared length of `scale * code`; zero under L1, which has no use for it.
    pub norm: f32,
    /// Length (under L1: sum of absolutes) of what the code misses of the residual, rounded up.
    pub error: f32,
}

const _: () = assert!(size_of::<Factors>() == 12 && align_of::<Factors>() == 4);

impl Factors {
    /// The factors of a row of which the codes say nothing.
    pub const UNKNOWN: Factors = Factors { scale: 0.0, norm: 0.0, error: f32::INFINITY };
}

/// What the codes say of a row's rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// An estimate of the rank.
    pub value: f32,
    /// A number the rank is not below.
    pub lower: f32,
}

impl Estimate {
    /// Nothing is known: the row has to be looked at.
    pub const UNKNOWN: Estimate = Estimate { value: f32::NEG_INFINITY, lower: f32::NEG_INFINITY };
}

/// Bytes from one row's codes to the next, for vectors of `dim` dimensions: `dim` rounded up to 64
/// from 64 on, to 16 below; the rest is zero.
///
/// From 64 on a row then begins on a cache line and is a whole number of the widest registers, so
/// no kernel has a tail. Below, rounding to 64 would cost a multiple of the row itself, and 16 is
/// still a whole register of every instruction set.
pub const fn stride(dim: usize) -> usize {
    dim.next_multiple_of(if dim >= 64 { 64 } else { 16 })
}

/// The confidence ([`BucketQuery::estimate`]) of bounds that a rank in `dim` dimensions is hardly
/// ever below: three standard deviations of what codes miss.
pub fn likely(dim: usize) -> f32 {
    const DEVIATIONS: f32 = 3.0;
    (DEVIATIONS / (dim.max(1) as f32).sqrt()).min(1.0)
}

/// Scales each of the row-major `rows` to length one, as [`normalize`] does.
pub fn normalize_rows(dim: usize, rows: &mut [f32]) {
    let mut unit = vec![0.0; dim];
    for row in rows.chunks_exact_mut(dim) {
        normalize(row, &mut unit);
        row.copy_from_slice(&unit);
    }
}

/// Scales `vector` to length one. Returns false, and leaves zeroes, when it has no direction: its
/// length is zero or not finite.
///
/// # Panics
/// When the slices differ in length.
pub fn normalize(vector: &[f32], unit: &mut [f32]) -> bool {
    assert_eq!(vector.len(), unit.len(), "dimensions");
    // Squares of f32 neither overflow nor underflow in f64.
    let length = sq8::sum(vector, vector, |x, y| f64::from(x) * f64::from(y)).sqrt();
    if !(length > 0.0 && length.is_finite()) {
        unit.fill(0.0);
        return false;
    }
    for (unit, &x) in unit.iter_mut().zip(vector) {
        *unit = (f64::from(x) / length) as f32;
    }
    true
}
