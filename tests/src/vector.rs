//! Vectors on the wire: parameters and results of queries, and rows of `COPY ... BINARY`.

use std::error::Error;
use std::io::{self, Write};

use postgres::types::private::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type};

/// A value of the type `vector`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(pub Vec<f32>);

/// The binary form: dimensions, an unused zero, the elements; all big-endian.
pub(crate) fn encode(elements: &[f32], out: &mut Vec<u8>) -> io::Result<()> {
    let dimensions = i16::try_from(elements.len()).map_err(io::Error::other)?;
    out.extend(dimensions.to_be_bytes());
    out.extend([0, 0]);
    out.extend(elements.iter().flat_map(|element| element.to_be_bytes()));
    Ok(())
}

impl ToSql for Vector {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let mut bytes = Vec::with_capacity(4 + 4 * self.0.len());
        encode(&self.0, &mut bytes)?;
        out.extend_from_slice(&bytes);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        kind.name() == "vector"
    }

    postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Vector {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Vector, Box<dyn Error + Sync + Send>> {
        let ([high, low, 0, 0], elements) = bytes.split_first_chunk().ok_or("a short vector")?
        else {
            return Err("not a vector".into());
        };
        let dimensions = usize::from(u16::from_be_bytes([*high, *low]));
        let (elements, rest) = elements.as_chunks::<4>();
        if elements.len() != dimensions || !rest.is_empty() {
            return Err("a vector of another length than it says".into());
        }
        Ok(Vector(elements.iter().map(|bytes| f32::from_be_bytes(*bytes)).collect()))
    }

    fn accepts(kind: &Type) -> bool {
        kind.name() == "vector"
    }
}

/// A column of a row that is copied.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// `integer`
    Integer(i32),
    /// `text`
    Text(&'a str),
    /// `vector`
    Vector(&'a [f32]),
    /// NULL of any type.
    Null,
}

/// Writes rows in the form of `COPY ... FROM STDIN BINARY`.
pub struct BinaryCopy<W> {
    out: W,
    row: Vec<u8>,
}

impl<W: Write> BinaryCopy<W> {
    /// Begins; `out` is what `copy_in` has returned.
    ///
    /// # Errors
    /// As `out`.
    pub fn new(mut out: W) -> io::Result<BinaryCopy<W>> {
        out.write_all(b"PGCOPY\n\xff\r\n\0")?;
        out.write_all(&[0; 8])?;
        Ok(BinaryCopy { out, row: Vec::new() })
    }

    /// Writes a row.
    ///
    /// # Errors
    /// As `out`, and a value that is too long.
    pub fn row(&mut self, fields: &[Field]) -> io::Result<()> {
        self.row.clear();
        let count = i16::try_from(fields.len()).map_err(io::Error::other)?;
        self.row.extend(count.to_be_bytes());
        for field in fields {
            let start = self.row.len();
            self.row.extend((-1_i32).to_be_bytes());
            match field {
                Field::Integer(value) => self.row.extend(value.to_be_bytes()),
                Field::Text(text) => self.row.extend(text.as_bytes()),
                Field::Vector(elements) => encode(elements, &mut self.row)?,
                Field::Null => continue,
            }
            let length = i32::try_from(self.row.len() - start - 4).map_err(io::Error::other)?;
            self.row[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
        self.out.write_all(&self.row)
    }

    /// Writes the end, and returns what was written to: its own `finish` commits the rows.
    ///
    /// # Errors
    /// As `out`.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&(-1_i16).to_be_bytes())?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_from_their_binary_form() {
        let mut bytes = Vec::new();
        encode(&[1.0, -2.5], &mut bytes).unwrap();
        assert_eq!(bytes, [0, 2, 0, 0, 0x3f, 0x80, 0, 0, 0xc0, 0x20, 0, 0]);
        assert_eq!(Vector::from_sql(&Type::BYTEA, &bytes).unwrap(), Vector(vec![1.0, -2.5]));
        assert!(Vector::from_sql(&Type::BYTEA, &bytes[..11]).is_err());
        assert!(Vector::from_sql(&Type::BYTEA, &bytes[..3]).is_err());
    }

    #[test]
    fn a_row_counts_its_fields_and_their_bytes() {
        let mut copy = BinaryCopy::new(Vec::new()).unwrap();
        copy.row(&[Field::Integer(7), Field::Null, Field::Text("ab")]).unwrap();
        let bytes = copy.finish().unwrap();
        let expected = [
            &[0, 3, 0, 0, 0, 4, 0, 0, 0, 7][..],
            &[0xff; 4],
            &[0, 0, 0, 2, b'a', b'b'],
            &[0xff; 2],
        ];
        assert_eq!(bytes[19..], expected.concat());
    }
}
