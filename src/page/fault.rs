//! What a reader of pages may meet.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{function_name, PgLogLevel, PgSqlErrorCode};

/// Why pages could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This page has been given to something else since the reader took its view.
    Recycled(u32),
    /// The page holds what no version of this code writes.
    Damaged {
        /// The page.
        block: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The index was written by a later version.
    NewerFormat(u32),
}

/// The result of reading pages.
pub type Read<T> = Result<T, Fault>;

impl Fault {
    /// A page that cannot be what it should be.
    pub fn damaged(block: u32, what: &'static str) -> Fault {
        Fault::Damaged { block, what }
    }

    /// The same, as it is to a job: while one holds the lock, no page it may read is recycled.
    pub fn under_lock(self) -> Fault {
        match self {
            Fault::Recycled(block) => Fault::damaged(block, "owner"),
            fault => fault,
        }
    }

    /// Ends the statement with this fault as its error.
    pub fn raise(&self, index: &str) -> ! {
        let report = match self {
            Fault::Recycled(_) => ErrorReport::new(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                format!("index \"{index}\" changed faster than it could be read"),
                function_name!(),
            )
            .set_hint("Run the statement again."),
            Fault::Damaged { block, what } => ErrorReport::new(
                PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED,
                format!("index \"{index}\" contains a damaged page at block {block}"),
                function_name!(),
            )
            .set_detail(format!("The page's {what} is not valid."))
            .set_hint("Please REINDEX it."),
            Fault::NewerFormat(format) => ErrorReport::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("index \"{index}\" has format version {format}, which is newer than this version of drift_pg reads"),
                function_name!(),
            )
            .set_hint("Install the newer version of drift_pg, or REINDEX the index."),
        };
        report.report(PgLogLevel::ERROR);
        unreachable!("an error report does not return")
    }
}

/// Ends the statement if reading failed where nobody can start over.
pub trait OrRaise<T> {
    /// The value, or an error that names `index`.
    fn or_raise(self, index: super::Index) -> T;
}

impl<T> OrRaise<T> for Read<T> {
    fn or_raise(self, index: super::Index) -> T {
        match self {
            Ok(value) => value,
            Err(fault) => fault.raise(&index.name()),
        }
    }
}
