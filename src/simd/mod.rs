//! Distance kernels.
//!
//! Every caller goes through [`kernels`], a table chosen once for the processor at hand, so that
//! a distance has one value wherever it is computed: the SQL operators and the index's exact
//! stage agree to the last bit.

mod scalar;

/// What [`Kernels::cosine`] needs of a pair of vectors in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineParts {
    /// Inner product of the two vectors.
    pub dot: f32,
    /// Squared length of the first vector.
    pub norm_a: f32,
    /// Squared length of the second vector.
    pub norm_b: f32,
}

/// The kernels of one instruction set. Slices passed together have the same length.
pub struct Kernels {
    /// Squared Euclidean distance.
    pub l2_squared: fn(&[f32], &[f32]) -> f32,
    /// Inner product.
    pub inner_product: fn(&[f32], &[f32]) -> f32,
    /// Sum of absolute differences.
    pub l1: fn(&[f32], &[f32]) -> f32,
    /// Inner product and both squared lengths.
    pub cosine: fn(&[f32], &[f32]) -> CosineParts,
    /// Inner products of an int8 query with consecutive int8 rows, `stride` bytes apart, one into
    /// each element of the last argument. The query is `stride` long.
    pub dot_i8_rows: fn(&[i8], &[i8], usize, &mut [i32]),
    /// Sum of absolute differences between a query and `scale` times a row's int8 codes.
    pub l1_i8: fn(&[f32], &[i8], f32) -> f32,
}

/// The kernels for this processor.
pub fn kernels() -> &'static Kernels {
    &scalar::KERNELS
}
