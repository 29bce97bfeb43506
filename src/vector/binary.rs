//! The binary form: int16 `dim`, int16 0, float4 components, all of them big-endian.

use std::slice;

use pgrx::{pg_extern, pg_sys};

use super::datum::{Detoasted, OwnedVector, RawDatum};
use super::error::{check_dim, check_element, check_typmod, OrReport, VectorError};

/// Bytes before the components.
const FIELDS: usize = 4;

#[pg_extern(sql = false)]
fn vector_recv(message: RawDatum, _element: pg_sys::Oid, typmod: i32) -> OwnedVector {
    // SAFETY: a receive function is given a StringInfo, by which nothing else goes meanwhile.
    let message = unsafe { &mut *message.0.cast_mut_ptr::<pg_sys::StringInfoData>() };
    receive(message, typmod).or_report()
}

fn receive(message: &mut pg_sys::StringInfoData, typmod: i32) -> Result<OwnedVector, VectorError> {
    let [d0, d1, u0, u1] = take(message, FIELDS)?.try_into().unwrap_or_default();
    let dim = usize::try_from(i16::from_be_bytes([d0, d1])).unwrap_or(0);
    check_dim(dim)?;
    check_typmod(typmod, dim)?;
    let unused = i16::from_be_bytes([u0, u1]);
    if unused != 0 {
        return Err(VectorError::Unused(unused));
    }
    let wire = take(message, 4 * dim)?;
    let mut vector = OwnedVector::zeroed(dim)?;
    read(wire, vector.as_mut_slice())?;
    Ok(vector)
}

/// The next `count` bytes of a message, which are then behind its cursor.
fn take(message: &mut pg_sys::StringInfoData, count: usize) -> Result<&[u8], VectorError> {
    let length = usize::try_from(message.len).unwrap_or(0);
    let cursor = usize::try_from(message.cursor).unwrap_or(length);
    if length.saturating_sub(cursor) < count {
        return Err(VectorError::Truncated);
    }
    message.cursor += count as i32;
    // SAFETY: the buffer holds `length` bytes, of which the taken ones are within.
    Ok(unsafe { slice::from_raw_parts(message.data.cast::<u8>().add(cursor), count) })
}

#[pg_extern(sql = false)]
fn vector_send(vector: Detoasted<'_>) -> RawDatum {
    let size = pg_sys::VARHDRSZ + FIELDS + 4 * vector.len();
    // SAFETY: palloc returns `size` bytes or does not return; all of them are written, those
    // behind the varlena header by `write`.
    unsafe {
        let bytea: *mut pg_sys::varlena = pg_sys::palloc0(size).cast();
        pgrx::set_varsize_4b(bytea, size as i32);
        let content = slice::from_raw_parts_mut(
            bytea.cast::<u8>().add(pg_sys::VARHDRSZ),
            size - pg_sys::VARHDRSZ,
        );
        write(&vector, content);
        RawDatum(pg_sys::Datum::from(bytea))
    }
}

fn read(wire: &[u8], elements: &mut [f32]) -> Result<(), VectorError> {
    let (words, _) = wire.as_chunks::<4>();
    for (element, word) in elements.iter_mut().zip(words) {
        *element = check_element(f32::from_be_bytes(*word))?;
    }
    Ok(())
}

fn write(elements: &[f32], wire: &mut [u8]) {
    let (words, _) = wire.as_chunks_mut::<4>();
    let Some((fields, words)) = words.split_first_mut() else { return };
    let [d0, d1] = (elements.len() as i16).to_be_bytes();
    *fields = [d0, d1, 0, 0];
    for (word, element) in words.iter_mut().zip(elements) {
        *word = element.to_be_bytes();
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn wire_bytes() {
        let mut wire = [0xff; 12];
        write(&[1.0, -2.5], &mut wire);
        assert_eq!(wire, [0, 2, 0, 0, 0x3f, 0x80, 0, 0, 0xc0, 0x20, 0, 0]);
        let mut elements = [0.0; 2];
        assert_eq!(read(&wire[4..], &mut elements), Ok(()));
        assert_eq!(elements, [1.0, -2.5]);
    }

    #[test]
    fn components_that_are_not_finite() {
        let mut element = [0.0];
        let nan = f32::NAN.to_be_bytes();
        assert_eq!(read(&nan, &mut element), Err(VectorError::NotANumber));
        let infinite = f32::NEG_INFINITY.to_be_bytes();
        assert_eq!(read(&infinite, &mut element), Err(VectorError::Infinite));
    }
}
