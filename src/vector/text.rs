//! The text form: `[1,2.5,-3]`.

use std::ffi::{c_char, c_int, CStr};
use std::ptr;

use pgrx::{pg_extern, pg_sys};

use super::datum::{Detoasted, OwnedVector, RawDatum};
use super::error::{check_element, check_typmod, OrReport, VectorError};
use super::MAX_DIM;

/// The most bytes one component takes, the separator before it included.
const ELEMENT_LEN: usize = 16;

extern "C-unwind" {
    /// Of PostgreSQL's `common/shortest_dec.h`: writes at most 15 bytes and no terminator, returns
    /// how many. The form is that of `float4out`, whatever `extra_float_digits` says. It raises no
    /// error and keeps no state.
    fn float_to_shortest_decimal_bufn(f: f32, result: *mut c_char) -> c_int;
}

#[pg_extern(sql = false)]
fn vector_in(literal: &CStr, _element: pg_sys::Oid, typmod: i32) -> OwnedVector {
    let elements = parse(literal).or_report();
    check_typmod(typmod, elements.len()).or_report();
    OwnedVector::from_slice(&elements).or_report()
}

#[pg_extern(sql = false)]
fn vector_out(vector: Detoasted<'_>) -> RawDatum {
    // SAFETY: room is made for each component with its separator, the brackets and the final
    // zero; the first component has no separator.
    unsafe {
        let text: *mut c_char = pg_sys::palloc(vector.len() * ELEMENT_LEN + 3).cast();
        let mut end = text;
        let put = |end: &mut *mut c_char, byte: u8| {
            end.write(byte as c_char);
            *end = end.add(1);
        };
        put(&mut end, b'[');
        for (i, element) in vector.iter().enumerate() {
            if i > 0 {
                put(&mut end, b',');
            }
            end = end.add(float_to_shortest_decimal_bufn(*element, end) as usize);
        }
        put(&mut end, b']');
        put(&mut end, 0);
        RawDatum(pg_sys::Datum::from(text))
    }
}

/// Reads the text form. White space is allowed around brackets, components and commas.
///
/// # Errors
/// [`VectorError::Syntax`], [`VectorError::OutOfRange`], [`VectorError::NotANumber`],
/// [`VectorError::Infinite`], [`VectorError::NoDimensions`], [`VectorError::TooManyDimensions`].
fn parse(literal: &CStr) -> Result<Vec<f32>, VectorError> {
    let text = literal.to_bytes_with_nul();
    let syntax = |detail| VectorError::Syntax { literal: quoted(literal.to_bytes()), detail };

    let mut at = skip_space(text, 0);
    if byte(text, at) != b'[' {
        return Err(syntax(Some("Vector contents must start with \"[\".")));
    }
    at = skip_space(text, at + 1);
    if byte(text, at) == b']' {
        return Err(VectorError::NoDimensions);
    }

    let commas = text.iter().filter(|&&b| b == b',').count();
    let mut elements = Vec::with_capacity(commas.min(MAX_DIM - 1) + 1);
    loop {
        if elements.len() == MAX_DIM {
            return Err(VectorError::TooManyDimensions);
        }
        at = skip_space(text, at);
        let (element, end) = number(text, at)?.ok_or_else(|| syntax(None))?;
        elements.push(check_element(element)?);
        at = skip_space(text, end);
        match byte(text, at) {
            b',' => at += 1,
            b']' => break,
            _ => return Err(syntax(None)),
        }
    }

    at = skip_space(text, at + 1);
    if byte(text, at) != 0 {
        return Err(syntax(Some("Junk after closing right brace.")));
    }
    Ok(elements)
}

/// Reads the number that begins at `at`; returns it and where it ends, or None if none begins.
///
/// Accepts what `strtof` accepts, as float4 does. Almost all numbers are plain decimals and are
/// read by a faster parser; both round correctly.
#[inline]
fn number(text: &[u8], at: usize) -> Result<Option<(f32, usize)>, VectorError> {
    let rest = text.get(at..).unwrap_or_default();
    if let Ok((value, length)) = fast_float2::parse_partial::<f32, _>(rest) {
        let next = byte(rest, length);
        if value.is_finite() && (matches!(next, b',' | b']') || is_space(next)) {
            return Ok(Some((value, at + length)));
        }
    }
    number_of_any_form(text, at)
}

/// Reads a number that the faster parser has not, or not to its end.
#[cold]
fn number_of_any_form(text: &[u8], at: usize) -> Result<Option<(f32, usize)>, VectorError> {
    let rest = text.get(at..).unwrap_or_default();
    let Ok(tail) = CStr::from_bytes_until_nul(rest) else { return Ok(None) };
    let mut end: *mut c_char = ptr::null_mut();
    // SAFETY: `tail` ends with a zero; strtof sets `end` to a place within it.
    let (value, length) = unsafe {
        let value = libc::strtof(tail.as_ptr(), &mut end);
        (value, end.offset_from(tail.as_ptr()) as usize)
    };
    if length == 0 {
        return Ok(None);
    }
    let token = rest.get(..length).unwrap_or_default();
    let digits = token.iter().find(|b| !matches!(b, b'+' | b'-'));
    if value.is_infinite() && !matches!(digits, Some(b'i' | b'I')) {
        return Err(VectorError::OutOfRange(quoted(token)));
    }
    Ok(Some((value, at + length)))
}

/// Text for a message. In a database of another encoding, bytes that are not ASCII become `?`.
fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&b| if b.is_ascii() { char::from(b) } else { '?' }).collect(),
    }
}

/// The byte at `at`, zero at the end.
fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

/// Where the white space that may begin at `at` ends.
fn skip_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|&&b| is_space(b)).count()
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod unit {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};
    use std::ffi::CString;

    fn syntax(literal: &str, detail: Option<&'static str>) -> Result<Vec<f32>, VectorError> {
        Err(VectorError::Syntax { literal: literal.into(), detail })
    }

    #[test]
    fn plain_numbers() {
        assert_eq!(parse(c"[1,2.5,-3]"), Ok(vec![1.0, 2.5, -3.0]));
        assert_eq!(parse(c"[1.,.5,+2,1e3,1E-2]"), Ok(vec![1.0, 0.5, 2.0, 1000.0, 0.01]));
        assert_eq!(parse(c" \t[\n1 ,\r2\x0b,\x0c3 ] "), Ok(vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn numbers_only_strtof_reads() {
        assert_eq!(parse(c"[0x10,0x1p-1]"), Ok(vec![16.0, 0.5]));
        assert_eq!(parse(c"[nan]"), Err(VectorError::NotANumber));
        assert_eq!(parse(c"[-inf]"), Err(VectorError::Infinite));
        assert_eq!(parse(c"[+Infinity]"), Err(VectorError::Infinite));
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(parse(c"[3.4028235e38]"), Ok(vec![f32::MAX]));
        assert_eq!(parse(c"[1e-45]"), Ok(vec![f32::from_bits(1)]));
        let zeros = parse(c"[1e-46,-1e-46]").unwrap();
        assert_eq!(zeros.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), [0, 1 << 31]);
        assert_eq!(parse(c"[1, 4e38 ]"), Err(VectorError::OutOfRange("4e38".into())));
        assert_eq!(parse(c"[-4e38x]"), Err(VectorError::OutOfRange("-4e38".into())));
        assert_eq!(parse(c"[0x1p200]"), Err(VectorError::OutOfRange("0x1p200".into())));
    }

    #[test]
    fn rounds_once() {
        // A detour over double precision would round the first to 1 and the second to 1 + 2^-22.
        assert_eq!(parse(c"[1.00000005960464478]"), Ok(vec![f32::from_bits(0x3f80_0001)]));
        assert_eq!(parse(c"[1.00000017881393421]"), Ok(vec![f32::from_bits(0x3f80_0001)]));
    }

    #[test]
    fn any_decimal_is_what_strtof_makes_of_it() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..100_000 {
            let mut digits = |most: usize| -> String {
                let count = rng.random_range(0..=most);
                (0..count).map(|_| char::from(rng.random_range(b'0'..=b'9'))).collect()
            };
            let (whole, fraction) = (digits(12), digits(25));
            let sign = ["", "-", "+"][rng.random_range(0..3)];
            let exponent = match rng.random_range(-60..60) {
                small @ -48..36 => format!("e{small}"),
                _ => String::new(),
            };
            let number = CString::new(format!("{sign}{whole}.{fraction}{exponent}")).unwrap();
            let text = CString::new(format!("[{}]", number.to_str().unwrap())).unwrap();
            // SAFETY: the text ends with a zero, and nobody asks where the number ends.
            let float = unsafe { libc::strtof(number.as_ptr(), ptr::null_mut()) };
            match parse(&text) {
                Ok(read) => assert_eq!(read[0].to_bits(), float.to_bits(), "{number:?}"),
                Err(VectorError::OutOfRange(_)) => assert!(float.is_infinite(), "{number:?}"),
                Err(_) => assert!(whole.is_empty() && fraction.is_empty(), "{number:?}"),
            }
        }
    }

    #[test]
    fn not_a_vector() {
        let start = Some("Vector contents must start with \"[\".");
        let junk = Some("Junk after closing right brace.");
        for (literal, detail) in [
            ("", start),
            ("1,2", start),
            ("{1}", start),
            ("[", None),
            ("[ ", None),
            ("[,", None),
            ("[,]", None),
            ("[1,", None),
            ("[1,]", None),
            ("[1,2", None),
            ("[1a]", None),
            ("[1e]", None),
            ("[1 2]", None),
            ("[1-2]", None),
            ("[-]", None),
            ("[1,,3]", None),
            ("[1, ,3]", None),
            ("[hello]", None),
            ("[1]x", junk),
            ("[1] ]", junk),
        ] {
            let text = CString::new(literal).unwrap();
            assert_eq!(parse(&text), syntax(literal, detail), "{literal:?}");
        }
        assert_eq!(parse(c"[]"), Err(VectorError::NoDimensions));
        assert_eq!(parse(c"[ ]"), Err(VectorError::NoDimensions));
    }

    #[test]
    fn most_dimensions() {
        let text = |n: usize| CString::new(format!("[{}1]", "1,".repeat(n - 1))).unwrap();
        assert_eq!(parse(&text(MAX_DIM)).map(|v| v.len()), Ok(MAX_DIM));
        assert_eq!(parse(&text(MAX_DIM + 1)), Err(VectorError::TooManyDimensions));
    }

    #[test]
    fn other_encodings() {
        assert_eq!(quoted("[é]".as_bytes()), "[é]");
        assert_eq!(quoted(b"[\xe9]"), "[?]");
    }
}
