//! `vector(n)`.

use pgrx::{pg_extern, pg_sys};

use super::datum::{Detoasted, RawDatum};
use super::error::{check_typmod, OrReport, VectorError};
use super::MAX_DIM;

#[pg_extern(sql = false)]
fn vector_typmod_in(list: RawDatum) -> i32 {
    let mut count = 0;
    // SAFETY: the argument is declared cstring[]; the server checks shape and content and returns
    // `count` integers that live in the current memory context.
    let typmods = unsafe {
        let list = pg_sys::pg_detoast_datum(list.0.cast_mut_ptr());
        let typmods = pg_sys::ArrayGetIntegerTypmods(list.cast(), &mut count);
        std::slice::from_raw_parts(typmods, usize::try_from(count).unwrap_or(0))
    };
    encode(typmods).or_report()
}

fn encode(typmods: &[i32]) -> Result<i32, VectorError> {
    match *typmods {
        [..=0] => Err(VectorError::TypmodTooSmall),
        [n] if n as usize > MAX_DIM => Err(VectorError::TypmodTooLarge),
        [n] => Ok(n),
        _ => Err(VectorError::TypmodCount),
    }
}

/// The cast of `vector` to `vector(n)`. It hands on the very datum it is given: checking a length
/// is no reason to fetch a value from out of line and store it inline.
#[pg_extern(sql = false)]
fn vector_to_vector(value: RawDatum, typmod: i32, _explicit: bool) -> RawDatum {
    // SAFETY: the argument is declared `vector`, and lives for the call.
    let vector = unsafe { Detoasted::from_datum(value.0) };
    check_typmod(typmod, vector.len()).or_report();
    value
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn one_number_in_range() {
        assert_eq!(encode(&[1]), Ok(1));
        assert_eq!(encode(&[16_000]), Ok(16_000));
        assert_eq!(encode(&[0]), Err(VectorError::TypmodTooSmall));
        assert_eq!(encode(&[i32::MIN]), Err(VectorError::TypmodTooSmall));
        assert_eq!(encode(&[16_001]), Err(VectorError::TypmodTooLarge));
        assert_eq!(encode(&[]), Err(VectorError::TypmodCount));
        assert_eq!(encode(&[3, 2]), Err(VectorError::TypmodCount));
    }
}
