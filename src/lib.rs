//! drift_pg: a `vector` type and the `drift` index access method for PostgreSQL.
//!
//! The folders are layers; each knows only those above it in this list.
//!
//! | layer | what it knows |
//! |---|---|
//! | [`allocator`], [`courtesy`] | where large blocks of memory come from; how long a thread's turn is |
//! | [`metric`], [`simd`] | the four distances; their kernels, one dispatch table chosen at load |
//! | [`quant`] | projection, rotation, short codes and int8 codes of residuals, and the bounds of their error |
//! | [`cluster`] | k-means, the router over its centroids, second buckets, groups of centroids |
//! | [`graph`] | an HNSW over f32 vectors in shared memory, with sign and int8 codes beside them |
//! | [`arena`] | mmapped files of codes, derived from pages |
//! | [`search`] | two-stage search, generic over where rows come from |
//! | `page` | every buffer, page and WAL record |
//! | `memtable` | rows of the log in shared memory |
//! | `janitor` | jobs that rewrite segments: flush, merge, vacuum; the background workers that do them |
//! | `vector` | the SQL type |
//! | `am` | the access method, one file a callback |
//!
//! Those up to [`search`] are plain Rust and build without PostgreSQL
//! (`--no-default-features`).

#![warn(missing_docs)]

pub mod allocator;
pub mod arena;
pub mod cluster;
pub mod courtesy;
pub mod graph;
pub mod metric;
pub mod quant;
pub mod search;
pub mod simd;

#[cfg(feature = "pg15")]
mod am;
#[cfg(feature = "pg15")]
mod janitor;
#[cfg(feature = "pg15")]
mod memtable;
#[cfg(feature = "pg15")]
mod page;
#[cfg(feature = "pg15")]
mod vector;

#[cfg(feature = "pg15")]
::pgrx::pg_module_magic!();

/// Called once when the library is loaded, by the server or by a backend.
#[cfg(feature = "pg15")]
#[::pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    hide_backtraces();
    // What the processor can do takes long to ask where it is a virtual one. Sessions of a server
    // that preloads the library have the answers from the start.
    simd::kernels();
    memtable::define_settings();
    janitor::background::initialize();
    am::define_settings();
    am::spare_junk();
    am::watch_statements();
    janitor::watch_drops();
}

/// Keeps Rust's backtraces out of the messages users see, whatever `RUST_BACKTRACE` the server was
/// started with; `RUST_LIB_BACKTRACE` still shows them to those who ask for it by that name.
#[cfg(feature = "pg15")]
fn hide_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the process has no other thread while it loads a library.
        unsafe { std::env::set_var(VARIABLE, "0") };
    }
}

/// What `cargo pgrx test` asks of a crate.
#[cfg(all(test, feature = "pg_test"))]
pub mod pg_test {
    /// Runs once, before the first test.
    pub fn setup(_options: Vec<&str>) {}

    /// Lines for the `postgresql.conf` of the server that runs the tests.
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'drift_pg'"]
    }
}
