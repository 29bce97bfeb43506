//! drift_pg: a `vector` type and the `drift` index access method for PostgreSQL.
//!
//! The folders are layers; each knows only those above it in this list.
//!
//! | layer | what it knows |
//! |---|---|
//! | [`metric`], [`simd`] | the four distances; their kernels, one dispatch table chosen at load |
//! | `quant` | int8 codes of residuals and the bounds of their error |
//! | [`cluster`] | k-means and the router over its centroids |
//! | `arena` | mmapped files of codes, derived from pages |
//! | `search` | two-stage search, generic over where rows come from |
//! | `page` | every buffer, page and WAL record |
//! | `janitor` | jobs that rewrite segments: flush, merge, vacuum |
//! | `vector` | the SQL type |
//! | `am` | the access method, one file a callback |
//!
//! Those up to `search` are plain Rust and build without PostgreSQL
//! (`--no-default-features`).

pub mod cluster;
pub mod metric;
pub mod simd;

#[cfg(feature = "pg15")]
mod vector;

#[cfg(feature = "pg15")]
::pgrx::pg_module_magic!();
