//! `avg`, whose state is a float8[] of the number of vectors and the sum of each component. `sum`
//! needs no more than `vector_add`.

use pgrx::{pg_extern, pg_sys};

use super::array::{new_array, SqlArray};
use super::datum::{Detoasted, OwnedVector, RawDatum};
use super::error::{check_dim, check_element, OrReport, VectorError};

/// The number of vectors and the sums of a state.
fn parts<'a>(array: &'a SqlArray, caller: &'static str) -> Result<(f64, &'a [f64]), VectorError> {
    match array.elements() {
        Some([count, sums @ ..]) if !array.has_null_bitmap() => Ok((*count, sums)),
        _ => Err(VectorError::StateArray(caller)),
    }
}

#[pg_extern(sql = false)]
fn vector_accum(
    fcinfo: pg_sys::FunctionCallInfo,
    state: RawDatum,
    vector: Detoasted<'_>,
) -> RawDatum {
    // SAFETY: the argument is declared float8[], and lives for the call.
    let mut array = unsafe { SqlArray::from_datum(state.0) };
    let (_, sums) = parts(&array, "vector_accum").or_report();
    let expected = sums.len();
    if expected != 0 && expected != vector.len() {
        VectorError::UnexpectedDimensions { expected, found: vector.len() }.report();
    }

    // SAFETY: `fcinfo` is that of this call; the transition function of an aggregate may change
    // the state it is given, which the aggregate alone holds.
    unsafe {
        let owned = pg_sys::AggCheckCallContext(fcinfo, std::ptr::null_mut()) != 0;
        if expected != 0 && owned && !array.is_copy() {
            if let Some(held) = array.elements_mut() {
                accumulate(held, &vector).or_report();
                return state;
            }
        }
    }
    let (count, sums) = parts(&array, "vector_accum").or_report();
    new_array(1 + vector.len(), |next: &mut [f64]| {
        begin(next, count, sums);
        accumulate(next, &vector)
    })
    .or_report()
}

/// Writes a state of so many sums that it can be added to; `sums` may still be empty.
fn begin(state: &mut [f64], count: f64, sums: &[f64]) {
    if let Some((first, rest)) = state.split_first_mut() {
        *first = count;
        if sums.len() == rest.len() {
            rest.copy_from_slice(sums);
        } else {
            // Adding to -0 keeps the sign of a zero, which adding to 0 does not.
            rest.fill(-0.0);
        }
    }
}

/// Adds a vector to a state of its length.
fn accumulate(state: &mut [f64], vector: &[f32]) -> Result<(), VectorError> {
    if let Some((count, sums)) = state.split_first_mut() {
        *count += 1.0;
        for (sum, &x) in sums.iter_mut().zip(vector) {
            *sum = finite(*sum + f64::from(x))?;
        }
    }
    Ok(())
}

#[pg_extern(sql = false)]
fn vector_combine(state1: RawDatum, state2: RawDatum) -> RawDatum {
    // SAFETY: the arguments are declared float8[], and live for the call.
    let (a, b) = unsafe { (SqlArray::from_datum(state1.0), SqlArray::from_datum(state2.0)) };
    let a = parts(&a, "vector_combine").or_report();
    let b = parts(&b, "vector_combine").or_report();
    let len = 1 + combined_len(a, b).or_report();
    new_array(len, |state: &mut [f64]| combine(a, b, state)).or_report()
}

/// The number of sums the combination of two states has.
fn combined_len(
    (n1, sums1): (f64, &[f64]),
    (n2, sums2): (f64, &[f64]),
) -> Result<usize, VectorError> {
    let len = if n1 == 0.0 { sums2.len() } else { sums1.len() };
    // Two workers that saw no row: still the empty state.
    if len == 0 && n1 == 0.0 && n2 == 0.0 {
        return Ok(0);
    }
    check_dim(len)?;
    if n1 != 0.0 && n2 != 0.0 && sums2.len() != len {
        return Err(VectorError::UnexpectedDimensions { expected: len, found: sums2.len() });
    }
    Ok(len)
}

/// Writes the combination of two states, either of which may be empty.
fn combine(
    (n1, sums1): (f64, &[f64]),
    (n2, sums2): (f64, &[f64]),
    state: &mut [f64],
) -> Result<(), VectorError> {
    let Some((count, sums)) = state.split_first_mut() else { return Ok(()) };
    *count = n1 + n2;
    if n1 == 0.0 {
        sums.copy_from_slice(sums2);
    } else if n2 == 0.0 {
        sums.copy_from_slice(sums1);
    } else {
        for (sum, (x, y)) in sums.iter_mut().zip(sums1.iter().zip(sums2)) {
            *sum = finite(x + y)?;
        }
    }
    Ok(())
}

#[pg_extern(sql = false)]
fn vector_avg(state: RawDatum) -> Option<OwnedVector> {
    // SAFETY: the argument is declared float8[], and lives for the call.
    let array = unsafe { SqlArray::from_datum(state.0) };
    let (count, sums) = parts(&array, "vector_avg").or_report();
    if count == 0.0 {
        return None;
    }
    let mut average = OwnedVector::zeroed(sums.len()).or_report();
    for (element, sum) in average.as_mut_slice().iter_mut().zip(sums) {
        *element = check_element((sum / count) as f32).or_report();
    }
    Some(average)
}

fn finite(x: f64) -> Result<f64, VectorError> {
    if x.is_infinite() {
        Err(VectorError::Overflow)
    } else {
        Ok(x)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn sums_in_double_precision() {
        let mut state = [0.0; 4];
        begin(&mut state, 0.0, &[]);
        accumulate(&mut state, &[3e38, 1.0, -0.0]).unwrap();
        assert_eq!(state[3].to_bits(), (-0.0_f64).to_bits());
        accumulate(&mut state, &[3e38, 2.0, 0.5]).unwrap();
        assert_eq!(state, [2.0, 2.0 * f64::from(3e38_f32), 3.0, 0.5]);
    }

    #[test]
    fn sums_overflow() {
        let mut state = [1.0, f64::MAX];
        assert_eq!(accumulate(&mut state, &[1.0]), Ok(()));
        let mut state = [1.0, f64::INFINITY];
        assert_eq!(accumulate(&mut state, &[1.0]), Err(VectorError::Overflow));
        let max = (1.0, &[f64::MAX][..]);
        assert_eq!(combine(max, max, &mut [0.0; 2]), Err(VectorError::Overflow));
    }

    #[test]
    fn states_combine() {
        let combined = |a: (f64, &[f64]), b: (f64, &[f64])| {
            let mut state = vec![0.0; 1 + combined_len(a, b)?];
            combine(a, b, &mut state)?;
            Ok(state)
        };
        assert_eq!(combined((1.0, &[2.0]), (3.0, &[4.0])), Ok(vec![4.0, 6.0]));
        assert_eq!(combined((0.0, &[]), (3.0, &[4.0])), Ok(vec![3.0, 4.0]));
        assert_eq!(combined((1.0, &[2.0]), (0.0, &[])), Ok(vec![1.0, 2.0]));
        assert_eq!(combined((0.0, &[]), (0.0, &[])), Ok(vec![0.0]));
        assert_eq!(
            combined((1.0, &[2.0]), (1.0, &[2.0, 3.0])),
            Err(VectorError::UnexpectedDimensions { expected: 1, found: 2 })
        );
        assert_eq!(combined((1.0, &[]), (1.0, &[])), Err(VectorError::NoDimensions));
        let long = vec![1.0; 16_001];
        assert_eq!(combined((0.0, &[]), (1.0, &long)), Err(VectorError::TooManyDimensions));
    }
}
