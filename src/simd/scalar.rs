//! The reference kernels, for any processor.

use super::{CosineParts, Kernels};

pub(super) static KERNELS: Kernels =
    Kernels { l2_squared, inner_product, l1, cosine, dot_i8_rows, l1_i8 };

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

fn dot_i8_rows(query: &[i8], rows: &[i8], stride: usize, out: &mut [i32]) {
    for (row, out) in rows.chunks_exact(stride).zip(out) {
        *out = row.iter().zip(query).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
    }
}

fn l1_i8(query: &[f32], codes: &[i8], scale: f32) -> f32 {
    query.iter().zip(codes).map(|(x, &code)| (x - scale * f32::from(code)).abs()).sum()
}
