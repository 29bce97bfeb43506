//! The four distances, as the SQL operators define them.

use crate::simd::kernels;

/// A distance between two vectors of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Metric {
    /// `<->`, Euclidean distance.
    L2 = 1,
    /// `<#>`, the inner product with its sign turned.
    InnerProduct = 2,
    /// `<=>`, one minus the cosine of the angle.
    Cosine = 3,
    /// `<+>`, the sum of absolute differences.
    L1 = 4,
}

impl Metric {
    /// Reads the code a metric has on disk.
    pub fn from_code(code: u8) -> Option<Metric> {
        match code {
            1 => Some(Metric::L2),
            2 => Some(Metric::InnerProduct),
            3 => Some(Metric::Cosine),
            4 => Some(Metric::L1),
            _ => None,
        }
    }

    /// A number that sorts pairs of vectors as the SQL operator does: the squared distance for
    /// [`Metric::L2`], the operator's own value for the others.
    ///
    /// It is computed by the operators' kernels in the operators' precision, so two rows compare
    /// here exactly as they compare in a sequential scan. Not a number when a cosine is taken of a
    /// zero vector, or when components overflow.
    pub fn rank(self, a: &[f32], b: &[f32]) -> f64 {
        let k = kernels();
        match self {
            Metric::L2 => f64::from((k.l2_squared)(a, b)),
            Metric::InnerProduct => -f64::from((k.inner_product)(a, b)),
            Metric::Cosine => cosine_distance(a, b),
            Metric::L1 => f64::from((k.l1)(a, b)),
        }
    }
}

/// One minus the cosine similarity, which is kept within -1 and 1.
pub fn cosine_distance(a: &[f32], b: &[f32]) -> f64 {
    let parts = (kernels().cosine)(a, b);
    let similarity =
        f64::from(parts.dot) / (f64::from(parts.norm_a) * f64::from(parts.norm_b)).sqrt();
    1.0 - similarity.clamp(-1.0, 1.0)
}
