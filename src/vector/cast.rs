//! To and from arrays.

use std::convert::Infallible;

use pgrx::{direct_function_call, pg_extern, pg_sys};

use super::array::{new_array, SqlArray};
use super::datum::{Detoasted, OwnedVector, RawDatum};
use super::error::{check_dim, check_element, check_typmod, OrReport, VectorError};

/// Of int4[], float4[], float8[] and numeric[].
#[pg_extern(sql = false)]
fn array_to_vector(array: RawDatum, typmod: i32, _explicit: bool) -> OwnedVector {
    // SAFETY: the argument is declared an array, and lives for the call.
    let array = unsafe { SqlArray::from_datum(array.0) };
    convert(&array, typmod).or_report()
}

fn convert(array: &SqlArray, typmod: i32) -> Result<OwnedVector, VectorError> {
    if array.ndim() > 1 {
        return Err(VectorError::ArrayShape);
    }
    if array.contains_nulls() {
        return Err(VectorError::ArrayNulls);
    }
    check_dim(array.len())?;
    check_typmod(typmod, array.len())?;

    let mut vector = OwnedVector::zeroed(array.len())?;
    let to = vector.as_mut_slice();
    if let Some(from) = array.elements::<i32>() {
        fill(to, from.iter().map(|&x| x as f32))?;
    } else if let Some(from) = array.elements::<f32>() {
        fill(to, from.iter().copied())?;
    } else if let Some(from) = array.elements::<f64>() {
        fill(to, from.iter().map(|&x| x as f32))?;
    } else if array.element_type() == pg_sys::NUMERICOID {
        fill(to, array.numeric_elements().iter().map(|&x| numeric_to_f32(x)))?;
    } else {
        return Err(VectorError::ArrayType);
    }
    Ok(vector)
}

fn fill(to: &mut [f32], from: impl Iterator<Item = f32>) -> Result<(), VectorError> {
    for (element, value) in to.iter_mut().zip(from) {
        *element = check_element(value)?;
    }
    Ok(())
}

fn numeric_to_f32(numeric: pg_sys::Datum) -> f32 {
    // SAFETY: the datum is a numeric; the function returns a float4 or raises an error.
    let value = unsafe { direct_function_call::<f32>(pg_sys::numeric_float4, &[Some(numeric)]) };
    value.unwrap_or(f32::NAN)
}

#[pg_extern(sql = false)]
fn vector_to_float4(vector: Detoasted<'_>, _typmod: i32, _explicit: bool) -> RawDatum {
    let copy = |to: &mut [f32]| {
        to.copy_from_slice(&vector);
        Ok::<_, Infallible>(())
    };
    match new_array(vector.len(), copy) {
        Ok(array) => array,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_element_is_checked() {
        let mut to = [0.0; 3];
        assert_eq!(fill(&mut to, [1.0, 2.0, 3.0].into_iter()), Ok(()));
        assert_eq!(to, [1.0, 2.0, 3.0]);
        let overflow = [1.0, 2.0, 4e38_f64 as f32].into_iter();
        assert_eq!(fill(&mut to, overflow), Err(VectorError::Infinite));
        assert_eq!(fill(&mut to, [f32::NAN].into_iter()), Err(VectorError::NotANumber));
    }
}
