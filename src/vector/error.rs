//! The errors of the type, with the words and SQLSTATEs clients know.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};
use thiserror::Error;

use super::MAX_DIM;

/// Why an operation on vectors cannot be done.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum VectorError {
    /// Two operands differ in length.
    #[error("different vector dimensions {0} and {1}")]
    DifferentDimensions(usize, usize),
    /// A value does not have the length its column, cast or aggregate demands.
    #[error("expected {expected} dimensions, not {found}")]
    UnexpectedDimensions {
        /// The length demanded.
        expected: usize,
        /// The length of the value.
        found: usize,
    },
    /// A vector without components.
    #[error("vector must have at least 1 dimension")]
    NoDimensions,
    /// More than [`MAX_DIM`] components.
    #[error("vector cannot have more than {MAX_DIM} dimensions")]
    TooManyDimensions,
    /// A component is not a number.
    #[error("NaN not allowed in vector")]
    NotANumber,
    /// A component is infinite.
    #[error("infinite value not allowed in vector")]
    Infinite,
    /// Text that is no vector.
    #[error("invalid input syntax for type vector: \"{literal}\"")]
    Syntax {
        /// The whole text.
        literal: String,
        /// What is wrong with it, where that can be said.
        detail: Option<&'static str>,
    },
    /// A number in the text does not fit single precision.
    #[error("\"{0}\" is out of range for type vector")]
    OutOfRange(String),
    /// A computed component is infinite.
    #[error("value out of range: overflow")]
    Overflow,
    /// A product of components that are not zero is zero.
    #[error("value out of range: underflow")]
    Underflow,
    /// `vector(a, b)`.
    #[error("invalid type modifier")]
    TypmodCount,
    /// `vector(0)`.
    #[error("dimensions for type vector must be at least 1")]
    TypmodTooSmall,
    /// `vector(16001)`.
    #[error("dimensions for type vector cannot exceed {MAX_DIM}")]
    TypmodTooLarge,
    /// The reserved field of the binary form is set.
    #[error("expected unused to be 0, not {0}")]
    Unused(i16),
    /// A binary form that ends too soon.
    #[error("insufficient data left in message")]
    Truncated,
    /// An array of more than one dimension.
    #[error("array must be 1-D")]
    ArrayShape,
    /// An array with a NULL in it.
    #[error("array must not contain nulls")]
    ArrayNulls,
    /// An array whose elements are no numbers.
    #[error("unsupported array type")]
    ArrayType,
    /// The named aggregate function was given something that is not its state.
    #[error("{0}: expected state array")]
    StateArray(&'static str),
    /// The header of a stored value contradicts its size.
    #[error("stored vector is corrupted")]
    Corrupted {
        /// The number of components the header announces.
        dim: i16,
        /// The bytes after the varlena header.
        bytes: usize,
    },
}

impl VectorError {
    fn sqlstate(&self) -> PgSqlErrorCode {
        use PgSqlErrorCode as Code;
        match self {
            Self::DifferentDimensions(..)
            | Self::UnexpectedDimensions { .. }
            | Self::NoDimensions
            | Self::NotANumber
            | Self::Infinite
            | Self::Unused(_)
            | Self::ArrayShape
            | Self::ArrayType => Code::ERRCODE_DATA_EXCEPTION,
            Self::TooManyDimensions => Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::Syntax { .. } => Code::ERRCODE_INVALID_TEXT_REPRESENTATION,
            Self::OutOfRange(_) | Self::Overflow | Self::Underflow => {
                Code::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE
            }
            Self::TypmodCount | Self::TypmodTooSmall | Self::TypmodTooLarge => {
                Code::ERRCODE_INVALID_PARAMETER_VALUE
            }
            Self::Truncated => Code::ERRCODE_PROTOCOL_VIOLATION,
            Self::ArrayNulls => Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::StateArray(_) => Code::ERRCODE_INTERNAL_ERROR,
            Self::Corrupted { .. } => Code::ERRCODE_DATA_CORRUPTED,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Syntax { detail, .. } => detail.map(String::from),
            Self::Corrupted { dim, bytes } => {
                Some(format!("Its header announces {dim} dimensions and {bytes} bytes follow."))
            }
            _ => None,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Corrupted { .. } => Some("Restore the row from a backup."),
            _ => None,
        }
    }

    /// Raises the error. Outside the backend's own thread this aborts the server.
    #[cold]
    #[track_caller]
    pub fn report(self) -> ! {
        let mut report =
            ErrorReport::new(self.sqlstate(), self.to_string(), pgrx::function_name!());
        if let Some(detail) = self.detail() {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint() {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }
}

/// Leaves the world of `Result` for that of `ereport`.
pub(super) trait OrReport<T> {
    /// The value, or no return.
    fn or_report(self) -> T;
}

impl<T> OrReport<T> for Result<T, VectorError> {
    #[inline]
    #[track_caller]
    fn or_report(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => error.report(),
        }
    }
}

/// Checks that a vector may have `dim` components.
#[inline]
pub(super) fn check_dim(dim: usize) -> Result<(), VectorError> {
    match dim {
        0 => Err(VectorError::NoDimensions),
        1..=MAX_DIM => Ok(()),
        _ => Err(VectorError::TooManyDimensions),
    }
}

/// Checks `dim` against a type modifier, which is -1 where the type has none.
#[inline]
pub(super) fn check_typmod(typmod: i32, dim: usize) -> Result<(), VectorError> {
    match usize::try_from(typmod) {
        Ok(expected) if expected != dim => {
            Err(VectorError::UnexpectedDimensions { expected, found: dim })
        }
        _ => Ok(()),
    }
}

/// Checks that two vectors can be combined component by component.
#[inline]
pub(super) fn check_same_dim(a: &[f32], b: &[f32]) -> Result<(), VectorError> {
    if a.len() == b.len() {
        Ok(())
    } else {
        Err(VectorError::DifferentDimensions(a.len(), b.len()))
    }
}

/// Checks that a component may be stored.
#[inline]
pub(super) fn check_element(value: f32) -> Result<f32, VectorError> {
    if value.is_finite() {
        Ok(value)
    } else if value.is_nan() {
        Err(VectorError::NotANumber)
    } else {
        Err(VectorError::Infinite)
    }
}
