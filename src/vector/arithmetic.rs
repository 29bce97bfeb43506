//! Functions that make vectors of vectors, and what a vector tells of itself.

use std::slice;

use pgrx::{pg_extern, pg_sys};

use super::datum::{Detoasted, OwnedVector, RawDatum};
use super::error::{check_dim, check_same_dim, OrReport, VectorError};

#[pg_extern(sql = false)]
fn vector_dims(vector: Detoasted<'_>) -> i32 {
    vector.len() as i32
}

#[pg_extern(sql = false)]
fn vector_norm(vector: Detoasted<'_>) -> f64 {
    norm(&vector)
}

/// The Euclidean length. Squares are added in double precision, so none overflows.
fn norm(vector: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    // Eight sums that do not wait for one another.
    let (blocks, rest) = vector.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += square(x);
        }
    }
    let tail: f64 = rest.iter().map(|&x| square(x)).sum();
    (sums.iter().sum::<f64>() + tail).sqrt()
}

#[pg_extern(sql = false)]
fn l2_normalize(vector: Detoasted<'_>) -> OwnedVector {
    let mut result = OwnedVector::zeroed(vector.len()).or_report();
    normalize(&vector, result.as_mut_slice()).or_report();
    result
}

/// Scales to length 1; a vector of length 0 stays as it is.
fn normalize(vector: &[f32], result: &mut [f32]) -> Result<(), VectorError> {
    let norm = norm(vector);
    if norm > 0.0 {
        for (r, &x) in result.iter_mut().zip(vector) {
            *r = finite((f64::from(x) / norm) as f32)?;
        }
    }
    Ok(())
}

#[pg_extern(sql = false)]
fn vector_add(a: Detoasted<'_>, b: Detoasted<'_>) -> OwnedVector {
    zip(&a, &b, |x, y| finite(x + y))
}

#[pg_extern(sql = false)]
fn vector_sub(a: Detoasted<'_>, b: Detoasted<'_>) -> OwnedVector {
    zip(&a, &b, |x, y| finite(x - y))
}

#[pg_extern(sql = false)]
fn vector_mul(a: Detoasted<'_>, b: Detoasted<'_>) -> OwnedVector {
    zip(&a, &b, product)
}

fn zip(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> Result<f32, VectorError>) -> OwnedVector {
    check_same_dim(a, b).or_report();
    let mut result = OwnedVector::zeroed(a.len()).or_report();
    for (r, (&x, &y)) in result.as_mut_slice().iter_mut().zip(a.iter().zip(b)) {
        *r = f(x, y).or_report();
    }
    result
}

fn finite(x: f32) -> Result<f32, VectorError> {
    if x.is_infinite() {
        Err(VectorError::Overflow)
    } else {
        Ok(x)
    }
}

fn product(x: f32, y: f32) -> Result<f32, VectorError> {
    let product = x * y;
    if product == 0.0 && x != 0.0 && y != 0.0 {
        return Err(VectorError::Underflow);
    }
    finite(product)
}

#[pg_extern(sql = false)]
fn vector_concat(a: Detoasted<'_>, b: Detoasted<'_>) -> OwnedVector {
    let mut result = OwnedVector::zeroed(a.len() + b.len()).or_report();
    let elements = a.iter().chain(b.iter());
    for (r, &x) in result.as_mut_slice().iter_mut().zip(elements) {
        *r = x;
    }
    result
}

#[pg_extern(sql = false)]
fn subvector(vector: Detoasted<'_>, start: i32, count: i32) -> OwnedVector {
    let part = part(&vector, start, count).or_report();
    OwnedVector::from_slice(part).or_report()
}

/// `count` components from the `start`-th on, counted from 1 as by `substring`: those of the
/// positions `start .. start + count` that exist.
fn part(vector: &[f32], start: i32, count: i32) -> Result<&[f32], VectorError> {
    let first = i64::from(start) - 1;
    let end = first + i64::from(count);
    let clip = |position: i64| position.clamp(0, vector.len() as i64) as usize;
    let part = vector.get(clip(first)..clip(end)).unwrap_or_default();
    check_dim(part.len())?;
    Ok(part)
}

/// One bit a component, set if it is positive, as a value of type `bit`.
#[pg_extern(sql = false)]
fn binary_quantize(vector: Detoasted<'_>) -> RawDatum {
    // Varlena header, int4 number of bits, bits from the highest of each byte down, padded with 0.
    const BITS: usize = 8;
    let size = BITS + vector.len().div_ceil(8);
    // SAFETY: palloc0 returns `size` zeroed bytes, or does not return; the fields lie within.
    unsafe {
        let bit: *mut pg_sys::varlena = pg_sys::palloc0(size).cast();
        pgrx::set_varsize_4b(bit, size as i32);
        bit.byte_add(pg_sys::VARHDRSZ).cast::<i32>().write(vector.len() as i32);
        let bytes = slice::from_raw_parts_mut(bit.cast::<u8>().add(BITS), size - BITS);
        positive_bits(&vector, bytes);
        RawDatum(pg_sys::Datum::from(bit))
    }
}

fn positive_bits(vector: &[f32], bytes: &mut [u8]) {
    for (byte, block) in bytes.iter_mut().zip(vector.chunks(8)) {
        for (i, &x) in block.iter().enumerate() {
            *byte |= u8::from(x > 0.0) << (7 - i);
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn norms() {
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
        assert_eq!(norm(&[0.0; 11]), 0.0);
        assert_eq!(norm(&[1.0; 81]), 9.0);
        assert_eq!(norm(&[3e37, 4e37]) as f32, 5e37);
    }

    #[test]
    fn normalized() {
        let mut result = [0.0; 2];
        assert_eq!(normalize(&[3.0, 4.0], &mut result), Ok(()));
        assert_eq!(result, [0.6, 0.8]);
        let mut zero = [0.0; 2];
        assert_eq!(normalize(&[0.0, 0.0], &mut zero), Ok(()));
        assert_eq!(zero, [0.0, 0.0]);
        let mut one = [0.0];
        assert_eq!(normalize(&[3e38], &mut one), Ok(()));
        assert_eq!(one, [1.0]);
        assert_eq!(normalize(&[f32::from_bits(1)], &mut one), Ok(()));
        assert_eq!(one, [1.0]);
    }

    #[test]
    fn products() {
        assert_eq!(product(2.0, -3.0), Ok(-6.0));
        assert_eq!(product(0.0, 1e38), Ok(0.0));
        assert_eq!(product(1e-38, 0.0), Ok(0.0));
        assert_eq!(product(1e37, 1e37), Err(VectorError::Overflow));
        assert_eq!(product(1e-37, -1e-37), Err(VectorError::Underflow));
        // Below the normal range, but not zero.
        assert!(product(1e-20, 1e-20).is_ok_and(|p| p.is_subnormal()));
    }

    #[test]
    fn parts() {
        let v = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(part(&v, 1, 3), Ok(&v[..3]));
        assert_eq!(part(&v, 3, 2), Ok(&v[2..4]));
        assert_eq!(part(&v, 5, 1), Ok(&v[4..]));
        assert_eq!(part(&v, -1, 3), Ok(&v[..1]));
        assert_eq!(part(&v, 3, 9), Ok(&v[2..]));
        assert_eq!(part(&v, 3, i32::MAX), Ok(&v[2..]));
        assert_eq!(part(&v, -2_147_483_644, i32::MAX), Ok(&v[..2]));
        for (start, count) in
            [(1, 0), (3, -1), (-1, 2), (6, 1), (i32::MAX, 10), (i32::MAX, i32::MAX), (i32::MIN, 5)]
        {
            assert_eq!(part(&v, start, count), Err(VectorError::NoDimensions), "{start} {count}");
        }
        assert_eq!(part(&v, i32::MIN, i32::MIN), Err(VectorError::NoDimensions));
    }

    #[test]
    fn bits_of_the_last_byte_are_padded() {
        let mut bytes = [0; 2];
        positive_bits(&[1.0, 0.0, -1.0, -0.0, 0.1, 1.0, 1.0, 1.0, -1.0, 1.0], &mut bytes);
        assert_eq!(bytes, [0b1000_1111, 0b0100_0000]);
    }
}
