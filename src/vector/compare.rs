//! The order of vectors: by components, then by length, as that of arrays.

use std::cmp::Ordering;

use pgrx::pg_extern;

use super::datum::Detoasted;

fn compare(a: &[f32], b: &[f32]) -> Ordering {
    a.iter()
        .zip(b)
        .filter_map(|(x, y)| x.partial_cmp(y))
        .find(|order| order.is_ne())
        .unwrap_or_else(|| a.len().cmp(&b.len()))
}

#[pg_extern(sql = false)]
fn vector_cmp(a: Detoasted<'_>, b: Detoasted<'_>) -> i32 {
    compare(&a, &b) as i32
}

#[pg_extern(sql = false)]
fn vector_lt(a: Detoasted<'_>, b: Detoasted<'_>) -> bool {
    compare(&a, &b).is_lt()
}

#[pg_extern(sql = false)]
fn vector_le(a: Detoasted<'_>, b: Detoasted<'_>) -> bool {
    compare(&a, &b).is_le()
}

#[pg_extern(sql = false)]
fn vector_eq(a: Detoasted<'_>, b: Detoasted<'_>) -> bool {
    compare(&a, &b).is_eq()
}

#[pg_extern(sql = false)]
fn vector_ne(a: Detoasted<'_>, b: Detoasted<'_>) -> bool {
    compare(&a, &b).is_ne()
}

#[pg_extern(sql = false)]
fn vector_ge(a: Detoasted<'_>, b: Detoasted<'_>) -> bool {
    compare(&a, &b).is_ge()
}

#[pg_extern(sql = false)]
fn vector_gt(a: Detoasted<'_>, b: Detoasted<'_>) -> bool {
    compare(&a, &b).is_gt()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn components_come_before_length() {
        let ascending: [&[f32]; 6] =
            [&[-1.0, 9.0], &[0.0], &[1.0, 2.0], &[1.0, 2.0, 0.0], &[1.0, 2.0, 3.0], &[2.0]];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        assert_eq!(compare(&[0.0], &[-0.0]), Ordering::Equal);
    }
}
