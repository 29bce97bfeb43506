//! The SQL type `vector`.
