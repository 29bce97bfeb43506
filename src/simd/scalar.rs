//! The reference kernels, for any processor.

use super::{CosineParts, Kernels};

pub(super) static KERNELS: Kernels = Kernels { l2_squared, inner_product, l1, cosine };

fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

fn inner_product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn l1(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> CosineParts {
    CosineParts {
        dot: inner_product(a, b),
        norm_a: inner_product(a, a),
        norm_b: inner_product(b, b),
    }
}
