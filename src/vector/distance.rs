//! Distances between two vectors.
//!
//! A sequential scan calls one of these for every row, so they are bare functions of the C calling
//! convention instead of `#[pg_extern]`s: they read both arguments in place and allocate nothing.
//! Their symbols begin with `drift_`, for the server loads libraries into one name space, where
//! pgvector's have the names of the SQL functions.

use std::f64::consts::PI;

use pgrx::{pg_guard, pg_sys};

use super::datum::{Detoasted, Vector};
use super::error::{check_same_dim, OrReport};
use crate::metric::{cosine_distance, Metric};
use crate::simd::kernels;

/// Applies `distance` to the two vectors of a call.
///
/// # Safety
/// `fcinfo` is a call of a STRICT function of two arguments of type `vector`.
#[inline(always)]
unsafe fn apply(
    fcinfo: pg_sys::FunctionCallInfo,
    distance: impl Fn(&[f32], &[f32]) -> f64,
) -> pg_sys::Datum {
    // SAFETY: the caller answers for the number and type of the arguments, which live for the
    // call; STRICT keeps nulls away.
    let distance = unsafe {
        let args = (*fcinfo).args.as_ptr();
        let (a, b) = ((*args).value, (*args.add(1)).value);
        match (Vector::in_place(a), Vector::in_place(b)) {
            (Some(a), Some(b)) if a.dim() == b.dim() => distance(a.as_slice(), b.as_slice()),
            _ => apply_to_copies(a, b, distance),
        }
    };
    pg_sys::Datum::from(distance.to_bits())
}

/// Does the same where a vector must be copied first, or an error be raised.
///
/// # Safety
/// `a` and `b` are datums of type `vector`, not null.
#[inline(never)]
unsafe fn apply_to_copies(
    a: pg_sys::Datum,
    b: pg_sys::Datum,
    distance: impl Fn(&[f32], &[f32]) -> f64,
) -> f64 {
    // SAFETY: as the caller promises; both live longer than this call.
    let (a, b) = unsafe { (Detoasted::from_datum(a), Detoasted::from_datum(b)) };
    check_same_dim(&a, &b).or_report();
    distance(&a, &b)
}

/// Exports a function of SQL for a distance between slices of one length.
macro_rules! export {
    ($($(#[$doc:meta])* $name:ident, $finfo:ident = $distance:expr;)*) => {$(
        $(#[$doc])*
        // SAFETY: the symbol's prefix is this library's own.
        #[unsafe(no_mangle)]
        #[pg_guard]
        pub unsafe extern "C-unwind" fn $name(
            fcinfo: pg_sys::FunctionCallInfo,
        ) -> pg_sys::Datum {
            // SAFETY: `sql/vector.sql` declares the function STRICT, of two vectors.
            unsafe { apply(fcinfo, $distance) }
        }

        // SAFETY: as above.
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C" fn $finfo() -> &'static pg_sys::Pg_finfo_record {
            &pg_sys::Pg_finfo_record { api_version: 1 }
        }
    )*};
}

export! {
    /// `<->`
    drift_l2_distance, pg_finfo_drift_l2_distance =
        |a, b| f64::from((kernels().l2_squared)(a, b)).sqrt();
    /// The square of `<->`.
    drift_l2_squared_distance, pg_finfo_drift_l2_squared_distance =
        |a, b| Metric::L2.rank(a, b);
    /// The inner product.
    drift_inner_product, pg_finfo_drift_inner_product =
        |a, b| f64::from((kernels().inner_product)(a, b));
    /// `<#>`
    drift_negative_inner_product, pg_finfo_drift_negative_inner_product =
        |a, b| Metric::InnerProduct.rank(a, b);
    /// `<=>`
    drift_cosine_distance, pg_finfo_drift_cosine_distance = cosine_distance;
    /// `<+>`
    drift_l1_distance, pg_finfo_drift_l1_distance = |a, b| Metric::L1.rank(a, b);
    /// The angle between two vectors of length 1, in half turns.
    drift_spherical_distance, pg_finfo_drift_spherical_distance = spherical_distance;
}

/// The angle between two vectors of length 1, as a part of half a turn.
fn spherical_distance(a: &[f32], b: &[f32]) -> f64 {
    f64::from((kernels().inner_product)(a, b)).clamp(-1.0, 1.0).acos() / PI
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn spherical_distance_stays_in_range() {
        assert_eq!(spherical_distance(&[1.0, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(spherical_distance(&[1.0, 0.0], &[0.0, 1.0]), 0.5);
        assert_eq!(spherical_distance(&[1.0, 0.0], &[-1.0, 0.0]), 1.0);
        // Longer than 1, as rounding makes unit vectors.
        assert_eq!(spherical_distance(&[1.001, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(spherical_distance(&[1.001, 0.0], &[-1.0, 0.0]), 1.0);
    }
}
