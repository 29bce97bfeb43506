//! The SQL type `vector`.
//!
//! A value is a varlena that holds single-precision components, every one of them finite:
//!
//! ```text
//!  byte  0         4         6         8        12                 8 + 4 * dim
//!        +---------+---------+---------+---------+-----   -----+---------+
//!        | varlena | dim     | unused  | x[0]    |     ...     | x[dim-1]|
//!        | header  | int16   | int16=0 | float4  |             | float4  |
//!        +---------+---------+---------+---------+-----   -----+---------+
//! ```
//!
//! Names, signatures, text and binary forms, messages and SQLSTATEs are those pgvector documents,
//! so that its clients work unchanged. `sql/vector.sql` declares all of it, in one place and one
//! order; the functions below are what it points at.
//!
//! | file | what it holds |
//! |---|---|
//! | [`datum`] | from a datum to a slice of components and back |
//! | [`array`](mod@array) | the arrays of SQL, read and written |
//! | [`text`], [`binary`], [`typmod`] | the two external forms and `vector(n)` |
//! | [`cast`] | to and from arrays |
//! | [`distance`], [`arithmetic`], [`compare`], [`aggregate`] | functions, operators, aggregates |
//! | [`error`](mod@error) | every error a user can meet |

mod aggregate;
mod arithmetic;
mod array;
mod binary;
mod cast;
mod compare;
mod datum;
mod distance;
mod error;
mod text;
mod typmod;

#[cfg(feature = "pg_test")]
mod tests;

pub use datum::Detoasted;
pub use error::VectorError;

/// The most components a vector has.
pub const MAX_DIM: usize = 16_000;

// First of all SQL, for whatever else the extension declares may take or return the type.
pgrx::extension_sql_file!("../../sql/vector.sql", name = "vector", bootstrap);
