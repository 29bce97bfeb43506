//! The indexed column: its dimensions, its distance, and which of its values are indexed.

use crate::metric::Metric;
use crate::page::Index;
use pgrx::{pg_sys, PgSqlErrorCode};

/// Components of the indexed column's vectors.
pub fn dimensions(index: Index) -> usize {
    // SAFETY: an index has at least one attribute; drift indexes have one.
    let typmod = unsafe { (*(*index.relation()).rd_att).attrs.as_slice(1)[0].atttypmod };
    match usize::try_from(typmod) {
        Ok(dims) if dims > 0 => dims,
        _ => {
            pgrx::pg_sys::panic::ErrorReport::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "column does not have dimensions",
                pgrx::function_name!(),
            )
            .set_hint(
                "Declare the column as vector(n), or index the expression (column::vector(n)).",
            )
            .report(pgrx::PgLogLevel::ERROR);
            unreachable!("an error report does not return")
        }
    }
}

/// The distance that the index's operator class stands for.
pub fn metric(index: Index) -> Metric {
    // SAFETY: the operator class's support function 1 takes nothing and returns an int4.
    let code = unsafe {
        let function = pg_sys::index_getprocid(index.relation(), 1, 1);
        pg_sys::OidFunctionCall0Coll(function, pg_sys::InvalidOid).value() as i32
    };
    match u8::try_from(code).ok().and_then(Metric::from_code) {
        Some(metric) => metric,
        None => {
            pgrx::ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
                format!("operator class of index \"{}\" names an unknown distance", index.name())
            );
        }
    }
}

/// Whether a row with this vector is found through the index: under cosine, a vector without a
/// direction is at no distance from anything.
pub fn is_indexed(metric: Metric, vector: &[f32]) -> bool {
    metric != Metric::Cosine || vector.iter().any(|component| *component != 0.0)
}
